"""Properties over generated sizes, settings and values: compiled results equal the definition's, suppression is invariant.

Hypothesis chooses sizes, settings and a seed, and shrinks them; the numbers of the tensors come from the seed.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from oracle import assert_as_good_as_eager, block_weights, gradients, noisy_fields
from torch import Tensor

from tzn import ops, reference

pytestmark = pytest.mark.not_interpreted("hundreds of examples")
SETTINGS = settings(
    derandomize=True, deadline=None, max_examples=25, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the back end stays the same over all examples
)  # fmt: skip
SEEDS = st.integers(0, 2**32 - 1)
MASKS = st.sampled_from([None, 0.0, 0.3, 0.9])  # share of valid steps; None: no mask
PLAIN = st.sampled_from([torch.float32, torch.float64])


@pytest.fixture
def compiled(backend: str) -> None:
    if backend == "reference":
        pytest.skip("the definition would be compared with itself")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _mask(share: float | None, shape: tuple[int, int], generator: torch.Generator) -> Tensor | None:
    return None if share is None else torch.rand(shape, generator=generator) < share


@SETTINGS
@given(
    st.integers(0, 3), st.integers(1, 3), st.integers(0, 75), st.integers(1, 20), st.integers(0, 12), MASKS, MASKS,
    st.booleans(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]), SEEDS,
)  # fmt: skip
def test_attention_and_its_gradients(backend, batch, heads, steps, width, radius, valid, chosen, biased, dtype, seed):
    generator, window = _generator(seed), 2 * radius + 1
    exact = [torch.randn(batch, heads, steps, width, generator=generator, dtype=torch.float64) for _ in range(3)]
    exact += [torch.randn(heads, window, generator=generator, dtype=torch.float64)] if biased else []
    exact = [x.to(dtype).double() for x in exact]  # the same numbers in every dtype
    mask, query = (_mask(share, (batch, steps), generator) for share in (valid, chosen))

    def run(function, inputs):
        def attend(q, k, v, bias=None):
            return function(q, k, v, window, mask=mask, query_mask=query, bias=bias)

        return [attend(*inputs), *gradients(attend, inputs)]

    rounded = [x.to(dtype) for x in exact]
    given_, eager = run(ops.local_attention, rounded), run(reference.local_attention, rounded)
    for ours, theirs, true in zip(given_, eager, run(reference.local_attention, exact), strict=True):
        assert ours.dtype == dtype and ours.shape == true.shape
        # A few numbers that nearly cancel differ by luck; the error's ratio means something over many.
        assert_as_good_as_eager(ours, theirs, true, slack=2 if true.numel() >= 256 else 16)


@SETTINGS
@given(
    st.integers(0, 3), st.integers(0, 60), st.integers(1, 3), st.integers(1, 8), st.integers(0, 9), st.booleans(),
    st.floats(0, 1), MASKS, SEEDS,
)  # fmt: skip
def test_block_and_its_gradients(compiled, batch, steps, heads, per_head, radius, gated, active, valid, seed):
    generator, width = _generator(seed), heads * per_head
    weights = block_weights(width, heads, 2 * radius + 1, 5, seed=seed % 2**31)
    x = torch.randn(batch, steps, width, generator=generator, dtype=torch.float64)
    gate = x.sum(2).abs() * (torch.rand(batch, steps, generator=generator) < active)
    mask, inputs = _mask(valid, (batch, steps), generator), [x, *weights]

    def run(function):
        def block(x, *rest):
            own = rest[15] if gated else None
            return function(x, own, ops.BlockWeights(*rest[:15]), mask=mask)

        leaves = [*inputs, gate] if gated else inputs
        return [block(*leaves), *gradients(block, leaves)] if batch and steps else [block(*leaves)]

    for ours, true in zip(run(ops.variable_depth_block), run(reference.variable_depth_block), strict=True):
        torch.testing.assert_close(
            ours, true, rtol=1e-8, atol=1e-8 * max(1.0, float(true.abs().max()) if true.numel() else 0)
        )


@SETTINGS
@given(st.integers(0, 4), st.integers(0, 90), st.integers(0, 100), st.floats(0, 1), MASKS, SEEDS)
def test_active_tokens(compiled, batch, steps, radius, active, valid, seed):
    generator = _generator(seed)
    gate = torch.rand(batch, steps, generator=generator) * (torch.rand(batch, steps, generator=generator) < active)
    mask = _mask(valid, (batch, steps), generator)
    found, wanted = (f.active_tokens(gate, 2 * radius + 1, mask) for f in (ops, reference))
    assert torch.equal(found.active, wanted.active) and torch.equal(found.halo, wanted.halo)


@SETTINGS
@given(
    st.integers(0, 3), st.integers(0, 90), PLAIN, st.sampled_from(["vote_median", "vote_mean", "crossing"]),
    st.integers(1, 120), st.floats(0, 1), MASKS, SEEDS,
)  # fmt: skip
def test_crossings(compiled, fields, steps, dtype, estimator, window, min_slope, valid, seed):
    generator = _generator(seed)
    distance, scale = noisy_fields(fields, steps, dtype, seed)
    mask = _mask(valid, (fields, steps), generator)
    found, wanted = (
        f.boundary_crossings(
            distance, scale, estimator=estimator, vote_window=window, min_slope=min_slope, mask=mask
        )
        for f in (ops, reference)
    )  # fmt: skip
    assert torch.equal(found.count, wanted.count)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for name in ("position", "std", "slope"):
        ours, true = getattr(found, name), getattr(wanted, name)
        if name == "slope":  # two crossings at one place, up to rounding, may come in any order
            ours, true = ours.sort(-1).values, true.sort(-1).values
        torch.testing.assert_close(ours, true, rtol=tolerance, atol=tolerance * (steps + 1))


@SETTINGS
@given(st.integers(0, 60), st.integers(0, 80), PLAIN, st.booleans(), st.floats(0.1, 10), SEEDS)
def test_decoding(compiled, count, steps, dtype, with_crossings, sigmas, seed):
    generator = _generator(seed)
    position = steps * torch.rand(count, generator=generator, dtype=dtype)
    offset, std = (8 * torch.rand(count, 2, generator=generator, dtype=dtype) for _ in range(2))
    tables = [None, None]
    if with_crossings:
        tables = [reference.boundary_crossings(*noisy_fields(1, steps, dtype, seed + i)) for i in range(2)]
    found, wanted = (f.decode_segments(position, offset, std, *tables, snap_sigmas=sigmas) for f in (ops, reference))
    for ours, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-6, atol=1e-6)
    if with_crossings:
        assert (found.std <= std).all()  # a fused end is never less certain


def _candidates(count: int, dtype: torch.dtype, tied: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores are distinct unless ``tied``; one segment in eight has no length."""
    generator = _generator(seed)
    start = 30 * torch.rand(count, generator=generator, dtype=dtype)
    length = 8 * torch.rand(count, generator=generator, dtype=dtype)
    length = length * (torch.rand(count, generator=generator) > 1 / 8)
    scores = (torch.randperm(count, generator=generator) + 1).to(dtype) / (count + 1)
    scores = (scores * 6).round() / 6 if tied else scores
    return torch.stack([start, start + length], 1), scores, torch.randint(3, (count,), generator=generator)


def _assert_same_scores(ours: Tensor, true: Tensor) -> None:
    """Bit by bit in float32; exponentials in float64 may differ in the last place."""
    torch.testing.assert_close(ours, true, rtol=1e-12 if ours.dtype == torch.float64 else 0, atol=0)


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
@pytest.mark.parametrize("multiclass", [True, False], ids=["by-class", "all-together"])
@settings(SETTINGS, max_examples=12)
@given(
    st.integers(0, 130), PLAIN, st.booleans(), st.floats(0.05, 0.95), st.floats(0.0, 0.2), st.integers(1, 200),
    st.sampled_from([0.0, 0.4, 0.75]), st.booleans(), SEEDS,
)  # fmt: skip
def test_suppression(
    compiled, method, multiclass, count, dtype, tied, threshold, min_score, cap, voting, per_class, seed
):
    segments, scores, labels = _candidates(count, dtype, tied, seed)
    kind = {"use_soft_nms": method != "hard", "method": "linear" if method == "linear" else "gaussian"}
    more = {"multiclass": multiclass, "voting_thresh": voting, "per_class_voting": per_class}
    found = ops.batched_nms(segments, scores, labels, threshold, min_score, cap, **kind, **more)
    wanted = reference.batched_nms(segments, scores, labels, threshold, min_score, cap, method=method, **more)
    assert torch.equal(found[2], wanted[2])
    _assert_same_scores(found[1], wanted[1])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found[0], wanted[0], rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("soft", [True, False])
@SETTINGS
@given(st.integers(0, 60), st.booleans(), st.integers(-6, 6), st.integers(-64, 64), SEEDS)
def test_suppression_does_not_depend_on_order_place_or_unit(backend, soft, count, multiclass, power, shift, seed):
    """Distinct scores: the order of the input is nothing; nor are, as IoU knows no unit, a scale and a shift."""
    segments, scores, labels = _candidates(count, torch.float64, False, seed)
    long = segments[:, 1] > segments[:, 0]  # the 1e-6 in a length is in the unit of the input
    segments, scores, labels = (x[long] for x in (segments, scores, labels))

    def suppress(segments, scores, labels):
        return ops.batched_nms(
            segments, scores, labels, 0.3, 0.001, 1000, use_soft_nms=soft, multiclass=multiclass, voting_thresh=0.0
        )

    found = suppress(segments, scores, labels)
    order = torch.randperm(len(scores), generator=_generator(seed + 1))
    other = suppress(segments[order], scores[order], labels[order])
    assert torch.equal(other[0], found[0]) and torch.equal(other[2], found[2])
    _assert_same_scores(other[1], found[1])
    moved = suppress((segments + shift) * 2.0**power, scores, labels)
    if len(moved[1]) == len(found[1]):  # a score within 1e-4 of min_score may go or stay
        torch.testing.assert_close(moved[1], found[1], rtol=1e-3, atol=1e-4)
    else:
        few, many = sorted((moved[1], found[1]), key=len)
        assert many[len(few) :].max() < 0.0012
