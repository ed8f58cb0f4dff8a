"""Pickles without their power: every name in the file leads to one of the inert stand-ins below or to an error.

Evaluation reads result tables and inference class scores from pickles, and neither imports the other.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from tzn.errors import DataError


def load_plain_pickle(path: Path) -> Any:
    """Content of a pickle that holds only numbers, text, containers and NumPy values; arrays come as :class:`PickledArray`.

    Raises:
        DataError: missing or damaged file, or anything else in it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return _PlainUnpickler(io.BytesIO(raw)).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged or hostile pickle can make the decoder raise anything
        raise DataError(f"{path}: not a pickle of plain values ({type(error).__name__}: {error})") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise DataError(f"refused to load {module}.{name}: only numbers, text, lists and NumPy arrays are accepted")
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("refused to load a reference to something outside the file")


class _StandIn:
    """Base of the stand-ins: none takes state unless it says so. Classes, because functions could be given attributes."""

    def __setstate__(self, state: Any) -> None:
        raise DataError("refused to load something that NumPy did not write")


class _Ndarray(_StandIn):
    """Stand-in for the name ``numpy.ndarray``, which arrays only mention."""

    def __init__(self, *_: Any) -> None:
        raise DataError("refused to load an array that NumPy did not write")


class _Dtype(_StandIn):
    """Stand-in for ``numpy.dtype``: plain numbers, text, or objects kept as a list."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"[biufSUO]\d{1,6}", code)):
            raise DataError(f"refused to load an array of type {code!r:.40}: only plain numbers and text are accepted")
        self.dtype = np.dtype(code[0] if code[0] == "O" else code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(_StandIn):
    """Stand-in for an array: ``value`` is the array, or a list where it holds objects."""

    value: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = _decoded(raw, dtype, shape, "F" if is_fortran else "C")


class _Buffer(PickledArray):
    """Stand-in for arrays of pickle protocol 5, which come whole."""

    def __init__(self, raw: Any, dtype: _Dtype, shape: Any, order: str) -> None:
        self.value = _decoded(raw, dtype, shape, order)


class _Scalar(_StandIn):
    """Stand-in for NumPy scalars, which become plain Python values."""

    def __new__(cls, dtype: _Dtype, raw: bytes) -> Any:
        return _decoded(raw, dtype, (1,), "C")[0].item()


class _Latin1(_StandIn):
    """Stand-in for ``codecs.encode``, with which pickle protocols 0 to 2 write bytes."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise DataError(f"refused to encode text as {encoding!r:.40}")
        return text.encode("latin1")


def _decoded(raw: Any, dtype: _Dtype, shape: Any, order: str) -> Any:
    if isinstance(raw, list) and dtype.dtype.kind == "O":
        return raw
    if dtype.dtype.kind == "O" or not isinstance(raw, (bytes, bytearray)):
        raise DataError("refused to load an array whose values are not plain bytes")
    return np.frombuffer(bytes(raw), dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Ndarray,
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Latin1,
}
