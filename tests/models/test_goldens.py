"""Both networks against float64 outputs stored in the repository (tests/goldens/make.py), on the back end of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
sys.path.insert(0, str(GOLDENS))

from make import networks, outputs  # noqa: E402


@pytest.mark.parametrize("name", ["temporal_zoom_net", "actionformer"])
def test_outputs_equal_the_stored_ones(name):
    model, features = next((model, features) for kind, model, features in networks() if kind == name)
    with np.load(GOLDENS / "models.npz") as stored:
        expected = {
            key.split("/")[1]: torch.from_numpy(stored[key]) for key in stored.files if key.startswith(f"{name}/")
        }
    found = outputs(model, features)
    assert found.keys() == expected.keys() and len(found) > 3
    for key, value in found.items():
        assert value.std() > 1e-3 or value.numel() < 4 or "offset" in key, f"{key}: a constant says nothing"
        # Depth logits are float32 in every network: a last bit of theirs may differ between machines.
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)
