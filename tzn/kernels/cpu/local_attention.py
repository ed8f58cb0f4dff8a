"""Local attention on the compiled CPU kernels (``csrc/cpu/local_attention.cpp``), forward and backward, every layout."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.reference.local_attention import over_residues, packed_times


def forward(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None,
    dilation: int, cu_seqlens: Tensor | None, out: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Fills ``out``; the backward pass needs nothing else. D is innermost, ``bias`` in the dtype of accumulation."""
    if cu_seqlens is not None:
        chosen, place = _places(q, query_mask, cu_seqlens, window)
        few = out if query_mask is None else q.new_empty(chosen.shape[0], *q.shape[1:])
        picked = q if query_mask is None else q[chosen]
        torch.ops.tzn_native.packed_local_attention(picked, k, v, window, chosen, place, bias, few)
        if query_mask is not None:
            out.zero_().index_copy_(0, chosen, few)
        return []

    def of_class(q, k, v, out, mask, query_mask):
        torch.ops.tzn_native.local_attention(q, k, v, window, _dense(mask), _dense(query_mask), bias, out)

    over_residues(dilation, of_class, [q, k, v, out], [mask, query_mask])
    return []


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None,
    bias: Tensor | None, dilation: int, cu_seqlens: Tensor | None, out: Tensor | None, saved: list[Tensor],
    found: list[Tensor],
) -> Tensor | None:  # fmt: skip
    """Fills ``found`` with the gradients of q, k and v; returns that of the bias."""
    if cu_seqlens is not None:
        chosen, place = _places(q, query_mask, cu_seqlens, window)
        dq = found[0]
        few = dq if query_mask is None else q.new_empty(chosen.shape[0], *q.shape[1:])
        dbias = None if bias is None else torch.empty_like(bias)
        picked = (grad, q) if query_mask is None else (grad[chosen], q[chosen])
        torch.ops.tzn_native.packed_local_attention_backward(
            *picked, k, v, window, chosen, place, bias, few, *found[1:], dbias
        )
        if query_mask is not None:
            dq.zero_().index_copy_(0, chosen, few)
        return dbias

    def of_class(grad, q, k, v, dq, dk, dv, mask, query_mask):
        dbias = None if bias is None else torch.empty_like(bias)
        torch.ops.tzn_native.local_attention_backward(
            grad, q, k, v, window, _dense(mask), _dense(query_mask), bias, dq, dk, dv, dbias
        )
        return dbias

    shares = over_residues(dilation, of_class, [grad, q, k, v, *found], [mask, query_mask])
    return None if bias is None else sum(shares[1:], shares[0]) if shares else torch.zeros_like(bias)


def _places(q: Tensor, query_mask: Tensor | None, cu_seqlens: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Rows of the queries, and times of all rows."""
    chosen = torch.arange(q.shape[0], device=q.device) if query_mask is None else query_mask.nonzero().squeeze(1)
    return chosen, packed_times(cu_seqlens, q.shape[0], window // 2)


def _dense(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()
