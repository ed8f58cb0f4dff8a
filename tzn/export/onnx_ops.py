"""tzn's ops in stock ONNX operators, for the exporter's table of translations.

What an exported program may assume: one recording, so that windows end where it ends; valid steps without holes, so that
valid rows that lie together are neighbours in time. Work follows the active tokens as it does everywhere: NonZero finds them,
Gather packs them, products run on packed rows, ScatterND puts them back; all sizes are found when the program runs.

Packed attention (tzn/reference/local_attention.py has the same in PyTorch): tiles of TILE consecutive key rows; the queries of
a tile see its rows and a radius around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from tzn.optional import require
from tzn.reference.variable_depth_block import NORM_EPS

OPSET = 18  # what Gather, Pad and LayerNormalization of every current runtime have
TILE = 32
FAR = -1e30  # a score that softmax makes nothing of, without the NaNs of infinities

Value = Any  # of the graph


class Keys(NamedTuple):
    """Tiles of packed key rows."""

    rows: Value  # [n, TILE + 2 r] which rows a tile sees, clipped to those that exist
    there: Value  # [n, TILE + 2 r] whether they exist
    padding: Value  # [1] rows that fill the last tile
    count: Value  # [1] n


def translations() -> dict[Any, Any]:
    """Functions that build each op's graph, by op, for ``torch.onnx.export(custom_translation_table=…)``."""
    import tzn.ops  # noqa: F401  (declares the ops)

    return {
        torch.ops.tzn.variable_depth_block.default: variable_depth_block,
        torch.ops.tzn.local_attention.default: local_attention,
    }


def _op() -> Any:
    return getattr(require("onnxscript", "exporting to ONNX", "onnx"), f"opset{OPSET}")


def variable_depth_block(x: Value, gate: Value, weights: Sequence[Value], mask: Value) -> Value:
    """``x`` ``[1, T, D]``, ``gate`` ``[1, T]`` or None: everything; the recording has no padding, so ``mask`` says nothing."""
    op = _op()
    (
        norm1_weight, norm1_bias, query_weight, query_bias, key_value_weight, key_value_bias, position_bias,
        output_weight, output_bias, norm2_weight, norm2_bias, up_weight, up_bias, down_weight, down_bias,
    ) = weights  # fmt: skip
    heads, window = (int(n) for n in position_bias.shape)
    width = int(norm1_weight.shape[0])
    head_width, radius = width // heads, window // 2
    rows = op.Reshape(x, _ints(op, -1, width))
    if gate is None:
        active = slot = times = column = None
        halo_rows = rows
    else:
        flags = op.Greater(op.Reshape(gate, _ints(op, 1, 1, -1)), _floats(op, 0.0))
        near = op.MaxPool(op.Cast(flags, to=1), kernel_shape=[window], pads=[radius, radius], strides=[1])[0]
        near = op.Reshape(op.Greater(near, _floats(op, 0.5)), _ints(op, -1))
        active, times = (_where(op, x) for x in (op.Reshape(flags, _ints(op, -1)), near))
        rank = op.CumSum(op.Cast(near, to=7), op.Constant(value_int=0))
        slot = op.Sub(op.Gather(rank, active), _ints(op, 1))
        halo_rows = op.Gather(rows, times)
        column = op.Gather(op.Reshape(gate, _ints(op, -1, 1)), active)
    normed = _norm(op, halo_rows, norm1_weight, norm1_bias)
    query = op.Gemm(normed if gate is None else op.Gather(normed, slot), query_weight, query_bias, transB=1)
    query = op.Mul(query, _floats(op, head_width**-0.5))
    both = op.Gemm(normed, key_value_weight, key_value_bias, transB=1)
    both = op.Reshape(both, _ints(op, -1, 2, heads, head_width))
    key, value = (op.Gather(both, op.Constant(value_int=i), axis=1) for i in range(2))
    if gate is not None:  # packed queries go to the places of their own steps among the keys
        zeros = op.Mul(op.Gather(both, op.Constant(value_int=0), axis=1), _floats(op, 0.0))
        query = op.ScatterND(op.Reshape(zeros, _ints(op, -1, width)), op.Unsqueeze(slot, _ints(op, 1)), query)
    keys = _keys(op, _size(op, normed, 0), radius)
    query = op.Reshape(query, _ints(op, -1, heads, head_width))
    attended = _attend(op, query, key, value, keys, position_bias, times, None, heads, head_width, radius)
    attended = op.Reshape(attended, _ints(op, -1, width))
    if gate is None:
        attended, current = op.Slice(attended, _ints(op, 0), _size(op, rows, 0), _ints(op, 0)), rows
    else:
        attended, current = op.Gather(attended, slot), op.Gather(rows, active)
    y = op.Add(current, _gated(op, op.Gemm(attended, output_weight, output_bias, transB=1), column))
    hidden = _norm(op, y, norm2_weight, norm2_bias)
    hidden = _gelu(op, op.Gemm(hidden, up_weight, up_bias, transB=1))
    z = op.Add(y, _gated(op, op.Gemm(hidden, down_weight, down_bias, transB=1), column))
    if gate is not None:
        z = op.ScatterND(rows, op.Unsqueeze(active, _ints(op, 1)), z)
    return op.Reshape(z, op.Shape(x))


def local_attention(
    q: Value, k: Value, v: Value, window: int, mask: Value = None, query_mask: Value = None, bias: Value = None,
    dilation: int = 1, cu_seqlens: Value = None,
) -> Value:  # fmt: skip
    """``[1, H, T, D]`` and the mask ``[1, T]``: the plain windows that ActionFormer has."""
    if query_mask is not None or dilation != 1 or cu_seqlens is not None:
        raise NotImplementedError("local_attention with a query mask, dilation or packed recordings")
    op = _op()
    heads, width = int(q.shape[1]), int(q.shape[3])
    radius = int(window) // 2
    query, key, value = (op.Transpose(op.Squeeze(x, _ints(op, 0)), perm=[1, 0, 2]) for x in (q, k, v))  # [T, H, D]
    query = op.Mul(query, _floats(op, width**-0.5))
    keys = _keys(op, _size(op, query, 0), radius)
    valid = None if mask is None else op.Reshape(mask, _ints(op, -1))
    out = _attend(op, query, key, value, keys, bias, None, valid, heads, width, radius)
    out = op.Slice(op.Reshape(out, _ints(op, -1, heads, width)), _ints(op, 0), _size(op, query, 0), _ints(op, 0))
    out = op.Unsqueeze(op.Transpose(out, perm=[1, 0, 2]), _ints(op, 0))
    if valid is None:
        return out
    return op.Where(op.Reshape(valid, _ints(op, 1, 1, -1, 1)), out, _floats(op, 0.0))


def _keys(op: Any, rows: Value, radius: int) -> Keys:
    count = op.Div(op.Add(rows, _ints(op, TILE - 1)), _ints(op, TILE))
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    first = op.Mul(op.Range(zero, op.Squeeze(count, _ints(op, 0)), one), _ints(op, TILE))
    span = op.Constant(value_ints=[i - radius for i in range(TILE + 2 * radius)])
    index = op.Add(op.Unsqueeze(first, _ints(op, 1)), span)
    there = op.And(op.GreaterOrEqual(index, _ints(op, 0)), op.Less(index, rows))
    last = op.Max(op.Sub(rows, _ints(op, 1)), _ints(op, 0))
    index = op.Min(op.Max(index, _ints(op, 0)), last)
    return Keys(index, there, op.Sub(op.Mul(count, _ints(op, TILE)), rows), count)


def _attend(
    op: Any, query: Value, key: Value, value: Value, keys: Keys, bias: Value, times: Value, valid: Value,
    heads: int, head_width: int, radius: int,
) -> Value:  # fmt: skip
    """Scaled queries, keys and values ``[S, H, D]`` in ascending order to ``[n TILE, H, D]``.

    Args:
        bias: ``[H, w]`` or None; times: ``[S]`` of the rows, None: consecutive; valid: ``[S]`` bool, None: all.
    """
    apart = np.arange(TILE + 2 * radius)[None, :] - radius - np.arange(TILE)[:, None]
    inside = np.abs(apart) <= radius
    band = _array(op, np.where(inside, 0.0, FAR).astype(np.float32))  # [TILE, TILE + 2 r]
    if bias is not None:
        places = _array(op, np.clip(apart + radius, 0, 2 * radius).astype(np.int64))
        band = op.Add(op.Gather(bias, places, axis=1), band)  # [H, TILE, TILE + 2 r]
    pads = op.Concat(_ints(op, 0, 0, 0), keys.padding, _ints(op, 0, 0), axis=0)
    query = op.Pad(query, pads)
    tiles = op.Concat(keys.count, _ints(op, TILE, heads, head_width), axis=0)
    query = op.Transpose(op.Reshape(query, tiles, allowzero=1), perm=[0, 2, 1, 3])  # [n, H, TILE, D]
    scores = op.MatMul(query, op.Transpose(op.Gather(key, keys.rows), perm=[0, 2, 3, 1]))
    scores = op.Add(scores, band)
    allowed = op.Unsqueeze(keys.there, _ints(op, 1))  # [n, 1, TILE + 2 r]
    if valid is not None:
        allowed = op.And(allowed, op.Unsqueeze(op.Gather(valid, keys.rows), _ints(op, 1)))
    if times is not None:
        key_time = op.Gather(times, keys.rows)
        query_time = op.Slice(key_time, _ints(op, radius), _ints(op, radius + TILE), _ints(op, 1))
        offset = op.Sub(op.Unsqueeze(key_time, _ints(op, 1)), op.Unsqueeze(query_time, _ints(op, 2)))
        allowed = op.And(allowed, op.LessOrEqual(op.Abs(offset), _ints(op, radius)))  # [n, TILE, TILE + 2 r]
    scores = op.Where(op.Unsqueeze(allowed, _ints(op, 1)), scores, _floats(op, FAR))
    out = op.MatMul(op.Softmax(scores, axis=-1), op.Transpose(op.Gather(value, keys.rows), perm=[0, 2, 1, 3]))
    return op.Transpose(out, perm=[0, 2, 1, 3])


def _norm(op: Any, x: Value, weight: Value, bias: Value) -> Value:
    return op.LayerNormalization(x, weight, bias, epsilon=NORM_EPS)[0]  # its mean and deviation are outputs as well


def _gated(op: Any, branch: Value, column: Value) -> Value:
    return branch if column is None else op.Mul(column, branch)


def _gelu(op: Any, x: Value) -> Value:
    # The pattern that onnxruntime replaces by one kernel of its own.
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, _floats(op, math.sqrt(2)))), _floats(op, 1.0))), _floats(op, 0.5))


def _where(op: Any, flags: Value) -> Value:
    """Indices of the True ones among ``[T]``."""
    return op.Reshape(op.NonZero(flags), _ints(op, -1))


def _size(op: Any, x: Value, axis: int) -> Value:
    return op.Shape(x, start=axis, end=axis + 1)


def _ints(op: Any, *values: int) -> Value:
    return op.Constant(value_ints=list(values))


def _floats(op: Any, value: float) -> Value:
    return op.Constant(value_float=value)


def _array(op: Any, values: np.ndarray) -> Value:
    ir = require("onnx_ir", "exporting to ONNX", "onnx", "onnxscript")
    return op.Constant(value=ir.tensor(values))
