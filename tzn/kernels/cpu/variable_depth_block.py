"""The variable-depth block on the CPU: PyTorch's products, and compiled kernels for all between them.

``csrc/cpu/variable_depth_block.cpp``: gather and LayerNorm, residual and LayerNorm, and the last residual with its scatter
are one pass each, so that nothing as large as the recording is written but the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn.kernels import accumulate_dtype, adjacent
from tzn.reference.local_attention import times
from tzn.reference.variable_depth_block import NORM_EPS, BlockWeights

NORMS = ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")  # computed in the residual stream's precision


class _Tokens(NamedTuple):
    """Which rows of the flattened recordings a block works on; None: all of them."""

    active: Tensor | None  # [A]
    halo: Tensor | None  # [S]
    rank: Tensor  # [A] of the active rows among the halo's
    position: Tensor  # [S] times, a radius apart between recordings


class _Saved(NamedTuple):
    """What the backward pass reads besides input and weights; N rows, of which the first A or S are written."""

    active: Tensor  # [N] int64
    halo: Tensor  # [N] int64
    counts: Tensor  # [2] A and S
    normed1: Tensor  # [N, D] of the halo
    stats1: Tensor  # [N, 2]
    query: Tensor  # [N, D] of the active rows, as everything below except key_value
    key_value: Tensor  # [N, 2 D] of the halo
    attended: Tensor
    branch1: Tensor
    y: Tensor
    normed2: Tensor
    stats2: Tensor
    up: Tensor  # [N, M] before the activation
    hidden: Tensor  # [N, M]
    branch2: Tensor


def _tokens(active: Tensor, halo: Tensor, everything: int, steps: int, window: int) -> _Tokens:
    return _Tokens(
        None if active.numel() == everything else active,
        None if halo.numel() == everything else halo,
        torch.searchsorted(halo, active),
        times(halo, steps, window // 2),
    )


def _wide_norms(weights: BlockWeights, x: Tensor) -> BlockWeights:
    """Norms in the dtype of accumulation, as the kernels want them."""
    return weights._replace(**{name: getattr(weights, name).to(accumulate_dtype(x.dtype)) for name in NORMS})


def _linear(x: Tensor, weight: Tensor, bias: Tensor, capacity: int) -> Tensor:
    """``F.linear`` into the first rows of ``capacity``."""
    if capacity == x.shape[0]:
        return F.linear(x, weight, bias)
    out = x.new_empty(capacity, weight.shape[0])
    torch.addmm(bias, x, weight.t(), out=out[: x.shape[0]])
    return out


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1))


def forward(
    x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """The output, and with ``keep`` what the backward pass reads besides input and weights."""
    if not keep and x.dtype in (torch.float32, torch.float64) and all(w.dtype == x.dtype for w in weights):
        # The same kernels in one call: where few steps are active, going in and out of Python costs more than their work.
        gate = None if gate is None else gate.to(x.dtype)
        return torch.ops.tzn_native.variable_depth_block(x, gate, weights, mask), []
    kernels, w = torch.ops.tzn_native, _wide_norms(BlockWeights(*weights), x)
    (batch, steps, _), shape = x.shape, x.shape
    heads, window = w.position_bias.shape
    ones = x.new_ones(batch, steps, dtype=torch.float32) if gate is None else gate
    active, halo = kernels.active_tokens(ones, window, mask)
    tokens = _tokens(active, halo, batch * steps, steps, window)
    x = x.reshape(batch * steps, -1).contiguous()
    queries, keys = active.numel(), halo.numel()
    # Rows of what is kept: a size that does not depend on data.
    few, many = (x.shape[0],) * 2 if keep else (queries, keys)
    gates = None if gate is None else gate.reshape(-1).to(accumulate_dtype(x.dtype)).contiguous()
    dtype = w.query_weight.dtype
    normed1, stats1 = kernels.gather_layer_norm(x, tokens.halo, w.norm1_weight, w.norm1_bias, NORM_EPS, many)
    normed1 = normed1.to(dtype)
    query = _linear(_rows(normed1[:keys], tokens.rank), w.query_weight, w.query_bias, few)
    key_value = _linear(normed1[:keys], w.key_value_weight, w.key_value_bias, many)
    key, value = _split(key_value[:keys], 2 * heads).unflatten(1, (2, heads)).unbind(1)
    attended = torch.empty_like(query)
    bias = w.position_bias.to(accumulate_dtype(dtype)).contiguous()
    kernels.packed_local_attention(
        _split(query[:queries], heads), key, value, window, tokens.rank, tokens.position, bias,
        _split(attended[:queries], heads),
    )  # fmt: skip
    branch1 = _linear(attended[:queries], w.output_weight, w.output_bias, few).to(x.dtype)
    y, normed2, stats2 = kernels.gated_add_layer_norm(
        x, tokens.active, branch1[:queries], gates, w.norm2_weight, w.norm2_bias, NORM_EPS, few
    )
    normed2 = normed2.to(dtype)
    up = _linear(normed2[:queries], w.up_weight, w.up_bias, few)
    hidden = torch.empty_like(up)
    torch.ops.aten.gelu.out(up[:queries], out=hidden[:queries])
    branch2 = _linear(hidden[:queries], w.down_weight, w.down_bias, few).to(x.dtype)
    out = kernels.gated_scatter(x, tokens.active, y[:queries], branch2[:queries], gates).view(shape)
    if not keep:
        return out, []
    lists = [F.pad(index, (0, x.shape[0] - index.numel()), value=-1) for index in (active, halo)]
    return out, [
        *lists, torch.tensor([queries, keys]), normed1, stats1, query, key_value, attended, branch1, y,
        normed2, stats2, up, hidden, branch2,
    ]  # fmt: skip


def empty_saved(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """What ``forward`` keeps, not filled in."""
    w, tokens, width = BlockWeights(*weights), x.shape[0] * x.shape[1], x.shape[2]

    def rows(*columns: int, dtype: torch.dtype = w.query_weight.dtype) -> Tensor:
        return x.new_empty(tokens, *columns, dtype=dtype)

    def stats() -> Tensor:
        return rows(2, dtype=accumulate_dtype(x.dtype))

    def stream() -> Tensor:
        return rows(width, dtype=x.dtype)

    hidden, integer = w.up_weight.shape[0], torch.int64
    return [
        rows(dtype=integer), rows(dtype=integer), x.new_empty(2, dtype=integer), rows(width), stats(), rows(width),
        rows(2 * width), rows(width), stream(), stream(), rows(width), stats(), rows(hidden), rows(hidden), stream(),
    ]  # fmt: skip


def _rows(x: Tensor, rank: Tensor) -> Tensor:
    return x if rank.numel() == x.shape[0] else x[rank]


def backward(grad: Tensor, x: Tensor, gate: Tensor | None, weights: list[Tensor], saved: list[Tensor]) -> list[Tensor]:
    """Gradients of x, gate if there is one, and every weight: the forward pass from its end to its beginning.

    One tensor has the recording's size; it becomes dx.
    """
    kernels, w, kept = torch.ops.tzn_native, _wide_norms(BlockWeights(*weights), x), _Saved(*saved)
    shape, steps = x.shape, x.shape[1]
    heads, window = w.position_bias.shape
    queries, keys = kept.counts.tolist()
    x, grad = (t.reshape(-1, shape[-1]).contiguous() for t in (x, grad))
    gates = None if gate is None else gate.reshape(-1).to(accumulate_dtype(x.dtype)).contiguous()
    tokens = _tokens(kept.active[:queries], kept.halo[:keys], x.shape[0], steps, window)
    of_halo = ("normed1", "stats1", "key_value")
    named = zip(_Saved._fields[3:], kept[3:], strict=True)
    kept = _Saved(*kept[:3], *(t[: keys if name in of_halo else queries] for name, t in named))
    active = tokens.active

    dbranch2, dgate2 = _gate_backward(grad, active, kept.branch2, gates, gather=True)
    dhidden, ddown, ddown_bias = _linear_backward(dbranch2, kept.hidden, w.down_weight)
    torch.ops.aten.gelu_backward.grad_input(dhidden, kept.up, grad_input=dhidden)  # in place: the largest tensor here
    dnormed2, dup, dup_bias = _linear_backward(dhidden, kept.normed2, w.up_weight)
    dy = grad.clone() if active is None else grad[active]
    dnorm2, dnorm2_bias = kernels.layer_norm_backward(
        dnormed2.to(x.dtype), kept.y, None, w.norm2_weight, kept.stats2, dy
    )
    dbranch1, dgate1 = _gate_backward(dy, active, kept.branch1, gates, gather=False)
    dattended, doutput, doutput_bias = _linear_backward(dbranch1, kept.attended, w.output_weight)
    dquery, dkey_value = torch.empty_like(kept.query), torch.empty_like(kept.key_value)
    bias = w.position_bias.to(accumulate_dtype(kept.query.dtype)).contiguous()
    dposition = torch.empty_like(bias)
    both = [_split(t, 2 * heads).unflatten(1, (2, heads)).unbind(1) for t in (kept.key_value, dkey_value)]
    kernels.packed_local_attention_backward(
        adjacent(_split(dattended, heads)), _split(kept.query, heads), *both[0], window, tokens.rank, tokens.position,
        bias, _split(dquery, heads), *both[1], dposition,
    )  # fmt: skip
    dnormed1, dkey_value_weight, dkey_value_bias = _linear_backward(dkey_value, kept.normed1, w.key_value_weight)
    dquery_rows, dquery_weight, dquery_bias = _linear_backward(dquery, _rows(kept.normed1, tokens.rank), w.query_weight)
    if dquery_rows.shape == dnormed1.shape:
        dnormed1 += dquery_rows
    else:
        dnormed1.index_add_(0, tokens.rank, dquery_rows)
    dx = dy if active is None else grad.index_copy(0, active, dy)
    dnorm1, dnorm1_bias = kernels.layer_norm_backward(
        dnormed1.to(x.dtype), x, tokens.halo, w.norm1_weight, kept.stats1, dx
    )
    dgates = []
    if gate is not None:
        dgate = dgate1 + dgate2
        dgate = dgate if active is None else dgate.new_zeros(x.shape[0]).index_copy_(0, active, dgate)
        dgates = [dgate.view(gate.shape)]
    return [
        dx.view(shape), *dgates, dnorm1, dnorm1_bias, dquery_weight, dquery_bias, dkey_value_weight, dkey_value_bias,
        dposition, doutput, doutput_bias, dnorm2, dnorm2_bias, dup, dup_bias, ddown, ddown_bias,
    ]  # fmt: skip


def _gate_backward(
    grad: Tensor, active: Tensor | None, branch: Tensor, gate: Tensor | None, *, gather: bool
) -> tuple[Tensor, Any]:
    """Gradients of a branch and of its gates; ``gather``: ``grad`` has rows of all tokens, not of the active ones."""
    if gate is None:
        return grad[active] if gather and active is not None else grad, None
    return torch.ops.tzn_native.gate_backward(grad, active, branch, gate, gather)  # type: ignore[no-any-return]


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a linear layer's input, weight and bias."""
    grad = grad.to(weight.dtype)
    return grad @ weight, grad.t() @ x, grad.sum(0)
