"""How precisely a boundary can be read off: classification peaks, distance crossings, votes, and the bounds.

usage: python -m benchmarks.evidence.boundary.variance [--smoke] [--seed 0] [--repeats 3] [--out FOLDER]

Part 1, estimators alone. A distance field d(t) = t - b + noise is given; its noise is Gaussian, Laplace, or Gaussian and
correlated in time (AR(1), rho = 0.8), always of the same standard deviation per frame. It is seen at every stride-th
frame, the vote window stays the same in frames. Estimators: one crossing, votes by weighted median and by weighted mean.
Efficiency = Cramer-Rao bound / mean squared error; the bound for independent noise is sigma^2 / n (Gaussian) and
sigma^2 / (2 n) (Laplace) over the n steps that can vote; for AR(1) it is sigma^2 / (1' C^-1 1). Classification: a score
that is a plateau of width kappa around b with noise of the same kind and number; argmax, centroid of the peak, parabola.
How a score's noise compares to a distance's is a choice there; part 2 leaves it to the training.

Part 2, trained heads. Both see the same signal: a ramp of width kappa from 0 to 1 at the boundary, plus noise. A small
convolutional network learns either the class "boundary within kappa / 2" or the signed distance. Equal data, size and
steps. The Cramer-Rao bound is that of the signal itself, so it holds for both. Each case is trained with several seeds.
All readings are sought within the heads' radius of the boundary; the share that lies elsewhere without that is told.

Finished pieces are kept in boundary_variance.parts.json beside the results until all are done.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.evidence.boundary import picture
from benchmarks.evidence.boundary.fields import ESTIMATORS, NOISES, PEAKS, distance_row, score_row, theory
from benchmarks.evidence.boundary.heads import trained_row
from benchmarks.lib.parts import Parts
from benchmarks.lib.provenance import evidence_parser, write
from benchmarks.lib.tables import table

SIGMAS = (0.1, 0.3)
STRIDES = (1, 2, 4)
WINDOWS = (4, 8, 16)
WIDTHS = (2.0, 4.0, 8.0, 16.0)
COLLECTED = ("mse", "bias", "robust", "found", "wrong")
Row = dict[str, Any]


def cases(smoke: bool) -> dict[str, tuple]:
    """What to compute, by key: (function, arguments before trials and randomness)."""
    sigmas, strides, windows, widths = (
        ((0.1,), (1, 4), (8,), (2.0, 16.0)) if smoke else (SIGMAS, STRIDES, WINDOWS, WIDTHS)
    )  # fmt: skip
    fields = [(kind, sigma, stride) for kind in NOISES for sigma in sigmas for stride in strides]
    found = {f"distance {f} {w}": (distance_row, (*f, w)) for f in fields for w in windows}
    found |= {f"score {f} {k}": (score_row, (*f, k)) for f in fields for k in widths}
    # Every width with every noise, and every width with every stride; trained for minutes, so not all three.
    pairs = [("gaussian", 1)] if smoke else [(k, 1) for k in NOISES] + [("gaussian", s) for s in strides[1:]]
    for kind, stride in pairs:
        for kappa in (16.0,) if smoke else widths:
            found[f"trained {kind} {kappa} {stride}"] = (trained_row, (kind, kappa, stride))
    return found


def computed(options: Any, trials: int, steps: int, repeats: int) -> dict[str, list[Row]]:
    """Rows by part: "distance", "score", "trained" (one row per training seed)."""
    todo = cases(options.smoke)
    settings = {"seed": options.seed, "trials": trials, "steps": steps, "smoke": options.smoke}
    parts = Parts(options.out / "boundary_variance.parts.json", 0, settings)
    found: dict[str, list[Row]] = {"distance": [], "score": [], "trained": []}
    jobs = [(k, r) for k in todo for r in range(repeats if k.startswith("trained") else 1)]
    for key, repeat in tqdm(sorted(jobs, key=lambda job: job[1]), desc="boundary variance", mininterval=1):
        function, arguments = todo[key]
        seed = options.seed + 1000 * repeat

        def run(key=key, function=function, arguments=arguments, seed=seed) -> Row:
            if function is trained_row:
                return function(*arguments, steps, trials // 5, seed)
            own = zlib.crc32(key.encode())  # each row its own noise, whatever the order
            return function(*arguments, trials, torch.Generator().manual_seed(seed + own))

        found[key.split()[0]].append(parts.get(f"{key} {repeat}", run))
    parts.finish()
    return found


def pooled(rows: list[Row]) -> list[Row]:
    """Rows of the training seeds of a case averaged (mean squared errors, robust variances, efficiencies of the means)."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["noise"], row["kappa"], row["stride"]), []).append(row)
    found = []
    for (kind, kappa, stride), group in groups.items():
        one: Row = {"noise": kind, "kappa": kappa, "stride": stride, "seeds": len(group)}
        one["bound"] = sum(r["bound"] for r in group) / len(group)
        for name in (*PEAKS, *ESTIMATORS):
            one[name] = {k: sum(r[name][k] for r in group) / len(group) for k in COLLECTED}
            one[name]["efficiency"] = one["bound"] / one[name]["mse"]
        found.append(one)
    return found


def ratios(row: Row) -> dict[str, float]:
    """Mean squared error of classification over that of distances: plain reading, best readings, and robustly."""

    def best(names: tuple[str, ...], key: str = "mse") -> float:
        return min(row[name][key] for name in names)

    return {
        "argmax / crossing": row["argmax"]["mse"] / row["crossing"]["mse"],
        "best peak / best vote": best(PEAKS) / best(ESTIMATORS[1:]),
        "robust": best(PEAKS, "robust") / best(ESTIMATORS[1:], "robust"),
    }


def distance_lines(rows: list[Row]) -> list[str]:
    def line(r: Row) -> list[str]:
        expected = theory(r["noise"], r["sigma"], r["votes"], r["stride"])
        claimed = [f"{math.sqrt(r[n]['claimed']):.2f}" for n in ESTIMATORS[1:]]
        limit = f"{r['attainable']:.2f}" if "attainable" in r else "1"
        both = [f"{r[n]['efficiency']:.2f} / {r['bound'] / expected[n]:.2f}" for n in ESTIMATORS]
        return [
            r["noise"],
            f"{r['sigma']:g}",
            str(r["stride"]),
            str(r["window"]),
            str(r["votes"]),
            *both,
            limit,
            *claimed,
        ]

    return [
        "## Distance fields alone: Cramer-Rao bound over mean squared error, measured / in theory", "",
        "Theory: of the crossing and the mean exact but for the choice among several crossings, of the median for many "
        "independent votes. Attainable: what the best shift-invariant estimator (Pitman) reaches. Claimed: the claimed "
        "standard error over the root mean squared error, votes by median and by mean.", "",
        table(
            ["noise", "sigma", "stride", "window", "votes", "crossing", "vote median", "vote mean", "attainable",
             "claimed, median", "claimed, mean"], [line(r) for r in rows],
        ).replace("nan", "-"),
    ]  # fmt: skip


def score_lines(rows: list[Row], distances: list[Row]) -> list[str]:
    crossing = {(r["noise"], r["sigma"], r["stride"]): r for r in distances}

    def line(r: Row) -> list[str]:
        field = crossing[r["noise"], r["sigma"], r["stride"]]
        mse = field["crossing"]["mse"]
        ratio = r["kappa"] ** 2 / 12 / theory(r["noise"], r["sigma"], field["votes"], r["stride"])["crossing"]
        return [
            r["noise"], f"{r['sigma']:g}", str(r["stride"]), f"{r['kappa']:g}",
            *(f"{r[n]['mse']:.3f}" for n in PEAKS), f"{mse:.4f}", f"{r['argmax']['mse'] / mse:.1f} / {ratio:.1f}",
            f"{min(r[n]['mse'] for n in PEAKS) / mse:.1f}",
        ]  # fmt: skip

    return [
        "## Score plateaus alone: mean squared error in frames^2 against a crossing's", "",
        "Theory of argmax: any place of the plateau, kappa^2 / 12; where sigma is small, its rounded shoulders narrow it.", "",
        table(
            ["noise", "sigma", "stride", "kappa", *PEAKS, "crossing", "argmax / crossing, measured / in theory",
             "best peak / crossing"], [line(r) for r in rows],
        ),
    ]  # fmt: skip


def trained_lines(rows: list[Row]) -> list[str]:
    names = (*PEAKS, *ESTIMATORS)

    def line(r: Row) -> list[str]:
        shares = [f"{100 * max(r[n]['wrong'] for n in group):.1f}" for group in (PEAKS, ESTIMATORS)]
        return [
            r["noise"], str(r["stride"]), f"{r['kappa']:g}", f"{r['bound']:.4f}", *(f"{r[n]['mse']:.4f}" for n in names),
            f"{max(r[n]['efficiency'] for n in PEAKS):.2f} / {max(r[n]['efficiency'] for n in ESTIMATORS):.2f}",
            *(f"{v:.1f}" for v in ratios(r).values()), " / ".join(shares),
        ]  # fmt: skip

    return [
        "## Trained heads on the same signal: mean squared error in frames^2", "",
        "Efficiency: bound / mean squared error of the best peak / of the best crossing or vote. A biased estimator can beat "
        "the bound (where a ramp is narrower than the stride, one that always says the middle between two steps does). "
        "Robust: by the median absolute deviation. Wrong: the surest peak / crossing of the whole signal is farther off.", "",
        table(
            ["noise", "stride", "kappa", "bound", *names, "efficiency", "argmax / crossing", "best peak / best vote",
             "the same, robust", "wrong peak / crossing, %"], [line(r) for r in rows],
        ),
    ]  # fmt: skip


def markdown(rows: dict[str, list[Row]], settings: str) -> str:
    return "\n".join([
        "# How precisely a boundary can be read off", "", settings, "",
        "![errors and efficiencies](boundary_variance.png)", "", *trained_lines(rows["pooled"]),
        *distance_lines(rows["distance"]), *score_lines(rows["score"], rows["distance"]),
    ])  # fmt: skip


def main() -> None:
    parser = evidence_parser(__doc__)
    parser.add_argument("--repeats", type=int, help="training seeds per case (3; with --smoke 1)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trials, steps = (8000, 300) if options.smoke else (20000, 800)
    repeats = options.repeats or (1 if options.smoke else 3)
    rows = computed(options, trials, steps, repeats)
    rows["pooled"] = pooled(rows["trained"])
    settings = (
        f"`python -m benchmarks.evidence.boundary.variance --seed {options.seed} --repeats {repeats}`: "
        f"{trials:,} fields or scores per row; "
        f"trained heads: {repeats} seed(s) of {steps:,} steps of 64 signals, signal noise 0.1, {trials // 5:,} test "
        "signals each. Lengths in frames."
    )
    content = {"seed": options.seed, **rows}
    write(Path(options.out), "boundary_variance", content, markdown(rows, settings))
    picture.draw_variance(Path(options.out) / "boundary_variance.png", rows)


if __name__ == "__main__":
    main()
