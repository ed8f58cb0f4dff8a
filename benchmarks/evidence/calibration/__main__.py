"""Whether calibrated intervals and probabilities hold for people (recordings, where nobody says who) never seen.

usage: python -m benchmarks.evidence.calibration --data ../shared/data [--runs runs/calibration] [--sets hapt ludb …]
       [--folds NAME …]

Per set one network is trained without a part of the training groups (as folds of ``tzn calibrate`` are) and judged on groups
that it has not seen:

* as shipped: calibrated on the training groups held out (``tzn calibrate --held-out``), judged on the test groups;
* halves: all groups not seen, held out or test, are split at random into two halves, many times; one calibrates, the other
  judges. That tells luck with one split from the rule.

Of "hapt_shipped", the model that comes with tzn, only the test groups are unseen: halves alone.

Sets named by --folds also get all their folds and a network trained on all training groups: calibrated by folds (``tzn
calibrate --folds``), judged on the test groups. Runs that are in --runs already are taken as they are.
"""

from __future__ import annotations

import dataclasses
import glob
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.evidence.calibration import raters
from benchmarks.evidence.calibration.measures import (
    LEVELS,
    boundary_measures,
    gaussian,
    group_mean,
    probability_measures,
)
from benchmarks.lib.parts import Parts
from benchmarks.lib.provenance import CONFIGS, evidence_parser, write
from benchmarks.lib.runs import SMOKE
from benchmarks.lib.tables import table
from tzn.calibration import Calibration, fit_intervals
from tzn.config import ExperimentConfig
from tzn.config_loading import load_config
from tzn.data.annotations import load_annotations
from tzn.data.groups import group_folds, recording_groups
from tzn.errors import DataError
from tzn.evaluation.flat import GroundTruth
from tzn.models.checkpoint import LoadedCheckpoint, load_checkpoint
from tzn.models.pretrained import load_pretrained
from tzn.training import train
from tzn.training.calibrate import (
    HeldOut,
    corrected_std,
    fit,
    held_out_by,
    joined,
    last_checkpoint,
    rightness,
    uncalibrated,
)

HERE = Path(__file__).resolve().parent
SHOWN = 0.1  # score from which on detections are judged: the many below are nearly all wrong, which is no merit to know


class Set(NamedTuple):
    config: Path | None  # None: the model that comes with tzn
    group: str | None  # regular expression of a recording's group; None: the annotations' subjects
    folds: int  # parts of the training groups, of which the first is held out
    what: str


SETS = {
    "hapt_shipped": Set(None, r"user\d+", 0, "people"),
    "hapt": Set(HERE / "hapt.yaml", r"user\d+", 3, "people"),
    "ludb": Set(CONFIGS / "ludb.yaml", None, 5, "people"),
    "sp_sw_har": Set(CONFIGS / "sp_sw_har.yaml", None, 3, "people"),
    "sfinge3d": Set(HERE / "sfinge3d.yaml", None, 3, "recordings"),
    "eye_lund2013": Set(HERE / "eye_lund2013.yaml", None, 3, "people"),
}


def run_of(name: str, part: int | None, options: Any) -> LoadedCheckpoint:
    """The set's network trained without one part of the groups; None: on all of them."""
    of, data = SETS[name], options.data / name
    assert of.config is not None
    run = options.runs / name / ("full" if part is None else f"fold{part}")
    if not (run / "run.json").is_file():
        held: tuple[str, ...] = ()
        if part is not None:
            ids = [r.id for r in load_annotations(data / "annotations.json", strict=False).subset("training")]
            groups = recording_groups(data / "annotations.json", ids, of.group)
            held = tuple(glob.escape(n) for n in group_folds(groups, of.folds)[part])
        config: ExperimentConfig = load_config(
            of.config, ["training.validate_every=0", *(SMOKE if options.smoke else [])]
        )
        config = dataclasses.replace(config, data=config.data.replace(validation=held))
        resume = (run / "checkpoints" / "last.ckpt").is_file()
        train(config, data, run, resume=resume, accelerator="cpu", progress=False)
    return load_checkpoint(last_checkpoint(run))


def read(
    name: str, part: int | None, split: str, options: Any, std_scale: tuple[float, float] = (1.0, 1.0)
) -> HeldOut:  # fmt: skip
    checkpoint = run_of(name, part, options)
    config = uncalibrated(checkpoint)
    config = dataclasses.replace(config, inference=config.inference.replace(std_scale=std_scale))
    return held_out_by(checkpoint, config, options.data / name, SETS[name].group, split=split)


def judged(held: HeldOut, calibration: Calibration) -> dict[str, Any]:
    """Measures of boundaries by kind of interval."""
    known = np.isfinite(held.std) & (held.std > 0)
    error, std, group = held.error[known], held.std[known], held.group[known]
    scaled, table_ = corrected_std(held, calibration)[known], calibration.intervals
    ways = {
        "claimed": (std, gaussian),
        "scaled": (scaled, gaussian),
        "expected": (scaled, lambda c: table_.factor(min(max(c, 1e-9), 0.9899))),
        "guaranteed": (scaled, lambda c: table_.factor(min(max(c, 1e-9), 0.9899), guarantee=True)),
    }
    result = {way: boundary_measures(error, s, group, factor) for way, (s, factor) in ways.items()}
    result["errors"] = {
        "boundaries": int(known.sum()), "groups": len(np.unique(group)), "median": float(np.median(error)),
        "p90": float(np.quantile(error, 0.9)),
    }  # fmt: skip
    return result


def constant(fit_on: HeldOut, judge: HeldOut) -> dict[str, Any]:
    """The same rules without standard errors: one width for all."""
    intervals = fit_intervals(fit_on.error, fit_on.group)
    ones = np.full(len(judge.error), 1.0)
    return boundary_measures(judge.error, ones, judge.group, lambda c: intervals.factor(min(max(c, 1e-9), 0.9899)))


def restricted(held: HeldOut, groups: set[str]) -> HeldOut:
    keep = np.isin(held.group, sorted(groups))
    names = ("error", "std", "moved", "group", "labels")
    return dataclasses.replace(held, **{n: getattr(held, n)[keep] for n in names})


def halves(held: HeldOut, inference: Any, splits: int, seed: int) -> dict[str, Any]:
    """Mean and spread over random halves of the groups of the coverage of the other half."""
    rng, groups = np.random.default_rng(seed), np.unique(held.group)
    shares: dict[str, dict[float, list[float]]] = {w: {c: [] for c in LEVELS} for w in ("expected", "guaranteed")}
    for _ in range(splits):
        mixed = rng.permutation(groups)
        one, other = (restricted(held, set(part)) for part in np.array_split(mixed, 2))
        try:
            calibration = fit(one, inference, "half")
        except DataError:
            continue
        std = corrected_std(other, calibration)
        for way, of_level in shares.items():
            for level, found in of_level.items():
                factor = calibration.intervals.factor(level, guarantee=way == "guaranteed")
                found.append(group_mean(other.error <= factor * std, other.group))
    return {
        "groups": len(groups),
        "splits": len(shares["expected"][0.9]),
        **{
            way: {str(c): [float(np.mean(x)), *map(float, np.percentile(x, [5, 95]))] if x else [math.nan] * 3
                  for c, x in of_level.items()}
            for way, of_level in shares.items()
        },
    }  # fmt: skip


def probabilities(held: HeldOut, calibration: Calibration) -> dict[str, dict[str, float]]:
    """Of the detections of the judged recordings: scores as they are, and calibrated."""
    truth = {r.id: GroundTruth(r.segments, r.labels) for r in held.recordings}
    classes = 1 + max(int(max(r.labels.max(initial=0) for r in held.recordings)),
                      max(int(d.labels.max(initial=0)) for d in held.found.values()))  # fmt: skip
    scores, right = rightness(truth, held.found, classes)
    shown = scores >= SHOWN
    scores, right = scores[shown], right[shown]
    return {
        "scores": probability_measures(scores, right),
        "calibrated": probability_measures(calibration.probability(scores), right),
        "count": len(scores),  # type: ignore[dict-item]
    }


def measured(name: str, options: Any) -> dict[str, Any]:
    """All numbers of a set; none where a smoke run finds nothing."""
    try:
        return _measured(name, options)
    except DataError:
        if not options.smoke:
            raise
        return {}


def _of_shipped(name: str, options: Any) -> dict[str, Any]:
    """A model of the package on the test groups, which calibrated it: random halves judge each other."""
    data = options.data / name.removesuffix("_shipped")
    checkpoint = load_pretrained(data.name).checkpoint
    config = uncalibrated(checkpoint)
    test = held_out_by(checkpoint, config, data, SETS[name].group, split="test")
    return {
        "what": SETS[name].what, "calibration": _tables(fit(test, config.inference, "test")),
        "halves": halves(test, config.inference, 20 if options.smoke else 200, options.seed),
    }  # fmt: skip


def _tables(calibration: Calibration) -> dict[str, Any]:
    return {k: v for k, v in calibration.to_dict().items() if k not in ("inference", "scores", "probabilities")}


def _measured(name: str, options: Any) -> dict[str, Any]:
    if SETS[name].config is None:
        return _of_shipped(name, options)
    checkpoint = run_of(name, 0, options)
    inference = uncalibrated(checkpoint).inference
    held, test = (read(name, 0, split, options) for split in ("validation", "test"))
    calibration = fit(held, inference, "validation")
    result: dict[str, Any] = {
        "what": SETS[name].what, "held_out_groups": calibration.intervals.groups,
        "calibration": _tables(calibration),
        "shipped": judged(test, calibration) | {"constant": constant(held, test)},
        "probabilities": probabilities(test, calibration),
        "halves": halves(joined([held, test]), inference, 20 if options.smoke else 200, options.seed),
    }  # fmt: skip
    if (options.data / name / "annotations_second_rater.json").is_file():
        # What a calibrated checkpoint gives: corrected standard errors.
        every = joined([read(name, 0, split, options, calibration.std_scale) for split in ("validation", "test")])
        result["raters"] = raters.compared(options.data / name, every, calibration, checkpoint.classes)
    if name in options.folds:
        folds = joined([read(name, part, "validation", options) for part in range(SETS[name].folds)])
        by_folds, test = fit(folds, inference, f"{SETS[name].folds} folds"), read(name, None, "test", options)
        result["folds"] = judged(test, by_folds) | {"constant": constant(folds, test)}
        result["folds"]["calibration_groups"] = by_folds.intervals.groups
        result["folds"]["std_scale"] = by_folds.std_scale
    return result


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


def markdown(sets: dict[str, dict[str, Any]]) -> str:
    rows, more, fits = [], [], []
    for name, s in sets.items():
        for way, label in (("shipped", "held out"), ("folds", "folds")):
            if way not in s:
                continue
            m, groups = s[way], s["held_out_groups"] if way == "shipped" else s[way]["calibration_groups"]
            rows.append([
                f"{name}, {label}", f"{groups} / {m['errors']['groups']} {s['what']}", str(m["errors"]["boundaries"]),
                *(percent(m[kind]["coverage"]["0.9"]) for kind in ("claimed", "scaled", "expected", "guaranteed", "constant")),
                *(f"{m[kind]['half_width']:.3g}" for kind in ("expected", "guaranteed", "constant")),
                f"{m['errors']['median']:.3g} / {m['errors']['p90']:.3g}",
            ])  # fmt: skip
            more.append([
                f"{name}, {label}", *(f"{m[k]['ence']:.2f}" for k in ("claimed", "scaled")),
                *(f"{1e3 * m[k]['crps']:.3g}" for k in ("claimed", "scaled", "expected", "constant")),
            ])  # fmt: skip
        c = s["calibration"]
        lags = ", ".join(f"{x:.2f}" for x in c["lag_correlation"][:4]) or "-"
        scale = "-" if c["distance_scale"] is None else f"{c['distance_scale']:.2f}"
        fits.append([name, f"{c['std_scale'][0]:.2f}", f"{c['std_scale'][1]:.2f}", scale, lags,
                     f"{c['vote_correlation']:.2f}" if c["vote_correlation"] is not None else "-"])  # fmt: skip
    spread = [
        [name, f"{s['halves']['groups']}",
         *("{} ({} to {})".format(*map(percent, s["halves"][way][level]))
           for way in ("expected", "guaranteed") for level in ("0.8", "0.9"))]
        for name, s in sets.items()
    ]  # fmt: skip
    chances = [
        [name, str(s["probabilities"]["count"]),
         *(f"{s['probabilities'][k][m]:.3f}" for m in ("ece", "brier") for k in ("scores", "calibrated"))]
        for name, s in sets.items() if "probabilities" in s
    ]  # fmt: skip
    lines = [
        "# Calibrated intervals and probabilities on groups never seen", "",
        "90 % intervals of starts and ends of right detections (tIoU 0.5) on the test groups; groups calibrated on / judged. "
        "Coverage in %, groups alike; half widths (median) and errors (median / 90 %) in seconds. Claimed: Gaussian with the "
        "network's standard errors; scaled: Gaussian with the fitted factors; expected and guaranteed: the tables of "
        "`tzn calibrate`; constant: the expected rule with one width for all boundaries.", "",
        table(["", "groups", "boundaries", "claimed", "scaled", "expected", "guaranteed", "constant", "width expected",
               "guaranteed", "constant", "errors"], rows),
        "The same over random halves of all groups not seen, one half calibrating, the other judged: mean coverage in % (5 to "
        "95 % of the splits).", "",
        table(["", "groups", "expected 80", "expected 90", "guaranteed 80", "guaranteed 90"], spread),
        "ENCE of the standard errors, and CRPS in milliseconds:", "",
        table(["", "ENCE claimed", "scaled", "CRPS claimed", "scaled", "expected", "constant"], more),
        "What was fitted: factors on the standard errors of ends that a crossing moved and of all others; the scale of the "
        "distance field; correlation of its errors 1 to 4 steps apart; the vote correlation that stands for it.", "",
        table(["", "moved", "others", "distance scale", "lags 1 to 4", "vote correlation"], fits),
        "Probabilities of detections with a score of 0.1 or more on the test recordings (expected calibration error, Brier "
        "score):", "",
        table(["", "detections", "ECE scores", "calibrated", "Brier scores", "calibrated"], chances),
    ]  # fmt: skip
    for name, s in sets.items():
        if "raters" in s:
            r = s["raters"]
            lines += [
                f"{name}, {r['recordings']} recordings with two human raters, milliseconds: between the raters "
                f"{ms(r['raters']['median'])} in the median and {ms(r['raters']['p90'])} at 90 %; model and first rater "
                f"{ms(r['model']['median'])} and {ms(r['model']['p90'])}; half width of the 90 % intervals "
                f"{ms(r['half_width'])}. The second rater's boundary lies inside them in {percent(r['second_inside'])} %. "
                f"Rank correlation of standard errors with the raters' difference: {r['rank_correlation']:.2f}.", "",
            ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = evidence_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per set")
    parser.add_argument("--runs", type=Path, default=Path("runs/calibration"), help="folder of the trained runs")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=[name for name in SETS if SETS[name].config])
    parser.add_argument("--folds", nargs="*", choices=list(SETS), default=[], help="sets with all folds and a full run")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {"seed": options.seed, "folds": options.folds, "smoke": options.smoke}
    parts = Parts(options.out / "calibration.parts.json", len(options.sets), settings)
    sets = {
        name: parts.get(name, lambda name=name: measured(name, options))
        for name in tqdm(options.sets, desc="calibration", mininterval=1)
    }
    parts.finish()
    write(
        options.out,
        "calibration",
        {"seed": options.seed, "sets": sets},
        markdown({name: s for name, s in sets.items() if s}),
    )


if __name__ == "__main__":
    main()
