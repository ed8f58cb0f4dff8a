"""The boundary stream: what runs where, and that it is one continuous function."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from tzn import ops
from tzn.kernels import Dial
from tzn.kernels.cpu import zoom as cpu_kernels
from tzn.nn.boundary import MIN_SCALE
from tzn.nn.losses import reach_loss
from tzn.nn.zoom import RAMP, REACH, BoundaryStream, Exit, random_depths, training_shift
from tzn.ops._backend import choose_backend, missing_native

WIDTH, STEPS, LAYERS = 16, 67, 3


def build(layers: int = LAYERS, fields: int = 2) -> BoundaryStream:
    torch.manual_seed(0)
    stream = BoundaryStream(
        5, WIDTH, fields, layers=layers, num_heads=2, window=7, mlp_ratio=2.0, stem_layers=1, radius=6.0, threshold=1.0
    )
    for exit_ in stream.exits:
        torch.nn.init.normal_(exit_.weight, std=0.6)
    return stream.double().eval()


def inputs(batch: int = 2, steps: int = STEPS):
    torch.manual_seed(1)
    mask = torch.arange(steps)[None] < torch.tensor([steps, max(steps - 20, 1)])[:batch, None]
    x = torch.randn(batch, steps, 5, dtype=torch.float64) * mask.unsqueeze(-1)
    context = torch.randn(batch, steps, WIDTH, dtype=torch.float64) * mask.unsqueeze(-1)
    return x, context, mask


def test_a_step_that_no_block_ran_on_keeps_the_first_guess_and_one_that_all_ran_on_has_the_last():
    stream, (x, context, mask) = build(), inputs()
    tau = torch.rand(mask.shape).round()
    zoomed = stream(x, context, mask, gates=ops.depth_gates(tau, LAYERS))
    skipped = (tau == 0) & mask
    for name in Exit._fields:
        first, last = (getattr(e, name).transpose(1, 2) for e in (zoomed.exits[0], zoomed.exits[-1]))
        torch.testing.assert_close(last[skipped], first[skipped], rtol=0, atol=0)
        assert ((last - first)[(tau == 1) & mask].abs() > 1e-6).all()


def test_exits_of_full_depth_are_those_of_shallower_streams():
    """What makes one pass at full depth enough to know what every uniform depth would have said."""
    stream, (x, context, mask) = build(), inputs()
    full = stream(x, context, mask, gates=torch.ones(*mask.shape, LAYERS))
    for blocks in range(LAYERS + 1):
        gates = ops.depth_gates(torch.full(mask.shape, blocks / LAYERS), LAYERS)
        alone = stream(x, context, mask, gates=gates).exits[-1]
        torch.testing.assert_close(alone.distance, full.exits[blocks].distance)


def test_who_stops_stays_stopped_and_padding_never_runs():
    stream, (x, context, mask) = build(), inputs()
    gates = stream(x, context, mask).gates
    assert (gates.diff(dim=-1) <= 0).all()
    assert (gates[~mask] == 0).all()
    share = float((gates[mask] > 0).float().mean())
    assert 0.1 < share < 0.97  # else nothing was tested


def test_activity_is_reach_times_unsettledness():
    stream = build(fields=1)
    logit = torch.logit(torch.tensor([0.05, 0.2, 0.5, 0.99, 0.99, 0.99]))[None, None]
    scale = torch.tensor([4.0, 4.0, 4.0, 0.4, 1.0, 2.0])[None, None]
    activity = stream.activity(Exit(torch.zeros_like(scale), scale, logit))
    # Out of reach; half within; within; settled; at the threshold; unsettled. Ramps: 0.1 to 0.3, half to twice.
    torch.testing.assert_close(activity[0], torch.tensor([0.0, 0.5, 1.0, 0.0, 0.5, 1.0]))
    # A shift of log f divides the threshold by f.
    shifted = stream.activity(Exit(torch.zeros_like(scale), scale, logit), torch.tensor([[math.log(2.0)]]))
    torch.testing.assert_close(shifted[0, 3:], torch.tensor([0.339036, 1.0, 1.0]), rtol=1e-4, atol=0)


def test_the_dial_is_monotone_from_nothing_to_everything_within_reach():
    stream, (x, context, mask) = build(), inputs()
    shifts = [-math.inf, -2.0, -0.5, 0.0, 0.5, 2.0, math.inf]
    depth = [float(stream(x, context, mask, shift=torch.full((2, 1), s)).gates[..., 0].sum()) for s in shifts]
    assert depth[0] == 0 and all(a <= b for a, b in itertools.pairwise(depth)) and depth[-1] > depth[2] > 0


def test_the_stream_is_continuous():
    """Twice as near an input, about twice as near an output, across steps that switch on and off."""
    stream, (x, context, mask) = build(), inputs()
    direction = torch.randn_like(x) * mask.unsqueeze(-1)
    base = stream(x, context, mask)
    moved = []
    for size in (1e-4, 1e-6, 1e-8):
        other = stream(x + size * direction, context, mask)
        moved.append(float((other.exits[-1].distance - base.exits[-1].distance).abs().max()))
    assert moved[0] > moved[1] > moved[2] and moved[2] < 1e-4


@pytest.mark.parametrize("layers", [0, 1, LAYERS])
@pytest.mark.parametrize("fields", [1, 2])
@pytest.mark.parametrize("shift", [None, -math.inf, -0.4, [0.3, -0.6], math.inf], ids=str)
def test_the_last_exit_alone_is_that_of_all(shift, fields, layers):
    """What inference reads, with the active rows packed, is what training computes for every step."""
    stream, (x, context, mask) = build(layers, fields), inputs()
    shift = None if shift is None else torch.tensor(shift).expand(2).unsqueeze(1)
    with torch.no_grad():
        wanted, found = (stream(x, context, mask, shift=shift, last_only=last) for last in (False, True))
    assert len(found.exits) == 1
    torch.testing.assert_close(found.gates, wanted.gates, rtol=1e-6, atol=1e-7)
    for name in Exit._fields:
        torch.testing.assert_close(getattr(found.exits[0], name), getattr(wanted.exits[-1], name), rtol=1e-5, atol=1e-6)


def exit_arguments(width: int, fields: int, dtype: torch.dtype, batch: int = 2, steps: int = 301):
    """Of the kernel ``read_exit``: a state, a norm, a linear layer, exits before, a mask and gates, of which half are 0."""
    draw = torch.Generator().manual_seed(width + 7 * fields)
    random = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    h = (3 * random(batch, steps, width) + 2).to(dtype)
    norm = (random(width).to(dtype), random(width).to(dtype), 1e-5)
    linear = ((random(3 * fields, width) / width**0.5).to(dtype), random(3 * fields).to(dtype))
    gate = (torch.rand(batch, steps, generator=draw) - 0.5).clamp(min=0)
    return (
        h,
        norm,
        linear,
        random(batch * steps, 3 * fields).float(),
        torch.rand(batch, steps, generator=draw) < 0.8,
        gate,
    )


def exit_by_definition(h, norm, linear, raw, mask, gate, shift, full=False):
    """Corrected exits and the gates of the next block, as BoundaryStream.refine has them, in the dtype of ``h``."""
    stream = BoundaryStream(
        3, h.shape[-1], raw.shape[1] // 3, layers=0, num_heads=1, window=3, mlp_ratio=1.0, stem_layers=0, radius=6.0,
        threshold=0.7,
    )  # fmt: skip
    stream.full_depth = full
    read = F.linear(F.layer_norm(h, h.shape[-1:], *norm), *linear).flatten(0, 1)
    raw = read if gate is None else raw.to(h.dtype) + gate.flatten().to(h.dtype).unsqueeze(1) * read
    gate = mask.to(h.dtype) if gate is None else gate.to(h.dtype)
    return raw, gate * stream.activity(stream._exit(raw, mask), shift)


DIAL = Dial(MIN_SCALE, math.log(0.7), RAMP, REACH, False)
needs_kernels = pytest.mark.skipif(missing_native() is not None, reason=str(missing_native()))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width, fields", [(1, 1), (5, 2), (16, 2), (33, 1), (128, 7)])
@pytest.mark.parametrize("first", [False, True])
def test_the_kernel_of_exits_is_as_exact_as_pytorch(width, fields, dtype, first):
    h, norm, linear, raw, mask, gate = exit_arguments(width, fields, dtype)
    gate = None if first else gate
    shift = torch.tensor([[0.2], [-0.3]])
    wide = lambda x: x.double() if isinstance(x, torch.Tensor) else x  # noqa: E731
    exact = exit_by_definition(h.double(), tuple(map(wide, norm)), tuple(map(wide, linear)), raw, mask, gate, shift)
    eager = exit_by_definition(h, norm, linear, raw, mask, gate, shift)
    found, following = (
        raw.clone() if gate is not None else torch.full_like(raw, math.nan),
        torch.full(mask.shape, math.nan),
    )
    arguments = (norm, linear, found, mask, gate, following, shift.flatten(), DIAL)
    running = cpu_kernels.read_exit(h, *arguments)
    for ours, theirs, right in zip((found, following), eager, exact, strict=True):
        error, allowed = (ours.double() - right).abs().max(), 2 * (theirs.double() - right).abs().max()
        assert error <= allowed + 2e-6 * right.abs().max().clamp(min=1)  # float32 is what exits are kept in
    assert running == int((following != 0).sum())
    assert not first or (following[~mask] == 0).all()
    assert ((following > 0) & (following < 0.99)).any()  # a ramp was tested
    if not first:
        stopped = (gate == 0).flatten()
        assert torch.equal(found[stopped], raw[stopped]) and (following.flatten()[stopped] == 0).all()


@needs_kernels
def test_the_kernel_of_exits_in_corners():
    h, norm, linear, raw, mask, gate = exit_arguments(9, 2, torch.float32, 3, 700)

    def read(h, raw, mask, gate, dial=DIAL, **kind):
        raw, following = raw.clone(), torch.full(mask.shape, math.nan)
        return (
            cpu_kernels.read_exit(h, norm, linear, raw, mask, gate, following, kind.get("shift"), dial),
            raw,
            following,
        )

    wanted = read(h, raw, mask, gate)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        again = read(h, raw, mask, gate)
    finally:
        torch.set_num_threads(threads)
    assert wanted[0] == again[0] and torch.equal(wanted[1], again[1]) and torch.equal(wanted[2], again[2])
    apart = torch.empty(9, 3, 700).permute(1, 2, 0).copy_(h)  # strided
    assert torch.equal(read(apart, raw, mask, gate)[1], wanted[1])
    poisoned = torch.where((gate == 0).unsqueeze(-1), math.nan, h)  # steps that stopped are not read
    assert torch.equal(read(poisoned, raw, mask, gate)[1], wanted[1])
    nothing = read(h, raw, mask, torch.zeros_like(gate))
    assert nothing[0] == 0 and torch.equal(nothing[1], raw) and not nothing[2].any()
    shifts = torch.tensor([math.inf, -math.inf, 0.0])  # everything within reach, nothing, the threshold as it is
    assert not read(h, raw, mask, gate, shift=shifts)[2][1].any()
    close = exit_by_definition(h, norm, linear, raw, mask, gate, torch.full((3, 1), math.inf))[1]
    torch.testing.assert_close(read(h, raw, mask, gate, shift=shifts)[2][0], close[0], rtol=1e-5, atol=2e-6)
    assert torch.equal(read(h, raw, mask, gate, DIAL._replace(full=True))[2], gate)
    broken = h.clone()
    broken[0, 5] = math.nan
    ones = torch.ones_like(gate)
    assert read(broken, raw, mask, ones)[2].isnan().nonzero().tolist() == [[0, 5]]  # neither hidden nor spread
    empty = read(h[:0], raw[:0], mask[:0], gate[:0])
    assert empty[0] == 0 and empty[2].shape == (0, 700)
    with pytest.raises(RuntimeError, match="raw: expected"):
        read(h, raw[1:], mask, gate)


def test_the_last_exit_alone_under_given_gates(monkeypatch):
    """Gates of a policy, of which some layer has none and a later one has some."""
    stream, (x, context, mask) = build(), inputs()
    calls, read_exit = [], cpu_kernels.read_exit
    monkeypatch.setattr(cpu_kernels, "read_exit", lambda *given: (calls.append(0), read_exit(*given))[1])
    gates = (torch.rand(*mask.shape, LAYERS, generator=torch.Generator().manual_seed(3)) - 0.7).clamp(min=0)
    gates[..., 1] = 0
    with torch.no_grad():
        wanted, found = (stream(x, context, mask, gates=gates, last_only=last) for last in (False, True))
    torch.testing.assert_close(found.gates, wanted.gates)
    torch.testing.assert_close(found.exits[0].distance, wanted.exits[-1].distance, rtol=1e-6, atol=1e-6)
    assert len(calls) == (LAYERS + 1 if choose_backend() == "cpp" else 0)  # else PyTorch was compared with itself
    assert len(stream(x, context, mask, last_only=True).exits) == 1  # with gradients, the other way


@pytest.mark.parametrize("steps", [1, 2, 7, 67])
def test_padding_and_neighbours_in_the_batch_do_not_matter(steps):
    stream, (x, context, mask) = build(), inputs(steps=steps)
    together = stream(x, context, mask)
    length = int(mask[1].sum())
    alone = stream(x[1:, :length], context[1:, :length], mask[1:, :length])
    for name in Exit._fields:
        torch.testing.assert_close(
            getattr(together.exits[-1], name)[1:, :, :length], getattr(alone.exits[-1], name), rtol=1e-5, atol=1e-6
        )


def test_no_gradient_asks_for_more_depth_and_every_weight_learns():
    stream, (x, context, mask) = build().train(), inputs()
    zoomed = stream(x, context, mask, shift=training_shift(2, mask.device))
    assert not zoomed.gates.requires_grad
    target = torch.randn(2, 2, STEPS).clamp(-6, 6)
    loss = sum((e.distance - target).abs().sum() + e.scale.sum() for e in zoomed.exits)
    (loss + reach_loss(zoomed.exits, target, mask, 6.0)).backward()
    assert [name for name, p in stream.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_reach_loss_is_the_cross_entropy_of_being_near():
    logit = torch.tensor([[[2.0, -1.0, 0.5, 9.0]]])
    target, mask = torch.tensor([[[1.0, -6.0, 5.9, 0.0]]]), torch.tensor([[True, True, True, False]])
    exits = [Exit(torch.zeros_like(logit), torch.ones_like(logit), logit)] * 2
    wanted = math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-0.5))
    assert float(reach_loss(exits, target, mask, 6.0)) == pytest.approx(wanted, rel=1e-6)


def test_random_depths_are_stretches_of_all_depths():
    torch.manual_seed(0)
    tau = random_depths(64, 256, LAYERS, torch.device("cpu"))
    assert set((tau * LAYERS).round().int().flatten().tolist()) == set(range(LAYERS + 1))
    changes = (tau.diff(dim=1) != 0).float().mean(1)
    assert changes.min() < 0.02 and changes.max() > 0.3


def test_without_blocks_the_first_guess_is_all():
    stream, (x, context, mask) = build(layers=0), inputs()
    zoomed = stream(x, context, mask)
    assert len(zoomed.exits) == 1 and zoomed.gates.shape == (2, STEPS, 0)


@pytest.mark.parametrize("last_only", [False, True])
def test_an_empty_batch(last_only):
    given = torch.zeros(0, 9, 5).double(), torch.zeros(0, 9, WIDTH).double(), torch.ones(0, 9, dtype=torch.bool)
    with torch.no_grad():
        zoomed = build()(*given, last_only=last_only)
    assert zoomed.exits[-1].distance.shape == (0, 2, 9) and zoomed.gates.shape == (0, 9, LAYERS)
