"""From offsets to segments, each end fused with the nearest boundary crossing."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn import reference
from tzn.ops._backend import choose_backend, kernels, serves
from tzn.ops._checks import check_device, check_floating, check_shape, checks_values, fail
from tzn.ops._register import define
from tzn.reference import Crossings, Segments


def decode_segments(
    position: Tensor,
    offset: Tensor,
    offset_std: Tensor,
    starts: Crossings | None = None,
    ends: Crossings | None = None,
    *,
    snap_sigmas: float = 3.0,
) -> Segments:
    """Anchor-free segments ``(t - left, t + right)``, each end fused with the nearest boundary crossing.

    A crossing at c with standard error s moves an end at e with standard deviation q to the inverse-variance mean
    ``(e / q^2 + c / s^2) / (1 / q^2 + 1 / s^2)`` when ``s <= q`` and ``|c - e| <= snap_sigmas * hypot(q, s)``.

    Args:
        position: ``[N]`` grid time of the points, or ``[B, N]`` of B recordings.
        offset: ``[N, 2]`` or ``[B, N, 2]`` distances to the left and right end in grid steps.
        offset_std: their standard deviations in grid steps.
        starts, ends: crossings of the recordings (``[B, K]``, B = 1 for ``[N]``); both or neither.
        snap_sigmas: > 0.

    Returns:
        ``Segments(segments, std)``, each of the shape of ``offset``, in grid steps.

    Raises:
        ValueError: wrong shapes, only one of starts and ends, crossings of another number of recordings.
    """
    for name, tensor in (("position", position), ("offset", offset), ("offset_std", offset_std)):
        check_floating(name, tensor)
        check_device(name, tensor, position.device)
    if position.dim() not in (1, 2):
        fail("position", f"shape {tuple(position.shape)}", "[N] or [B, N]")
    shape = (*position.shape, 2)
    check_shape("offset", offset, f"{list(shape)}, the shape of position and 2", *shape)
    check_shape("offset_std", offset_std, f"{list(shape)}, the shape of position and 2", *shape)
    if (starts is None) != (ends is None):
        fail("starts, ends", "only one of them", "both or neither")
    if not snap_sigmas > 0:
        fail("snap_sigmas", snap_sigmas, "> 0")
    recordings = position.shape[0] if position.dim() == 2 else 1
    for name, crossings in (("starts", starts), ("ends", ends)):
        if crossings is not None:
            check_crossings(name, crossings, recordings, position.device)
    tables = ([] if c is None else c.table() for c in (starts, ends))
    return Segments(*_OP(position, offset, offset_std, *tables, snap_sigmas))


def check_crossings(name: str, crossings: Crossings, recordings: int, device: torch.device) -> None:
    """Crossings ``[B, K]`` of a known number of recordings."""
    if not isinstance(crossings, Crossings):
        raise TypeError(f"{name}: got {type(crossings).__name__}, expected Crossings")
    many = "one recording" if recordings == 1 else f"{recordings} recordings"
    check_shape(f"{name}.position", crossings.position, f"[{recordings}, K], {many}", recordings, None)
    capacity = crossings.position.shape[1]
    for field in ("position", "std", "slope"):
        check_floating(f"{name}.{field}", getattr(crossings, field))
        check_shape(
            f"{name}.{field}", getattr(crossings, field), f"[B, K] = [{recordings}, {capacity}]", recordings, capacity
        )
        check_device(f"{name}.{field}", getattr(crossings, field), device)
    check_shape(f"{name}.count", crossings.count, f"[{recordings}]", recordings)
    check_device(f"{name}.count", crossings.count, device)
    count = crossings.count
    if checks_values(count) and count.numel() and not (int(count.min()) >= 0 and int(count.max()) <= capacity):
        fail(f"{name}.count", count.tolist()[:8], f"0 to {capacity}, as many as there are places")


def _run(
    position: Tensor, offset: Tensor, offset_std: Tensor, starts: list[Tensor], ends: list[Tensor], snap_sigmas: float
) -> tuple[Tensor, Tensor]:
    """``starts``, ``ends``: position, standard error and count, or nothing."""
    backend = choose_backend(offset.device)
    if backend == "reference" or not serves(offset, position, offset_std, *starts[:2], *ends[:2]):
        segments, std = _definition(position, offset, offset_std, starts, ends, snap_sigmas)
        return segments.contiguous(), std.clone(memory_format=torch.contiguous_format)  # may be the input itself
    batched = (x if position.dim() == 2 else x.unsqueeze(0) for x in (position, offset, offset_std))
    home = torch.ops.tzn_native if backend == "cpp" else kernels(backend, "decode_segments")
    segments, std = home.decode_segments(*batched, starts, ends, snap_sigmas)
    return segments.view(offset.shape), std.view(offset.shape)


def _definition(
    position: Tensor, offset: Tensor, offset_std: Tensor, starts: list[Tensor], ends: list[Tensor], snap_sigmas: float
) -> tuple[Tensor, Tensor]:
    tables = (Crossings.of_table(*x) if x else None for x in (starts, ends))
    return reference.decode_segments(position, offset, offset_std, *tables, snap_sigmas=snap_sigmas)


def _fake(position, offset, offset_std, starts, ends, snap_sigmas):  # type: ignore[no-untyped-def]
    return offset.new_empty(offset.shape), offset_std.new_empty(offset.shape)


_OP = define(
    "decode_segments(Tensor position, Tensor offset, Tensor offset_std, Tensor[] starts, Tensor[] ends, "
    "float snap_sigmas) -> (Tensor, Tensor)",
    _run, _fake, _definition,
)  # fmt: skip
