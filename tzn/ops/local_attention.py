"""Windowed attention with padding masks, a query subset, a learned bias per head and offset, dilation, packed recordings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tzn.ops._backend import choose_backend
from tzn.ops._checks import (
    check_alike,
    check_count,
    check_device,
    check_floating,
    check_mask,
    check_shape,
    check_window,
    checks_values,
    fail,
)
from tzn.ops._register import (
    accumulate_dtype,
    adjacent,
    autocast,
    below_autograd,
    define,
    differentiate,
    gradients_of,
    is_plain,
)
from tzn.reference.local_attention import compact_local_attention, masked_softmax, packed_times

MAX_TRITON_WIDTH = 256  # channels per head; a wider tile does not fit into shared memory


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
    """Attention of every chosen query to the valid keys of its window.

    ``out_i = sum_j softmax_j(q_i . k_j / sqrt(D) + bias[o + c]) v_j`` over valid j at a whole offset
    ``o = (j - i) / dilation`` with ``|o| <= r = window // 2``; softmax in float32 (float64 for float64 input). Under autocast
    q, k and v take its dtype, as in PyTorch's own attention. docs/design.md section 2.

    Args:
        q, k, v: ``[B, H, T, D]`` floating, equal dtypes and devices, any strides; with ``cu_seqlens`` ``[N, H, D]``.
        window: odd w >= 1; may exceed T.
        mask: ``[B, T]`` bool, True = valid; None: all valid. Not with ``cu_seqlens``, which needs no padding.
        query_mask: ``[B, T]`` (``[N]``) bool, the queries to compute; None: all. Work follows them.
        bias: ``[H, w]``, its middle c = r being the query's own step; shifted ``[H, 2 w - 1]``, c = w - 1. None: none.
        dilation: d >= 1 steps between the keys of a window.
        shifted: windows at the ends of a recording are moved inwards until they are full (as in NATTEN), instead of being cut
            off. The ends are those of T (of every recording with ``cu_seqlens``); ``mask`` moves no window.
        cu_seqlens: ``[R + 1]`` int32 or int64, ascending from 0 to N: recordings that lie one after the other.

    Returns:
        Like q; ``[B, H, T, D]`` has the memory order of ``[B, T, H, D]``. Rows that are not valid queries are zero.
        Differentiable in q, k, v and bias: once by kernels, further by the definition.

    Raises:
        ValueError: wrong shape, dtype or device, even or negative window, ``cu_seqlens`` that does not rise from 0 to N.
    """
    _check(q, k, v, window, mask, query_mask, bias, dilation, shifted, cu_seqlens)
    q, k, v = autocast(q, k, v)
    if shifted:
        if q.numel():
            return _shifted(q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens)
        bias = None if bias is None else _central(bias, window)  # nothing to shift
    if cu_seqlens is not None and dilation > 1:
        return _packed_by_residue(q, k, v, window, query_mask, bias, dilation, cu_seqlens)
    return _OP(q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens)  # type: ignore[no-any-return]


def _check(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None,
    dilation: int, shifted: bool, cu_seqlens: Tensor | None,
) -> None:  # fmt: skip
    check_floating("q", q)
    if cu_seqlens is None:
        check_shape("q", q, "[B, H, T, D]", None, None, None, None)
        batch, heads, steps, width = q.shape
        check_mask("mask", mask, batch, steps, q.device)
        check_mask("query_mask", query_mask, batch, steps, q.device)
    else:
        check_shape("q", q, "[N, H, D], with cu_seqlens", None, None, None)
        (tokens, heads, width), batch = q.shape, None
        if mask is not None:
            fail("mask", "a mask with cu_seqlens", "None: packed recordings have no padding")
        check_mask("query_mask", query_mask, None, tokens, q.device)
        _check_boundaries(cu_seqlens, tokens, q.device)
    if width == 0:
        fail("q", f"shape {tuple(q.shape)}", "D >= 1")
    check_alike("k", k, q, "q")
    check_alike("v", v, q, "q")
    check_window(window)
    check_count("dilation", dilation, 1)
    if bias is not None:
        size = 2 * window - 1 if shifted else window
        check_floating("bias", bias)
        check_shape("bias", bias, f"[H, {'2 window - 1' if shifted else 'window'}] = [{heads}, {size}]", heads, size)
        check_device("bias", bias, q.device)


def _check_boundaries(cu_seqlens: Tensor, tokens: int, device: torch.device) -> None:
    check_shape("cu_seqlens", cu_seqlens, "[R + 1]", None)
    check_device("cu_seqlens", cu_seqlens, device)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        fail("cu_seqlens", str(cu_seqlens.dtype), "torch.int32 or torch.int64")
    if cu_seqlens.numel() == 0:
        fail("cu_seqlens", "shape (0,)", "[R + 1]")
    if checks_values(cu_seqlens):
        first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
        if first != 0 or last != tokens or bool((cu_seqlens[1:] < cu_seqlens[:-1]).any()):
            fail("cu_seqlens", f"{cu_seqlens.tolist()[:8]} … {last}", f"ascending numbers from 0 to N = {tokens}")


# ---- windows that are moved inwards, and packed recordings with a dilation: compositions of the op ----


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


def _shifted(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None,
    dilation: int, cu_seqlens: Tensor | None,
) -> Tensor:  # fmt: skip
    """Queries in the middle have ordinary windows; the ``radius`` first and last of a recording share one window each."""
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
    central = None if bias is None else _central(bias, window)
    inner = local_attention(
        q, k, v, window, mask=mask, query_mask=middle, bias=central, dilation=dilation, cu_seqlens=cu_seqlens
    )
    whole = _put(rows(inner), place, of_ends)
    for wanted in (mask, query_mask):
        whole = whole if wanted is None else whole.masked_fill(~wanted.reshape(-1, 1, 1), 0)
    return whole if packed else whole.unflatten(0, (q.shape[0], -1)).transpose(1, 2)


def _central(bias: Tensor, window: int) -> Tensor:
    """What an ordinary window reads of the bias of shifted ones."""
    return bias[:, window // 2 : window // 2 + window]


def _put(rows: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """``rows`` with ``values`` at ``place``; one place past the end is nobody's."""
    padded = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
    return padded.index_put((place,), values)[:-1]


def _packed_by_residue(
    q: Tensor, k: Tensor, v: Tensor, window: int, query_mask: Tensor | None, bias: Tensor | None, dilation: int,
    cu_seqlens: Tensor,
) -> Tensor:  # fmt: skip
    """Every residue class of a recording is a recording of its own: rows are brought in their order, and back."""
    index = torch.arange(q.shape[0], device=q.device)
    recording = torch.searchsorted(cu_seqlens[1:].long(), index, right=True)
    group = recording * dilation + (index - cu_seqlens.long()[recording]) % dilation
    order = group.argsort(stable=True)
    _, lengths = _sequences(q, dilation, cu_seqlens)
    bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    chosen = None if query_mask is None else query_mask[order]
    out = _OP(q[order], k[order], v[order], window, None, chosen, bias, 1, bounds)
    return out[order.argsort()]


# ---- the op ----

ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, int window, Tensor? mask, Tensor? query_mask, Tensor? bias, int dilation, "
    "Tensor? cu_seqlens"
)


def _backend(q: Tensor) -> str:
    backend = choose_backend(q.device)
    return "reference" if backend == "triton" and q.shape[-1] > MAX_TRITON_WIDTH else backend


def _reach(q: Tensor, window: int, bias: Tensor | None) -> int:
    """A window as wide as any that can matter; without a bias a wider one sees the same and overflows times."""
    return window if bias is not None else min(window, 2 * max(q.shape[0 if q.dim() == 3 else 2], 1) + 1)


def _dense_like(x: Tensor) -> Tensor:
    """Unwritten, ``[B, H, T, D]`` with the memory order of ``[B, T, H, D]``; packed ``[N, H, D]`` as it is."""
    if x.dim() == 3:
        return x.new_empty(x.shape)
    batch, heads, steps, width = x.shape
    return x.new_empty(batch, steps, heads, width).transpose(1, 2)


def _over_residues(dilation: int, run: Callable[..., Any], rows: list[Tensor], masks: list[Tensor | None]) -> list[Any]:
    """``run(rows, masks)`` for the steps r, r + d, r + 2 d … of each residue class r, as views."""
    if dilation == 1:
        return [run(rows, masks)]
    steps = rows[0].shape[2]
    return [
        run([x[:, :, r::dilation] for x in rows], [m if m is None else m[:, r::dilation] for m in masks])
        for r in range(min(dilation, steps))
    ]


def _run_forward(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None,
    dilation: int, cu_seqlens: Tensor | None, backend: str,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """The output, and what the backward pass of the back end reads besides it."""
    window = _reach(q, window, bias)
    if backend == "reference":
        out = compact_local_attention(q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens)
        return _dense_like(out).copy_(out), []
    bias = None if bias is None else bias.to(accumulate_dtype(q.dtype)).contiguous()
    rows = [adjacent(q), adjacent(k), adjacent(v), _dense_like(q)]
    if backend == "triton":
        return _triton_forward(rows[0], rows[1], rows[2], rows[3], window, mask, query_mask, bias, dilation, cu_seqlens)
    kernels = torch.ops.tzn_native
    if cu_seqlens is not None:
        q, k, v, out = rows
        chosen, place = _packed_places(q, query_mask, cu_seqlens, window)
        few = out if query_mask is None else q.new_empty(chosen.shape[0], *q.shape[1:])
        picked = q if query_mask is None else q[chosen]
        kernels.packed_local_attention(picked, k, v, window, chosen, place, bias, few)
        return (out if query_mask is None else out.zero_().index_copy_(0, chosen, few)), []

    def of_class(rows: list[Tensor], masks: list[Tensor | None]) -> None:
        q, k, v, out = rows
        kernels.local_attention(q, k, v, window, *(m if m is None else m.contiguous() for m in masks), bias, out)

    _over_residues(dilation, of_class, rows, [mask, query_mask])
    return rows[3], []


def _packed_places(q: Tensor, query_mask: Tensor | None, cu_seqlens: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Rows of the queries, and times of all rows."""
    chosen = torch.arange(q.shape[0], device=q.device) if query_mask is None else query_mask.nonzero().squeeze(1)
    return chosen, packed_times(cu_seqlens, q.shape[0], window // 2)


def _run_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None,
    bias: Tensor | None, dilation: int, cu_seqlens: Tensor | None, backend: str, out: Tensor | None,
    saved: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and bias (empty without one)."""
    window = _reach(q, window, bias)
    if backend == "reference":

        def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            return compact_local_attention(q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens)

        dq, dk, dv, dbias = gradients_of(run, (q, k, v, bias), grad, again=False)
        assert dq is not None and dk is not None and dv is not None
        dq, dk, dv = (_dense_like(x).copy_(g) for x, g in ((q, dq), (k, dk), (v, dv)))
        return dq, dk, dv, q.new_empty(0) if dbias is None else dbias.contiguous()
    cast = None if bias is None else bias.to(accumulate_dtype(q.dtype)).contiguous()
    gradients = [_dense_like(x) for x in (q, k, v)]
    rows = [adjacent(grad), adjacent(q), adjacent(k), adjacent(v), *gradients]
    if backend == "triton":
        dbias = _triton_backward(rows, window, mask, query_mask, cast, dilation, cu_seqlens, out, saved)
    else:
        dbias = _native_backward(rows, window, mask, query_mask, cast, dilation, cu_seqlens)
    given = q.new_empty(0) if bias is None or dbias is None else dbias.to(bias.dtype)
    return gradients[0], gradients[1], gradients[2], given


def _native_backward(
    rows: list[Tensor], window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None, dilation: int,
    cu_seqlens: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """Fills the last three of ``rows`` (grad, q, k, v, dq, dk, dv); returns the gradient of the bias."""
    kernels = torch.ops.tzn_native
    if cu_seqlens is not None:
        grad, q, k, v, dq, dk, dv = rows
        chosen, place = _packed_places(q, query_mask, cu_seqlens, window)
        few = dq if query_mask is None else q.new_empty(chosen.shape[0], *q.shape[1:])
        dbias = None if bias is None else torch.empty_like(bias)
        picked = (grad, q) if query_mask is None else (grad[chosen], q[chosen])
        kernels.packed_local_attention_backward(*picked, k, v, window, chosen, place, bias, few, dk, dv, dbias)
        if query_mask is not None:
            dq.zero_().index_copy_(0, chosen, few)
        return dbias

    def of_class(rows: list[Tensor], masks: list[Tensor | None]) -> Tensor | None:
        dbias = None if bias is None else torch.empty_like(bias)
        masks = [m if m is None else m.contiguous() for m in masks]
        kernels.local_attention_backward(*rows[:4], window, *masks, bias, *rows[4:], dbias)
        return dbias

    return _summed(_over_residues(dilation, of_class, rows, [mask, query_mask]), bias)


def _summed(parts: list[Tensor | None], like: Tensor | None) -> Tensor | None:
    """Sum over residue classes in their order."""
    if like is None:
        return None
    found = [part for part in parts if part is not None]
    return found[0] if len(found) == 1 else torch.stack(found).sum(0) if found else torch.zeros_like(like)


def _triton_lists(rows: Tensor, mask: Tensor | None, query_mask: Tensor | None, window: int) -> Any:
    """Queries and keys of ``[B, H, T, D]`` rows; None: all of them."""
    from tzn.kernels.active_tokens import compact

    if mask is None and query_mask is None:
        return None
    gate = None if query_mask is None else query_mask.contiguous().view(torch.uint8)
    return compact(gate, mask, rows.shape[0], rows.shape[2], window, rows.device)


def _triton_layout(
    rows: list[Tensor], query_mask: Tensor | None, cu_seqlens: Tensor | None, window: int
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Packed rows as one long recording, whose times keep the recordings in it apart."""
    if cu_seqlens is None:
        return rows, query_mask, None
    time = packed_times(cu_seqlens, rows[0].shape[0], window // 2).to(torch.int32)
    dense = [x.transpose(0, 1).unsqueeze(0) for x in rows]
    return dense, None if query_mask is None else query_mask.unsqueeze(0), time


def _triton_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None,
    bias: Tensor | None, dilation: int, cu_seqlens: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    from tzn.kernels.local_attention import attention_forward

    if mask is not None or query_mask is not None:
        out.zero_()
    rows, query_mask, time = _triton_layout([q, k, v, out], query_mask, cu_seqlens, window)

    def of_class(rows: list[Tensor], masks: list[Tensor | None]) -> Tensor:
        (q, k, v, out), (mask, query_mask) = rows, masks
        lists = _triton_lists(q, mask, query_mask, window)
        return attention_forward(q, k, v, bias, lists, q.shape[2], window, out, time)

    return out, _over_residues(dilation, of_class, rows, [mask, query_mask])


def _triton_backward(
    rows: list[Tensor], window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None, dilation: int,
    cu_seqlens: Tensor | None, out: Tensor | None, saved: list[Tensor],
) -> Tensor | None:  # fmt: skip
    from tzn.kernels.local_attention import attention_backward

    if not saved:  # no residue class has a step
        return None if bias is None else torch.zeros_like(bias)
    assert out is not None
    if mask is not None or query_mask is not None:
        for x in rows[4:]:
            x.zero_()
    rows, query_mask, time = _triton_layout([*rows, out], query_mask, cu_seqlens, window)
    statistics = iter(saved)

    def of_class(rows: list[Tensor], masks: list[Tensor | None]) -> Tensor | None:
        (grad, q, k, v, dq, dk, dv, out), (mask, query_mask) = rows, masks
        lists = _triton_lists(q, mask, query_mask, window)
        return attention_backward(
            grad, q, k, v, bias, out, next(statistics), lists, q.shape[2], window, dq, dk, dv, time
        )

    return _summed(_over_residues(dilation, of_class, rows, [mask, query_mask]), bias)


def _fake_saved(q: Tensor, dilation: int, backend: str) -> list[Tensor]:
    if backend != "triton":
        return []
    tokens, heads = (q.shape[0], q.shape[1]) if q.dim() == 3 else (q.shape[0] * q.shape[2], q.shape[1])
    dtype = accumulate_dtype(q.dtype)
    if dilation == 1:
        return [q.new_empty(2, heads, tokens, dtype=dtype)]
    batch, steps = q.shape[0], q.shape[2]
    classes = range(min(dilation, steps))
    return [q.new_empty(2, heads, batch * ((steps - r - 1) // dilation + 1), dtype=dtype) for r in classes]


def _fake_backward(grad, q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens, *_):  # type: ignore[no-untyped-def]
    dbias = q.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return _dense_like(q), _dense_like(k), _dense_like(v), dbias


_OP = define(
    f"local_attention({ARGUMENTS}) -> Tensor",
    lambda *arguments: _run_forward(*arguments, _backend(arguments[0]))[0],  # type: ignore[call-arg]
    lambda q, *_: _dense_like(q),
)
_FORWARD = define(
    f"_local_attention_forward({ARGUMENTS}, str backend) -> (Tensor, Tensor[])",
    _run_forward,
    lambda q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens, backend: (
        _dense_like(q),
        _fake_saved(q, dilation, backend),
    ),
)
_BACKWARD = define(
    f"_local_attention_backward(Tensor grad, {ARGUMENTS}, str backend, Tensor? out, Tensor[] saved) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


class _LocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens):  # type: ignore[no-untyped-def]
        backend = _backend(q)  # an argument, so that a compiled program, also from a cache, runs as it was traced
        out, saved = below_autograd(_FORWARD, q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens, backend)
        ctx.set_materialize_grads(False)
        ctx.settings = window, dilation, backend
        ctx.save_for_backward(q, k, v, bias, mask, query_mask, cu_seqlens, out if saved else None, *saved)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        if grad is None:
            return (None,) * 9
        q, k, v, bias, mask, query_mask, cu_seqlens, out, *saved = ctx.saved_tensors
        window, dilation, backend = ctx.settings

        def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            return compact_local_attention(q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens)

        if torch.is_grad_enabled():
            dq, dk, dv, dbias = gradients_of(run, (q, k, v, bias), grad, again=True)
        else:
            dq, dk, dv, dbias = _BACKWARD(
                grad, q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens, backend, out, saved
            )
        return dq, dk, dv, None, None, None, None if bias is None else dbias, None, None


def _apply(q: Tensor, *arguments: Any) -> Tensor:
    if _backend(q) == "reference" and is_plain(q):
        return compact_local_attention(q, *arguments)  # its own gradients need no second run
    return _LocalAttention.apply(q, *arguments)  # type: ignore[no-any-return]


differentiate(_OP, compact_local_attention, _apply)
