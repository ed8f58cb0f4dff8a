"""Definition of windowed attention, and its packed form that works on chosen queries only.

``local_attention`` is the definition: every query gathers its window. ``packed_local_attention`` computes the same
from packed rows in tiles of consecutive keys, so memory and time follow the number of tiles that hold a query.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries of a tile share one span of TILE + window - 1 keys. Measured on 2 cores (4 heads of 128, window 19,
# T = 2304, float32, median of 30, 2026-11): 16: 4.6 ms, 32: 4.6 ms, 64: 5.6 ms.
TILE = 32


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax_j(q_i . k_j / sqrt(D) + bias[j - i + r]) v_j over valid j with |i - j| <= r = window // 2.

    ``q``, ``k``, ``v`` are ``[B, H, T, D]``, masks ``[B, T]``, ``bias`` ``[H, window]``. Rows outside ``query_mask`` or
    ``mask``, and rows without a valid key, are zero.
    """
    batch, _, steps, width = q.shape
    radius = window // 2
    valid = torch.ones(batch, steps, dtype=torch.bool, device=q.device) if mask is None else mask
    rows = valid if query_mask is None else valid & query_mask
    # neighbour[i, o] = i + o - r; those outside the recording point at step 0 and are masked.
    neighbour = torch.arange(steps, device=q.device)[:, None] + torch.arange(-radius, radius + 1, device=q.device)
    inside = (neighbour >= 0) & (neighbour < steps)
    neighbour = neighbour.clamp(0, max(steps - 1, 0))
    allowed = inside & valid[:, neighbour] & rows[:, :, None]  # [B, T, w]
    scores = torch.einsum("bhtd,bhtwd->bhtw", q, k[:, :, neighbour]) / width**0.5
    if bias is not None:
        scores = scores + bias[:, None, :].to(scores.dtype)
    weights = _masked_softmax(scores, allowed.unsqueeze(1))
    return torch.einsum("bhtw,bhtwd->bhtd", weights, v[:, :, neighbour])


def packed_local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    *,
    slot: Tensor,
    position: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """The same for packed rows.

    Args:
        q: ``[A, H, D]`` queries in ascending order.
        k, v: ``[S, H, D]`` keys and values in ascending order; every valid step within the window of a query is there.
        window: odd.
        slot: ``[A]`` int64, row of ``k`` that is the query's own step.
        position: ``[S]`` int64 ascending time of every key; steps of different recordings lie more than
            ``window // 2`` apart.
        bias: ``[H, window]`` or None.

    Returns:
        ``[A, H, D]``.
    """
    queries, heads, width = q.shape
    keys, radius = k.shape[0], window // 2
    if queries == 0:
        return q.clone()  # empty, but a part of the graph
    tiles = -(-keys // TILE)
    used = torch.unique_consecutive(slot // TILE)
    everything = used.numel() == tiles
    rank = slot // TILE if everything else torch.searchsorted(used, slot // TILE)
    place = rank * TILE + slot % TILE
    q_tiles = _scatter_rows(q * width**-0.5, place, used.numel() * TILE)
    q_tiles = q_tiles.view(-1, TILE, heads, width).transpose(1, 2)  # [n, H, TILE, D]
    k_tiles = _spans(k, tiles, radius, 0.0)
    v_tiles = _spans(v, tiles, radius, 0.0)
    far = -(2**40)
    key_time = _spans(position, tiles, radius, far)  # [n, TILE + 2 r]
    query_time = key_time[:, radius : radius + TILE]
    if not everything:
        k_tiles, v_tiles, key_time, query_time = (x[used] for x in (k_tiles, v_tiles, key_time, query_time))
    offset = key_time[:, None, :] - query_time[:, :, None]  # [n, TILE, TILE + 2 r]
    allowed = (offset.abs() <= radius) & (query_time != far)[:, :, None]
    scores = q_tiles @ k_tiles.permute(0, 2, 3, 1)
    if bias is not None:
        scores = scores + _tile_bias(bias, offset, allowed, radius).to(scores.dtype)
    weights = _masked_softmax(scores, allowed.unsqueeze(1))
    out = weights @ v_tiles.transpose(1, 2)
    out = out.transpose(1, 2).reshape(-1, heads, v.shape[-1])
    return out[:queries] if everything and queries == keys else out[place]


def _spans(rows: Tensor, tiles: int, radius: int, fill: float) -> Tensor:
    """``[S, …]`` to overlapping spans ``[tiles, TILE + 2 * radius, …]``: tile i sees its rows and ``radius`` around."""
    tail = tiles * TILE - rows.shape[0] + radius
    padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (radius, tail), value=fill)
    return padded.unfold(0, TILE + 2 * radius, TILE).movedim(-1, 1)


def _scatter_rows(rows: Tensor, place: Tensor, total: int) -> Tensor:
    if rows.shape[0] == total:
        return rows
    return rows.new_zeros(total, *rows.shape[1:]).index_copy(0, place, rows)


def _tile_bias(bias: Tensor, offset: Tensor, allowed: Tensor, radius: int) -> Tensor:
    """Bias per (tile, head, query, key); one matrix serves all tiles unless a mask has holes between valid steps."""
    step = torch.arange(offset.shape[2], device=bias.device) - radius
    regular = step[None, :] - torch.arange(TILE, device=bias.device)[:, None]
    if bool(((offset == regular) | ~allowed).all()):
        return bias[:, (regular + radius).clamp(0, 2 * radius)]
    return bias[:, (offset + radius).clamp(0, 2 * radius)].transpose(0, 1)


def _masked_softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over allowed entries in at least float32; rows without any are zero (and have zero gradient)."""
    accumulate = torch.float64 if scores.dtype == torch.float64 else torch.float32
    lowest = torch.finfo(accumulate).min
    weights = scores.to(accumulate).masked_fill(~allowed, lowest).softmax(-1)
    return weights.masked_fill(~allowed, 0).to(scores.dtype)
