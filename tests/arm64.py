"""Builds the compiled kernels for arm64 with a cross compiler and runs the op tests on them under qemu-user.

usage: python tests/arm64.py [--folder build/arm64] [--definition] [--list] [NAME ...] [PYTEST OPTION ...]

A file of tests (``tests/ops/test_NAME.py``, by default all of ``TESTS``) is a process of its own with its own log
``FOLDER/logs/NAME.log``, since a crash or an hour too many is then one file's matter; ``FOLDER/logs/summary.txt`` has a line a
file as it ends. Tests of the definition (back end "reference") run none of the kernels and are left out; ``--definition`` runs
them instead.

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
import time
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
# What computes something by the kernels, the quickest first.
TESTS = (
    "goldens", "segment_iou", "signed_distance", "depth", "boundary_crossings", "backend", "public_surface", "nms",
    "local_attention", "variable_depth_block", "decode_segments", "threads", "messy_decode", "properties",
)  # fmt: skip
LEFT_OUT = {
    "fuzz": "starts Python, which an emulated process cannot",
    "dispatch": "torch.compile, which needs a compiler that runs on arm64",
    "library": "registration, which is the same on every CPU, and takes an hour of tracing",
}
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


def outcome(report: Path) -> str:
    """What pytest's XML report says: "22 passed, 1 failed (test_a)"; without one the process ended before its end."""
    if not report.is_file():
        return "ended before its end"
    suite = next(ElementTree.parse(report).iter("testsuite"))
    cases = list(suite.iter("testcase"))
    wrong = [x.get("name", "?") for x in cases if x.find("failure") is not None or x.find("error") is not None]
    skipped = sum(x.find("skipped") is not None for x in cases)
    words = [f"{len(cases) - len(wrong) - skipped} passed"]
    words += [f"{skipped} skipped"] if skipped else []
    words += [f"{len(wrong)} failed ({', '.join(wrong)})"] if wrong else []
    return ", ".join(words)


def main(options: list[str]) -> int:
    folder, mine = HERE.parent / "build" / "arm64", ["-k", "not reference"]
    if options[:1] == ["--folder"]:
        folder, options = Path(options[1]).resolve(), options[2:]
    if "--definition" in options:
        options.remove("--definition")
        mine = ["-k", "reference"]
    names = [word for word in options if word in TESTS + tuple(LEFT_OUT)]
    options = [word for word in options if word not in names and word != "--list"]
    for name, why in LEFT_OUT.items():
        print(f"left out: {name} ({why})" if name not in names else f"{name}: {why}", flush=True)
    if "--list" in sys.argv:
        print("\n".join(names or TESTS))
        return 0
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool) is None]:
        print(f"missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    python, packages = root(folder), site(folder)
    library = build(folder, packages / "torch")
    # One thread: those of an emulator wait for each other by turning round, which starves the one that works.
    environment = {
        "QEMU_LD_PREFIX": str(python), "PYTHONPATH": f"{HERE.parent}:{packages}", "PYTHONDONTWRITEBYTECODE": "1",
        "TZN_NATIVE_LIBRARY": str(library), "TZN_REQUIRE_NATIVE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
    }  # fmt: skip
    logs, red = folder / "logs", 0
    logs.mkdir(exist_ok=True)
    with open(logs / "summary.txt", "w") as summary:
        for name in names or TESTS:
            report = logs / f"{name}.xml"
            report.unlink(missing_ok=True)
            command = [
                "qemu-aarch64", python / f"usr/bin/python{PYTHON}", "-m", "pytest", "-v", "-p", "no:cacheprovider",
                f"--junitxml={report}", *mine, *options, HERE / "ops" / f"test_{name}.py",
            ]  # fmt: skip
            begin = time.monotonic()
            with open(logs / f"{name}.log", "w") as log:
                code = subprocess.run(
                    list(map(str, command)), cwd=HERE.parent, env=os.environ | environment, stdout=log, stderr=log
                ).returncode
            red += code not in (0, 5)  # 5: no test of that kind in the file
            line = f"{name}: {outcome(report)}, exit code {code}, {(time.monotonic() - begin) / 60:.0f} minutes"
            print(line, flush=True)
            print(line, file=summary, flush=True)
    return min(red, 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
