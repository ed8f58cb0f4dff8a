"""Picks of suppress_groups are exactly those of tzn.reference: indices, scores and counts, to the bit."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from cuda_emulation import emulate
from hypothesis import given, settings

from tzn import ops, reference
from tzn.ops import _backend
from tzn.ops._backend import missing_cuda, missing_native
from tzn.reference.nms import METHODS


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
    index, score = reference.suppress(
        segments[members], scores[members], method=method, iou_threshold=iou_threshold, sigma=sigma,
        min_score=0.0 if method in ("hard", "diou") else min_score, max_seg_num=capacity,
    )  # fmt: skip
    return members[index], score


def _check(suppress, segments, scores, labels, counts, groups, capacity, method, rule=(0.3, 0.4, 0.05, 0.0)):
    index, score, count = suppress(segments, scores, labels, counts, groups, capacity, METHODS.index(method), *rule)
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
    method=st.sampled_from(METHODS),
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
        ({6: 5}, "method: expected 0 to 4"),
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("voting", ["none", "all", "per-class"])
@pytest.mark.parametrize("limit", [7, 200])
def test_recordings_with_a_capacity(device, method, voting, limit):
    segments, scores, labels = _candidates(2, 80, 4, seed=2)
    scores[1, 50:] = -torch.inf
    rule = {
        "method": method, "multiclass": voting != "all", "sigma": 0.4, "per_class_voting": voting == "per-class",
        "voting_thresh": 0.0 if voting == "none" else 0.6,
    }  # fmt: skip
    given_out = ops.nms_padded(
        *(x.to(device) for x in (segments, scores, labels)), 4, limit, iou_threshold=0.3, min_score=0.05, **rule
    )
    for r, used in enumerate((80, 50)):
        wanted = reference.batched_nms(segments[r, :used], scores[r, :used], labels[r, :used], 0.3, 0.05, limit, **rule)
        number = int(given_out.num_kept[r])
        found = given_out.segments[r, :number], given_out.score[r, :number], given_out.label[r, :number]
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6 if voting != "none" else 0, atol=0)


def test_says_why_it_does_not_serve(monkeypatch, tmp_path):
    monkeypatch.setattr(_backend, "PACKAGE", tmp_path)
    missing_cuda.cache_clear()
    try:
        assert "TZN_CUDA=1" in str(missing_cuda())
        (tmp_path / "_native_cuda.abi3.so").write_bytes(b"not a library")
        missing_cuda.cache_clear()
        assert "no CUDA device" in str(missing_cuda()) or torch.cuda.is_available()
        with pytest.raises(ValueError, match="TZN_BACKEND = 'cpp': "):
            _backend.can_run("cpp", torch.device("cuda"), raise_error=True)
    finally:
        monkeypatch.undo()
        missing_cuda.cache_clear()
