from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tzn.nn.assignment import assign_points


@pytest.mark.parametrize("radius", ["radius", "none"])
@pytest.mark.parametrize("variant", ["thumos_like", "anet_like", "ego4d_like", "conv_backbone"])
def test_labels_equal_the_goldens(goldens: Path, variant, radius):
    arrays = np.load(goldens / "full" / "model_tiny.npz")
    points = np.concatenate(
        [arrays[f"{variant}/padded/points{i}"] for i in range(8) if f"{variant}/padded/points{i}" in arrays]
    )
    position, low, high, stride = torch.from_numpy(points).T
    for b in range(3):
        if f"{variant}/train/segments{b}" not in arrays:
            continue
        segments = torch.from_numpy(arrays[f"{variant}/train/segments{b}"]).reshape(-1, 2)
        labels = torch.from_numpy(arrays[f"{variant}/train/labels{b}"]).long()
        wanted = arrays[f"{variant}/train/{radius}/gt_cls{b}"]
        found = assign_points(
            position, stride, torch.stack([low, high], 1), segments, labels, wanted.shape[1],
            center_radius=1.5 if radius == "radius" else None,
        )  # fmt: skip
        np.testing.assert_array_equal(found.classes.numpy(), wanted)
        positive, offsets = found.positive.numpy(), arrays[f"{variant}/train/{radius}/gt_off{b}"]
        np.testing.assert_allclose(found.offsets.numpy()[positive], offsets[positive], rtol=1e-6)


def test_the_shortest_segment_wins_and_equal_lengths_share():
    position, stride = torch.arange(20.0), torch.ones(20)
    ranges = torch.tensor([[0.0, 100.0]]).expand(20, 2)
    segments = torch.tensor([[2.0, 18.0], [8.0, 12.0], [8.0, 12.0005]])
    found = assign_points(position, stride, ranges, segments, torch.tensor([0, 1, 2]), 3, center_radius=None)
    assert found.classes[10].tolist() == [0, 1, 1]
    assert found.classes[5].tolist() == [1, 0, 0]
    assert found.offsets[10].tolist() == [2, 2]
    assert not found.positive[1] and not found.positive[2]  # strictly inside


def test_no_segments_are_all_negative():
    found = assign_points(
        torch.arange(4.0), torch.ones(4), torch.tensor([[0.0, 9.0]]).expand(4, 2), torch.zeros(0, 2),
        torch.zeros(0, dtype=torch.long), 2,
    )  # fmt: skip
    assert found.classes.sum() == 0 and not found.positive.any()
