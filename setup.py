"""Builds the compiled kernels where that is possible; without them tzn installs all the same and runs on its reference.

Environment: ``TZN_BUILD=0`` leaves the kernels out; ``TZN_BUILD=1`` makes a failed build an error (continuous
integration, wheels); ``TZN_SANITIZE=1`` builds with AddressSanitizer and UBSan; ``TZN_CUDA=1`` adds the CUDA library
(``csrc/cuda``), which needs nvcc; ``TZN_TORCH=FOLDER`` builds for the torch that lies there, of another machine
(``tests/arm64.py``).
The binary uses PyTorch's stable ABI and no symbol of Python's: one wheel for Python >= 3.10 and torch >= 2.10.
"""

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Every call into torch stays within what torch 2.10 has.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
OPTIMIZE = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
CUDA = os.environ.get("TZN_CUDA") == "1"
# What UBSan finds ends the process; its check of float-to-integer casts is not part of "undefined".
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
SANITIZE += ["-fno-omit-frame-pointer", "-DTZN_SANITIZE"]


class BuildKernels(build_ext):
    """Compiles side by side, and turns a failure into a recorded reason unless TZN_BUILD=1."""

    def run(self):
        in_place = self.inplace  # the base class switches it off while it builds
        self.facts = {"python": platform.python_version(), "kernels": []}
        super().run()
        folder = ROOT if in_place else Path(self.build_lib)
        (folder / "tzn").mkdir(parents=True, exist_ok=True)
        (folder / "tzn" / "_build.json").write_text(json.dumps(self.facts, indent=1) + "\n")

    def build_extensions(self):
        for extension in self.extensions:
            cuda = extension.name.endswith("_cuda")
            try:
                (self._build_cuda if cuda else self._build)(extension, self.facts)
            except Exception as error:  # a missing compiler, header or torch: all mean "no kernels here"
                if os.environ.get("TZN_BUILD") == "1":
                    raise
                reason = f"{type(error).__name__}: {error}".strip()[:500]
                self.facts["cuda_reason" if cuda else "reason"] = reason
                kind = "the compiled CUDA kernels" if cuda else "compiled kernels"
                print(f"tzn: installed without {kind} ({reason})", file=sys.stderr)

    def _build_cuda(self, extension, facts):
        target = Path(self.get_ext_fullpath(extension.name))
        facts["cuda"], facts["cuda_usage"] = _load(ROOT / extension.sources[0]).build(target, _torch()[0])
        facts["kernels"].append(extension.name)

    def _build(self, extension, facts):
        if os.environ.get("TZN_BUILD") == "0":
            raise RuntimeError("left out on request (TZN_BUILD=0)")
        torch_folder, facts["torch"] = _torch()
        compiler = self.compiler.compiler_so[0] if hasattr(self.compiler, "compiler_so") else "cl"
        facts["compiler"] = _first_line([compiler, "--version"])
        extension.include_dirs = [str(torch_folder / "include"), str(ROOT / "csrc" / "cpu")]
        extension.library_dirs = [str(torch_folder / "lib")]
        # A folder per compiler, torch and flags: what lies there is as good as new while no source is newer.
        flags = repr((facts["compiler"], facts["torch"], extension.extra_compile_args))
        objects = Path(self.build_temp) / extension.name / hashlib.sha256(flags.encode()).hexdigest()[:12]
        newest_header = max(os.path.getmtime(path) for path in [*extension.depends, __file__])

        def compile_one(source):
            files = self.compiler.object_filenames([source], output_dir=str(objects))
            if all(
                os.path.exists(f) and os.path.getmtime(f) > max(newest_header, os.path.getmtime(source)) for f in files
            ):
                return files
            made = self.compiler.compile(
                [source],
                output_dir=str(objects / "unfinished"),
                include_dirs=extension.include_dirs,
                extra_postargs=extension.extra_compile_args,
                depends=extension.depends,
            )
            for new, file in zip(made, files, strict=True):
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(new, file)
            return files

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            files = [file for result in pool.map(compile_one, extension.sources) for file in result]
        target = self.get_ext_fullpath(extension.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            files,
            target + ".part",
            library_dirs=extension.library_dirs,
            libraries=extension.libraries,
            extra_postargs=extension.extra_link_args,
            target_lang="c++",
        )
        os.replace(target + ".part", target)  # an interrupted build leaves the old library whole
        facts["kernels"].append(extension.name)

    def get_source_files(self):
        files = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file() and path.suffix != ".pyc")
        return [str(path.relative_to(ROOT)) for path in files]


def _torch():
    if folder := os.environ.get("TZN_TORCH"):
        found = _load(Path(folder) / "version.py")
        return Path(folder), found.__version__
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            "torch could not be imported while building: install torch first and use --no-build-isolation"
        ) from error
    return Path(torch.__file__).parent, torch.__version__


def _load(path):
    """A Python file of the source tree, which is on no path while pip builds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _first_line(command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def extensions():
    needed = os.environ.get("TZN_BUILD") == "1"
    flags = SANITIZE if os.environ.get("TZN_SANITIZE") == "1" else OPTIMIZE
    found = [
        Extension(
            "tzn._native",
            sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cpu").glob("*.cpp")),
            depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")),
            libraries=["torch", "torch_cpu"],
            extra_compile_args=["-std=c++20", "-fvisibility=hidden", "-Wall", *DEFINES, *flags],
            extra_link_args=[flag for flag in flags if flag.startswith("-fsanitize")] or ["-s"],
            language="c++",
            py_limited_api=True,
            optional=not needed,  # a library that was not built is not missed later
        )
    ]
    if CUDA:  # built by a program of its own, which finds the sources
        source = "csrc/cuda/build_cuda.py"
        found.append(Extension("tzn._native_cuda", [source], py_limited_api=True, optional=not needed))
    return found


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
    # A build number tells the file of the CUDA variant from the other's; the version is the same.
    options={"bdist_wheel": {"py_limited_api": "cp310", **({"build_number": "1cuda"} if CUDA else {})}},
)
