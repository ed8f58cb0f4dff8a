"""The variable-depth block on CPU: products by PyTorch's BLAS, all between them by the compiled kernels.

Gather and LayerNorm, residual and LayerNorm, and the last residual with its scatter are one pass each
(``csrc/cpu/token_rows.cpp``), so that nothing as large as the recording is written but the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tzn.ops.native_attention import adjacent, compute_dtype
from tzn.reference import BlockWeights
from tzn.reference.variable_depth_block import NORM_EPS

NORMS = (0, 1, 9, 10)  # of BlockWeights: norm1 and norm2, which are computed in the residual stream's precision
BIAS = 6


class _Tokens(NamedTuple):
    """Which rows of the flattened recordings a block works on; None: all of them."""

    active: Tensor | None  # [A]
    halo: Tensor | None  # [S]
    slot: Tensor  # [A] of the active rows among the halo's
    position: Tensor  # [S] times, a radius apart between recordings


class _Saved(NamedTuple):
    """What the backward pass reads, besides input and weights."""

    normed1: Tensor  # [S, D]
    stats1: Tensor
    query: Tensor  # [A, H, D / H]
    key: Tensor  # [S, H, D / H]
    value: Tensor
    attended: Tensor  # [A, H, D / H]
    branch1: Tensor  # [A, D]
    y: Tensor  # [A, D]
    normed2: Tensor
    stats2: Tensor
    up: Tensor  # [A, M] before the activation
    hidden: Tensor  # [A, M]
    branch2: Tensor  # [A, D]


def variable_depth_block(x: Tensor, gate: Tensor | None, weights: BlockWeights, mask: Tensor | None) -> Tensor:
    """``[B, T, D]``; arguments as in :func:`tzn.ops.variable_depth_block`. Differentiable once in x, gate and weights.

    Under autocast the linear layers run in its dtype; x stays as it is.
    """
    listed = list(weights)
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        listed = [w if i in NORMS or i == BIAS else w.to(dtype) for i, w in enumerate(listed)]
    listed = [w.to(compute_dtype(x.dtype)) if i in NORMS else w for i, w in enumerate(listed)]
    tokens = _tokens(x, gate, mask, weights.position_bias.shape[1])
    if tokens.slot.numel() == 0:
        return x.clone()
    rows = x.reshape(-1, x.shape[-1])
    gates = None if gate is None else gate.reshape(-1).to(compute_dtype(x.dtype)).contiguous()
    with torch.autocast("cpu", enabled=False):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (rows, gates, *listed)):
            return _Block.apply(rows, gates, tokens, *listed).view(x.shape)  # type: ignore[no-any-return]
        return _forward(rows, gates, tokens, BlockWeights(*listed))[0].view(x.shape)


def _tokens(x: Tensor, gate: Tensor | None, mask: Tensor | None, window: int) -> _Tokens:
    batch, steps, _ = x.shape
    ones = torch.ones(batch, steps) if gate is None else gate.detach()
    active, halo = torch.ops.tzn_native.active_tokens(ones, window, mask)
    # A gap of one radius between recordings keeps their windows apart on the flattened time axis.
    position = halo + (halo // max(steps, 1)) * (window // 2)
    slot = torch.searchsorted(halo, active)
    everything = batch * steps
    return _Tokens(
        None if active.numel() == everything else active, None if halo.numel() == everything else halo, slot, position
    )


def _forward(x: Tensor, gate: Tensor | None, tokens: _Tokens, w: BlockWeights) -> tuple[Tensor, _Saved]:
    kernels = torch.ops.tzn_native
    x = x.contiguous()
    active, halo, slot, position = tokens
    heads, window = w.position_bias.shape
    dtype = w.query_weight.dtype
    normed1, stats1 = kernels.gather_layer_norm(x, halo, w.norm1_weight, w.norm1_bias, NORM_EPS)
    normed1 = normed1.to(dtype)
    query = F.linear(_rows(normed1, slot), w.query_weight, w.query_bias).unflatten(-1, (heads, -1))
    key, value = F.linear(normed1, w.key_value_weight, w.key_value_bias).unflatten(-1, (2, heads, -1)).unbind(1)
    attended = torch.empty_like(query)
    bias = w.position_bias.to(compute_dtype(dtype)).contiguous()
    kernels.packed_local_attention(query, key, value, window, slot, position, bias, attended)
    branch1 = F.linear(attended.flatten(1), w.output_weight, w.output_bias).to(x.dtype)
    y, normed2, stats2 = kernels.gated_add_layer_norm(x, active, branch1, gate, w.norm2_weight, w.norm2_bias, NORM_EPS)
    normed2 = normed2.to(dtype)
    up = F.linear(normed2, w.up_weight, w.up_bias)
    hidden = F.gelu(up)
    branch2 = F.linear(hidden, w.down_weight, w.down_bias).to(x.dtype)
    out = kernels.gated_scatter(x, active, y, branch2, gate)
    saved = _Saved(
        normed1, stats1, query, key, value, attended, branch1, y, normed2, stats2, up, hidden, branch2
    )  # fmt: skip
    return out, saved


def _rows(x: Tensor, slot: Tensor) -> Tensor:
    return x if slot.numel() == x.shape[0] else x[slot]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor | None, tokens: _Tokens, *weights: Tensor) -> Tensor:
        out, saved = _forward(x, gate, tokens, BlockWeights(*weights))
        ctx.tokens = tokens
        ctx.save_for_backward(x, gate, *weights, *saved)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, *rest = ctx.saved_tensors
        count = len(BlockWeights._fields)
        with torch.autocast("cpu", enabled=False):
            dx, dgate, dweights = _backward(
                grad.contiguous(), x.contiguous(), gate, ctx.tokens, BlockWeights(*rest[:count]), _Saved(*rest[count:])
            )
        return dx, dgate, None, *dweights


def _backward(
    grad: Tensor, x: Tensor, gate: Tensor | None, tokens: _Tokens, w: BlockWeights, kept: _Saved
) -> tuple[Tensor, Tensor | None, BlockWeights]:
    """The forward pass from its end to its beginning; one tensor of the recording's size, which becomes dx."""
    active = tokens.active
    dbranch2, dgate2 = _gate_backward(grad, active, kept.branch2, gate, gather=True)
    dhidden, ddown, ddown_bias = _linear_backward(dbranch2, kept.hidden, w.down_weight)
    torch.ops.aten.gelu_backward.grad_input(dhidden, kept.up, grad_input=dhidden)  # in place: the largest tensor here
    dnormed2, dup, dup_bias = _linear_backward(dhidden, kept.normed2, w.up_weight)
    dy = grad.clone() if active is None else grad[active]
    dnorm2, dnorm2_bias = torch.ops.tzn_native.layer_norm_backward(
        dnormed2.to(x.dtype), kept.y, None, w.norm2_weight, kept.stats2, dy
    )
    dbranch1, dgate1 = _gate_backward(dy, active, kept.branch1, gate, gather=False)
    dattended, doutput, doutput_bias = _linear_backward(dbranch1, kept.attended.flatten(1), w.output_weight)
    dquery, dkey_value, dposition = _attention_backward(dattended, tokens, w.position_bias, kept)
    dnormed1, dkey_value_weight, dkey_value_bias = _linear_backward(dkey_value, kept.normed1, w.key_value_weight)
    dquery_rows, dquery_weight, dquery_bias = _linear_backward(dquery, _rows(kept.normed1, tokens.slot), w.query_weight)
    if dquery_rows.shape == dnormed1.shape:
        dnormed1 += dquery_rows
    else:
        dnormed1.index_add_(0, tokens.slot, dquery_rows)
    dx = dy if active is None else grad.index_copy(0, active, dy)
    dnorm1, dnorm1_bias = torch.ops.tzn_native.layer_norm_backward(
        dnormed1.to(x.dtype), x, tokens.halo, w.norm1_weight, kept.stats1, dx
    )
    dgate = None
    if gate is not None:
        both = dgate1 + dgate2
        dgate = both if active is None else torch.zeros_like(gate).index_copy_(0, active, both)
    return dx, dgate, BlockWeights(
        dnorm1, dnorm1_bias, dquery_weight, dquery_bias, dkey_value_weight, dkey_value_bias, dposition,
        doutput, doutput_bias, dnorm2, dnorm2_bias, dup, dup_bias, ddown, ddown_bias,
    )  # fmt: skip


def _gate_backward(
    grad: Tensor, active: Tensor | None, branch: Tensor, gate: Tensor | None, *, gather: bool
) -> tuple[Tensor, Tensor | Any]:
    """Gradients of a branch and of its gates; ``gather``: ``grad`` has rows of all tokens, not of the active ones."""
    if gate is None:
        return grad[active] if gather and active is not None else grad, None
    return torch.ops.tzn_native.gate_backward(grad, active, branch, gate, gather)  # type: ignore[no-any-return]


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a linear layer's input, weight and bias."""
    grad = grad.to(weight.dtype)
    return grad @ weight, grad.t() @ x, grad.sum(0)


def _attention_backward(
    grad: Tensor, tokens: _Tokens, position_bias: Tensor, kept: _Saved
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries ``[A, D]``, of keys and values together ``[S, 2 D]``, and of the position bias."""
    heads, window = position_bias.shape
    bias = position_bias.to(compute_dtype(kept.query.dtype)).contiguous()
    dquery = torch.empty_like(kept.query)
    dkey_value = kept.key.new_empty(kept.key.shape[0], 2, *kept.key.shape[1:])
    dbias = torch.empty_like(bias)
    torch.ops.tzn_native.packed_local_attention_backward(
        adjacent(grad.unflatten(-1, (heads, -1))), kept.query, kept.key, kept.value, window, tokens.slot,
        tokens.position, bias, dquery, dkey_value[:, 0], dkey_value[:, 1], dbias,
    )  # fmt: skip
    return dquery.flatten(1), dkey_value.flatten(1), dbias.to(position_bias.dtype)
