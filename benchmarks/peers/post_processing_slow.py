"""From network outputs to detections as the published program goes: level by level, then suppression class by class."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.serial_nms import serial_soft_nms
from tzn.config import InferenceConfig
from tzn.models.actionformer import ActionFormerOutputs


def post_process(
    outputs: ActionFormerOutputs, strides: tuple[int, ...], config: InferenceConfig
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Segments in grid steps ``[N, 2]``, scores ``[N]`` and labels ``[N]`` of every recording."""
    recordings = range(outputs.masks[0].shape[0])
    return [suppressed(*candidates(outputs, strides, config, index), config) for index in recordings]


def candidates(
    outputs: ActionFormerOutputs, strides: tuple[int, ...], config: InferenceConfig, index: int
) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    levels = zip(outputs.class_logits, outputs.offsets, outputs.masks, strides, strict=True)
    for logits, offsets, mask, stride in levels:
        scores = (logits[index].sigmoid() * mask[index].unsqueeze(-1)).flatten()
        classes = logits.shape[-1]
        kept = (scores > config.pre_nms_thresh).nonzero(as_tuple=True)[0]
        count = min(config.pre_nms_topk, len(kept))
        score, order = scores[kept].sort(descending=True)
        score, chosen = score[:count], kept[order[:count]]
        point, label = chosen // classes, chosen % classes
        offset = offsets[index][point]
        segments = torch.stack([point - offset[:, 0], point + offset[:, 1]], dim=-1) * stride
        long = segments[:, 1] - segments[:, 0] > config.duration_thresh
        found.append((segments[long], score[long], label[long]))
    segments, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return segments, scores, labels


def suppressed(
    segments: Tensor, scores: Tensor, labels: Tensor, config: InferenceConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft-NMS of each class on its own, each cut to the limit; then all by score, cut again."""
    parts = []
    for label in labels.unique():
        chosen = labels == label
        kept, score = serial_soft_nms(
            segments[chosen], scores[chosen], config.iou_threshold, config.sigma, config.min_score
        )
        limit = min(len(score), config.segment_limit)
        parts.append((kept[:limit], score[:limit], label.expand(limit)))
    if not parts:
        return segments, scores, labels
    segments, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    order = scores.argsort(descending=True)[: config.segment_limit]
    return segments[order], scores[order], labels[order]
