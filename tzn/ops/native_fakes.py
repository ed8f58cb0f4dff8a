"""Output shapes of the compiled ops, for tracing (torch.compile, torch.export, opcheck)."""

from __future__ import annotations

import torch


def _new_size() -> torch.SymInt:
    return torch.library.get_ctx().new_dynamic_size()


@torch.library.register_fake("tzn_native::active_tokens")
def _active_tokens(gate, window, mask):  # type: ignore[no-untyped-def]
    return tuple(torch.empty(_new_size(), dtype=torch.long, device=gate.device) for _ in range(2))


@torch.library.register_fake("tzn_native::suppress_segments")
def _suppress_segments(segments, scores, labels, method, iou_threshold, sigma, min_score, above, total):  # type: ignore[no-untyped-def]
    count = _new_size()
    return torch.empty(count, dtype=torch.long, device=scores.device), scores.new_empty(count)


@torch.library.register_fake("tzn_native::suppress_recordings")
def _suppress_recordings(segments, scores, labels, counts, *rule):  # type: ignore[no-untyped-def]
    made = _new_size()
    return torch.empty(made, dtype=torch.long, device=scores.device), scores.new_empty(made), torch.empty_like(counts)


@torch.library.register_fake("tzn_native::suppress_groups")
def _suppress_groups(segments, scores, labels, counts, groups, capacity, *rule):  # type: ignore[no-untyped-def]
    rows = (scores.shape[0], groups)
    index = scores.new_empty(*rows, capacity, dtype=torch.int32)
    return index, scores.new_empty(*rows, capacity), scores.new_empty(rows, dtype=torch.int32)


@torch.library.register_fake("tzn_native::vote_segments")
def _vote_segments(kept, segments, scores, threshold, kept_group, group):  # type: ignore[no-untyped-def]
    return kept.new_empty(kept.shape)


@torch.library.register_fake("tzn_native::boundary_crossings")
def _boundary_crossings(distance, scale, mask, estimator, window, min_slope):  # type: ignore[no-untyped-def]
    table = [distance.new_empty(distance.shape[0], _new_size()) for _ in range(3)]
    return *table, torch.empty(distance.shape[0], dtype=torch.long, device=distance.device)


@torch.library.register_fake("tzn_native::select_candidates")
def _select_candidates(scores, level, min_score, topk):  # type: ignore[no-untyped-def]
    count = _new_size()
    index = [torch.empty(count, dtype=torch.long, device=scores.device) for _ in range(2)]
    return *index, scores.new_empty(count)


def _chosen(x, index):  # type: ignore[no-untyped-def]
    return (x if index is None else index).size(0)


def _accumulated(x):  # type: ignore[no-untyped-def]
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.register_fake("tzn_native::gather_layer_norm")
def _gather_layer_norm(x, index, weight, bias, eps):  # type: ignore[no-untyped-def]
    rows, (_, width) = _chosen(x, index), x.shape
    return x.new_empty(rows, width), x.new_empty(rows, 2, dtype=_accumulated(x))


@torch.library.register_fake("tzn_native::gated_add_layer_norm")
def _gated_add_layer_norm(x, index, branch, gate, weight, bias, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(branch), torch.empty_like(branch), x.new_empty(branch.size(0), 2, dtype=_accumulated(x))


@torch.library.register_fake("tzn_native::layer_norm_backward")
def _layer_norm_backward(grad, x, index, weight, stats, dx):  # type: ignore[no-untyped-def]
    return torch.empty_like(weight), torch.empty_like(weight)


@torch.library.register_fake("tzn_native::gated_scatter")
def _gated_scatter(x, index, y, branch, gate):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


@torch.library.register_fake("tzn_native::gate_backward")
def _gate_backward(grad, index, branch, gate, gather):  # type: ignore[no-untyped-def]
    return torch.empty_like(branch), grad.new_empty(branch.size(0), dtype=_accumulated(grad))
