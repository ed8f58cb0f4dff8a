"""OpenTAD's suppression: every configuration of it, against plain loops over real detections."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
import torch

from tzn.compat.opentad import batched_nms, nms, soft_nms

# Every distinct nms=dict(...) of OpenTAD's configurations: (max_seg_num, min_score, multiclass, sigma, voting_thresh, more).
CONFIGS = [
    {"max_seg_num": n, "min_score": m, "multiclass": c, "sigma": s, "use_soft_nms": True, "voting_thresh": v} | more
    for n, m, c, s, v, more in (
        (2000, 0.001, True, 2.0, 0.95, {}),
        (100, 0.001, False, 0.7, 0.9, {}),
        (200, 0.0001, False, 0.3, 0.95, {}),
        (2000, 0.001, True, 0.4, 0.75, {"iou_threshold": 0}),
        (2000, 0.001, True, 0.5, 0.7, {}),
        (8000, 0.001, True, 0.5, 0.7, {}),
        (2000, 0.001, True, 0.4, 0.75, {}),
        (3000, 0.001, True, 0.4, 0.75, {}),
        (2000, 0.001, True, 0.7, 0.7, {}),
        (100, 0.001, False, 0.75, 0.9, {"iou_threshold": 0}),
        (100, 0.001, False, 0.75, 0.7, {}),
        (100, 0.001, False, 0.75, 0.9, {}),
        (100, 0.001, False, 0.85, 0.9, {}),
        (2000, 0.01, True, 0.5, 0.95, {}),
        (1000, 0.001, True, 0.3, 0.7, {}),
        (100, 0, False, 0.35, 0.95, {"method": 3, "t1": 0.55, "t2": 0.37}),
        (100, 0, False, 0.5, 0.95, {}),
        (200, 0.001, False, 0.7, 0.95, {}),
        (100, 0, False, 0.4, 0.95, {"iou_threshold": 0, "method": 3, "t1": 0.5, "t2": 0.4}),
        (100, 0.01, False, 0.5, 0.95, {}),
        (200, 0.0001, True, 0.4, 0.95, {}),
        (100, 0.0001, False, 0.35, 0, {}),
        (100, 0.001, True, 0.75, 0.7, {}),
        (2000, 0.001, True, 0.5, 0.7, {"iou_threshold": 0.1}),
        (100, 0.001, True, 0.75, 0.9, {}),
        (250, 0.001, False, 0.75, 0.95, {}),
        (200, 0.001, True, 0.5, 0.7, {"iou_threshold": 0}),
        (200, 0.001, True, 0.75, 0.7, {}),
        (100, 0.001, False, 0.5, 0.95, {"iou_threshold": 0}),
        (250, 0.001, True, 0.75, 0.95, {"iou_threshold": 0}),
        (200, 0.001, False, 0.7, 0.95, {"iou_threshold": 0}),
    )
] + [
    {"max_seg_num": 2000, "multiclass": True, "sigma": 0.7, "use_soft_nms": True, "voting_thresh": 0.7},
    {"max_seg_num": 2000, "multiclass": True, "sigma": 0.4, "use_soft_nms": True, "voting_thresh": 0.95},
    {"max_seg_num": 8000, "multiclass": True, "sigma": 0.5, "use_soft_nms": True, "voting_thresh": 0.7},
    {"max_seg_num": 1000, "multiclass": True, "sigma": 0.3, "use_soft_nms": True, "voting_thresh": 0.7},
    {"iou_threshold": 0, "max_seg_num": 100, "sigma": 0.8, "use_soft_nms": True, "voting_thresh": 0.95},
    {"max_seg_num": 100, "sigma": 0.5, "use_soft_nms": True, "voting_thresh": 0},
    {"sigma": 2.0},
]  # fmt: skip
# Kinds that the signature offers and no configuration uses.
MORE = [
    {"method": 0, "iou_threshold": 0.4, "min_score": 0.001},
    {"method": 0, "iou_threshold": 0.4, "min_score": 0.001, "multiclass": False, "voting_thresh": 0.6},
    {"method": 1, "iou_threshold": 0.3, "min_score": 0.01},
    {"method": 1, "iou_threshold": 0.3, "min_score": 0.01, "multiclass": False, "voting_thresh": 0.6},
    {"method": 3, "t1": 0.2, "t2": 0.1, "sigma": 0.3, "min_score": 0.05},
    {"use_soft_nms": False, "iou_threshold": 0.5, "min_score": 0.02},
    {"use_soft_nms": False, "iou_threshold": 0.5, "multiclass": False, "voting_thresh": 0.8, "max_seg_num": 30},
]


def overlap(a, b, extra):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / ((a[1] - a[0] + extra) + (b[1] - b[0] + extra) - shared)


def one_list(rows, cap, iou_threshold, min_score, use_soft_nms, sigma, method, t1, t2):
    """Rows (start, end, score, label) that stay, by falling score; the rule in plain loops over Python floats."""
    if not use_soft_nms:
        rows = [row for row in rows if row[2] > min_score or not min_score > 0]
    live, kept = sorted(rows, key=lambda row: -row[2]), []
    while live and not 0 < cap <= len(kept):
        best = max(live, key=lambda row: row[2])
        live.remove(best)
        kept.append(best)
        rest = []
        for start, end, score, label in live:
            o = overlap(best, (start, end), 1e-6)
            gaussian = math.exp(-o * o / sigma)
            if not use_soft_nms:
                keep = o < iou_threshold
            else:
                weight = {
                    0: 0.0 if o >= iou_threshold else 1.0,
                    1: 1.0 - o if o >= iou_threshold else 1.0,
                    2: gaussian,
                    3: gaussian if o >= t1 + t2 * (best[1] - best[0] + 1e-6) else 1.0,
                }[method]
                score *= weight
                keep = score >= min_score
            if keep:
                rest.append((start, end, score, label))
        live = rest
    return kept


def plain(
    rows, iou_threshold=0.0, min_score=0.0, max_seg_num=100, use_soft_nms=True, multiclass=True, sigma=0.5,
    voting_thresh=0.0, method=2, t1=0, t2=0,
):  # fmt: skip
    rule = max_seg_num, iou_threshold, min_score, use_soft_nms, sigma, method, t1, t2
    if multiclass:
        kept = [k for c in sorted({r[3] for r in rows}) for k in one_list([r for r in rows if r[3] == c], *rule)]
    else:
        kept = one_list(rows, *rule)
        if voting_thresh > 0:
            kept = [(*voted(k, rows, voting_thresh), *k[2:]) for k in kept]
    return sorted(kept, key=lambda row: -row[2])[:max_seg_num]


def voted(kept, rows, threshold):
    voters = [(row[0], row[1], row[2]) for row in rows if overlap(kept, row, 0.0) >= threshold]
    total = sum(score for *_, score in voters)
    return tuple(sum(row[side] * row[2] for row in voters) / total for side in (0, 1))


@pytest.fixture(scope="module")
def recordings(shared):
    """Rows of real detections before suppression, in parts of the longest one so that lengths are those of a network's."""
    content = json.loads(gzip.decompress((shared / "data/predictions/turn_union_no_nms.json.gz").read_bytes()))
    chosen = [rows for rows in content["results"].values() if 60 < len(rows) < 160][:3]
    assert len(chosen) == 3
    rng = np.random.default_rng(0)
    found = []
    for rows in chosen:
        labels = {name: float(i) for i, name in enumerate(sorted({row["label"] for row in rows}))}
        longest = max(row["segment"][1] - row["segment"][0] for row in rows)
        # Published scores are rounded, and the order of equal ones is nobody's rule.
        found.append(
            [
                (*(np.float32(t / longest).item() for t in row["segment"]),
                 np.float32(row["score"] * rng.uniform(0.98, 1)).item(), labels[row["label"]])
                for row in rows
            ]
        )  # fmt: skip
    return found


def test_the_table_holds_every_configuration_once():
    assert len(CONFIGS) == 38 == len({tuple(sorted(config.items())) for config in CONFIGS})


@pytest.mark.parametrize("config", CONFIGS + MORE, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()))
def test_real_detections_equal_plain_loops(recordings, config):
    for rows in recordings:
        table = torch.tensor(rows, dtype=torch.float64)
        segments, scores, labels = batched_nms(table[:, :2], table[:, 2], table[:, 3], **config)
        expected = torch.tensor(plain(rows, **config), dtype=torch.float64)
        assert segments.dtype == scores.dtype == torch.float32
        assert labels.dtype == torch.float64
        torch.testing.assert_close(scores, expected[:, 2].float(), rtol=1e-4, atol=1e-7)
        assert labels.tolist() == expected[:, 3].tolist()
        torch.testing.assert_close(segments, expected[:, :2].float(), rtol=1e-4, atol=1e-4)


def test_votes_count_by_score_alone():
    segments = torch.tensor([[0.0, 10.0], [1.0, 11.0], [0.0, 12.0]])
    scores = torch.tensor([0.8, 0.4, 0.2])
    voted = batched_nms(segments, scores, torch.zeros(3), multiclass=False, voting_thresh=0.5, max_seg_num=1)[0]
    weights = scores / scores.sum()
    torch.testing.assert_close(voted, (weights @ segments)[None])


def test_several_classes_have_no_votes():
    segments, scores = torch.tensor([[0.0, 10.0], [1.0, 11.0]]), torch.tensor([0.8, 0.4])
    found = batched_nms(segments, scores, torch.tensor([1, 0]), voting_thresh=0.5)
    assert found[0].tolist() == segments.tolist()
    assert found[2].tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.int32])
def test_nothing_in_is_nothing_out_and_labels_keep_their_type(dtype):
    segments, scores, labels = batched_nms(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=dtype))
    assert segments.shape == (0, 2) and scores.shape == (0,) and labels.dtype == dtype
    found = batched_nms(
        torch.tensor([[0, 1], [5, 6]]).half(), torch.tensor([0.5, 0.75]), torch.tensor([7, 3]).to(dtype)
    )
    assert found[0].dtype == found[1].dtype == torch.float32
    assert found[2].dtype == dtype and found[2].tolist() == [3, 7]


def test_arguments_by_position_as_opentad_has_them():
    segments, scores = torch.tensor([[0.0, 10.0], [1.0, 11.0]]), torch.tensor([0.8, 0.4])
    labels = torch.tensor([1, 0])
    by_name = batched_nms(
        segments, scores, labels, method=3, t1=0.2, t2=0.01, multiclass=False, sigma=0.4, max_seg_num=9
    )
    by_place = batched_nms(segments, scores, labels, 0, 0, 9, True, False, 0.4, 0, 3, 0.2, 0.01)
    soft = soft_nms(segments, scores, labels, 0, 0.4, 0, 3, 0, 0.2, 0.01)
    for a, b, c in zip(by_name, by_place, soft, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert by_name[1][1] < 0.4
    assert nms(segments, scores, labels, 0.5, 0, 0)[2].tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": 4}, "method: got 4"),
        ({"sigma": 0}, "sigma"),
        ({"iou_threshold": -1}, "iou_threshold"),
        ({"method": 3, "sigma": -1}, "sigma"),
    ],
    ids=["method", "sigma", "threshold", "sigma-of-method-3"],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        batched_nms(torch.tensor([[0.0, 1.0]]), torch.ones(1), torch.zeros(1), **settings)
