"""Detections of a recording that is still going on: window by window, each detection once nothing can change it any more.

Beside :mod:`tzn.inference.localize`, whose points, candidates and crossings it uses, because that needs the end of the
recording: it ranks all candidates there. Here a candidate is settled where it lies.

What is final: the network's outputs at a step are once ``receptive_radius`` further steps are there. A candidate found at
a later step reaches back at most ``reach`` steps, so whatever ends before that overlaps nothing that can still come. Of
such candidates those that outrank every other they overlap are the next picks of the suppression, in whatever order it
goes elsewhere: they are final, and lower their neighbours for good. What outranks the rest then is final too, and so on.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from tzn.config import InferenceConfig
from tzn.data.grid import TimeGrid
from tzn.data.signal import is_number
from tzn.detections import Detections
from tzn.errors import ConfigError, DataError, LimitWarning
from tzn.inference.decode import decode, dial_of, find_crossings, in_seconds, mode_for, rated, rescaled
from tzn.inference.localize import WORTH_A_WARNING, Chunk, Selection, alone, select
from tzn.models import Localizer
from tzn.reference.nms import EPS

REACH_OF_COARSEST = 8  # the usual reach in strides of the coarsest level: its points find what is longer than two


@dataclasses.dataclass
class _Alive:
    """Decoded candidates that are not settled, in grid steps from the recording's start (float64) by order of arrival."""

    segments: Tensor  # [N, 2]
    std: Tensor | None  # [N, 2]
    scores: Tensor  # [N], lowered by the picks that are final
    labels: Tensor  # [N]

    def __getitem__(self, index: Tensor) -> _Alive:
        std = None if self.std is None else self.std[index]
        return _Alive(self.segments[index], std, self.scores[index], self.labels[index])


class StreamLocalizer:
    """Feature steps in, final detections out; memory does not grow with the recording.

    Args:
        model: in evaluation mode, with a finite receptive field.
        grid: maps grid steps to seconds.
        config: inference settings. ``max_segments`` does not apply: what ranks among the best of a recording is known at
            its end. ``pre_nms_topk`` holds for every window.
        min_score: detections below are not wanted, which spares most of the work. None: all, down to ``config.min_score``.
        window: steps per pass through the network, rounded up to a multiple of the coarsest stride. None: the receptive
            radius. A pass reads the radius on both sides again: longer windows cost less per step and come later.
        reach: steps that a segment may extend to either side of the step that finds it; a candidate that goes further is
            cut there. None: eight strides of the coarsest level, not less than its shortest segments.
        depth_shift: a fixed turn of the depth dial, see :meth:`tzn.models.TemporalZoomNet.trunk`.

    Raises:
        ConfigError: a model or settings that cannot stream; names the setting.

    Warns:
        LimitWarning, once each: a candidate with a score of at least a tenth went beyond ``reach``, or ``pre_nms_topk`` cut
            a window. Without it the results are those of one pass that ``max_segments`` does not cut.
    """

    def __init__(
        self,
        model: Localizer,
        grid: TimeGrid,
        config: InferenceConfig,
        *,
        min_score: float | None = None,
        window: int | None = None,
        reach: int | None = None,
        depth_shift: float | None = None,
    ) -> None:
        radius = model.receptive_radius
        if radius is None:
            raise ConfigError(
                f"a {type(model).__name__} cannot stream: it reads a recording as a whole (positions, global attention); "
                "a TemporalZoomNet can"
            )
        _check_settings(model, config, depth_shift)
        for name, value in (("window", window), ("reach", reach)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value}: expected at least one step")
        coarsest = model.config.strides[-1]
        self.model, self.grid, self.radius = model, grid, radius
        self.window = -(-(window or radius) // coarsest) * coarsest
        shortest = int(model.config.regression_ranges[-1][0])  # type: ignore[union-attr]
        self.reach = reach or max(REACH_OF_COARSEST * coarsest, shortest)
        soft = config.nms in ("soft", "linear")
        self._floor = max(min_score or 0.0, config.min_score if soft else 0.0)
        # Scores only fall, and what falls below the floor can only change what is lower still.
        above = max(config.pre_nms_thresh, float(np.nextafter(np.float32(self._floor), np.float32(0))))
        self.config = dataclasses.replace(config, pre_nms_thresh=above)
        device = model.feature_mean.device
        self._shift = dial_of(model, config)
        if depth_shift is not None:
            self._shift = torch.full((1, 1), float(depth_shift), device=device)
        self._parts: list[Tensor] = []  # steps from self._first on
        self._first = self._seen = self._done = 0
        self._pending: Selection | None = None  # not decoded; positions in float64 from the recording's start
        self._fields: Tensor | None = None  # [distance or scale, side, steps from self._fields_first on]
        self._fields_first = 0
        self._alive: _Alive | None = None
        self._warned: set[str] = set()
        self._closed = False

    @property
    def latency(self) -> int:
        """Steps from the end of a segment to when it can be final, at most, where no rival is unsettled."""
        return self.radius + self.window + self.reach

    @torch.no_grad()
    def push(self, features: Tensor) -> Detections:
        """Detections that ``features`` ``[n, input_dim]``, the next steps, made final; by falling score.

        Raises:
            ValueError: the stream was closed.
        """
        if self._closed:
            raise ValueError("the stream was closed: a new recording needs a new one")
        self._parts.append(features)
        self._seen += features.shape[0]
        found = []
        while self._seen >= self._done + self.window + self.radius:
            self._pass(self._done + self.window)
            found.append(self._settle(ended=False))
        return self._joined(found)

    @torch.no_grad()
    def close(self) -> Detections:
        """The rest, once the recording has ended."""
        found = []
        while not self._closed and self._done < self._seen:
            self._pass(min(self._done + self.window, self._seen))
            found.append(self._settle(ended=self._done == self._seen))
        self._closed = True
        return self._joined(found)

    def _pass(self, high: int) -> None:
        """The network on steps up to ``high`` with the receptive field around them."""
        low, first = self._done, max(self._done - self.radius, 0)
        last = min(high + self.radius, self._seen)
        steps = torch.cat(self._parts)
        features, mask = alone(steps.to(self.model.feature_mean.device), first - self._first, last - self._first)
        points = self.model.points(features, mask, depth_shift=self._shift)
        topk = self.config.pre_nms_topk
        chosen = select(points, Chunk(low - first, high - first, first - low), self.config, topk)
        if chosen.score.numel() and int(chosen.level.bincount().max()) >= topk:
            self._warn(f"inference.pre_nms_topk = {topk} cut candidates of a window of {self.window} steps; raise it")
        chosen = chosen._replace(position=chosen.position.double() + low)
        self._pending = _chained(self._pending, chosen)
        if mode_for(points, self.config) == "refine":
            assert points.fields is not None
            fields = torch.stack([x[0, :, low - first : high - first] for x in points.fields(None)])
            self._fields = fields if self._fields is None else torch.cat([self._fields, fields], 2)
        self._done = high
        keep = max(high - self.radius, 0)
        self._parts, self._first = [steps[keep - self._first :].clone()], keep

    def _settle(self, *, ended: bool) -> Detections:
        assert self._pending is not None
        left, right = self._extent(self._pending)
        margin = self.config.vote_window + 3
        ready = torch.full_like(right, ended, dtype=torch.bool) | (right <= self._done - margin)
        self._decode(_at(self._pending, ready))
        self._pending, left, right = _at(self._pending, ~ready), left[~ready], right[~ready]
        self._forget_fields(left)
        alive = self._alive
        assert alive is not None
        if self.config.nms == "none":
            self._alive = alive[torch.zeros(0, dtype=torch.long)]
            return self._final(alive)
        final, kept = _settled(alive, self._pending.label.cpu(), left.cpu(), right.cpu(),
                               float("inf") if ended else self._done - self.reach, self.config, self._floor)  # fmt: skip
        self._alive = kept
        return self._final(final)

    def _extent(self, chosen: Selection) -> tuple[Tensor, Tensor]:
        """Between which steps a candidate's segment lies, and what can move its ends."""
        snap = torch.zeros_like(chosen.offset)
        if chosen.offset_std is not None and self._fields is not None:
            snap = self.config.snap_sigmas * 2**0.5 * chosen.offset_std + 2 * self.config.vote_window + 2
        around = (chosen.offset + snap).clamp(max=self.reach).double()
        return chosen.position - around[:, 0], chosen.position + around[:, 1]

    def _decode(self, ready: Selection) -> None:
        base, crossings = self._fields_first, None
        if self._fields is not None:
            distance, scale = self._fields
            mask = torch.ones_like(distance[:1], dtype=torch.bool)
            crossings = find_crossings(distance[None], scale[None], mask, self.config)
        place = (ready.position - base).float()
        segments, std = decode(place, ready.offset, ready.offset_std, crossings, self.config)
        far = (ready.offset > self.reach).any(1)
        if bool((far & (ready.score >= WORTH_A_WARNING)).any()):
            self._warn(
                f"a segment goes more than {self.reach} steps ({self.reach * self.grid.step:g} s) to one side of the step "
                "that finds it, and is cut there; give the stream a longer reach"
            )
        place = place[:, None]
        segments = torch.minimum(torch.maximum(segments, place - self.reach), place + self.reach)
        scores, long = rated(segments, std, ready.score, self.config)
        std = rescaled(std, ready.offset_std, self.config)
        wanted = long & (scores >= self._floor)
        if self.config.nms == "hard" and self.config.min_score > 0:
            wanted &= scores > self.config.min_score
        new = _Alive(segments.double() + base, std, scores, ready.label)[wanted]
        new = _Alive(*(None if x is None else x.cpu() for x in (new.segments, new.std, new.scores, new.labels)))  # type: ignore[arg-type]
        self._alive = new if self._alive is None else _together(self._alive, new)

    def _forget_fields(self, left: Tensor) -> None:
        """Of the fields only what candidates to come can look at."""
        if self._fields is None:
            return
        lowest = self._done - self.reach if left.numel() == 0 else min(self._done - self.reach, float(left.min()))
        keep = max(int(lowest) - 2 * self.config.vote_window - 4, 0)
        if keep > self._fields_first:
            self._fields = self._fields[:, :, keep - self._fields_first :].clone()
            self._fields_first = keep

    def _final(self, found: _Alive) -> Detections:
        order = found.scores.argsort(descending=True, stable=True)
        found = found[order]
        covered = self.grid.to_seconds(self._seen - 1) + self.grid.offset
        return in_seconds(found.segments, found.scores, found.labels, found.std, self.grid, covered)

    def _joined(self, found: list[Detections]) -> Detections:
        if not found:  # most pushes
            return Detections(np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=np.int64))
        parts = found
        std = None if parts[0].std is None else np.concatenate([p.std for p in parts if p.std is not None])
        segments, scores, labels = (
            np.concatenate([getattr(p, x) for p in parts]) for x in ("segments", "scores", "labels")
        )
        whole = Detections(segments, scores, labels, std)
        return whole[np.argsort(-whole.scores, kind="stable")]

    def _warn(self, text: str) -> None:
        kind = text.split("=")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, LimitWarning, stacklevel=5)


def read_rows(source: BinaryIO, channels: int) -> Iterator[np.ndarray]:
    """Rows ``[1, channels]`` float32 of CSV text as they arrive; a first line without any number holds names.

    Raises:
        DataError: another number of columns, something that is no finite number; names the line.
    """
    for number, line in enumerate(iter(source.readline, b""), 1):
        fields = line.decode("utf-8-sig", errors="replace").translate(str.maketrans(",;\t", "   ")).split()
        if not fields:
            continue
        try:
            row = np.array([fields], dtype=np.float32)
        except ValueError:
            if number == 1 and not any(map(is_number, fields)):
                continue
            raise DataError(f"standard input: line {number} holds something that is not a number: {fields}") from None
        if row.shape[1] != channels or not np.isfinite(row).all():
            raise DataError(f"standard input: line {number} is {fields}, expected {channels} finite numbers")
        yield row


def _check_settings(model: Localizer, config: InferenceConfig, depth_shift: float | None) -> None:
    """Raises ConfigError for what needs the whole recording."""
    if config.budget is not None and depth_shift is None and model.depth_predictor is not None:
        raise ConfigError(
            f"inference.budget = {config.budget:g}: the dial is set by the whole recording, which a stream does not know; "
            "give depth_shift, a fixed turn of the dial, or leave the budget out"
        )
    if config.mode == "pair":
        raise ConfigError(
            "inference.mode = 'pair' ranks pairs over the whole recording: a stream needs refine or anchor"
        )
    if config.nms == "diou" or (config.nms == "hard" and config.iou_threshold <= 0):
        raise ConfigError(
            f"inference.nms = {config.nms!r} with iou_threshold = {config.iou_threshold:g}: a stream suppresses by overlap "
            "alone (soft, linear, hard with a threshold above 0, none)"
        )
    if config.nms != "none" and config.voting_thresh > 0 and (config.per_class_voting or not config.multiclass):
        raise ConfigError(
            f"inference.voting_thresh = {config.voting_thresh:g}: votes of candidates that are settled already cannot be "
            "counted in a stream; set it to 0"
        )


def _settled(
    alive: _Alive, labels: Tensor, left: Tensor, right: Tensor, limit: float, config: InferenceConfig, floor: float
) -> tuple[_Alive, _Alive]:
    """(picks that are final, candidates that are not settled).

    Args:
        labels, left, right: ``[M]`` candidates that are not decoded: class, and between which steps they lie.
        limit: step before which no candidate to come begins.
    """
    count = alive.scores.shape[0]
    group = torch.cat([alive.labels, labels]) if config.multiclass else alive.labels.new_zeros(count + labels.shape[0])
    start, end = torch.cat([alive.segments[:, 0], left]), torch.cat([alive.segments[:, 1], right])
    scores = torch.cat([alive.scores, torch.full_like(left, float("inf"), dtype=alive.scores.dtype)])
    undecided = (end > limit) | (torch.arange(len(scores)) >= count)
    one, other = _overlapping(start, end, group)
    inter = torch.minimum(end[one], end[other]) - torch.maximum(start[one], start[other])
    length = end - start + EPS
    factor = _factor((inter / (length[one] + length[other] - inter)).to(scores.dtype), config)
    changing = (factor < 1) | (one >= count) | (other >= count)
    one, other, factor = one[changing], other[changing], factor[changing]
    both, facing, factor = torch.cat([one, other]), torch.cat([other, one]), torch.cat([factor, factor])
    left_over, final = torch.ones(len(scores), dtype=torch.bool), torch.zeros(len(scores), dtype=torch.bool)
    while both.numel() or bool(left_over.any()):
        order = scores.argsort(descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        best = torch.full_like(rank, len(rank)).scatter_reduce_(0, both, rank[facing], "amin")
        picks = left_over & ~undecided & (rank < best)
        if not bool(picks.any()):
            break
        final |= picks
        by_pick = picks[facing]
        lowered = torch.ones_like(scores).scatter_reduce_(0, both[by_pick], factor[by_pick], "prod")
        scores = torch.where(picks, scores, scores * lowered)
        left_over &= ~picks & (scores >= floor) & (scores > 0)
        kept = left_over[both] & left_over[facing]
        both, facing, factor = both[kept], facing[kept], factor[kept]
    alive = dataclasses.replace(alive, scores=scores[:count])
    return alive[final[:count]], alive[left_over[:count]]


def _factor(overlap: Tensor, config: InferenceConfig) -> Tensor:
    """What a pick multiplies the score of another with; 0 removes it."""
    if config.nms == "soft":
        return torch.exp(-(overlap * overlap) / config.sigma)
    return torch.where(overlap >= config.iou_threshold, 1 - overlap if config.nms == "linear" else 0.0, 1.0)


def _overlapping(start: Tensor, end: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair of a group whose segments overlap, once."""
    if start.numel() == 0:
        return group, group
    # Groups one after the other on one line, where a sorted search finds the partners of each.
    low = start.min()
    shift = group * (end.max() - low + 1)
    begin, stop = start - low + shift, end - low + shift
    order = begin.argsort(stable=True)
    begin, stop = begin[order], stop[order]
    after = torch.arange(1, len(order) + 1)
    partners = (torch.searchsorted(begin, stop) - after).clamp(min=0)
    one = torch.repeat_interleave(torch.arange(len(order)), partners)
    other = one + 1 + torch.arange(len(one)) - (partners.cumsum(0) - partners)[one]
    return order[one], order[other]


def _at(chosen: Selection, index: Tensor) -> Selection:
    return Selection(*(None if x is None else x[index] for x in chosen))  # type: ignore[arg-type]


def _chained(before: Selection | None, new: Selection) -> Selection:
    if before is None:
        return new
    return Selection(*(None if b is None else torch.cat([a, b]) for a, b in zip(before, new, strict=True)))  # type: ignore[arg-type,list-item]


def _together(before: _Alive, new: _Alive) -> _Alive:
    std = None if before.std is None or new.std is None else torch.cat([before.std, new.std])
    scores, labels = torch.cat([before.scores, new.scores]), torch.cat([before.labels, new.labels])
    return _Alive(torch.cat([before.segments, new.segments]), std, scores, labels)
