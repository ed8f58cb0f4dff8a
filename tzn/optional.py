"""Packages that only some users need. Below everything else, so that any module can ask for one."""

from __future__ import annotations

import importlib
from typing import Any

from tzn.errors import DataError


def require(module: str, what: str, extra: str, package: str | None = None) -> Any:
    """Import a module of an optional package.

    Args:
        module: dotted name.
        what: begins the error, such as "reading .edf files".
        extra: of ``pip install 'tzn[extra]'``.
        package: its name on PyPI where that is not the module's.

    Raises:
        DataError: not installed, or it does not import here (and why).
    """
    package = package or module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == module.split(".")[0]:
            raise DataError(f"{what} needs the package {package}: pip install 'tzn[{extra}]'") from None
        raise DataError(f"{what}: {package} needs {error.name}: pip install 'tzn[{extra}]'") from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{what}: the installed {package} does not import ({reason})") from None
