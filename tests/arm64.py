"""Builds the compiled kernels for arm64 with a cross compiler and runs the op tests on them under qemu-user.

usage: python tests/arm64.py [--folder build/arm64] [PYTEST OPTION ...]

Debian's packages ``g++-aarch64-linux-gnu`` and ``qemu-user`` have to be there, and arm64 known to its package manager
(``dpkg --add-architecture arm64 && apt-get update``), from which Python for arm64 comes. What is downloaded stays in the
folder. PyTorch is the oldest that tzn supports, whose arm64 wheel is without CUDA. Emulated, importing PyTorch alone takes
20 seconds, so this is no part of ``make test``; machines of that kind run the whole suite (.github/workflows/wheels.yml). A
program, not a test: hence no ``test_`` in its name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = ("ops/test_nms.py", "ops/test_local_attention.py", "ops/test_variable_depth_block.py", "ops/test_depth.py",
         "ops/test_boundary_crossings.py", "ops/test_decode_segments.py", "ops/test_messy_decode.py")  # fmt: skip
TOOLS = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user", "dpkg-deb": "dpkg"}
PYTHON = "3.11"
DEBIAN = (
    f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", f"python{PYTHON}", "libc6", "libssl3",
    "libexpat1", "zlib1g", "libffi8", "libsqlite3-0", "libbz2-1.0", "liblzma5", "libncursesw6", "libtinfo6", "libreadline8",
    "libuuid1", "libgcc-s1", "libstdc++6", "libcrypt1",
)  # fmt: skip
WHEELS = (
    "torch==2.10.0", "numpy==2.2.6", "pydantic", "pyyaml", "annotated-types", "filelock", "tqdm", "safetensors", "pytest",
    "hypothesis", "scipy", "pandas", "networkx<3.6",
)  # fmt: skip


def run(*command: object, **options: object) -> None:
    subprocess.run([str(word) for word in command], check=True, **options)  # type: ignore[call-overload]


def root(folder: Path) -> Path:
    """Python and what it loads, unpacked."""
    found = folder / "root"
    if not (found / f"usr/bin/python{PYTHON}").exists():
        packages = folder / "debian"
        packages.mkdir(parents=True, exist_ok=True)
        run("apt-get", "download", "-q", *(f"{name}:arm64" for name in DEBIAN), cwd=packages)
        for package in packages.glob("*.deb"):
            run("dpkg-deb", "-x", package, found)
    return found


def site(folder: Path) -> Path:
    """PyTorch and the packages that the tests import."""
    found = folder / "site"
    if not (found / "torch").is_dir():
        platforms = [f"--platform=manylinux{suffix}_aarch64" for suffix in ("_2_28", "_2_17", "2014")]
        tags = ["--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none", f"--python-version={PYTHON}"]
        part = folder / "site.part"
        shutil.rmtree(part, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--target", part]
        run(*pip, *platforms, *tags, *WHEELS)
        part.rename(found)
    return found


def build(folder: Path, torch: Path) -> Path:
    """The library, from the same sources by the same program as for this machine."""
    cross = "aarch64-linux-gnu-g++"
    environment = {"CC": cross, "CXX": cross, "LDSHARED": f"{cross} -shared", "TZN_BUILD": "1", "TZN_TORCH": str(torch)}
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        folder / "lib",
        "--build-temp",
        folder / "temp",
    ]
    run(*command, cwd=HERE.parent, env=os.environ | environment)
    return next((folder / "lib" / "tzn").glob("_native*.so"))


def main(options: list[str]) -> int:
    folder = HERE.parent / "build" / "arm64"
    if options[:1] == ["--folder"]:
        folder, options = Path(options[1]).resolve(), options[2:]
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool) is None]:
        print(f"missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    python, packages = root(folder), site(folder)
    library = build(folder, packages / "torch")
    environment = {
        "QEMU_LD_PREFIX": str(python), "PYTHONPATH": f"{HERE.parent}:{packages}", "PYTHONDONTWRITEBYTECODE": "1",
        "TZN_NATIVE_LIBRARY": str(library), "TZN_REQUIRE_NATIVE": "1", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    command = [
        "qemu-aarch64",
        python / f"usr/bin/python{PYTHON}",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *options,
    ]
    if not any(option.endswith(".py") or "::" in option for option in options):
        command += [HERE / test for test in TESTS]
    return subprocess.run([str(word) for word in command], cwd=HERE.parent, env=os.environ | environment).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
