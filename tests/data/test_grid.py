"""Steps and seconds: the centre rule, crops and resizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tzn.data.grid import TimeGrid


def test_step_is_centred_on_the_frames_it_sees():
    # THUMOS14 I3D: step i sees frames [4 i, 4 i + 16) at 30 fps, so its centre is frame 4 i + 8.
    grid = TimeGrid.from_frames(4, 16, 30)
    assert grid.to_seconds(0) == pytest.approx(8 / 30)
    assert grid.to_seconds(10) == pytest.approx(48 / 30)
    # ActionFormer: grid = seconds * fps / stride - 0.5 * num_frames / stride.
    assert grid.to_steps(12.5) == pytest.approx(12.5 * 30 / 4 - 0.5 * 16 / 4)


@pytest.mark.parametrize("kind", ["float", "array", "tensor"])
def test_seconds_to_steps_and_back(kind):
    seconds = {"float": 3.7, "array": np.array([[0.0, 3.7]]), "tensor": torch.tensor([0.0, 3.7], dtype=torch.float64)}[
        kind
    ]
    grid = TimeGrid.from_frames(5, 5, 50)
    back = grid.to_seconds(grid.to_steps(seconds))
    assert type(back) is type(seconds)
    np.testing.assert_allclose(np.asarray(back), np.asarray(seconds), atol=1e-12)


def test_crop_moves_step_zero():
    grid = TimeGrid.from_frames(5, 5, 50)
    assert grid.cropped(7).to_seconds(3) == pytest.approx(grid.to_seconds(10))


@pytest.mark.parametrize("new_length", [1, 3, 10, 25])
def test_resize_keeps_the_outer_edges(new_length):
    grid = TimeGrid.from_frames(4, 16, 30)
    moved = grid.resized(10, new_length)
    assert moved.to_seconds(-0.5) == pytest.approx(grid.to_seconds(-0.5))
    assert moved.to_seconds(new_length - 0.5) == pytest.approx(grid.to_seconds(9.5))
