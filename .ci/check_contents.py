"""What lies in the files of a release: nothing missing, nothing that does not belong.

usage: python .ci/check_contents.py dist
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ("tzn/py.typed", "tzn/configs/synthetic.yaml", "tzn/kernels/configs.json")


def main(folder: Path) -> int:
    (wheel,), (source,) = folder.glob("tzn-*.whl"), folder.glob("tzn-*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    with tarfile.open(source) as file:
        sources = {name.partition("/")[2] for name in file.getnames()}
    static = {str(path.relative_to(ROOT)) for path in (ROOT / "tzn/view/static").iterdir()}
    models = {str(path.relative_to(ROOT)) for path in (ROOT / "tzn/pretrained").iterdir()}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "tzn").rglob("*.py")}
    wanted = {*INSTALLED, *static, *models, *modules}
    problems = [f"{wheel.name}: {name} is missing" for name in sorted(wanted - names)]
    if not any(name.startswith("tzn/_native") for name in names):
        problems.append(f"{wheel.name}: no compiled kernels")
    foreign = {name.split("/")[0] for name in names} - {"tzn", *(n.split("/")[0] for n in names if ".dist-info/" in n)}
    problems += [f"{wheel.name}: {name} does not belong there" for name in sorted(foreign)]
    kernels = {
        str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".cu")
    }
    needed = {*wanted, *kernels, "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    problems += [f"{source.name}: {name} is missing" for name in sorted(needed - sources)]
    print(
        "\n".join(problems)
        or f"{wheel.name}: {len(names)} files; {source.name}: {len(sources)}; all there, nothing else"
    )
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
