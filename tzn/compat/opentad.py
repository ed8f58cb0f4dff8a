"""OpenTAD's suppression with its signature and defaults, on the kernels of :mod:`tzn.ops`.

Change ``from opentad.models.utils.post_processing.nms.nms import batched_nms`` to
``from tzn.compat.opentad import batched_nms``; every ``nms=dict(...)`` of OpenTAD's configurations goes in as it is. What
differs from ActionFormer, whose rules ``tzn.ops.batched_nms`` has: voting weights a candidate by its score alone, not by
score times overlap; a fourth soft method; labels of any type. Here results stay on the device of the input, and of equal
scores the earlier candidate goes first.

Source of the rules: Liu et al., OpenTAD, 2025; of method 3: Lin et al., BMN, ICCV 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tzn import ops
from tzn.ops._checks import fail
from tzn.ops.nms import SOFT_METHODS
from tzn.reference.nms import EPS, vote_segments

# OpenTAD's numbers: 0 sets what overlaps to 0, 3 is Gaussian above a threshold that grows with the length of the pick.
METHODS = {0: "zero", 1: "linear", 2: "gaussian", 3: "adaptive gaussian"}


def batched_nms(
    segs: Tensor,
    scores: Tensor,
    cls_idxs: Tensor,
    iou_threshold: float = 0.0,
    min_score: float = 0.0,
    max_seg_num: int = 100,
    use_soft_nms: bool = True,
    multiclass: bool = True,
    sigma: float = 0.5,
    voting_thresh: float = 0.0,
    method: int = 2,
    t1: float = 0.0,
    t2: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress the candidates of one recording.

    Args:
        segs: ``[N, 2]`` (start, end) in any unit; scores: ``[N]``; cls_idxs: ``[N]`` of any type. Computed in float32.
        iou_threshold: of hard suppression and of methods 0 and 1.
        min_score: soft: decayed scores below are removed; hard: scores up to it are dropped first.
        max_seg_num: number of segments returned at most.
        multiclass: each class on its own, without voting; else all together.
        voting_thresh: if positive and not ``multiclass``, each kept segment becomes the mean of all candidates that overlap
            it by at least so much, weighted by their scores.
        method: of soft suppression, with overlap o: 0: score 0 where ``o >= iou_threshold``; 1: times ``1 - o`` there;
            2: times ``exp(-o^2 / sigma)`` everywhere; 3: that where ``o >= t1 + t2 * length`` of the picked segment.

    Returns:
        (segments ``[M, 2]`` float32, scores ``[M]`` float32, labels ``[M]`` of the type given), by falling score.

    Raises:
        ValueError: wrong shape, NaN scores, end < start, sigma <= 0, negative threshold, another method.
    """
    segs, scores = segs.float(), scores.float()
    if method not in METHODS:
        fail("method", method, f"one of {', '.join(map(str, METHODS))}")
    if segs.shape[0] == 0:
        return segs.reshape(0, 2), scores.reshape(0), cls_idxs.reshape(0)
    classes, index = cls_idxs.unique(return_inverse=True)
    # Checks the arguments for every method; the kernels have all kinds but two.
    known = METHODS[method] if METHODS[method] in SOFT_METHODS else "gaussian"
    kept, new_scores, labels = ops.batched_nms(
        segs, scores, index, iou_threshold, min_score, max_seg_num, use_soft_nms, multiclass, sigma, voting_thresh,
        method=known, vote_weight="score",
    )  # fmt: skip
    if use_soft_nms and METHODS[method] not in SOFT_METHODS:
        groups = (
            [(index == c).nonzero()[:, 0] for c in range(len(classes))] if multiclass else [torch.arange(len(index))]
        )
        settings = iou_threshold, sigma, min_score, method, max_seg_num, t1, t2
        found = [(g.to(segs.device), *_picks(segs[g], scores[g], *settings)) for g in groups]
        chosen = torch.cat([g[pick] for g, pick, _ in found])
        new_scores = torch.cat([score for _, _, score in found])
        order = new_scores.argsort(descending=True, stable=True)[: min(max_seg_num, len(new_scores))]
        kept, new_scores, labels = segs[chosen[order]], new_scores[order], index[chosen[order]]
        if voting_thresh > 0 and not multiclass:
            kept = vote_segments(kept, segs, scores, voting_thresh, weight="score")
    return kept, new_scores, classes[labels]


def soft_nms(
    segs: Tensor,
    scores: Tensor,
    cls_idxs: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    max_num: int,
    t1: float = 0.0,
    t2: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft suppression of one list of candidates, whose labels ride along: in place of OpenTAD's ``SoftNMSop.apply``.

    Args:
        max_num: stop after so many picks; 0: no cap. The others as in :func:`batched_nms`.

    Returns:
        (segments ``[M, 2]`` float32, decayed scores ``[M]`` float32, labels ``[M]``), by falling score.

    Raises:
        ValueError: as :func:`batched_nms`.
    """
    most = max_num if max_num > 0 else segs.shape[0]
    return batched_nms(
        segs,
        scores,
        cls_idxs,
        iou_threshold,
        min_score,
        most,
        multiclass=False,
        sigma=sigma,
        method=method,
        t1=t1,
        t2=t2,
    )


def nms(
    segs: Tensor, scores: Tensor, cls_idxs: Tensor, iou_threshold: float, min_score: float, max_num: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Hard suppression of one list of candidates, whose labels ride along: in place of OpenTAD's ``NMSop.apply``.

    Arguments, result and errors as for :func:`soft_nms`.
    """
    most = max_num if max_num > 0 else segs.shape[0]
    return batched_nms(segs, scores, cls_idxs, iou_threshold, min_score, most, use_soft_nms=False, multiclass=False)


def _picks(
    segs: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int, max_num: int,
    t1: float, t2: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Indices and scores of the picks of methods 0 and 3."""
    start, end = segs.unbind(1)
    length = end - start + EPS
    live, index, score = scores.clone(), [], []
    for _ in range(min(max_num, len(scores)) if max_num > 0 else len(scores)):
        best, i = live.max(0)
        if best == -torch.inf:
            break
        index.append(i)
        score.append(best)
        shared = (torch.minimum(end, end[i]) - torch.maximum(start, start[i])).clamp(min=0)
        overlap = shared / (length[i] + length - shared)
        if method == 0:
            decayed = torch.where(overlap >= iou_threshold, 0.0, live)
        else:
            decayed = torch.where(overlap >= t1 + t2 * length[i], live * torch.exp(-(overlap**2) / sigma), live)
        gone = (live == -torch.inf) | (decayed < min_score)
        live = decayed.masked_fill(gone, -torch.inf)
        live[i] = -torch.inf
    if not index:
        return torch.zeros(0, dtype=torch.long, device=segs.device), scores[:0]
    return torch.stack(index), torch.stack(score)
