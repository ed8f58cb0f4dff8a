"""Shared by the op tests: awkward shapes, random inputs, and one error policy."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tzn import reference

# (name, B, T, window, share of active tokens, valid lengths or None)
SHAPES = [
    ("one-step", 1, 1, 3, 1.0, None),
    ("window-one-is-pointwise", 1, 9, 1, 0.5, None),
    ("window-wider-than-recording", 2, 5, 19, 1.0, None),
    ("prime-length", 1, 97, 19, 0.3, None),
    ("exactly-one-tile", 1, 32, 5, 1.0, None),
    ("one-past-a-tile", 2, 33, 5, 0.5, (33, 7)),
    ("no-active-token", 2, 40, 7, 0.0, None),
    ("one-active-token", 1, 70, 7, "one", None),
    ("all-padded-recording", 2, 40, 7, 0.6, (40, 0)),
    ("empty-batch", 0, 12, 7, 0.5, None),
    ("empty-recording", 1, 0, 7, 0.5, None),
]
IDS = [shape[0] for shape in SHAPES]
# The interpreter's bfloat16 products are wrong.
DTYPES = [torch.float32, torch.float16, *([] if os.environ.get("TRITON_INTERPRET") == "1" else [torch.bfloat16])]


# Of float32 on tensor cores, three TF32 products for one, against eager float32. With products emulated that way, and sums cut
# off every eight terms as tensor cores may do it, attention's errors were 1.3 to 5.4 times eager's (largest ones 7.4 times; 256
# channels, three seeds), those of a product 256, 512 and 2048 deep 4, 7 and 25 times (2026-11). One TF32 product is thousands.
TF32_SLACK = {"attention": 8.0, "block": 32.0}


def random_masks(batch: int, steps: int, active: float | str, lengths: tuple[int, ...] | None, seed: int = 0):
    """(mask, query mask), both ``[B, T]`` bool."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, steps, dtype=torch.bool)
    if lengths is not None:
        mask = torch.arange(steps)[None] < torch.tensor(lengths)[:, None]
    if active == "one":
        query = torch.zeros(batch, steps, dtype=torch.bool)
        query[:, steps // 2] = True
    else:
        query = torch.rand(batch, steps, generator=generator) < active
    return mask, query


def assert_as_good_as_eager(given: Tensor, eager: Tensor, exact: Tensor, slack: float = 2.0) -> None:
    """The error against the float64 result is at most ``slack`` times that of eager PyTorch in the same dtype.

    Root mean square and largest error; floors of units in the last place of the largest value, 1 and 8 of them, keep
    lucky exact results (and the luck in a largest value) from failing others.
    """
    if not exact.numel():
        return
    unit = torch.finfo(given.dtype).eps * exact.abs().max().item()
    ours, theirs = given.double() - exact, eager.double() - exact
    for name, error, peer, floor in (
        ("root mean square", ours.square().mean().sqrt().item(), theirs.square().mean().sqrt().item(), unit),
        ("largest", ours.abs().max().item(), theirs.abs().max().item(), 8 * unit),
    ):
        bound = max(slack * peer, floor)
        assert error <= bound, f"{name} error {error:.3g} exceeds {slack} x eager's, bound {bound:.3g}"


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(out.dtype)
    return [
        torch.zeros_like(x) if g is None else g
        for x, g in zip(leaves, torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True), strict=True)
    ]


def candidates(count: int, classes: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = False):
    """(segments ``[N, 2]``, scores, labels) of a crowd: lengths 1 to 11 on [0, 60], scores in eighths where ``tied``."""
    generator = torch.Generator().manual_seed(seed)
    start, length, scores = torch.rand(3, count, generator=generator, dtype=torch.float64)
    segments = torch.stack([60 * start, 60 * start + 1 + 10 * length], 1)
    scores = (scores * 8).round() / 8 if tied else scores
    return segments.to(dtype), scores.to(dtype), torch.randint(classes, (count,), generator=generator)


def noisy_fields(fields: int, steps: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    """(distance, scale) ``[F, T]``: noisy sawteeth with many crossings, votes that disagree, neighbours that change places."""
    generator = torch.Generator().manual_seed(seed)
    boundaries = torch.rand(fields, max(steps // 6, 1), generator=generator).sort(dim=1).values * steps
    distance = reference.signed_distance(boundaries, steps, 16.0) + 0.8 * torch.randn(
        fields, steps, generator=generator
    )
    return distance.to(dtype), (0.2 + torch.rand(fields, steps, generator=generator)).to(dtype)


def block_weights(width: int, heads: int, window: int, hidden: int, dtype: torch.dtype = torch.float64, seed: int = 1):
    """Weights of a variable-depth block with nothing left at a special value."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5

    w, m = width, hidden
    shapes = [
        (w,), (w,), (w, w), (w,), (2 * w, w), (2 * w,), (heads, window), (w, w), (w,), (w,), (w,), (m, w), (m,), (w, m),
        (w,),
    ]  # fmt: skip
    weights = reference.BlockWeights(*(random(*shape) for shape in shapes))
    near_one = {name: 1 + weights._asdict()[name] for name in ("norm1_weight", "norm2_weight")}
    return reference.BlockWeights(*(x.to(dtype) for x in weights._replace(**near_one)))
