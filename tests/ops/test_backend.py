from __future__ import annotations

import pytest
import torch

from tzn import ops
from tzn.ops import _backend


def test_reference_is_available_and_others_say_why_not():
    found = ops.backends()
    assert found["reference"] == "available"
    assert all(reason for reason in found.values())


def test_auto_prefers_compiled_kernels_on_the_cpu_only(monkeypatch):
    monkeypatch.setenv("TZN_BACKEND", "auto")
    built = ops.backends()["cpp"] == "available"
    assert ops.choose_backend() == ("cpp" if built else "reference")
    assert ops.choose_backend("meta") == "reference"  # and the CPU never takes Triton's interpreter


def test_the_asked_back_end_is_taken(backend):
    assert ops.choose_backend() == backend


@pytest.mark.parametrize("name", ["fast", *(n for n, state in ops.backends().items() if state != "available")])
def test_an_unknown_or_missing_back_end_is_an_error_not_a_silent_fallback(monkeypatch, name):
    monkeypatch.setenv("TZN_BACKEND", name)
    with pytest.raises(ValueError, match=f"TZN_BACKEND = '{name}'"):
        ops.local_attention(*torch.randn(3, 1, 1, 4, 2), 3)


@pytest.mark.not_interpreted("of the compiled kernels")
def test_compiled_kernels_do_not_pretend_to_serve_other_devices(monkeypatch):
    monkeypatch.setenv("TZN_BACKEND", "cpp")
    with pytest.raises(ValueError, match="do not serve tensors on meta|not built"):
        ops.choose_backend("meta")


def test_without_a_library_the_ops_run_on_the_reference_and_say_why(monkeypatch, tmp_path):
    monkeypatch.setattr(_backend, "PACKAGE", tmp_path)
    monkeypatch.delenv("TZN_NATIVE_LIBRARY", raising=False)
    _backend.missing_native.cache_clear()
    try:
        monkeypatch.setenv("TZN_BACKEND", "auto")
        assert ops.choose_backend() == "reference"
        assert "not built" in ops.backends()["cpp"]
        (tmp_path / "_native.abi3.so").write_bytes(b"not a library")
        _backend.missing_native.cache_clear()
        assert "does not load" in ops.backends()["cpp"]
        assert ops.choose_backend() == "reference"
        monkeypatch.setenv("TZN_NATIVE_LIBRARY", str(tmp_path / "other.so"))
        _backend.missing_native.cache_clear()
        assert "other.so does not load" in ops.backends()["cpp"]
    finally:
        monkeypatch.undo()
        _backend.missing_native.cache_clear()
