"""Picks of suppress_groups are exactly those of tzn.reference: indices, scores and counts, to the bit."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from cuda_emulation import emulate
from hypothesis import given, settings

from tzn import reference
from tzn.ops._backend import missing_cuda, missing_native

METHODS = {"gaussian": 0, "linear": 1, "zero": 2, "remove": 3}


def _candidates(recordings: int, number: int, groups: int = 1, seed: int = 0):
    """Segments on [0, 72], three in ten scores tied, integer labels."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(recordings, number, generator=generator) * 60
    segments = torch.stack([start, start + torch.rand(recordings, number, generator=generator) * 12], dim=-1)
    scores = torch.rand(recordings, number, generator=generator)
    scores = torch.where(torch.rand(scores.shape, generator=generator) < 0.3, (scores * 8).round() / 8, scores)
    return segments, scores, torch.randint(groups, scores.shape, generator=generator, dtype=torch.int32)


def _wanted(segments, scores, members, capacity, method, iou_threshold, sigma, min_score, above):
    """What the reference picks among ``members`` of one recording."""
    if above > 0:
        members = members[scores[members] > above]
    if capacity == 0 or len(members) == 0:
        return members[:0], scores[:0]
    if method == "remove":
        index = reference.nms(segments[members], scores[members], iou_threshold, max_seg_num=capacity)
        return members[index], scores[members][index]
    index, score = reference.soft_nms(
        segments[members], scores[members], iou_threshold=iou_threshold, sigma=sigma, min_score=min_score,
        method="hard" if method == "zero" else method, max_seg_num=capacity,
    )  # fmt: skip
    return members[index], score


def _check(suppress, segments, scores, labels, counts, groups, capacity, method, rule=(0.3, 0.4, 0.05, 0.0)):
    index, score, count = suppress(segments, scores, labels, counts, groups, capacity, METHODS[method], *rule)
    assert index.shape == score.shape == (*scores.shape[:1], groups, capacity)
    for r in range(scores.shape[0]):
        used = scores.shape[1] if counts is None else int(counts[r])
        for g in range(groups):
            mine = scores[r, :used] > -torch.inf
            if labels is not None:
                mine &= labels[r, :used] == g
            wanted, wanted_score = _wanted(segments[r], scores[r], mine.nonzero().squeeze(1), capacity, method, *rule)
            made = len(wanted)
            assert count[r, g] == made
            assert index[r, g, :made].tolist() == wanted.tolist()
            assert torch.equal(score[r, g, :made], wanted_score)
            assert (index[r, g, made:] == -1).all()
            assert (score[r, g, made:] == -torch.inf).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [1, 7, 64, 130])
@pytest.mark.parametrize("capacity", [200, 5])
def test_random(suppress, method, number, capacity):
    segments, scores, _ = _candidates(2, number, seed=number)
    _check(suppress, segments, scores, None, None, 1, capacity, method)


@pytest.mark.parametrize("method", METHODS)
def test_recordings_and_classes_side_by_side(suppress, method):
    segments, scores, labels = _candidates(3, 90, 4)
    labels[0, :10], labels[0, 10:15] = -1, 4  # of no group
    scores[2, 3] = -torch.inf
    _check(suppress, segments, scores, labels, torch.tensor([90, 0, 33]), 4, 40, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", [(0.0, 0.4, 0.0, 0.0), (0.3, 0.01, 0.5, 0.4), (1.0, 50.0, 0.0, 0.5)], ids=str)
def test_thresholds_at_their_limits(suppress, method, rule):
    segments, scores, labels = _candidates(2, 60, 2, seed=3)
    _check(suppress, segments, scores, labels, None, 2, 60, method, rule)


def _degenerate():
    segments, scores, _ = _candidates(1, 50, seed=9)
    grid = segments.round()  # whole numbers: equal overlaps, touching ends, some of no length
    instants = torch.stack([grid[..., 0], grid[..., 0]], dim=-1)
    yield "equal-scores-go-by-index", grid, torch.full_like(scores, 0.5)
    yield "all-the-same-segment", torch.ones_like(segments) * torch.tensor([2.0, 5.0]), scores
    yield "touching-and-tied", grid, (scores * 4).round() / 4
    yield "no-length", instants, (scores * 4).round() / 4
    yield "nothing-but-removed", segments, torch.full_like(scores, -torch.inf)
    yield "zeros-of-both-signs", grid, torch.where(torch.arange(50) % 2 == 0, 0.0, -0.0)[None]
    yield "negative-scores", segments, scores - 0.5
    yield "denormal-scores", segments, scores * 1e-41
    yield "far-from-the-origin", segments + 1e7, scores
    yield "huge", segments * 1e30, scores
    yield "negative-times", segments - 36, scores
    yield "no-candidate", segments[:, :0], scores[:, :0]
    yield "no-recording", segments[:0], scores[:0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", list(_degenerate()), ids=lambda case: case[0])
@pytest.mark.parametrize("min_score", [0.0, 0.05])
def test_degenerate(suppress, method, case, min_score):
    _, segments, scores = case
    _check(suppress, segments, scores, None, None, 1, 50, method, (0.3, 0.4, min_score, 0.0))


def test_no_room_for_a_pick(suppress):
    segments, scores, labels = _candidates(2, 20, 3)
    _check(suppress, segments, scores, labels, None, 3, 0, "gaussian")


def test_strided_input(suppress):
    segments, scores, labels = _candidates(2, 30, 3)
    wide = torch.stack([segments, segments], 1)[:, 1]
    columns = scores.t().contiguous().t()
    _check(suppress, wide, columns, labels.t().contiguous().t(), None, 3, 30, "linear")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(-1, 8), st.integers(0, 2)), max_size=40),
    method=st.sampled_from(sorted(METHODS)),
    iou_threshold=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    capacity=st.sampled_from([0, 3, 40]),
    places=st.sampled_from([0, 7, 40]),
    seed=st.integers(0, 2**31),
)
def test_small_integers_are_full_of_ties(emulated, rows, method, iou_threshold, capacity, places, seed):
    table = torch.tensor(rows, dtype=torch.float32).reshape(1, -1, 4)
    segments = torch.stack([table[..., 0], table[..., 0] + table[..., 1]], dim=-1)
    labels = table[..., 3].int()

    def suppress(*arguments):
        return emulated(*arguments, places=places, threads=32, seed=seed)

    _check(suppress, segments, table[..., 2] / 8, labels, None, 3, capacity, method, (iou_threshold, 0.4, 0.05, 0.0))


@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_any_number_of_threads_in_any_order(emulated, threads):
    """Groups of very different size; those that exceed what shared memory holds lie in global memory, each in its own part."""
    segments, scores, labels = _candidates(2, 400, 40, seed=5)
    labels = torch.where(labels < 30, 0, labels - 29)
    for seed in range(2):

        def suppress(*arguments, seed=seed):
            return emulated(*arguments, places=20, threads=threads, seed=seed)

        _check(suppress, segments, scores, labels, None, 11, 25, "gaussian")


def test_the_emulation_notices_a_missing_barrier(emulation):
    library = emulation("-DTZN_EMULATE_WITHOUT_BARRIERS")
    segments, scores, _ = _candidates(1, 200)

    def suppress(*arguments):
        return emulate(library, *arguments, threads=256)

    with pytest.raises(AssertionError):
        _check(suppress, segments, scores, None, None, 1, 100, "gaussian")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_registration(device):
    reason = missing_native() if device == "cpu" else missing_cuda()
    if reason is not None:
        pytest.skip(reason)
    segments, scores, labels = (x.to(device) for x in _candidates(2, 30, 3))
    counts = torch.tensor([30, 7], device=device)
    op = torch.ops.tzn_native.suppress_groups.default
    torch.library.opcheck(op, (segments, scores, labels, counts, 3, 12, 0, 0.3, 0.4, 0.05, 0.0))
    torch.library.opcheck(op, (segments, scores, None, None, 1, 12, 3, 0.3, 0.4, 0.05, 0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 5)}, "segments: expected"),
        ({1: torch.zeros(2, 4)}, "scores: expected"),
        ({1: torch.zeros(2, 5, dtype=torch.float64)}, "expected float32"),
        ({2: torch.zeros(2, 5, dtype=torch.int64)}, "labels: expected int32"),
        ({3: torch.zeros(3, dtype=torch.int64)}, "counts: expected"),
        ({4: 0}, "groups"),
        ({5: -1}, "capacity"),
        ({6: 4}, "method: expected 0 to 3"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_clear_errors(change, message):
    if (reason := missing_native()) is not None:
        pytest.skip(reason)
    arguments = [torch.zeros(2, 5, 2), torch.zeros(2, 5), None, None, 1, 3, 0, 0.3, 0.4, 0.05, 0.0]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tzn_native.suppress_groups(*arguments)


@pytest.fixture
def device():
    """The op's CPU kernel stands in where there is no CUDA: what is tested is what the Python around it makes of tables."""
    if (reason := missing_native()) is not None:
        pytest.skip(reason)
    return "cuda" if missing_cuda() is None else "cpu"


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
@pytest.mark.parametrize("voting", ["none", "all", "per-class"])
@pytest.mark.parametrize("limit", [7, 200, 0])
def test_one_recording_with_sizes_of_the_public_op(device, method, voting, limit):
    segments, scores, labels = (x[0] for x in _candidates(1, 80, 4, seed=2))
    labels = 5 * labels.long() - 3  # any integers
    settings = {
        "method": method, "multiclass": voting != "all", "sigma": 0.4, "per_class_voting": voting == "per-class",
        "voting_thresh": 0.0 if voting == "none" else 0.6,
    }  # fmt: skip
    arguments = (segments, scores, labels)
    given_out = native_cuda.batched_nms(*(x.to(device) for x in arguments), 0.3, 0.05, limit, **settings)
    wanted = reference.batched_nms(*arguments, 0.3, 0.05, limit, **settings)
    for ours, theirs in zip(given_out, wanted, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6 if voting != "none" else 0, atol=0)


def test_a_single_list_of_candidates(device):
    segments, scores, _ = (x[0].to(device) for x in _candidates(1, 80, seed=2))
    rule = {"iou_threshold": 0.3, "min_score": 0.05, "max_seg_num": 0}
    index, score = native_cuda.soft_nms(segments, scores, sigma=0.4, method="linear", **rule)
    wanted = reference.soft_nms(segments.cpu(), scores.cpu(), sigma=0.4, method="linear", **rule)
    assert index.tolist() == wanted[0].tolist() and torch.equal(score.cpu(), wanted[1])
    kept = native_cuda.nms(segments, scores, **rule)
    assert kept.tolist() == reference.nms(segments.cpu(), scores.cpu(), **rule).tolist()


def test_says_why_it_does_not_serve(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    native_cuda.missing_reason.cache_clear()
    try:
        assert "TZN_CUDA=1" in str(missing_cuda())
        (tmp_path / "_native_cuda.abi3.so").write_bytes(b"not a library")
        native_cuda.missing_reason.cache_clear()
        assert "no CUDA device" in str(missing_cuda()) or torch.cuda.is_available()
        assert not native_cuda.serves(torch.zeros(1, 2), torch.zeros(1))
    finally:
        monkeypatch.undo()
        native_cuda.missing_reason.cache_clear()
