"""Features in, detections out, without the host in between: fixed capacities, counts on the device, CUDA graphs.

The same candidates, refinement and suppression as :func:`tzn.inference.localize.localize`, for a whole batch at once. Heads
run at every point, because which points have candidates is known to the device only.
On CUDA devices it needs the Triton kernels and, for suppression, the compiled CUDA library.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tzn import ops
from tzn.config import InferenceConfig
from tzn.data.grid import TimeGrid
from tzn.detections import Detections
from tzn.inference.decode import decode, dial_of, find_crossings, in_seconds, limit_for, mode_for, rated, rescaled
from tzn.models import Localizer

WARM_UP = 3  # runs before a capture: kernels are compiled, libraries make their handles


class FixedDetections(NamedTuple):
    """Detections of B recordings by falling score, K places each; past ``count``: score -inf, label -1."""

    segments: Tensor  # [B, K, 2] grid steps
    std: Tensor | None  # [B, K, 2] of the candidates picked, in grid steps; None: the model knows none
    scores: Tensor  # [B, K]
    labels: Tensor  # [B, K] int64
    count: Tensor  # type: ignore[assignment]  # [B] int64

    def recording(self, row: int, grid: TimeGrid, duration: float) -> Detections:
        """One recording's detections in seconds, clipped to its ``duration``; waits for the device."""
        count = int(self.count[row])
        std = None if self.std is None else self.std[row, :count]
        segments, scores, labels = (x[row, :count] for x in (self.segments, self.scores, self.labels))
        return in_seconds(segments, scores, labels, std, grid, duration)


@torch.no_grad()
def detect(model: Localizer, features: Tensor, mask: Tensor, config: InferenceConfig) -> FixedDetections:
    """Detections of a batch.

    Args:
        model: in evaluation mode.
        features: ``[B, T, input_dim]``, padded at the end; mask: ``[B, T]`` bool, True = valid.
        config: as for ``localize``; ``chunk`` is ignored (one pass), mode "pair" is not supported.

    Raises:
        ValueError: mode "pair".
    """
    points = model.points(features, mask, budget=config.budget, depth_shift=dial_of(model, config))
    mode = mode_for(points, config)
    if mode == "pair":
        raise ValueError("inference.mode = 'pair': expected 'refine' or 'anchor' for inference of fixed capacity")
    steps, classes = features.shape[1], points.scores.shape[2]
    candidates = ops.select_candidates_padded(
        points.scores, points.grid.level, points.grid.sizes or len(model.config.strides), min_score=config.pre_nms_thresh,
        topk=limit_for(config.pre_nms_topk, steps),
    )  # fmt: skip
    pairs = candidates.point.unsqueeze(-1).expand(-1, -1, 2)
    offset, offset_std = (None if x is None else x.gather(1, pairs) for x in points.offsets())
    assert offset is not None
    crossings = None
    if mode == "refine":
        assert points.fields is not None
        crossings = find_crossings(*points.fields(), mask, config)
    position = points.grid.position[candidates.point]
    segments, std = decode(position, offset, offset_std, crossings, config)
    score, long = rated(segments, std, candidates.score, config)
    std = rescaled(std, offset_std, config)
    score = torch.where(long & (candidates.label >= 0), score, -torch.inf)
    picks = ops.nms_padded(
        segments, score, candidates.label, classes, limit_for(config.segment_limit, steps),
        method={"soft": "gaussian"}.get(config.nms, config.nms), multiclass=config.multiclass,
        iou_threshold=config.iou_threshold, sigma=config.sigma, min_score=config.min_score,
        voting_thresh=config.voting_thresh, vote_weight=config.vote_weight, per_class_voting=config.per_class_voting,
    )  # fmt: skip
    std = None if std is None else std.gather(1, picks.index.unsqueeze(-1).expand(-1, -1, 2))
    return FixedDetections(picks.segments, std, picks.score, picks.label, picks.num_kept)


class GraphedDetector:
    """:func:`detect` captured as one CUDA graph for one batch shape: no Python, no launches one by one.

    Args:
        model: on a CUDA device, in evaluation mode; its weights may change in place, but not their shapes.
        batch, steps: shape of every call; shorter recordings are padded and masked.
        config: fixed at capture.
        dtype: of the features.

    Raises:
        ValueError: the model is not on a CUDA device.
    """

    def __init__(
        self, model: Localizer, batch: int, steps: int, config: InferenceConfig, dtype: torch.dtype = torch.float32
    ) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise ValueError(f"model: got device {device}, expected a CUDA device")
        self.device = device
        with torch.cuda.device(device):
            self.features = torch.zeros(batch, steps, model.config.feature_dim, dtype=dtype, device=device)
            self.mask = torch.ones(batch, steps, dtype=torch.bool, device=device)
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    detect(model, self.features, self.mask, config)
            torch.cuda.current_stream(device).wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            # Without a stream of its own a capture takes one that all captures share, of the device of the first.
            with torch.cuda.graph(self.graph, stream=stream):
                self.detections = detect(model, self.features, self.mask, config)

    def __call__(self, features: Tensor, mask: Tensor | None = None) -> FixedDetections:
        """Detections; the same tensors every time, valid until the next call."""
        with torch.cuda.device(self.device):
            self.features.copy_(features, non_blocking=True)
            self.mask.fill_(True) if mask is None else self.mask.copy_(mask, non_blocking=True)
            self.graph.replay()
        return self.detections
