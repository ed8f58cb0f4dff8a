"""Boundaries read off two heads on one trained backbone, and whether the claimed standard errors are true.

usage: python -m benchmarks.evidence.boundary.calibration --data hapt RUNS [--held-out PATTERN ...] [--smoke]

RUNS are folders of ``tzn train``; their weights stay frozen. On the full-rate pyramid features of each, two kinds of heads
of the same size learn from the training subjects: classes "within kappa / 2 steps of a start (end)", one head per
kappa, and signed distances (tzn.nn.BoundaryDistanceHead). On the test subjects every true boundary is read off within
8 steps: peaks by argmax, centroid and parabola; crossings and votes. The features of a TemporalZoomNet were trained with
a distance head, those of an ActionFormer with neither kind. A backbone that has seen the held-out subjects makes their
errors smaller than those of new subjects; runs that held them out themselves (data.validation) are shown apart.

Calibration: the estimators' standard errors are scaled (or scaled with a floor) so that quantiles of |error| / std on
subjects held out from the heads' training are those of a Gaussian; coverage is then counted on the test subjects.

Finished runs are kept in boundary_calibration.parts.json beside the results until all are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.evidence.boundary import picture
from benchmarks.evidence.boundary.fields import ESTIMATORS
from benchmarks.evidence.boundary.two_heads import Errors, read_off, recordings, train_heads
from benchmarks.lib.parts import Parts
from benchmarks.lib.provenance import evidence_parser, write
from benchmarks.lib.runs import load_run
from benchmarks.lib.tables import table
from tzn.config_loading import config_from_dict

HELD_OUT = ("*user01", "*user08", "*user15", "*user22", "*user29")
WIDTHS = (2.0, 4.0, 8.0)
NOMINAL = (0.6827, 0.9545)
FLOORS = np.linspace(0, 0.5, 101)  # seconds


def statistics(error: np.ndarray) -> dict[str, float]:
    """Seconds. ``error``: ``[M]``, NaN where nothing was found."""
    found = error[np.isfinite(error)]
    if not len(found):
        return dict.fromkeys(("bias", "mad", "median", "p90", "rms"), float("nan")) | {
            "found": 0.0,
            "count": len(error),
        }
    return {
        "bias": float(found.mean()), "mad": float(np.median(np.abs(found - np.median(found)))),
        "median": float(np.median(np.abs(found))), "p90": float(np.quantile(np.abs(found), 0.9)),
        "rms": float(np.sqrt((found**2).mean())), "found": len(found) / len(error), "count": len(error),
    }  # fmt: skip


def fit_scale(error: np.ndarray, std: np.ndarray) -> float:
    """Factor for which the 68 % and 95 % quantiles of |error| / std are as near 1 and 2 as one factor allows."""
    quantiles = np.quantile(np.abs(error) / std, NOMINAL) / (1, 2)
    return float(np.sqrt(quantiles.prod()))


def fit_scale_and_floor(error: np.ndarray, std: np.ndarray) -> tuple[float, float]:
    """(scale, floor) of sqrt((scale std)^2 + floor^2), by the same quantiles within thirds of the claimed errors."""
    thirds = np.array_split(np.argsort(std, kind="stable"), 3)
    best = (np.inf, 1.0, 0.0)
    for floor in FLOORS:
        for scale in np.geomspace(0.05, 10, 107):
            wide = np.hypot(scale * std, floor)
            ratio = np.abs(error) / np.maximum(wide, 1e-9)
            misfit = sum((np.log(np.quantile(ratio[third], NOMINAL) / (1, 2)) ** 2).sum() for third in thirds)
            best = min(best, (float(misfit), float(scale), float(floor)))
    return best[1], best[2]


def coverage(error: np.ndarray, std: np.ndarray) -> list[float]:
    """Shares of errors within one and two standard errors."""
    return [float((np.abs(error) <= k * std).mean()) for k in (1, 2)]


def calibration(held_out: Errors, test: Errors) -> dict[str, Any]:
    """Coverage on the test subjects before and after, with what was fitted on the held-out ones."""

    def known(errors: Errors) -> tuple[np.ndarray, np.ndarray]:
        there = errors.error.isfinite()
        return errors.error[there].double().numpy(), errors.std[there].double().numpy()

    (fit_error, fit_std), (error, std) = known(held_out), known(test)
    if len(fit_error) < 6 or not len(error):  # a smoke run may find nothing
        return {}
    scale = fit_scale(fit_error, fit_std)
    both = fit_scale_and_floor(fit_error, fit_std)
    return {
        "scale": scale, "scale_and_floor": both,
        "coverage": {
            "claimed": coverage(error, std), "scaled": coverage(error, scale * std),
            "scaled with floor": coverage(error, np.hypot(both[0] * std, both[1])),
        },
        "coverage_held_out": {
            "claimed": coverage(fit_error, fit_std), "scaled": coverage(fit_error, scale * fit_std),
            "scaled with floor": coverage(fit_error, np.hypot(both[0] * fit_std, both[1])),
        },
    }  # fmt: skip


def compared(run: Path, options: Any, steps: int) -> dict[str, Any]:
    """All numbers of one run."""
    checkpoint = load_run(run)
    config = config_from_dict(checkpoint.config)
    short, blind = set(config.evaluation.short_classes), set(options.held_out) <= set(config.data.validation)
    train, validation, test = (
        recordings(checkpoint, options.data, options.held_out, split) for split in ("train", "validation", "test")
    )
    heads = train_heads(train, WIDTHS, steps, options.seed)
    held, held_labels = read_off(heads, validation)
    found, labels = read_off(heads, test)
    names = np.array(checkpoint.classes)[labels.numpy()]
    is_short = np.isin(names, sorted(short))
    groups = {"all": np.ones(len(names), bool), "short classes": is_short, "other classes": ~is_short}
    groups |= {name: names == name for name in checkpoint.classes if (names == name).any()}
    errors = {name: e.error.double().numpy() for name, e in found.items()}
    common = np.isfinite(np.stack(list(errors.values()))).all(0)
    return {
        "backbone": type(checkpoint.model).__name__ + (", trained without the held-out subjects" if blind else ""),
        "boundaries": len(labels), "held_out": len(held_labels),
        "common": float(common.mean()),
        "test": {n: {g: statistics(e[m]) for g, m in list(groups.items())[:3]} for n, e in errors.items()},
        "test_common": {n: {g: statistics(e[m & common]) for g, m in groups.items()} for n, e in errors.items()},
        "validation": {n: statistics(e.error.double().numpy()) for n, e in held.items()},
        "quantiles": {n: [float(q) for q in np.nanquantile(np.abs(e), np.linspace(0, 1, 51))]
                      if np.isfinite(e).any() else [] for n, e in errors.items()},
        "calibration": {n: calibration(held[n], found[n]) for n in ESTIMATORS},
    }  # fmt: skip


def rounded(value: Any) -> Any:
    """Numbers to five decimals (0.01 ms), so that the file stays small."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def chosen_peak(results: Sequence[dict[str, Any]]) -> str:
    """The classification reading (kind of peak and kappa) of least median error on the held-out subjects."""
    names = [n for n in results[0]["validation"] if n not in ESTIMATORS]
    finite = [n for n in names if all(np.isfinite(r["validation"][n]["median"]) for r in results)]
    return min(finite or names, key=lambda n: fmean([r["validation"][n]["median"] for r in results]))


def markdown_backbone(name: str, results: list[dict[str, Any]]) -> list[str]:
    def cell(part: str, n: str, group: str, key: str) -> float:
        return fmean([r[part][n][group][key] for r in results])

    groups = ("all", "other classes", "short classes")
    rows = [
        [n.replace("_", " "), f"{1e3 * cell('test_common', n, 'all', 'bias'):+.0f}",
         *(f"{1e3 * cell('test_common', n, g, 'mad'):.0f}" for g in groups),
         *(f"{1e3 * cell('test_common', n, g, 'p90'):.0f}" for g in groups),
         f"{100 * cell('test', n, 'all', 'found'):.1f}", f"{1e3 * cell('test', n, 'all', 'p90'):.0f}"]
        for n in results[0]["test"]
    ]  # fmt: skip
    peak = chosen_peak(results)
    classes = [g for g in results[0]["test_common"][peak] if g not in groups]
    shown = (peak, "crossing", "vote_median")
    by_class = [
        [g.lower().replace("_", " "), f"{cell('test_common', peak, g, 'count'):.0f}",
         *(f"{1e3 * cell('test_common', n, g, 'bias'):+.0f} / {1e3 * cell('test_common', n, g, 'mad'):.0f} / "
           f"{1e3 * cell('test_common', n, g, 'p90'):.0f}" for n in shown)]
        for g in classes
    ]  # fmt: skip
    covered = []
    for n in ESTIMATORS:
        each = [r["calibration"][n] for r in results if r["calibration"][n]]
        for kind in ("claimed", "scaled", "scaled with floor") if each else ():
            shares = [[100 * c["coverage"][kind][k] for c in each] for k in (0, 1)]
            held = [100 * fmean([c["coverage_held_out"][kind][k] for c in each]) for k in (0, 1)]
            covered.append([
                n.replace("_", " "), kind, *(f"{fmean(s):.1f} ({min(s):.0f} to {max(s):.0f})" for s in shares),
                f"{held[0]:.1f} / {held[1]:.1f}",
            ])  # fmt: skip
    scales = {n: fmean([r["calibration"][n]["scale"] for r in results if r["calibration"][n]] or [float("nan")])
              for n in ESTIMATORS}  # fmt: skip
    return [
        f"## {name}, {len(results)} run(s)", "",
        f"{results[0]['boundaries']} boundaries of the test subjects; the columns up to the last two take those that every "
        f"estimator finds ({100 * fmean([r['common'] for r in results]):.0f} %). Milliseconds; found in %.", "",
        table(
            ["", "bias", "MAD", "MAD, other", "MAD, short", "90 %", "90 %, other", "90 %, short", "found", "90 % of its own"],
            rows,
        ),
        f"By class, bias / MAD / 90 %; classification by what was best on the held-out subjects ({peak}):", "",
        table(["class", "found by all", *(n.replace("_", " ") for n in shown)], by_class),
        "Coverage of the standard errors on the test subjects in %, mean (least to most) over the runs:", "",
        table(
            ["", "standard error", "within 1 (68.3)", "within 2 (95.4)", "on the held-out subjects"], covered
        ),
        "Mean scale: " + ", ".join(f"{n.replace('_', ' ')} {s:.2f}" for n, s in scales.items()), "",
    ]  # fmt: skip


def main() -> None:
    parser = evidence_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", nargs="+", default=list(HELD_OUT), help="training recordings to calibrate on")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = 100 if options.smoke else 600
    settings = {"seed": options.seed, "steps": steps, "held_out": options.held_out, "data": str(options.data)}
    parts = Parts(options.out / "boundary_calibration.parts.json", len(options.runs), settings)
    runs = {
        run.name: parts.get(run.name, lambda run=run: compared(run, options, steps))
        for run in tqdm(options.runs, desc="boundary calibration", mininterval=1)
    }
    parts.finish()
    backbones: dict[str, list[dict[str, Any]]] = {}
    for result in runs.values():
        backbones.setdefault(result["backbone"], []).append(result)
    text = "\n".join([
        "# Two heads on one backbone, and the calibration of standard errors", "",
        f"`python -m benchmarks.evidence.boundary.calibration --data {options.data.name} RUNS`: {steps} steps of 8 crops of "
        "512 steps for all heads, on frozen features.", "", "![errors and coverage](boundary_calibration.png)", "",
        *(line for name, results in backbones.items() for line in markdown_backbone(name, results)),
    ])  # fmt: skip
    content = {"seed": options.seed, "steps": steps, "runs": rounded(runs)}
    write(options.out, "boundary_calibration", content, text)
    best = {name: chosen_peak(results) for name, results in backbones.items()}
    picture.draw_calibration(options.out / "boundary_calibration.png", backbones, best)


if __name__ == "__main__":
    main()
