"""Which tokens a variable-depth layer touches, as index lists with counts that stay on the device.

A token is *active* where its gate is positive and it is valid; it is in the *halo* where it is valid and an active token
of the same recording lies within ``window // 2`` steps. Two launches over tiles of BLOCK tokens, no atomics, no host:

    flags[n]  = active | halo << 1       blocks[tile] = (active, halo) tokens of the tile      (mark_kernel)
    active[i], halo[j] = tokens in ascending order by an exclusive scan of both                 (write_kernel)

Reads gate and mask (w times, out of L1), writes one byte per token, then 16 bytes per token; at T = 2304 both launches
are far below a microsecond of memory time. The lists also cross-reference each other (slot, near), so that the kernels
that follow find the keys of a query tile, or the queries of a key tile, without searching.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels._launch import after_previous, on_its_device, programmatic

BLOCK = 1024


class TokenLists(NamedTuple):
    """Rows of the flattened ``[B * T]`` token axis, N = B * T; entries past a count are -1. int32 unless noted."""

    active: Tensor  # [N] active tokens, ascending
    halo: Tensor  # [N] halo tokens, ascending
    slot: Tensor  # [N] of active token i: its place in halo
    near: Tensor  # [N] of halo token j: how many active tokens precede it
    counts: Tensor  # [2] number of active and of halo tokens
    flags: Tensor  # [N] uint8, bit 0: active, bit 1: in the halo


@triton.jit
def _is_active(gate_ptr, mask_ptr, token, inside, HAS_GATE: tl.constexpr, HAS_MASK: tl.constexpr):
    active = inside
    if HAS_GATE:
        active = active & (tl.load(gate_ptr + token, mask=inside, other=0.0) > 0)
    if HAS_MASK:
        active = active & (tl.load(mask_ptr + token, mask=inside, other=0) != 0)
    return active


@triton.jit
def mark_kernel(
    gate_ptr, mask_ptr, flags_ptr, blocks_ptr, tokens, steps, radius,
    HAS_GATE: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    tile = tl.program_id(0)
    token = tile * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    time = token % steps
    active = _is_active(gate_ptr, mask_ptr, token, inside, HAS_GATE, HAS_MASK)
    near = active
    for distance in range(1, radius + 1):
        before = inside & (time >= distance)
        after = inside & (time < steps - distance)
        near = near | _is_active(gate_ptr, mask_ptr, token - distance, before, HAS_GATE, HAS_MASK)
        near = near | _is_active(gate_ptr, mask_ptr, token + distance, after, HAS_GATE, HAS_MASK)
    if HAS_MASK:
        near = near & (tl.load(mask_ptr + token, mask=inside, other=0) != 0)
    flags = active.to(tl.int32) + 2 * near.to(tl.int32)
    tl.store(flags_ptr + token, flags.to(tl.uint8), mask=inside)
    tl.store(blocks_ptr + 2 * tile, tl.sum(active.to(tl.int32), 0))
    tl.store(blocks_ptr + 2 * tile + 1, tl.sum(near.to(tl.int32), 0))


@triton.jit
def write_kernel(
    flags_ptr, blocks_ptr, active_ptr, halo_ptr, slot_ptr, near_ptr, counts_ptr, tokens, tiles,
    BLOCK: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    tile = tl.program_id(0)
    before_active = 0
    before_halo = 0
    total_active = 0
    total_halo = 0
    for start in range(0, tiles, TILES):
        other = start + tl.arange(0, TILES)
        number_active = tl.load(blocks_ptr + 2 * other, mask=other < tiles, other=0)
        number_halo = tl.load(blocks_ptr + 2 * other + 1, mask=other < tiles, other=0)
        before_active += tl.sum(tl.where(other < tile, number_active, 0), 0)
        before_halo += tl.sum(tl.where(other < tile, number_halo, 0), 0)
        total_active += tl.sum(number_active, 0)
        total_halo += tl.sum(number_halo, 0)
    token = tile * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    flags = tl.load(flags_ptr + token, mask=inside, other=0).to(tl.int32)
    active = flags & 1
    halo = flags >> 1
    rank_active = before_active + tl.cumsum(active, 0) - active
    rank_halo = before_halo + tl.cumsum(halo, 0) - halo
    tl.store(active_ptr + rank_active, token, mask=active != 0)
    tl.store(slot_ptr + rank_active, rank_halo, mask=active != 0)
    tl.store(halo_ptr + rank_halo, token, mask=halo != 0)
    tl.store(near_ptr + rank_halo, rank_active, mask=halo != 0)
    # The places past the counts belong to nobody above: the program whose tokens bear their number fills them.
    tail_active = inside & (token >= total_active)
    tail_halo = inside & (token >= total_halo)
    tl.store(active_ptr + token, -1, mask=tail_active)
    tl.store(slot_ptr + token, -1, mask=tail_active)
    tl.store(halo_ptr + token, -1, mask=tail_halo)
    tl.store(near_ptr + token, -1, mask=tail_halo)
    if tile == 0:
        tl.store(counts_ptr, total_active)
        tl.store(counts_ptr + 1, total_halo)


@on_its_device
def compact(
    gate: Tensor | None, mask: Tensor | None, batch: int, steps: int, window: int, device: torch.device
) -> TokenLists:
    """Lists for ``gate`` ``[B, T]`` (None: all positive) and ``mask`` ``[B, T]`` bool (None: all valid)."""
    tokens = batch * steps
    radius = window // 2
    if tokens + batch * radius >= 2**31:
        raise ValueError(f"B * T = {tokens}: got more tokens than 32-bit indices hold, expected fewer than 2^31")
    active, halo, slot, near = (torch.empty(tokens, dtype=torch.int32, device=device) for _ in range(4))
    flags = torch.empty(tokens, dtype=torch.uint8, device=device)
    if tokens == 0:
        return TokenLists(active, halo, slot, near, torch.zeros(2, dtype=torch.int32, device=device), flags)
    counts = torch.empty(2, dtype=torch.int32, device=device)
    gate = None if gate is None else gate.contiguous()
    mask = None if mask is None else mask.contiguous()
    tiles = triton.cdiv(tokens, BLOCK)
    blocks = torch.empty(tiles, 2, dtype=torch.int32, device=device)
    flagged = {"HAS_GATE": gate is not None, "HAS_MASK": mask is not None, "BLOCK": BLOCK}
    stand_in = flags  # a pointer that is never read
    mark_kernel[(tiles,)](
        stand_in if gate is None else gate, stand_in if mask is None else mask.view(torch.uint8), flags, blocks,
        tokens, steps, radius, **flagged, **programmatic(device),
    )  # fmt: skip
    write_kernel[(tiles,)](
        flags, blocks, active, halo, slot, near, counts, tokens, tiles, BLOCK=BLOCK, TILES=1024, **programmatic(device)
    )
    return TokenLists(active, halo, slot, near, counts, flags)
