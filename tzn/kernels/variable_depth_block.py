"""The variable-depth block as a sequence of launches: forward 9, backward 16 (17 where attention takes two passes); none
waits for the host.

Forward: mark, write (compaction), [norm of x, copy of the rows that are not active], QKV, attention,
[out-projection x gate + x], norm of y, [up + GELU], [down-projection x gate + y, scattered]. Packed buffers have the
capacity N = B * T, but only the rows that the counts name are ever touched. Without a gate, where no gradients are wanted,
nothing is compacted: the mask says in place which tokens there are, and the two launches before all others go.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tzn.kernels import accumulate_dtype, adjacent
from tzn.kernels._launch import on_its_device
from tzn.kernels._layer_norm import Statistics, copy_idle_rows, gate_gradient, layer_norm_backward, normalise
from tzn.kernels._linear import (
    Linear,
    branch_gradient,
    gated_residual,
    linear_gradient,
    qkv,
    qkv_gradient,
    sum_parts,
    up_projection,
    weight_gradient,
)
from tzn.kernels.active_tokens import TokenLists, compact
from tzn.kernels.local_attention import attention_backward, attention_forward
from tzn.reference.variable_depth_block import BlockWeights

HALO = 2  # bit of a token's flags


class Weights(NamedTuple):
    """As :class:`tzn.reference.BlockWeights`, in the same order."""

    gamma1: Tensor
    beta1: Tensor
    query: Linear
    key_value: Linear
    position_bias: Tensor
    output: Linear
    gamma2: Tensor
    beta2: Tensor
    up: Linear
    down: Linear


class Saved(NamedTuple):
    """What the backward pass needs beside the inputs; packed rows unless noted."""

    active: Tensor
    halo: Tensor
    slot: Tensor
    near: Tensor
    counts: Tensor
    flags: Tensor
    mean1: Tensor  # by token
    rstd1: Tensor
    q: Tensor
    kv: Tensor
    attended: Tensor
    stats: Tensor  # of attention
    y: Tensor
    mean2: Tensor
    rstd2: Tensor
    before: Tensor  # [N, M] input of GELU


def _grouped(weights: list[Tensor]) -> Weights:
    """The 15 tensors of ``BlockWeights``, contiguous, with linear layers as pairs."""
    w = [x.contiguous() for x in weights]
    return Weights(
        w[0], w[1], Linear(w[2], w[3]), Linear(w[4], w[5]), w[6], Linear(w[7], w[8]), w[9], w[10],
        Linear(w[11], w[12]), Linear(w[13], w[14]),
    )  # fmt: skip


def _heads(kv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values ``[N, H, D / H]`` as views of ``[N, 2 D]``."""
    number, width = kv.shape[0], kv.shape[1] // 2
    return kv[:, :width].view(number, heads, -1), kv[:, width:].view(number, heads, -1)


@on_its_device
def forward(
    x: Tensor, gate: Tensor | None, given: list[Tensor], mask: Tensor | None, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """Output ``[B, T, D]``, and with ``keep`` what the backward pass reads besides input and weights (:class:`Saved`).

    ``x`` in float32, or in the dtype of the linear weights; ``given``: the 15 tensors of ``BlockWeights``.
    """
    weights, x = _grouped(given), adjacent(x)
    batch, steps, width = x.shape
    heads, window = weights.position_bias.shape
    dtype = weights.query.weight.dtype
    rows = x.reshape(batch * steps, width)
    flat_gate = None if gate is None else gate.reshape(-1).contiguous()
    lists = valid = None
    if gate is None and not keep:
        valid = None if mask is None else mask.reshape(-1).contiguous().view(torch.uint8)
    else:
        lists = compact(gate, mask, batch, steps, window, x.device)
    y, out = (torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(2))
    named = {"flags": valid} if lists is None else {"flags": lists.flags, "bit": HALO}
    normed, first = normalise(rows, weights.gamma1, weights.beta1, dtype, **named, keep=keep, idle=out)  # type: ignore[arg-type]
    q, kv = qkv(normed, weights.query, weights.key_value, lists, valid)
    attended = torch.empty_like(q)
    split = (-1, heads, width // heads)
    stats = attention_forward(
        q.view(split), *_heads(kv, heads), weights.position_bias, lists, steps, window, attended.view(split), mask=valid
    )
    gated_residual(attended, weights.output, flat_gate, rows, lists, valid, y, scatter=False)
    packed = {"flags": valid} if lists is None else {"count": lists.counts}
    normed, second = normalise(y, weights.gamma2, weights.beta2, dtype, **packed, keep=keep)
    hidden, before = up_projection(normed, weights.up, lists, valid, keep)
    gated_residual(hidden, weights.down, flat_gate, y, lists, valid, out, scatter=True)
    if lists is None or not keep:
        return out.view(batch, steps, width), []
    return out.view(batch, steps, width), [*lists, *first, q, kv, attended, stats, y, *second, before]


@on_its_device
def backward(grad: Tensor, x: Tensor, gate: Tensor | None, given: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
    """Gradients of x, gate if there is one, and the 15 weights in their order."""
    weights, saved, x = _grouped(given), Saved(*kept), adjacent(x)
    batch, steps, width = x.shape
    heads, window = weights.position_bias.shape
    rows, grad = x.reshape(batch * steps, width), grad.reshape(batch * steps, width).contiguous()
    flat_gate = None if gate is None else gate.reshape(-1).contiguous()
    lists = TokenLists(*saved[:6])
    first, second = Statistics(saved.mean1, saved.rstd1), Statistics(saved.mean2, saved.rstd2)
    dtype = weights.query.weight.dtype

    du, down_shares = branch_gradient(
        grad, weights.down.weight, saved.before, flat_gate, lists, gather=True, through_gelu=True
    )
    ddown = weight_gradient(grad, saved.before, dtype, lists, gather_grad=True, gate=flat_gate, through="gelu")
    dup = weight_gradient(
        du, saved.y, dtype, lists, through="norm", statistics=second, norm=(weights.gamma2, weights.beta2)
    )
    dy = torch.empty_like(saved.y)
    dn = linear_gradient(du, weights.up.weight, lists.counts)
    dgamma2, dbeta2 = layer_norm_backward(dn, saved.y, second, weights.gamma2, grad, None, lists, dy)

    dattended, output_shares = branch_gradient(
        dy, weights.output.weight, saved.attended, flat_gate, lists, gather=False, through_gelu=False
    )
    doutput = weight_gradient(dy, saved.attended, dtype, lists, gate=flat_gate)
    dq, dkv = torch.empty_like(saved.q), torch.empty_like(saved.kv)
    split = (-1, heads, width // heads)
    dbias = attention_backward(
        dattended.view(split), saved.q.view(split), *_heads(saved.kv, heads), weights.position_bias,
        saved.attended.view(split), saved.stats, lists, steps, window, dq.view(split), *_heads(dkv, heads),
    )  # fmt: skip
    assert dbias is not None
    norm1 = {"gather_x": True, "through": "norm", "statistics": first, "norm": (weights.gamma1, weights.beta1)}
    dquery = weight_gradient(dq, rows, dtype, lists, **norm1)  # type: ignore[arg-type]
    dkey_value = weight_gradient(dkv, rows, dtype, lists, halo=True, **norm1)  # type: ignore[arg-type]
    dn = qkv_gradient(dq, dkv, weights.query.weight, weights.key_value.weight, lists)
    dx = torch.empty_like(rows, memory_format=torch.contiguous_format)
    dgamma1, dbeta1 = layer_norm_backward(dn, rows, first, weights.gamma1, grad, dy, lists, dx)
    copy_idle_rows(grad, lists.flags, 2, dx)

    of_weights = [dgamma1, dbeta1, *dquery, *dkey_value, dbias, *doutput, dgamma2, dbeta2, *dup, *ddown]
    summed = sum_parts(of_weights, given)
    dgates = []
    if flat_gate is not None:
        dgate = torch.zeros_like(flat_gate)
        gate_gradient(grad, dy, weights.down.bias, weights.output.bias, down_shares, output_shares, lists, dgate)
        dgates = [dgate.view(batch, steps)]
    return [dx.view(batch, steps, width), *dgates, *summed]


def empty_saved(x: Tensor, given: list[Tensor]) -> list[Tensor]:
    """What ``forward`` keeps, not filled in."""
    w, tokens, width = BlockWeights(*given), x.shape[0] * x.shape[1], x.shape[2]
    narrow, wide, heads = w.query_weight.dtype, accumulate_dtype(x.dtype), w.position_bias.shape[0]

    def rows(*columns: int, dtype: torch.dtype = narrow) -> Tensor:
        return x.new_empty(tokens, *columns, dtype=dtype)

    lists = [rows(dtype=torch.int32) for _ in range(4)]
    first, second = ([rows(dtype=wide) for _ in range(2)] for _ in range(2))
    return [
        *lists, x.new_empty(2, dtype=torch.int32), rows(dtype=torch.uint8), *first, rows(width), rows(2 * width),
        rows(width), x.new_empty(2, heads, tokens, dtype=accumulate_dtype(narrow)), rows(width, dtype=x.dtype),
        *second, rows(w.up_weight.shape[0]),
    ]  # fmt: skip
