"""One variable-depth transformer block: work follows the active tokens.

On the CPU the products are PyTorch's BLAS, and all between them is compiled (``csrc/cpu/variable_depth_block.cpp``): gather
and LayerNorm, residual and LayerNorm, and the last residual with its scatter are one pass each, so that nothing as large as
the recording is written but the result. On CUDA all of it is Triton kernels (``tzn/kernels/variable_depth_block.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn import reference
from tzn.ops._backend import choose_backend
from tzn.ops._checks import check_device, check_floating, check_mask, check_shape, checks_values, fail
from tzn.ops._register import (
    accumulate_dtype,
    adjacent,
    below_autograd,
    define,
    differentiate,
    gradients_of,
    is_plain,
)
from tzn.reference import BlockWeights
from tzn.reference.local_attention import times
from tzn.reference.variable_depth_block import NORM_EPS

MAX_TRITON_WIDTH = 256  # channels per head
NORMS = ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")  # computed in the residual stream's precision
LINEAR = tuple(name for name in BlockWeights._fields if name not in (*NORMS, "position_bias"))


def variable_depth_block(
    x: Tensor, gate: Tensor | None, weights: BlockWeights, *, mask: Tensor | None = None
) -> Tensor:
    """``y = x + g * Attn(LN1 x)``, ``z = y + g * MLP(LN2 y)`` for active tokens; the others pass through bit for bit.

    Queries are the active tokens (gate > 0 and valid); keys and values every valid token of the window, active or not.
    Under autocast the linear layers run in its dtype; x stays as it is. docs/design.md section 2.

    Args:
        x: ``[B, T, D]`` floating.
        gate: ``[B, T]`` floating, >= 0, usually in [0, 1]; None: 1 everywhere.
        weights: see :class:`BlockWeights`; D must be divisible by its number of heads.
        mask: ``[B, T]`` bool, True = valid; None: all valid. Rows that are not valid come out as they are: multiply by the
            mask before a layer that mixes steps without looking at it, such as a convolution.

    Returns:
        ``[B, T, D]``, a new tensor. Differentiable in x, gate and every weight: once by kernels, further by the definition.

    Raises:
        ValueError: wrong shape, dtype or device; negative or NaN gate.
    """
    check_floating("x", x)
    check_shape("x", x, "[B, T, D]", None, None, None)
    _check_weights(weights, x)
    batch, steps, _ = x.shape
    check_mask("mask", mask, batch, steps, x.device)
    if gate is not None:
        check_floating("gate", gate)
        check_shape("gate", gate, f"[B, T] = [{batch}, {steps}]", batch, steps)
        check_device("gate", gate, x.device)
        if checks_values(gate) and gate.numel() and not bool((gate >= 0).all()):
            fail("gate", "a negative or NaN value", "gates >= 0")
    return _OP(x, gate, _cast(weights, x), mask)  # type: ignore[no-any-return]


def _check_weights(weights: BlockWeights, x: Tensor) -> None:
    if not isinstance(weights, tuple) or len(weights) != len(BlockWeights._fields):
        raise TypeError(f"weights: got {type(weights).__name__}, expected BlockWeights")
    for name, tensor in zip(BlockWeights._fields, weights, strict=True):
        check_floating(f"weights.{name}", tensor)
        check_device(f"weights.{name}", tensor, x.device)
    check_shape("weights.position_bias", weights.position_bias, "[H, w]", None, None)
    (heads, window), width = weights.position_bias.shape, weights.norm1_weight.shape[0]
    if x.shape[2] != width:
        swapped = ": [B, C, T]? transpose(1, 2) gives [B, T, C]" if x.shape[1] == width else ""
        fail("x", f"shape {tuple(x.shape)}", f"[B, T, D] with D = {width}, the width of the weights{swapped}")
    if width == 0 or heads == 0 or width % heads or window % 2 == 0:
        fail("weights.position_bias", f"shape {(heads, window)}", f"[H, w] with H dividing {width} and w odd")
    check_shape("weights.query_weight", weights.query_weight, f"[D, D] = [{width}, {width}]", width, width)
    check_shape("weights.key_value_weight", weights.key_value_weight, f"[2 D, D] with D = {width}", 2 * width, width)
    check_shape("weights.up_weight", weights.up_weight, f"[M, D] with D = {width}", None, width)
    check_shape("weights.down_weight", weights.down_weight, f"[D, M] with D = {width}", width, None)


def _cast(weights: BlockWeights, x: Tensor) -> list[Tensor]:
    """The weights of linear layers in autocast's dtype, where it is on."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return list(weights)
    dtype = torch.get_autocast_dtype(device)
    return list(weights._replace(**{name: getattr(weights, name).to(dtype) for name in LINEAR}))


def _backend(x: Tensor, weights: list[Tensor]) -> str:
    position_bias = BlockWeights(*weights).position_bias
    backend = choose_backend(x.device)
    wide = x.shape[-1] // position_bias.shape[0] > MAX_TRITON_WIDTH
    return "reference" if backend == "triton" and wide else backend


def _definition(x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None) -> Tensor:
    return reference.variable_depth_block(x, gate, BlockWeights(*weights), mask=mask)


# ---- the compiled CPU kernels ----


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


def _native_forward(
    x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    kernels, w = torch.ops.tzn_native, _wide_norms(BlockWeights(*weights), x)
    (batch, steps, _), shape = x.shape, x.shape
    heads, window = w.position_bias.shape
    ones = x.new_ones(batch, steps, dtype=torch.float32) if gate is None else gate
    active, halo = kernels.active_tokens(ones, window, mask)
    tokens = _tokens(active, halo, batch * steps, steps, window)
    x = x.reshape(batch * steps, -1).contiguous()
    queries, keys = active.numel(), halo.numel()
    few, many = (
        (x.shape[0],) * 2 if keep else (queries, keys)
    )  # rows of what is kept: a size that does not depend on data
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
    saved = _Saved(
        lists[0], lists[1], torch.tensor([queries, keys]), normed1, stats1, query, key_value, attended, branch1, y,
        normed2, stats2, up, hidden, branch2,
    )  # fmt: skip
    return out, list(saved)


def _rows(x: Tensor, rank: Tensor) -> Tensor:
    return x if rank.numel() == x.shape[0] else x[rank]


def _native_backward(
    grad: Tensor, x: Tensor, gate: Tensor | None, w: BlockWeights, kept: _Saved
) -> tuple[Tensor, Tensor | None, BlockWeights]:
    """The forward pass from its end to its beginning; one tensor of the recording's size, which becomes dx."""
    kernels, w = torch.ops.tzn_native, _wide_norms(w, x)
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
    dgate = None
    if gate is not None:
        dgate = dgate1 + dgate2
        dgate = dgate if active is None else dgate.new_zeros(x.shape[0]).index_copy_(0, active, dgate)
        dgate = dgate.view(gate.shape).to(gate.dtype)
    return dx.view(shape), dgate, BlockWeights(
        dnorm1, dnorm1_bias, dquery_weight, dquery_bias, dkey_value_weight, dkey_value_bias,
        dposition.to(w.position_bias.dtype), doutput, doutput_bias, dnorm2, dnorm2_bias, dup, dup_bias, ddown,
        ddown_bias,
    )  # fmt: skip


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


# ---- the op ----

ARGUMENTS = "Tensor x, Tensor? gate, Tensor[] weights, Tensor? mask"


def _run(
    x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None, backend: str, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """The output, and with ``keep`` what the backward pass of the back end reads besides input and weights."""
    if backend == "triton" and x.numel():
        from tzn.kernels import variable_depth_block as kernels

        out, saved = kernels.forward(adjacent(x), gate, kernels.grouped(weights), mask, keep=keep)
        return out, list(saved) if keep else []
    if backend == "cpp" and x.numel():
        return _native_forward(x, gate, weights, mask, keep)
    out = _definition(x, gate, weights, mask).contiguous()
    return out, _fake_saved(x, weights, backend) if keep else []  # no rows: nothing to keep


def _run_backward(
    grad: Tensor,
    x: Tensor,
    gate: Tensor | None,
    weights: list[Tensor],
    mask: Tensor | None,
    backend: str,
    saved: list[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of x, gate (empty without one) and weights."""
    if backend == "triton" and x.numel():
        from tzn.kernels import variable_depth_block as kernels

        dx, dgate, found = kernels.backward(grad, adjacent(x), gate, kernels.grouped(weights), kernels.Saved(*saved))
        dweights: Sequence[Tensor | None] = found
    elif backend == "cpp" and x.numel():
        dx, dgate, dweights = _native_backward(grad, x, gate, BlockWeights(*weights), _Saved(*saved))
    else:
        first, dgate, *dweights = gradients_of(_flat(_definition, mask), (x, gate, *weights), grad, again=False)
        assert first is not None
        dx = first
    dense = [w.new_zeros(w.shape) if g is None else g.to(w.dtype) for g, w in zip(dweights, weights, strict=True)]
    dense = [g.contiguous() for g in dense]
    return dx.contiguous(), x.new_empty(0) if gate is None or dgate is None else dgate.contiguous(), dense


def _flat(function: Any, mask: Tensor | None) -> Any:
    """``function`` of (x, gate, *weights)."""
    return lambda x, gate, *weights: function(x, gate, list(weights), mask)


def _fake_saved(x: Tensor, weights: list[Tensor], backend: str) -> list[Tensor]:
    """What the back end keeps, not filled in."""
    w = BlockWeights(*weights)
    tokens, (hidden, width), heads = x.shape[0] * x.shape[1], w.up_weight.shape, w.position_bias.shape[0]
    dtype, wide = w.query_weight.dtype, accumulate_dtype(x.dtype)
    if backend == "reference":
        return []

    def rows(*columns: int, dtype: torch.dtype = dtype) -> Tensor:
        return x.new_empty(tokens, *columns, dtype=dtype)

    if backend == "triton":
        lists = [rows(dtype=torch.int32) for _ in range(4)]
        counts, flags = x.new_empty(2, dtype=torch.int32), rows(dtype=torch.uint8)
        first, second = ([rows(dtype=wide) for _ in range(2)] for _ in range(2))
        of_attention = x.new_empty(2, heads, tokens, dtype=accumulate_dtype(dtype))
        middle = [rows(width), rows(2 * width), rows(width), of_attention, rows(width, dtype=x.dtype)]
        return [*lists, counts, flags, *first, *middle, *second, rows(hidden)]
    lists = [rows(dtype=torch.int64), rows(dtype=torch.int64), x.new_empty(2, dtype=torch.int64)]
    stats = [rows(2, dtype=wide) for _ in range(2)]
    branch1, y, branch2 = (rows(width, dtype=x.dtype) for _ in range(3))
    middle = [rows(width), stats[0], rows(width), rows(2 * width), rows(width), branch1, y, rows(width), stats[1]]
    return [*lists, *middle, rows(hidden), rows(hidden), branch2]


def _dense(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(grad, x, gate, weights, *_):  # type: ignore[no-untyped-def]
    return _dense(x), x.new_empty(0) if gate is None else _dense(gate), [_dense(w) for w in weights]


_OP = define(
    f"variable_depth_block({ARGUMENTS}) -> Tensor",
    lambda x, gate, weights, mask: _run(x, gate, weights, mask, _backend(x, weights), keep=False)[0],
    lambda x, *_: _dense(x),
)
_FORWARD = define(
    f"_variable_depth_block_forward({ARGUMENTS}, str backend) -> (Tensor, Tensor[])",
    lambda x, gate, weights, mask, backend: _run(x, gate, weights, mask, backend, keep=True),
    lambda x, gate, weights, mask, backend: (_dense(x), _fake_saved(x, weights, backend)),
)
_BACKWARD = define(
    f"_variable_depth_block_backward(Tensor grad, {ARGUMENTS}, str backend, Tensor[] saved) -> (Tensor, Tensor, Tensor[])",
    _run_backward,
    _fake_backward,
)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, mask, *weights):  # type: ignore[no-untyped-def]
        ctx.backend = _backend(
            x, list(weights)
        )  # an argument: a compiled program, also from a cache, runs as it was traced
        out, saved = below_autograd(_FORWARD, x, gate, list(weights), mask, ctx.backend)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, gate, mask, *weights, *saved)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        count = len(BlockWeights._fields)
        if grad is None:
            return (None,) * (3 + count)
        x, gate, mask, *rest = ctx.saved_tensors
        weights, saved = rest[:count], rest[count:]
        if torch.is_grad_enabled():
            dx, dgate, *dweights = gradients_of(_flat(_definition, mask), (x, gate, *weights), grad, again=True)
        else:
            dx, dgate, dweights = _BACKWARD(grad, x, gate, weights, mask, ctx.backend, saved)
        return dx, None if gate is None else dgate, None, *dweights


def _apply(x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None) -> Tensor:
    if _backend(x, weights) == "reference" and is_plain(x, gate, *weights):
        return _definition(x, gate, weights, mask)  # its own gradients need no second run
    return _Block.apply(x, gate, mask, *weights)  # type: ignore[no-any-return]


differentiate(_OP, _definition, _apply)
