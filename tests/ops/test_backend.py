from __future__ import annotations

import pytest
import torch

from tzn import ops


def test_reference_is_available_and_others_say_why_not():
    found = ops.backends()
    assert found["reference"] == "available"
    assert all(reason for reason in found.values())


def test_auto_and_reference_run(monkeypatch):
    for name in ("auto", "reference"):
        monkeypatch.setenv("TZN_BACKEND", name)
        assert ops.choose_backend() == "reference"


@pytest.mark.parametrize("name", ["fast", *(n for n, state in ops.backends().items() if state != "available")])
def test_an_unknown_or_missing_back_end_is_an_error_not_a_silent_fallback(monkeypatch, name):
    monkeypatch.setenv("TZN_BACKEND", name)
    with pytest.raises(ValueError, match=f"TZN_BACKEND = '{name}'"):
        ops.local_attention(*torch.randn(3, 1, 1, 4, 2), 3)
