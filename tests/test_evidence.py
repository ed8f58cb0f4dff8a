"""What the programs of benchmarks compute, on inputs whose answer is known; and that none compares times without parity."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.evidence.depth.__main__ import where
from benchmarks.evidence.heterogeneity import sharpness
from benchmarks.evidence.ludb.__main__ import error_differences
from benchmarks.lib import bootstrap, parity, provenance, ranks
from benchmarks.lib.parts import Parts
from benchmarks.planning import Store
from tzn.data.annotations import Recording
from tzn.data.dataset import Example
from tzn.data.grid import TimeGrid
from tzn.detections import Detections
from tzn.evaluation.flat import GroundTruth


def test_parts_are_computed_once_and_only_for_the_same_settings(tmp_path):
    path, calls = tmp_path / "x.parts.json", []

    def compute():
        calls.append(1)
        return {"value": 3}

    assert Parts(path, 2, {"data": "a"}).get("key", compute) == {"value": 3}
    again = Parts(path, 2, {"data": "a"})
    assert again.get("key", compute) == {"value": 3} and len(calls) == 1
    Parts(path, 2, {"data": "b"}).get("key", compute)
    assert len(calls) == 2
    again.finish()
    assert not path.exists()


def test_rank_correlation_with_ties():
    x, y = np.array([1.0, 2, 2, 4]), np.array([10.0, 20, 20, 1000])
    assert ranks.rank_correlation(x, y) == pytest.approx(1)
    assert ranks.rank_correlation(x, -y) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 2, 1, 4, 3: summed products 1.5, squares 4.5 and 5.
    assert ranks.rank_correlation(x, np.array([2.0, 1, 4, 3])) == pytest.approx(1.5 / np.sqrt(4.5 * 5))


def test_where_depth_goes():
    recording = Recording("a", "test", 10.0, 1.0, np.array([[2.0, 6.0]]), np.array([1]))
    times = np.arange(10) + 0.5
    tau = np.where((times > 2) & (times < 6), 0.75, 0.25)
    evaluation = SimpleNamespace(traces={"a": {"time": times, "depth": tau}}, classes=("x", "y"))
    found = where(evaluation, [recording])
    assert found["class"] == {"outside": 0.25, "y": 0.75} and found["class_steps"] == {"outside": 6, "x": 0, "y": 4}
    # Steps 1.5, 2.5, 5.5 and 6.5 are 0.5 s from a boundary, four are 1.5 s, and the last two 2.5 and 3.5 s.
    assert found["near_steps"] == [0, 0, 0, 4, 4, 1, 1, 0]
    assert found["near"][3] == pytest.approx(0.5)


def changing(width: float, noise: float, seed: int = 0) -> list[Example]:
    """Recordings with one rise of two channels over ``width`` steps in the middle of [20, 20.9]."""
    generator = np.random.default_rng(seed)
    found = []
    for i in range(60):
        start = 20 + 0.9 * i / 60
        ramp = np.clip((np.arange(60) - start) / width + 0.5, 0, 1)
        features = ramp[:, None] * np.array([1.0, -2.0]) + noise * generator.standard_normal((60, 2))
        segments, labels = torch.tensor([[start, 45.0]]), torch.tensor([0])
        found.append(Example(str(i), torch.from_numpy(features), segments, labels, TimeGrid(1, 0), 60.0))
    return found


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_sharpness_is_the_share_of_the_change_within_a_step(noise):
    values = {w: sharpness.sharpness(sharpness.profiles(changing(w, noise), 0, 0)) for w in (0.5, 4.0, 16.0)}
    # A linear rise over w steps covers 2 / w of itself within +-1 step.
    assert values[0.5] == pytest.approx(1, abs=0.05 + 0.2 * noise)
    assert values[4.0] == pytest.approx(0.25, abs=0.02 + 0.1 * noise)
    assert values[16.0] == pytest.approx(1 / 64, abs=0.005 + 0.05 * noise)


def test_local_sharpness_orders_single_boundaries():
    sharp, soft = (np.median(sharpness.local_sharpness(changing(w, 0.0), 0)[:60]) for w in (0.5, 16.0))
    assert sharp == pytest.approx(0.5, abs=0.05) and soft < 0.05


def test_differences_of_boundary_errors():
    truth, base, ours = {}, {}, {}
    for i in range(12):
        segments = np.array([[1.0, 2.0], [4.0, 5.0]])
        truth[f"{i}"] = GroundTruth(segments, np.array([0, 1]))
        for side, shift in ((base, 0.020), (ours, 0.005)):
            moved = segments + np.array([[shift, 0.0], [shift, 2 * shift]])
            side[f"{i}"] = Detections(moved, np.array([0.9, 0.8]), np.array([0, 1]), None)
    found = error_differences(truth, [base], [ours], ("a", "b"), resamples=20)
    assert found["a start"] == pytest.approx([-15, -15, -15])
    assert found["a end"] == pytest.approx([0, 0, 0])
    assert found["b end"] == pytest.approx([-30, -30, -30])
    assert found["all end"] == pytest.approx([-15, -15, -15])


def test_correlation_inside_sets_ignores_differences_between_sets():
    rng = np.random.default_rng(0)
    rows = []
    for name, level in (("a", 0.0), ("b", 10.0)):  # between the sets both grow, inside them one falls
        for x in range(6):
            rows.append({"set": name, "k": level + x, "gain": 3 * level - x + 0.01 * rng.random()})
    found = ranks.correlation(rows, "k", rng)
    assert found["all"] > 0.3 and found["within"] == pytest.approx(-1)
    assert found["within_p"] < 0.01 and found["classes"] == 12


def test_there_is_no_speed_up_without_parity():
    right = torch.arange(4.0)
    runs = {"ours": lambda: right + 1e-7, "peer": lambda: right + 0.1}
    assert parity.checked({"ours": runs["ours"]}, right, rtol=1e-5, atol=1e-5)
    with pytest.raises(parity.NoParity, match=r"peer: results differ, no speed-up to report") as caught:
        parity.checked(runs, lambda name: right, rtol=1e-5, atol=1e-5)
    assert isinstance(caught.value, SystemExit)
    with pytest.raises(parity.NoParity):
        parity.same("lists", [right, right[:2]], [right], rtol=0, atol=0)


def test_the_definition_is_what_results_are_held_against(monkeypatch):
    monkeypatch.delenv("TZN_BACKEND", raising=False)
    assert parity.by_definition(lambda: os.environ["TZN_BACKEND"]) == "reference"
    assert "TZN_BACKEND" not in os.environ
    monkeypatch.setenv("TZN_BACKEND", "auto")
    with parity.backend("reference"):
        assert os.environ["TZN_BACKEND"] == "reference"
    assert os.environ["TZN_BACKEND"] == "auto"


BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TIMED = re.compile(r"\b(interleaved|medians|milliseconds|perf_counter)\(")
UNCOMPARED = {
    "lib",
    "depth",
    "controls",
    "heterogeneity",
    "ludb",
    "distillation",
    "hapt",
    "aot.py",
    "stage.py",
    "serving.py",
}  # serving.py: load on one server, nothing beside it


@pytest.mark.parametrize(
    "path",
    [
        path.relative_to(BENCHMARKS)
        for path in sorted(BENCHMARKS.rglob("*.py"))
        if TIMED.search(path.read_text()) and not UNCOMPARED & set(path.relative_to(BENCHMARKS).parts)
    ]
    + [Path("evidence/distillation/training_time.py")],
    ids=str,
)
def test_every_program_that_compares_times_checks_parity(path):
    assert re.search(r"\b(parity\.same|s\.same|checked)\(", (BENCHMARKS / path).read_text())


def test_what_a_result_says_about_its_run(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path / "hapt"), "--seeds", "0", "1"])
    found = provenance.facts()
    assert set(found) == {"command", "commit", "date", "machine", "versions"}
    assert found["command"].endswith("--data hapt --seeds 0 1") and str(tmp_path) not in found["command"]
    provenance.write(tmp_path, "result", {**found, "value": 1}, "# Result\n")
    assert json.loads((tmp_path / "result.json").read_text())["value"] == 1
    assert provenance.line(found).startswith(f"`{found['command']}`")


def test_bootstrap_of_a_constant_difference():
    sides = [[np.full(6, 1.0)], [np.full(6, 3.0), np.full(6, 3.0)]]
    found = bootstrap.paired_bootstrap(lambda run, chosen: float(run[chosen].mean()), sides, 6, resamples=10)
    assert found == [2.0, 2.0, 2.0]


def test_the_page_of_benchmarks_names_programs_that_exist():
    page = (BENCHMARKS / "README.md").read_text()
    named = set(re.findall(r"`(benchmarks(?:\.\w+)+)", page)) - {
        "benchmarks.NAME",
        "benchmarks.X",
        "benchmarks.evidence.X",
    }
    programs = {
        ".".join(("benchmarks", *path.relative_to(BENCHMARKS).with_suffix("").parts)).removesuffix(".__main__")
        for path in BENCHMARKS.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
        and ("gpu" not in path.parts or path.name == "paper.py")  # the others are stages of run_gpu.sh
    }
    assert named == programs


def test_measures_of_intervals_know_the_truth():
    from benchmarks.evidence.calibration.measures import boundary_measures, gaussian, probability_measures

    rng = np.random.default_rng(0)
    std = np.exp(rng.normal(0, 0.5, 40_000))
    error, group = np.abs(std * rng.standard_normal(40_000)), rng.integers(0, 20, 40_000)
    right, narrow, wide = (boundary_measures(error, k * std, group, gaussian) for k in (1.0, 0.4, 2.5))
    for level in (0.5, 0.8, 0.9, 0.95):
        assert right["coverage"][str(level)] == pytest.approx(level, abs=0.01)
    assert narrow["coverage"]["0.9"] < 0.55 and wide["coverage"]["0.9"] > 0.99
    assert right["ence"] < 0.03 < 0.5 < wide["ence"] < 0.65 and narrow["ence"] == pytest.approx(1.5, abs=0.1)
    assert right["crps"] < min(narrow["crps"], wide["crps"]), "the true distribution has the best score"
    assert right["crps"] == pytest.approx(std.mean() / np.pi**0.5, rel=0.03)  # of a Gaussian
    assert right["half_width"] == pytest.approx(1.645 * np.median(std), rel=0.01)
    chance = rng.random(20_000)
    hit = rng.random(20_000) < chance
    true, bold = probability_measures(chance, hit), probability_measures(np.sqrt(chance), hit)
    assert true["ece"] < 0.02 < bold["ece"] and true["brier"] < bold["brier"]


def test_a_job_is_measured_once(tmp_path):
    store, calls = Store(tmp_path / "runs.json"), []
    for minutes in ({}, {"minutes": 7.0}):
        store.once("a/0", lambda minutes=minutes: calls.append(1) or {"points": 1} | minutes)
    store.once("b/0", lambda: {"minutes": 7.0})
    runs = store.read()["runs"]
    assert len(calls) == 1 and runs["a/0"]["points"] == 1 and 0 <= runs["a/0"]["minutes"] < 7
    assert runs["b/0"] == {"minutes": 7.0}
    lock = store.claim("c/0")  # another process is at it
    store.once("c/0", lambda: pytest.fail("begun elsewhere"))
    lock.release()
