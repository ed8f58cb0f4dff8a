"""Calibration of a run, end to end: fold models, what is stored, and what detections carry afterwards."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from small_model import GRID, build, features
from small_run import small_config

import tzn
from tzn.cli import main
from tzn.config import InferenceConfig
from tzn.config_loading import config_from_dict
from tzn.data.dataset import load_split_annotations, select_recordings
from tzn.data.synthetic import generate_synthetic
from tzn.detections import read_predictions
from tzn.errors import CheckpointError, ConfigError, DataError
from tzn.evaluation.report import evaluate
from tzn.inference.calibrated import calibration_of
from tzn.inference.evaluate_checkpoint import evaluate_checkpoint
from tzn.inference.fixed import detect
from tzn.inference.localize import candidates, localize
from tzn.inference.stream import StreamLocalizer
from tzn.models.checkpoint import load_checkpoint, run_checkpoint
from tzn.models.checkpoint_file import read_checkpoint, write_checkpoint
from tzn.models.pretrained import RawSignal, load_pretrained, save_pretrained
from tzn.training import train
from tzn.training.calibrate import calibrate, cross_coverage, joined, lag_products
from tzn.training.dial import THRESHOLDS

EVEN, ODD = 'data.validation=["*[02468]"]', 'data.validation=["*[13579]"]'
SETTINGS = (
    "training.epochs=40", "training.batch_size=2", "training.learning_rate=4e-3", "training.warmup_epochs=2",
    "training.target_depth=1", "training.validate_every=0", "data.max_length=192",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, and two runs that each held out what the other learned from."""
    place = tmp_path_factory.mktemp("calibrate")
    sizes = {"num_recordings": 24, "length": (200, 280), "num_classes": 3, "channels": 6, "sharpness": (0.5, 1.5)}
    generate_synthetic(place / "data", **sizes, seed=1)
    for name, held in (("even", EVEN), ("odd", ODD)):
        train(small_config(*SETTINGS, held), place / "data", place / name, accelerator="cpu", progress=False)
    return place


@pytest.fixture
def run(place, tmp_path):
    """A copy of a run, to be calibrated."""
    return shutil.copytree(place / "even", tmp_path / "run")


def test_what_is_stored_and_what_detections_carry(place, run, tmp_path):
    before = tzn.load(run)
    recording = sorted((place / "data/features").glob("*.npy"))[-1]
    plain = before(recording)
    assert not plain.calibrated and plain.probability is None and not plain[0].calibrated
    assert np.isnan(plain[0].probability)
    report = calibrate(run, place / "data", fold_runs=[place / "even", place / "odd"], progress=False)
    assert report.calibration.source == "2 folds" and report.calibration.intervals.groups >= 8
    assert report.path == run_checkpoint(run) and load_checkpoint(report.path).calibration == report.calibration
    model = tzn.load(run)
    assert model.score_threshold == report.score_threshold
    found = model(recording)
    # Nothing that was found changes, only what is said of its errors.
    for name in ("segments", "scores", "labels"):
        assert np.array_equal(getattr(found, name), getattr(plain, name))
    moved, others = report.calibration.std_scale
    factor = found.std / plain.std
    assert np.isclose(factor, moved).any() and (np.isclose(factor, moved) | np.isclose(factor, others)).all()
    assert found.calibrated and found[0].calibrated
    assert np.array_equal(found.probability, report.calibration.probability(found.scores))
    assert found.probability.min() >= 0 and found.probability.max() <= 1 and (np.diff(found.probability) <= 0).all()
    wide = found.interval(0.8)
    reach = report.calibration.intervals.factor(0.8) * found.std
    assert np.allclose(wide[..., 1] - found.segments, reach) and np.allclose(found.segments - wide[..., 0], reach)
    assert (found.interval(0.8, guarantee=True)[..., 1] >= wide[..., 1]).all()
    assert found[0].interval(0.8)[0] == pytest.approx(tuple(wide[0, 0]))
    with pytest.raises(ValueError, match="not calibrated"):
        plain.interval(0.9, guarantee=True)
    # Slices and files keep it.
    strong = found.filter(score=0.1)
    assert np.array_equal(strong.probability, found.probability[found.scores >= 0.1]) and strong.calibrated
    found.to_json(tmp_path / "found.json")
    again = read_predictions(tmp_path / "found.json", model.classes)[0][recording.stem]
    assert np.array_equal(again.probability, found.probability) and again.intervals == found.intervals
    row = json.loads((tmp_path / "found.json").read_text())["results"][recording.stem][0]
    assert row["segment_interval"][1] == found.interval(0.9)[0, 1].tolist()
    found.to_csv(tmp_path / "found.csv")
    header, first = (tmp_path / "found.csv").read_text().splitlines()[:2]
    assert header.endswith("probability,start_low,start_high,end_low,end_high")
    assert first.split(",")[7] == f"{found.probability[0]:.6f}"
    # Other settings than were measured: nothing is claimed.
    assert not tzn.load(run, ["inference.nms=hard"])(recording).calibrated
    assert not model(recording, budget=0.5).calibrated
    assert tzn.load(run, ["inference.chunk=1024"])(recording).calibrated
    # The other ways to detections say the same.
    assert main(["predict", str(run), str(recording), "--out", str(tmp_path / "cli.json"), "--quiet"]) == 0
    of_cli = read_predictions(tmp_path / "cli.json", model.classes)[0][recording.stem]
    assert np.allclose(of_cli.probability, found.probability) and of_cli.intervals == found.intervals
    live = model.stream(fps=10)
    rows = np.load(recording)
    parts = [*live.push(rows), *live.close()]
    assert parts and all(s.calibrated and not np.isnan(s.probability) for s in parts)
    shifted = model.stream(fps=10, depth_shift=0.5)
    shifted.push(rows)
    assert not shifted.close().calibrated
    result = evaluate_checkpoint(load_checkpoint(run_checkpoint(run)), place / "data", progress=False)
    assert all(d.calibrated for d in result.detections.values())
    # A model that goes with the package takes it along.
    save_pretrained(tmp_path / "m.safetensors", load_checkpoint(run_checkpoint(run)), RawSignal(("a",) * 6, 10.0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tzn.models.pretrained.FOLDER", tmp_path)
        assert load_pretrained("m").checkpoint.calibration == report.calibration


def test_folds_are_trained_once_and_taken_again(place, run, capsys):
    arguments = ["calibrate", str(run), "--data", str(place / "data"), "--folds", "2", "--no-progress", "--json"]
    config = load_checkpoint(run_checkpoint(run)).config
    config["training"].update(epochs=3, warmup_epochs=1)  # these folds learn nothing
    path = run_checkpoint(run)
    content = read_checkpoint(path)
    content["tzn"]["config"] = config
    write_checkpoint(path, content)
    assert main(arguments) == 2
    assert "right detections" in capsys.readouterr().err
    folds = [run / "calibration" / f"fold{i}" for i in range(2)]
    held = [set(load_checkpoint(run_checkpoint(f)).config["data"]["validation"]) for f in folds]
    assert all(held) and not held[0] & held[1]
    stamps = [(f / "checkpoints/last.ckpt").stat().st_mtime_ns for f in folds]
    assert main(arguments) == 2
    assert stamps == [(f / "checkpoints/last.ckpt").stat().st_mtime_ns for f in folds]
    assert "calibration" not in read_checkpoint(path)["tzn"]


def test_the_run_s_own_held_out_recordings(place, run, capsys):
    arguments = ["calibrate", str(run), "--data", str(place / "data"), "--held-out", "--no-progress"]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["calibration"]["source"] == "validation"
    expected, guaranteed = said["covered"]["0.8"]
    assert 0.6 <= expected <= 1 and guaranteed >= expected - 1e-9
    assert main(arguments) == 0 and "coverage of unseen groups" in capsys.readouterr().out
    # Calibrating again measures the network, not the calibrated network.
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == said["calibration"]


def test_what_is_refused(place, run, tmp_path, capsys):
    data = place / "data"
    with pytest.raises(ConfigError, match="exclude each other"):
        calibrate(run, data, held_out=True, fold_runs=[place / "odd"])
    with pytest.raises(ConfigError, match="no boundary stream"):
        calibrate(run, data, held_out=True, risk=0.3)
    with pytest.raises(ConfigError, match="both held out and trained on"):
        calibrate(run, data, held_out=True, group="synthetic", progress=False)
    with pytest.raises(ConfigError, match="held out by two fold runs"):
        calibrate(run, data, fold_runs=[place / "odd", place / "odd"], progress=False)
    train(
        small_config("training.epochs=2", "data.noise=0"), data, tmp_path / "other", accelerator="cpu", progress=False
    )
    with pytest.raises(ConfigError, match="data.max_length is 128, but the run to calibrate has 192"):
        calibrate(run, data, fold_runs=[tmp_path / "other"], progress=False)
    with pytest.raises(ConfigError, match="held no recordings out"):
        calibrate(tmp_path / "other", data, held_out=True, progress=False)
    assert main(["calibrate", str(run), "--data", str(data), "--folds", "99"]) == 2
    assert "--folds 99" in capsys.readouterr().err
    path = run_checkpoint(run)
    content = read_checkpoint(path)
    content["tzn"]["calibration"] = {"std_scale": "wide"}
    write_checkpoint(path, content)
    with pytest.raises(CheckpointError, match="damaged calibration: intervals"):
        load_checkpoint(path)


def test_parts_judge_each_other(place):
    from tzn.models.checkpoint import run_checkpoint as checkpoint_of
    from tzn.training.calibrate import held_out_by, uncalibrated

    parts = []
    for name in ("even", "odd"):
        checkpoint = load_checkpoint(checkpoint_of(place / name))
        parts.append(held_out_by(checkpoint, uncalibrated(checkpoint), place / "data", None))
    whole = joined(parts)
    assert len(whole.error) == sum(len(p.error) for p in parts) and len(whole.recordings) == 16
    assert len(whole.scores) == sum(len(d.scores) for d in whole.found.values())
    settings = uncalibrated(checkpoint).inference
    shares = cross_coverage(parts, settings, (0.5, 0.8))
    assert 0 <= shares[0.5][0] <= shares[0.8][0] <= 1
    with pytest.raises(ValueError, match="no parts"):
        joined([])


def test_lags_of_a_field_with_known_errors():
    rng = np.random.default_rng(0)
    steps, correlation = 40_000, 0.8
    boundaries = np.arange(20.3, steps - 20, 25.0)
    noise = np.empty((2, steps))
    noise[:, 0] = rng.standard_normal(2)
    for t in range(1, steps):
        noise[:, t] = correlation * noise[:, t - 1] + (1 - correlation**2) ** 0.5 * rng.standard_normal(2)
    segments = np.stack([boundaries, boundaries + 10], 1)
    time = np.arange(steps)[None, :, None]
    offset = time - np.stack([segments[:, 0], segments[:, 1]])[:, None, :]
    nearest = np.abs(offset).argmin(2)
    true = np.take_along_axis(offset, nearest[..., None], 2)[..., 0]
    scale = np.full((2, steps), 0.2)
    distance = true + 2**0.5 * scale * noise
    distance[0, ::7] = np.nan  # steps that nobody computed
    products, pairs = lag_products(*(torch.from_numpy(x) for x in (distance, scale, segments)), 4)
    assert pairs[8] == 0  # boundaries between steps: nine steps are never all within four of one
    means = products[:8] / pairs[:8]
    assert means[0] == pytest.approx(1, abs=0.05)  # the claimed scale is the true one
    assert (means[1:] / means[0]).tolist() == pytest.approx([correlation**k for k in range(1, 8)], abs=0.08)
    nothing = lag_products(torch.zeros(2, 50), torch.ones(2, 50), torch.zeros(0, 2), 4)
    assert nothing[0].sum() == nothing[1].sum() == 0


@pytest.mark.parametrize("mode", ["refine", "anchor", "pair"])
def test_scales_touch_standard_errors_alone(mode):
    model, x = build(), features(1500 if mode == "pair" else 150)
    plain = InferenceConfig(mode=mode, quality=0.5)
    scaled = plain.replace(std_scale=(3.0, 2.0))
    a, b = candidates(model, x, plain), candidates(model, x, scaled)
    for name in ("segments", "scores", "labels"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    factor = b.std / a.std
    wanted = {"refine": {2.0, 3.0}, "anchor": {2.0}, "pair": {3.0}}[mode]
    assert {round(f, 4) for f in factor.flatten().tolist()} == wanted
    first, second = (localize(model, x, GRID, 15.0, c)[0] for c in (plain, scaled))
    assert np.array_equal(first.segments, second.segments) and np.array_equal(first.scores, second.scores)
    if mode == "pair":
        return
    mask = torch.ones(1, 150, dtype=torch.bool)
    one, two = (detect(model, x[None], mask, c) for c in (plain, scaled))
    assert torch.equal(one.segments, two.segments)
    kept = slice(0, int(one.count))
    assert {round(f, 4) for f in (two.std / one.std)[0, kept].flatten().tolist()} <= {2.0, 3.0}
    streams = [StreamLocalizer(model, GRID, c) for c in (plain, scaled)]
    slow, wide = ((s.push(x), s.close())[1] for s in streams)
    assert {round(f, 4) for f in (wide.std / slow.std).flatten().tolist()} <= {2.0, 3.0}


def test_scales_are_checked():
    for wrong in ((0.0, 1.0), (1.0,), (1.0, -2.0)):
        with pytest.raises(ConfigError, match=r"inference.std_scale"):
            InferenceConfig(std_scale=wrong)


def test_a_calibration_speaks_of_its_own_settings_only(place, run):
    calibrate(run, place / "data", held_out=True, progress=False)
    checkpoint = load_checkpoint(run_checkpoint(run))
    settings = tzn.load(run).config.inference
    assert calibration_of(checkpoint, settings) is not None
    for change in ({"estimator": "crossing"}, {"snap_sigmas": 1.0}, {"std_scale": (1.0, 1.0)}, {"budget": 0.3}):
        assert calibration_of(checkpoint, dataclasses.replace(settings, **change)) is None
    assert calibration_of(dataclasses.replace(checkpoint, calibration=None), settings) is None


def test_models_without_standard_errors_are_refused(place):
    from tzn.config_loading import config_from_dict
    from tzn.data.dataset import RecordingDataset, load_split_annotations, select_recordings
    from tzn.models import ActionFormer, ActionFormerConfig
    from tzn.training.calibrate import read_off

    config = config_from_dict(load_checkpoint(run_checkpoint(place / "even")).config)
    annotations = load_split_annotations(place / "data", config.data)
    chosen = select_recordings(annotations, config.data, "validation")[:1]
    dataset = RecordingDataset(annotations, chosen, place / "data/features", config.data, 6, training=False)
    model = ActionFormer(
        ActionFormerConfig(input_dim=6, num_classes=3, embd_dim=16, n_head=2, n_mha_win_size=5, fpn_dim=16, head_dim=16)
    ).eval()
    with pytest.raises(DataError, match="no standard errors"):
        read_off(model, dataset, {chosen[0].id: "a"}, config.inference, 3)


@pytest.fixture(scope="module")
def zoomed(tmp_path_factory):
    """A run with a boundary stream that held half of the recordings out, its data beside it."""
    place = tmp_path_factory.mktemp("zoomed")
    generate_synthetic(place / "data", num_recordings=24, length=(180, 240), num_classes=3, channels=6, seed=1)
    short = ("training.epochs=50",)
    changes = (*short, "model.refinement_layers=0", "model.zoom_layers=2")
    train(small_config(*SETTINGS, *changes, EVEN), place / "data", place / "run", accelerator="cpu", progress=False)
    return place / "run"


def by_recording(run, data, threshold):
    """mAP and boundary error of every held-out recording at a threshold; None: all blocks on all steps, by depths from
    outside."""
    checkpoint = load_checkpoint(run_checkpoint(run))
    config = config_from_dict(checkpoint.config)
    config = dataclasses.replace(config, inference=config.inference.replace(threshold=threshold))
    if threshold is None:
        model = checkpoint.model
        plain = model.trunk
        model.trunk = lambda x, mask, **_: plain(x, mask, tau=torch.ones(mask.shape))
    found = evaluate_checkpoint(checkpoint, data, split="validation", config=config, progress=False)
    annotations = load_split_annotations(data, config.data, checkpoint.classes)
    held = [r for r in select_recordings(annotations, config.data, "validation") if len(r.segments)]
    reports = [evaluate([r], found.detections, checkpoint.classes, config.evaluation) for r in held]
    errors = []
    for overall in (r.errors["overall"] for r in reports):
        errors.append((overall["start"]["median"] + overall["end"]["median"]) / 2 if overall["matched"] else math.inf)
    return 100 * np.array([r.score.average_mAP for r in reports]), np.array(errors), found.gmac


@pytest.mark.parametrize(("allowed", "allowed_error"), [(1.0, None), (8.0, None), (8.0, 0.05), (100.0, 0.2)])
def test_a_dial_with_a_promise_is_chosen_and_stored(zoomed, tmp_path, capsys, allowed, allowed_error):
    data, run, risk = zoomed.parent / "data", shutil.copytree(zoomed, tmp_path / "run"), 0.3
    (full, error, cost), curves = by_recording(run, data, None), [by_recording(run, data, t) for t in THRESHOLDS]
    worse = [full - scores > allowed for scores, _, _ in curves]
    if allowed_error is not None:
        less_exact = [errors > error + allowed_error for _, errors, _ in curves]  # infinite where nothing is found
        assert np.any(less_exact)  # else nothing was tested
        worse = [a | b for a, b in zip(worse, less_exact, strict=True)]
    harmed = np.maximum.accumulate(worse).sum(1)
    fits = (harmed + 1) / (len(full) + 1) <= risk
    arguments = [
        "calibrate",
        str(run),
        "--data",
        str(data),
        "--held-out",
        "--risk",
        str(risk),
        "--allowed",
        str(allowed),
        *([] if allowed_error is None else ["--allowed-error", str(allowed_error)]),
    ]
    assert fits.any() or allowed < 10  # one of them at least stores a threshold
    if not fits.any():
        assert main(arguments) == 2
        assert "no threshold chosen: even 0.25 costs" in capsys.readouterr().err
        return
    wanted = int(np.flatnonzero(fits)[-1])
    assert main([*arguments, "--json"]) == 0
    dial = json.loads(capsys.readouterr().out)["dial"]
    assert dial["threshold"] == THRESHOLDS[wanted] and dial["harmed"] == harmed[wanted] and dial["groups"] == len(full)
    assert dial["full_mAP"] == pytest.approx(full.mean()) and dial["mAP"] == pytest.approx(curves[wanted][0].mean())
    assert dial["saved"] == pytest.approx(1 - curves[wanted][2] / cost) and dial["saved"] > 0
    # From then on the run goes by it, and its calibration is that of this threshold.
    checkpoint = load_checkpoint(run_checkpoint(run))
    assert checkpoint.config["inference"]["threshold"] == THRESHOLDS[wanted]
    assert tzn.load(run)(sorted((data / "features").glob("*.npy"))[-1]).calibrated
    assert (
        main(arguments) == 0 and f"threshold {THRESHOLDS[wanted]:g}: " in capsys.readouterr().out
    )  # again, and the same


def test_a_dial_that_can_not_be_promised_is_refused(zoomed, capsys):
    data, before = zoomed.parent / "data", run_checkpoint(zoomed).read_bytes()
    for arguments, message in (
        ([zoomed, "--risk", "1.5"], "--risk 1.5: expected a share"),
        ([zoomed, "--risk", "0.3", "--allowed", "-1"], "--allowed -1: expected points"),
        ([zoomed, "--risk", "0.3", "--allowed-error", "-1"], "--allowed-error -1: expected seconds"),
        ([zoomed, "--allowed-error", "0.1"], "--allowed-error: belongs to --risk"),
        ([zoomed, "--risk", "0.02"], "groups promise no risk of 0.02: expected at least 49"),
    ):
        path, *rest = map(str, arguments)
        assert main(["calibrate", path, "--data", str(data), "--held-out", *rest]) == 2
        assert message in capsys.readouterr().err
    assert run_checkpoint(zoomed).read_bytes() == before
