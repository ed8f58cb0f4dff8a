"""Every program of benchmarks/evidence on tiny settings, and the directions that theory or counting make certain.

To add a program: a function ``check_NAME(run, trained, shared_data, tmp_path)``, dots of the name as underscores.
``run(*arguments)`` runs ``python -m benchmarks.evidence.NAME --smoke`` and returns its JSON; ``trained`` holds synthetic
data and runs of both networks; ``shared_data(name)`` is a folder of real recordings, and skips the test where there is none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from small_model import build, features

from tzn.config_loading import load_config
from tzn.data.synthetic import generate_synthetic
from tzn.models.checkpoint import load_checkpoint
from tzn.profiling import count_multiply_adds

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence"
PROGRAMS = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__main__")
    for path in FOLDER.rglob("*.py")
    if "evidence_parser(" in path.read_text()
)


def shared_data(name: str) -> Path:
    root = Path(os.environ.get("TZN_SHARED", FOLDER.parents[2] / "shared"))
    if not (root / "data" / name / "annotations.json").is_file():
        pytest.skip(f"no {root}/data/{name}: real recordings, which the repository does not hold (set TZN_SHARED)")
    return root / "data" / name


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name, smoke, trained, tmp_path):
    function = f"check_{name.replace('.', '_')}"
    check = globals().get(function)
    assert check is not None, f"benchmarks.evidence.{name} has no smoke test: add {function} to {__file__}"
    check(lambda *arguments: smoke(name, *arguments), trained, shared_data, tmp_path)


def check_boundary_variance(run, trained, shared_data, tmp_path):
    content = run()
    fields = {(r["noise"], r["stride"]): r for r in content["distance"]}
    assert {noise for noise, _ in fields} == {"gaussian", "laplace", "ar1"}
    for r in fields.values():
        for name in ("crossing", "vote_median", "vote_mean"):
            assert r[name]["found"] > 0.999 and r[name]["efficiency"] < 1.05, "nothing beats the Cramer-Rao bound"
    gaussian, coarse, laplace, correlated = (
        fields[k] for k in (("gaussian", 1), ("gaussian", 4), ("laplace", 1), ("ar1", 1))
    )
    # Linear interpolation at a share f between two steps: sigma^2 (f^2 + (1 - f)^2), on average 2/3 sigma^2.
    for r in (gaussian, coarse):
        assert r["crossing"]["mse"] == pytest.approx(2 / 3 * r["sigma"] ** 2, rel=0.1)
        assert 0.85 < r["vote_mean"]["efficiency"] < 1.05
        assert r["vote_mean"]["claimed"] == pytest.approx(1, abs=0.15), "independent Gaussian votes: the claim is true"
    assert gaussian["vote_mean"]["mse"] < gaussian["vote_median"]["mse"] < gaussian["crossing"]["mse"]
    assert laplace["vote_median"]["mse"] < laplace["vote_mean"]["mse"] < laplace["crossing"]["mse"]
    assert laplace["vote_median"]["efficiency"] < laplace["attainable"] + 0.05 < 1
    # A quarter of the votes: four times the variance.
    assert coarse["vote_mean"]["mse"] / gaussian["vote_mean"]["mse"] == pytest.approx(4, rel=0.2)
    assert correlated["vote_mean"]["claimed"] < 0.5, "correlated votes: the claimed variance is far too small"

    plateaus = {(r["noise"], r["kappa"], r["stride"]): r for r in content["score"]}
    wide, narrow = plateaus["gaussian", 16, 1], plateaus["gaussian", 2, 1]
    assert wide["argmax"]["mse"] > 10 * narrow["argmax"]["mse"]
    assert wide["argmax"]["mse"] > 10 * gaussian["crossing"]["mse"]
    assert wide["centroid"]["mse"] < wide["argmax"]["mse"]
    for r in content["trained"]:
        for name in ("argmax", "centroid", "parabola", "crossing", "vote_median", "vote_mean"):
            assert r[name]["found"] > 0.9 and r[name]["efficiency"] < 1.1


def check_boundary_calibration(run, trained, shared_data, tmp_path):
    content = run("--data", trained.data, "--held-out", "synthetic_00[01]", "--", trained.ours, trained.base)
    results = content["runs"]
    assert [results[n]["backbone"] for n in ("ours", "base")] == ["TemporalZoomNet", "ActionFormer"]
    for r in results.values():
        assert r["boundaries"] > 20 and r["held_out"] > 5
        for parts in r["test"].values():
            assert parts["all"]["count"] == r["boundaries"]
            assert parts["short classes"]["count"] + parts["other classes"]["count"] == r["boundaries"]
            assert not parts["all"]["p90"] > 0.8 * 1.3, "8 steps of 0.1 s, and what reading off a peak may add"
        for found in filter(None, r["calibration"].values()):
            for one, two in [*found["coverage"].values(), *found["coverage_held_out"].values()]:
                assert 0 <= one <= two <= 1
    assert (tmp_path / "boundary_calibration.png").is_file()


def check_retrofit(run, trained, shared_data, tmp_path):
    content = run("--data", trained.data, trained.base)
    ((plain, refined),) = content["results"]
    for report in (plain, refined):
        assert all(0 <= value <= 1 for value in report["mAP"])
    assert plain["average_mAP"] > 0 and plain != refined, "the head moves ends"


def check_depth(run, trained, shared_data, tmp_path):
    content = run("--data", trained.data, trained.ours)
    dial = content["runs"][trained.ours.name]["dial"]
    work = [point["gmac"] for _, point in sorted(dial.items(), key=lambda item: float(item[0]))]
    assert work == sorted(set(work)) and len(work) > 1, "more depth, more counted multiply-adds"


def check_controls(run, trained, shared_data, tmp_path):
    content = run("--data", hapt_like(tmp_path / "hapt"), "--runs", tmp_path / "runs")
    work = {name: parts[0]["gmac_per_recording"] for name, parts in content["results"].items()}
    assert work["uniform"] < work["full"], "two blocks for every token against four"
    assert work["hapt"] <= work["full"]


def check_hapt(run, trained, shared_data, tmp_path):
    content = run("--data", hapt_like(tmp_path / "hapt"), "--runs", tmp_path / "runs")
    work = {name: parts[0]["gmac_per_recording"] for name, parts in content["results"].items()}
    published, tuned, ours, full, dial = work.values()
    assert published == tuned > full > dial
    assert dial < ours <= full
    assert len(content["latency_seconds"]) == 5 and min(content["latency_seconds"].values()) > 0


def check_distillation(run, trained, shared_data, tmp_path):
    arguments = ("--data", hapt_like(tmp_path / "hapt"), "--runs", tmp_path / "runs")
    content = run(*arguments)
    work = content["costs"]
    assert 0 < work["student alone"] < work["TemporalZoomNet"] < 1, "a lighter network; a first stride of four"
    assert work["not amortised"] == pytest.approx(work["student"] + work["teacher answers"])
    assert work["student"] < work["not amortised"] < work["amortised"]
    assert work["two blocks"] < work["four blocks"]
    assert all(len(notes) >= 2 for notes in content["course"].values())
    first = content["course"]["student_counted"][0]
    assert first["depth"] > 0.99 and first["self"] >= 0.9 * first["four blocks"], "a training begins at full depth"
    students = [content["results"][name][0]["gmac_per_recording"] for name in ("taught", "alone")]
    assert max(students) < 0.5 * content["results"]["teacher"][0]["gmac_per_recording"]
    states = [
        tmp_path / "runs" / f"student_{name}_smoke_seed0" / "checkpoints" / "last.ckpt" for name in ("taught", "alone")
    ]
    weights = [load_checkpoint(path).model.class_head.output.weight for path in states]
    assert not torch.equal(*weights), "the teacher changes what is learnt"
    assert (tmp_path / "distillation.png").is_file()
    run(*arguments, "--timing")
    timing = json.loads((tmp_path / "distillation_timing.json").read_text())
    assert len(timing["seconds"]) == 7 and all(s["median"] > 0 for s in timing["seconds"].values())
    assert (tmp_path / "distillation_timing.md").read_text().startswith("# ")


def hapt_like(folder: Path) -> Path:
    """Synthetic recordings of HAPT's shape, under its class names."""
    generate_synthetic(folder, num_recordings=9, length=(350, 400), num_classes=12, channels=30, seed=0)
    short = load_config(FOLDER.parents[1] / "configs" / "hapt.yaml").evaluation.short_classes
    path = folder / "annotations.json"
    text = path.read_text()
    for label, name in enumerate(short):
        text = text.replace(f'"class_{label}"', f'"{name}"')
    path.write_text(text)
    return folder


def check_heterogeneity(run, trained, shared_data, tmp_path):
    assert run("--runs", tmp_path / "runs")["seconds"] > 0


def check_ludb(run, trained, shared_data, tmp_path):
    content = run("--data", a_few(shared_data("ludb"), tmp_path / "few"), "--runs", tmp_path / "runs")
    work = {name: [r["gmac_per_recording"] for r in parts] for name, parts in content["results"].items()}
    assert max(work["ludb"]) < min(work["actionformer_ludb"]), "the shallower network counts fewer multiply-adds"


def a_few(data: Path, folder: Path) -> Path:
    """The first ten training and four test recordings of a data folder."""
    content = json.loads((data / "annotations.json").read_text())
    kept = {}
    for subset, most in (("training", 10), ("test", 4)):
        names = [name for name, entry in content["database"].items() if entry["subset"] == subset]
        kept |= {name: content["database"][name] for name in names[:most]}
    folder.mkdir()
    (folder / "annotations.json").write_text(json.dumps(content | {"database": kept}))
    (folder / "features").symlink_to(data / "features")
    return folder


def test_fewer_active_tokens_count_fewer_multiply_adds():
    model, mask = build(refinement_layers=4), torch.ones(1, 160, dtype=torch.bool)
    shares, counts = [], []
    for budget in (1.0, 0.6, 0.3, 0.05):
        trunk, count = count_multiply_adds(lambda b=budget: model.trunk(features(160).unsqueeze(0), mask, budget=b))
        shares.append(float((trunk.depths.gates > 0).float().mean()))
        counts.append(count)
    assert shares == sorted(set(shares), reverse=True)
    assert counts == sorted(set(counts), reverse=True)


def check_calibration(run, trained, shared_data, tmp_path):
    root = shared_data("sp_sw_har").parent
    content = run("--data", root, "--sets", "sp_sw_har", "--runs", tmp_path / "runs")
    assert set(content["sets"]) == {"sp_sw_har"}  # an epoch of crops may find nothing to calibrate


def check_front_end(run, trained, shared_data, tmp_path):
    root = shared_data("ludb").parent
    content = run("--data", root, "--sets", "ludb", "--kinds", "none", "conv+gates", "--runs", tmp_path / "runs")
    ludb = content["sets"]["ludb"]
    work = {kind: rows[0]["gmac_per_recording"] for kind, rows in ludb["rows"].items()}
    assert work["conv+gates"] > work["none"] > 0, "a front end is work, and counted"
    assert set(ludb["differences"]) == {"conv+gates"}
