"""Definition of windowed attention, and the compact form that works on chosen queries only.

``local_attention`` is the definition: ordinary attention with a mask of all pairs. ``packed_local_attention`` computes the
same from packed rows in tiles of consecutive keys, so memory and time follow the number of tiles that hold a query;
``compact_local_attention`` lays dense and packed inputs out for it. ``shifted_local_attention`` and
``dilated_packed_attention`` reduce what else there is to plain windows, which any back end may compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn.reference.active_tokens import active_tokens

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
    dilation: int = 1,
    shifted: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """softmax_j(q_i . k_j / sqrt(D) + bias[o + c]) v_j over the valid j at an offset o = (j - i) / dilation, a whole number.

    The window of i are the offsets |o| <= r = window // 2; ``shifted``: the ``window`` steps of i's recording (and residue
    class, with a dilation) that are nearest to i, as NATTEN has it, so that all windows are full. ``c`` is the middle of the
    bias: r, shifted window - 1.

    ``q``, ``k``, ``v`` are ``[B, H, T, D]``, masks ``[B, T]``; with ``cu_seqlens`` ``[R + 1]`` they are ``[N, H, D]`` and
    ``[N]``: R recordings one after the other. Rows outside ``query_mask`` or ``mask``, and rows without a valid key, are zero.
    """
    if cu_seqlens is not None:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        recording = torch.searchsorted(cu_seqlens[1:], torch.arange(q.shape[2], device=q.device), right=True)
        query_mask = None if query_mask is None else query_mask.unsqueeze(0)
        out = _dense(q, k, v, window, None, query_mask, bias, dilation, shifted, recording)
        return out.squeeze(0).transpose(0, 1)
    recording = torch.zeros(q.shape[2], dtype=torch.long, device=q.device)
    return _dense(q, k, v, window, mask, query_mask, bias, dilation, shifted, recording)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None,
    dilation: int, shifted: bool, recording: Tensor,
) -> Tensor:  # fmt: skip
    steps, width = q.shape[2:]
    time = torch.arange(steps, device=q.device)
    apart = time[None, :] - time[:, None]
    together = (recording[None, :] == recording[:, None]) & (apart % dilation == 0)
    offset = torch.div(apart, dilation, rounding_mode="floor")
    if shifted:  # as many earlier steps as fit, and no more than leave room for what is missing behind
        before, after = (together & (apart < 0)).sum(1), (together & (apart > 0)).sum(1)
        first = torch.minimum((window - 1 - after).clamp(min=window // 2), before)[:, None]
        inside = together & (offset >= -first) & (offset < window - first)
    else:
        inside = together & (offset.abs() <= window // 2)
    allowed = inside[None] if mask is None else inside[None] & mask[:, None, :]
    scores = q @ k.transpose(-1, -2) / width**0.5
    if bias is not None:
        middle = bias.shape[1] // 2
        scores = scores + bias[:, (offset + middle).clamp(0, bias.shape[1] - 1)].to(scores.dtype)
    out = masked_softmax(scores, allowed.unsqueeze(1)) @ v
    for rows in (mask, query_mask):
        out = out if rows is None else out.masked_fill(~rows[:, None, :, None], 0)
    return out


def masked_softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over allowed entries in at least float32; rows without any are zero (and have zero gradient)."""
    accumulate = torch.float64 if scores.dtype == torch.float64 else torch.float32
    lowest = torch.finfo(accumulate).min
    weights = scores.to(accumulate).masked_fill(~allowed, lowest).softmax(-1)
    return weights.masked_fill(~allowed, 0).to(scores.dtype)


def compact_local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    mask: Tensor | None,
    query_mask: Tensor | None,
    bias: Tensor | None,
    dilation: int,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """The same without shifted windows; dense results have the memory order of ``[B, T, H, D]``."""
    if bias is None:
        window = min(window, 2 * max(q.shape[-2 if cu_seqlens is None else 0], 1) + 1)  # a wider one reaches as far
    if cu_seqlens is not None:
        chosen = torch.arange(q.shape[0], device=q.device) if query_mask is None else query_mask.nonzero().squeeze(1)
        position = packed_times(cu_seqlens, q.shape[0], window // 2)
        out = packed_local_attention(q[chosen], k, v, window, slot=chosen, position=position, bias=bias)
        return out if query_mask is None else torch.zeros_like(q).index_copy(0, chosen, out)
    if dilation > 1 and q.shape[2]:

        def of_class(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None) -> Tensor:
            return compact_local_attention(q, k, v, window, mask, query_mask, bias, 1, None).transpose(1, 2)

        parts = over_residues(dilation, of_class, [q, k, v], [mask, query_mask])
        longest = max(part.shape[1] for part in parts)
        padded = [F.pad(part, (0, 0, 0, 0, 0, longest - part.shape[1])) for part in parts]
        return torch.stack(padded, 2).flatten(1, 2)[:, : q.shape[2]].transpose(1, 2)
    batch, heads, steps, width = q.shape
    valid = q.new_ones(batch, steps, dtype=torch.bool) if mask is None else mask
    queries = valid if query_mask is None else valid & query_mask
    active, halo = active_tokens(queries.to(torch.float32), window, valid)

    def rows(x: Tensor, index: Tensor) -> Tensor:
        flat = x.transpose(1, 2).reshape(batch * steps, heads, width)
        return flat if index.numel() == batch * steps else flat[index]

    out = packed_local_attention(
        rows(q, active), rows(k, halo), rows(v, halo), window,
        slot=torch.searchsorted(halo, active), position=times(halo, steps, window // 2), bias=bias,
    )  # fmt: skip
    dense = out.new_zeros(batch * steps, heads, width).index_copy(0, active, out)
    return dense.view(batch, steps, heads, width).transpose(1, 2)


def _sequences(q: Tensor, dilation: int, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """First row and length of every (recording, residue class) of the flattened rows."""
    if cu_seqlens is None:
        starts = torch.arange(q.shape[0], device=q.device) * q.shape[2]
        lengths = torch.full_like(starts, q.shape[2])
    else:
        starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    residue = torch.arange(dilation, device=q.device)
    of_class = torch.div(lengths[:, None] - residue + dilation - 1, dilation, rounding_mode="floor").clamp(min=0)
    return (starts[:, None] + residue).flatten(), of_class.flatten()


def shifted_local_attention(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None,
    query_mask: Tensor | None, bias: Tensor | None, dilation: int, cu_seqlens: Tensor | None,
) -> Tensor:  # fmt: skip
    """Shifted windows by ordinary ones, which ``attend`` computes from the same arguments.

    Queries in the middle have ordinary windows; the ``radius`` first and last of a recording share one window each.
    """
    radius, packed = window // 2, cu_seqlens is not None

    def rows(x: Tensor) -> Tensor:
        return x if packed else x.transpose(1, 2).flatten(0, 1)

    starts, lengths = _sequences(q, dilation, cu_seqlens)
    total = rows(q).shape[0]
    step, key = torch.arange(radius, device=q.device), torch.arange(window, device=q.device)
    first = step < lengths[:, None]
    last = lengths[:, None] - radius + step  # of the queries; where the first ones end they begin
    queries = torch.cat([step.expand_as(last), last], 1)
    is_query = torch.cat([first, last >= radius], 1)
    # A query that is not there, and a key, are read from some row that is, and left out of everything.
    query_row = (starts[:, None] + dilation * queries).clamp(0, total - 1)
    keys = torch.stack([key.expand(len(lengths), -1), lengths[:, None] - window + key], 1)  # [S, 2, w]
    is_key = (keys >= 0) & (keys < lengths[:, None, None])
    key_row = (starts[:, None, None] + dilation * keys).clamp(0, total - 1)
    if mask is not None:
        is_key = is_key & mask.flatten()[key_row]
    ends = rows(q)[query_row].unflatten(1, (2, radius))  # [S, 2, r, H, D]
    scores = torch.einsum("serhd,sewhd->sehrw", ends, rows(k)[key_row]) / q.shape[-1] ** 0.5
    if bias is not None:
        apart = keys[:, :, None, :] - queries.unflatten(1, (2, radius))[..., None] + window - 1
        picked = bias[:, apart.clamp(0, 2 * window - 2)]  # [H, S, 2, r, w]
        scores = scores + picked.permute(1, 2, 0, 3, 4).to(scores.dtype)
    weights = masked_softmax(scores, is_key[:, :, None, None, :])
    of_ends = torch.einsum("sehrw,sewhd->serhd", weights, rows(v)[key_row]).flatten(0, 2)

    place = torch.where(is_query, query_row, total).flatten()  # one row past the end takes what is nobody's
    at_end = torch.zeros(total + 1, dtype=torch.bool, device=q.device).index_fill(0, place, True)[:total]
    middle = ~at_end if packed else (~at_end).view(q.shape[0], -1)
    middle = middle if query_mask is None else middle & query_mask
    inner = rows(attend(q, k, v, window, mask, middle, central_bias(bias, window), dilation, cu_seqlens))
    padded = torch.cat([inner, inner.new_zeros(1, *inner.shape[1:])])
    whole = padded.index_put((place,), of_ends)[:-1]
    for wanted in (mask, query_mask):
        whole = whole if wanted is None else whole.masked_fill(~wanted.reshape(-1, 1, 1), 0)
    return whole if packed else whole.unflatten(0, (q.shape[0], -1)).transpose(1, 2)


def central_bias(bias: Tensor | None, window: int) -> Tensor | None:
    """What an ordinary window reads of the bias of shifted ones."""
    return None if bias is None else bias[:, window // 2 : window // 2 + window]


def dilated_packed_attention(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, window: int, query_mask: Tensor | None,
    bias: Tensor | None, dilation: int, cu_seqlens: Tensor,
) -> Tensor:  # fmt: skip
    """Packed recordings with a dilation by ``attend`` without: every residue class of a recording is a recording of its own.

    Rows are brought in their order, and back.
    """
    index = torch.arange(q.shape[0], device=q.device)
    recording = torch.searchsorted(cu_seqlens[1:].long(), index, right=True)
    group = recording * dilation + (index - cu_seqlens.long()[recording]) % dilation
    order = group.argsort(stable=True)
    _, lengths = _sequences(q, dilation, cu_seqlens)
    bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    chosen = None if query_mask is None else query_mask[order]
    out = attend(q[order], k[order], v[order], window, None, chosen, bias, 1, bounds)
    return out[order.argsort()]


def over_residues(dilation: int, run: Callable[..., Any], rows: list[Tensor], masks: list[Tensor | None]) -> list[Any]:
    """``run(*rows, *masks)`` for the steps r, r + d, r + 2 d … of each residue class r that has any, as views.

    ``rows`` are ``[B, H, T, …]``, ``masks`` ``[B, T]``.
    """
    if dilation == 1:
        return [run(*rows, *masks)]
    return [
        run(*(x[:, :, r::dilation] for x in rows), *(m if m is None else m[:, r::dilation] for m in masks))
        for r in range(min(dilation, rows[0].shape[2]))
    ]


def times(tokens: Tensor, steps: int, radius: int) -> Tensor:
    """Times of flattened tokens ``[B * T]``; a gap of one radius between recordings keeps their windows apart."""
    return tokens + tokens // max(steps, 1) * radius


def packed_times(cu_seqlens: Tensor, tokens: int, radius: int) -> Tensor:
    """Likewise ``[N]`` for recordings that lie one after the other."""
    index = torch.arange(tokens, device=cu_seqlens.device)
    return index + torch.searchsorted(cu_seqlens[1:].long(), index, right=True) * radius


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
    if queries == 0 or heads == 0:
        return q.clone()  # empty, but a part of the graph
    tiles = -(-keys // TILE)
    used = torch.unique_consecutive(slot // TILE)
    everything = used.numel() == tiles
    rank = slot // TILE if everything else torch.searchsorted(used, slot // TILE)
    place = rank * TILE + slot % TILE
    q_tiles = _scatter_rows(q * width**-0.5, place, used.numel() * TILE)
    q_tiles = q_tiles.unflatten(0, (-1, TILE)).transpose(1, 2)  # [n, H, TILE, D]
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
    weights = masked_softmax(scores, allowed.unsqueeze(1))
    out = weights @ v_tiles.transpose(1, 2)
    out = out.transpose(1, 2).flatten(0, 1)
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
