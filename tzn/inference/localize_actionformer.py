"""Candidates of the ActionFormer baseline, with the original's decoding (docs/actionformer.md section 12.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn import ops
from tzn.config import InferenceConfig
from tzn.models.actionformer import ActionFormer
from tzn.nn.pyramid import flatten_levels, point_grid


def actionformer_candidates(
    model: ActionFormer, features: Tensor, config: InferenceConfig, topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments in grid steps ``[N, 2]``, scores ``[N]`` and labels ``[N]`` of one recording ``[T, input_dim]``.

    The recording is padded by one coarse step only, which gives the same valid outputs as the original's padding to a
    maximum length.
    """
    mask = torch.ones(1, features.shape[0], dtype=torch.bool, device=features.device)
    outputs = model(*model.padded(features.unsqueeze(0), mask))
    logits, valid = flatten_levels(outputs.class_logits, outputs.masks)
    offsets, _ = flatten_levels(outputs.offsets, outputs.masks)
    lengths = [level.shape[1] for level in outputs.masks]
    points = point_grid(lengths, model.config.strides, model.config.regression_range, features.device)
    scores = logits[0].float().sigmoid() * valid[0].unsqueeze(-1)
    chosen = ops.select_candidates(scores, points.level, min_score=config.pre_nms_thresh, topk=topk)
    position, stride = points.position[chosen.point], points.stride[chosen.point].unsqueeze(-1)
    offset = offsets[0, chosen.point].float() * stride
    segments = torch.stack([position - offset[:, 0], position + offset[:, 1]], dim=1)
    return segments, chosen.score, chosen.label
