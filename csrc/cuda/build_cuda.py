"""Compiles csrc/cuda into one library and checks what each kernel takes; used by setup.py, or alone: ``make cuda``.

usage: python csrc/cuda/build_cuda.py [--out FOLDER]

Needs nvcc (PATH, or CUDA_HOME/bin) and torch's headers; no GPU and no CUDA build of torch. A kernel that spills registers
is an error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHITECTURES = (80, 90, 100)
METHODS = ("gaussian", "linear", "zero", "remove", "remove_distant")  # of csrc/suppression_rule.h
FLAGS = [
    "-std=c++20", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-cudart", "static", "-Xptxas", "-v",
    "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000",
]  # fmt: skip
COLUMNS = ("kernel", "architecture", "registers", "spilled_bytes", "stack_bytes", "shared_bytes")

Usage = dict[str, object]


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    beside = Path(home) / "bin" / "nvcc" if home else None
    return str(beside) if beside and beside.is_file() else shutil.which("nvcc")


def build(target: Path, torch_folder: Path) -> tuple[str, list[Usage]]:
    """Writes the library; returns nvcc's version and what each kernel takes.

    Raises:
        RuntimeError: no nvcc, an error of the compiler (its message), or a kernel that spills.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("nvcc was not found: install the CUDA toolkit, or set CUDA_HOME")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc, *FLAGS, *_targets(), f"-I{torch_folder / 'include'}", "-shared", "-o", str(part),
            *sorted(str(source) for source in HERE.glob("*.cu")), *_libraries(torch_folder / "lib", Path(folder)),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    usage = parse_usage(done.stdout + done.stderr)
    check_usage(usage)
    os.replace(part, target)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return next(line for line in version.splitlines() if "release" in line), usage


def _targets() -> list[str]:
    """Machine code for each architecture, and PTX of the newest for those that follow."""
    codes = [f"arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    codes.append(f"arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}")
    return [word for code in codes for word in ("-gencode", code)]


def _libraries(folder: Path, scratch: Path) -> list[str]:
    """What the library needs when loaded. torch of a CPU build has no libtorch_cuda.so: an empty one of that name stands in
    at link time, so that the entry is there and the symbols are found in the process that has the real one.
    """
    missing = [name for name in ("torch", "torch_cpu", "torch_cuda") if not (folder / f"lib{name}.so").exists()]
    for name in missing:
        empty = ["-shared", "-x", "c", os.devnull, f"-Wl,-soname,lib{name}.so", "-o", str(scratch / f"lib{name}.so")]
        subprocess.run([os.environ.get("CC", "gcc"), *empty], check=True)
    linked = ["-ltorch", "-ltorch_cpu", "-ltorch_cuda"]
    return [f"-L{folder}", f"-L{scratch}", "-Xlinker", "--no-as-needed", *linked, "-Xlinker", "-s"]


def parse_usage(report: str) -> list[Usage]:
    """One entry per kernel and architecture from the assembler's report (``-Xptxas -v``)."""
    usage = []
    for entry in re.split(r"Compiling entry function ", report)[1:]:
        name, architecture = re.match(r"'(\S+)' for '(\w+)'", entry).groups()  # type: ignore[union-attr]
        stack, stores, loads = (
            int(n)
            for n in re.search(  # type: ignore[union-attr]
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry
            ).groups()
        )
        registers = int(re.search(r"Used (\d+) registers", entry).group(1))  # type: ignore[union-attr]
        shared = re.search(r"(\d+) bytes smem", entry)
        usage.append(
            dict(
                zip(
                    COLUMNS,
                    (
                        readable(name),
                        architecture,
                        registers,
                        stores + loads,
                        stack,
                        int(shared.group(1)) if shared else 0,
                    ),
                    strict=True,
                )
            )
        )
    return sorted(usage, key=lambda row: (str(row["kernel"]), int(str(row["architecture"])[3:])))


def readable(mangled: str) -> str:
    """``suppress_groups<gaussian>`` of a mangled name."""
    found = re.search(r"(suppress_groups)_kernelILNS_6MethodE(\d)E", mangled)
    return f"{found.group(1)}<{METHODS[int(found.group(2))]}>" if found else mangled


def check_usage(usage: list[Usage]) -> None:
    if not usage:
        raise RuntimeError("the assembler reported no kernel: its report was not understood")
    spilled = [
        f"{row['kernel']} on {row['architecture']}" for row in usage if row["spilled_bytes"] or row["stack_bytes"]
    ]
    if spilled:
        raise RuntimeError(f"registers spill: {', '.join(spilled)}")


def table(usage: list[Usage]) -> str:
    lines = [
        "| kernel | architecture | registers | spilled bytes | stack bytes | static shared bytes |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + ["| " + " | ".join(str(row[c]) for c in COLUMNS) + " |" for row in usage])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("build/cuda"), help="folder of the library (default: %(default)s)"
    )
    arguments = parser.parse_args()
    import torch

    target = arguments.out / "_native_cuda.abi3.so"
    try:
        version, usage = build(target, Path(torch.__file__).parent)
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"{version}, torch {torch.__version__}: {target}, {target.stat().st_size / 1e3:.0f} KB\n{table(usage)}")


if __name__ == "__main__":
    main()
