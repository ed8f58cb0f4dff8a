"""Pins what builds and checks a release: versions and hashes into .ci/build-requirements.txt.

usage: python .ci/pin_build.py      (for Linux x86-64 and this Python, which the release workflow uses too)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = ("build", "setuptools>=77", "wheel", "twine", "abi3audit")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
HEAD = f"# Made by 'python .ci/pin_build.py' (Python {PYTHON}, Linux x86-64): do not edit.\n"


def main() -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--report",
        "-",
        *TOOLS,
    ]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lines = [
        f"{item['metadata']['name']}=={item['metadata']['version']} "
        f"--hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}"
        for item in report["install"]
    ]
    path = HERE / "build-requirements.txt"
    path.write_text(HEAD + "\n".join(sorted(lines, key=str.lower)) + "\n")
    print(f"{len(lines)} packages in {path.name}")


if __name__ == "__main__":
    main()
