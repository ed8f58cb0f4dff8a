"""The programs of the zoom study on tiny settings: every network trains, every way of giving depth is scored."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.evidence.zoom import known_answer, real, report, risk, variants
from benchmarks.planning import Store
from tzn.data.synthetic import generate_synthetic


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder that has the name of a set whose steps lay five samples side by side."""
    root = tmp_path_factory.mktemp("zoom")
    generate_synthetic(root / "hapt", num_recordings=6, length=(130, 150), num_classes=3, channels=10, seed=1)
    return root


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(real, "STEPS", 3)
    monkeypatch.setattr(real, "BUDGETS", (0.5,))
    monkeypatch.setattr(real, "THRESHOLDS", (1.0,))
    monkeypatch.setattr(real, "DIAL", (0.5,))
    monkeypatch.setattr(real, "UNIFORM", (0, 2, 4))


def test_every_network_is_trained_scored_and_reported(root, tmp_path):
    store = Store(tmp_path / "zoom.json")
    jobs = [real.Job("hapt", network, 0, width=32) for network in ("zoom", "zoom raw", "atr", "six", "actionformer")]
    jobs.append(real.Job("hapt", "zoom", 0, width=32, depth="random"))
    for job in jobs:
        store.once(job.key, lambda job=job: real.run(job, root, tmp_path / "runs"))
    runs = store.read()["runs"]
    labels = {job.key: {p["label"]: p for p in runs[job.key]["points"]} for job in jobs}
    zoom, raw, atr, six, base, random = (labels[job.key] for job in jobs)
    for points in (zoom, raw, atr):
        gmac = [points[f"uniform {blocks}"]["gmac"] for blocks in real.UNIFORM]
        assert gmac == sorted(gmac) and gmac[0] < gmac[-1], "every block costs"
        assert points["uniform 4"]["depth"] == pytest.approx(1)
    assert {"zoom 1"} == {label for label in zoom if label.startswith("zoom")}
    # Five times as many steps of the stream, four blocks on each: more than the whole network on stored steps.
    assert raw["uniform 4"]["gmac"] > 3 * (zoom["uniform 4"]["gmac"] - zoom["uniform 0"]["gmac"])
    assert set(six) == {"uniform 0", "uniform 4", "uniform 6"}
    assert six["uniform 6"]["gmac"] > atr["uniform 4"]["gmac"]
    assert set(base) == {"actionformer"}
    assert "oracle 0.5" in random and len(runs[jobs[-1].key]["exits"]) == real.LAYERS + 1
    report.write(store.read(), tmp_path)
    text = (tmp_path / "zoom.md").read_text()
    assert "zoom raw: zoom 1" in text and "## Headroom" not in text  # of the study's width alone


def test_single_samples_are_the_recording_at_its_own_rate(root, tmp_path):
    copy = real.single_samples(root / "hapt", 5, tmp_path / "copy")
    for path in (root / "hapt" / "features").glob("*.npy"):
        stored, samples = np.load(path), np.load(copy / "features" / path.name)
        assert samples.shape == (5 * len(stored), 2)
        assert (samples.reshape(stored.shape) == stored).all()


def test_changes_of_the_stream_are_laid_beside_the_plain_one(tmp_path, monkeypatch):
    for module in (known_answer, variants):
        monkeypatch.setattr(module, "TRAINED", 2)
        monkeypatch.setattr(module, "TESTED", 4)
    store = Store(tmp_path / "zoom.json")
    known_answer.main(store, [0])
    variants.main(store, [0])
    report.write(store.read(), tmp_path)
    text = (tmp_path / "zoom.md").read_text()
    for name in variants.VARIANTS:
        assert f"| {name} | 1 |" in text
    plain = json.loads((tmp_path / "zoom.json").read_text())["runs"]["known/zoom/0"]["points"]
    assert variants.curve(plain).shape == (len(variants.SHARES) + 1,)


def test_a_promise_is_judged_on_the_groups_that_did_not_choose(tmp_path):
    harmed = np.zeros((20, 3), dtype=bool)
    harmed[:, 2] = True
    kept = risk.checked(harmed, np.array([0.8, 0.5, 0.2]), 1.0)
    assert kept == {"risk": 0.0, "saved": 0.5, "refused": 0.0, "groups": 20}  # the largest that harms nobody
    harmed[:5, 1] = True  # a quarter: on some halves few enough to be chosen, and then more on the other
    some = risk.checked(harmed, np.array([0.8, 0.5, 0.2]), 1.0)
    assert 0 < some["risk"] <= risk.RISK and 0.2 < some["saved"] < 0.5
    harmed[:, 0] = True
    assert risk.checked(harmed, np.array([0.8, 0.5, 0.2]), 1.0)["refused"] == 1
    rows = [
        line for line in report.risks({"risk/hapt/0": {**kept, "either": some}})[-2].splitlines() if "| hapt" in line
    ]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [(c[2], c[5]) for c in cells] == [("mAP", "50 %"), ("mAP or boundaries", f"{100 * some['saved']:.0f} %")]
