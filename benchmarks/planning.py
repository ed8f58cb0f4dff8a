"""Configurations planned from the data alone, against tuned ones and baselines; and the plan's rules, data set by data set.

    python -m benchmarks.planning table --data ../shared/data --seeds 0 1 2     # trains what is missing, scores the test
    python -m benchmarks.planning rules --data ../shared/data                  # rule candidates on held-out TRAINING recordings
    python -m benchmarks.planning work --data ../shared/data                   # multiply-adds of both plans, without training
    python -m benchmarks.planning report --data ../shared/data                 # writes planning.json's tables to planning.md

Every training is kept in ``planning.json`` as soon as it is done, and not run again; several processes share the work.
``--minutes`` are CPU minutes of one training (one thread each).

A rule candidate differs in one number from the rules as they were when the comparisons began (FIRST_RULES: a network narrower
than 128 below a quarter of the wanted steps, weight 10 of the depth's loss; now 60 % and 1), the families of LATER from the
rules and the training of today. It is judged by leave-one-data-set-out: for every data set the candidate is chosen that is
best on all others, and what it scores on the one left out is set against the first value. Only training recordings take part:
a quarter of their groups is held out and scored.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from benchmarks.lib import provenance
from benchmarks.lib.tables import table
from tzn.config import EvaluationConfig, ExperimentConfig
from tzn.config_loading import config_from_dict, load_config, override_config
from tzn.data.annotations import load_annotations
from tzn.detections import Detections
from tzn.evaluation.report import EvaluationReport, evaluate
from tzn.inference.evaluate_checkpoint import evaluate_checkpoint
from tzn.inference.localize import candidates
from tzn.models import build_model
from tzn.models.checkpoint import load_checkpoint
from tzn.planning.fingerprint import read_fingerprint
from tzn.planning.groups import held_out
from tzn.planning.plan import Plan, Rules, make_plan
from tzn.planning.timing import measure_cost
from tzn.profiling import count_multiply_adds
from tzn.training import train

SETS = ("hapt", "ludb", "gtea", "eye_lund2013", "sfinge3d", "sp_sw_har", "gesture_phase")
TUNED = {"hapt": "hapt.yaml", "ludb": "ludb.yaml"}
ROWS = ("tzn planned", "ActionFormer planned", "ActionFormer, published recipe", "hand-tuned")
# mAP at tIoU 0.3 / 0.5 / 0.7 of a dilated TCN, from the README of the data (one seed, one thread, its own minutes).
TCN = {
    "gtea": (52, 33, 24), "eye_lund2013": (57, 51, 37), "sfinge3d": (83, 77, 53), "sp_sw_har": (98, 94, 78),
    "gesture_phase": (46, 32, 15),
}  # fmt: skip
TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
DEVELOPMENT = 0.25  # of the training recordings, held out to judge rules

Edit = Callable[[Plan], None]


def _one_crop_each(plan: Plan) -> None:
    """The field's habit: an epoch is one crop per recording, however long. Equal steps."""
    steps = plan.value("training", "epochs") * plan.value("data", "crops_per_epoch")
    count = len(plan.found.recordings) - len(plan.value("data", "validation"))
    epochs = max(round(steps / count), 1)
    plan.set("data", "crops_per_epoch", None, "one crop of every recording")
    plan.set("data", "balance", 0.0, "needs crops_per_epoch")
    plan.set("training", "epochs", epochs, "equal steps")
    plan.set("training", "warmup_epochs", epochs // 10, "a tenth")
    plan.set("training", "validate_every", max(epochs // 5, 1), "five times")
    plan.set("training", "patience", 0, "")


def _no_balance(plan: Plan) -> None:
    plan.set("data", "balance", 0.0, "no balance")


# What candidates are compared with: the rules as they were when the comparisons began.
FIRST_RULES: dict[str, Any] = {"least_share": 0.25, "depth_weight": 10.0}
# Families whose first value is today's, in rules and in how the best epoch is chosen.
LATER = ("average's half-life", "noise", "heavy-tailed channels", "balance")
FIRST, TODAY = "learning rate: 1e-3", "average's half-life: 8 %"  # where the run of a first value is kept
# Name: values of rules or a change of the plan. The first of a family is FIRST_RULES, or today's.
CANDIDATES: dict[str, dict[str, dict[str, Any] | Edit]] = {
    "learning rate": {"1e-3": {}, "5e-4": {"learning_rate": 5e-4}, "2e-3": {"learning_rate": 2e-3}},
    "crops": {"by length": {}, "one per recording": _one_crop_each},
    "average's half-life": {"8 %": {}, "3 %": {"half_life": 0.03}, "20 %": {"half_life": 0.2}},
    "window": {"19": {}, "31": {"window": 31}},
    "width": {"128": {}, "64": {"width": 64}},
    "width before steps": {"from 25 %": {}, "from 60 %": {"least_share": 0.6}},
    "grid": {"16 steps": {}, "8 steps": {"shortest": 8.0}},
    "noise": {"0.1": {}, "0": {"noise": 0.0}},
    "heavy-tailed channels": {"logarithmic": {}, "as they are": {"tame": False}},
    "balance": {"rare classes": {}, "none": _no_balance},
    "weight of the depth's loss": {"10": {}, "1": {"depth_weight": 1.0}},
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: of the table (``kind`` is a row) or of a rule candidate (``kind`` is "family: candidate")."""

    part: str  # "table" or "rules"
    data: str
    kind: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.part}/{self.data}/{self.kind}/{self.seed}"


class Store:
    """Results by key in one JSON file, which several processes add to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.locks = path.parent / f".{path.stem}"

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.is_file() else {"runs": {}}

    def add(self, key: str, value: dict[str, Any]) -> None:
        self.locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self.locks / "write.lock"):
            content = self.read()
            content["runs"][key] = value
            content = {k: v for k, v in content.items() if k in ("runs", "earlier")}
            content["runs"] = dict(sorted(content["runs"].items()))
            provenance.write_json(self.path, provenance.facts() | content)

    def claim(self, key: str) -> FileLock | None:
        """A lock on a job that is neither done nor begun by another process."""
        if key in self.read()["runs"]:
            return None
        self.locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.locks / f"{key.replace('/', '_').replace(' ', '_')}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock

    def once(self, key: str, run: Callable[[], dict[str, Any]]) -> None:
        """Keeps what ``run`` finds, with its CPU minutes where it says none; not for a job that is done or begun."""
        if (lock := self.claim(key)) is None:
            return
        with lock:
            print(key, flush=True)
            begin = time.process_time()
            found = run()
            self.add(key, {"minutes": (time.process_time() - begin) / 60} | found)


def planned(job: Job, folder: Path, minutes: float) -> ExperimentConfig:
    """The plan of a job as a configuration."""
    found = read_fingerprint(folder, progress=False)
    model = "actionformer" if job.kind.startswith("ActionFormer") else "tzn"
    change: dict[str, Any] | Edit = {}
    first: dict[str, Any] = {}
    if job.part == "rules":
        family, _, name = job.kind.partition(": ")
        change = CANDIDATES[family][name]
        first = {} if family in LATER else FIRST_RULES
    rules = Rules(**(first | change if isinstance(change, dict) else first))
    plan = make_plan(
        found,
        model=model,
        minutes=minutes,
        rules=rules,
        measure=measure_cost(folder),
        seed=job.seed,  # type: ignore[arg-type]
    )
    if job.part == "rules":
        recordings = list(zip(found.recordings, found.recording_classes, strict=True))
        chosen, _ = held_out(recordings, found.groups, DEVELOPMENT)
        plan.set("data", "validation", chosen, "to judge rules")
    if callable(change):
        change(plan)
    return plan.config()


def published(folder: Path, minutes: float, seed: int) -> ExperimentConfig:
    """ActionFormer's recipe as on HAPT (35 epochs of one crop per recording, no augmentation, average of 0.999), as many
    epochs as the budget has room for."""
    found = read_fingerprint(folder, progress=False)
    base = load_config(provenance.CONFIGS / "actionformer_hapt.yaml")
    config = dataclasses.replace(
        base,
        model=base.model.replace(input_dim=found.width, num_classes=len(found.classes)),
        data=found.data.replace(max_length=base.data.max_length, trunc_thresh=base.data.trunc_thresh),
        training=base.training.replace(seed=seed),
        evaluation=EvaluationConfig(tiou=TIOU),
    )
    cost = measure_cost(folder)(config)
    steps = len(found.recordings) // config.training.batch_size
    epochs = min(base.training.epochs, max(int(60 * minutes * 0.85 / (cost.step * steps)), 1))
    warmup = min(base.training.warmup_epochs, max(epochs // 7, 0))
    return dataclasses.replace(config, training=config.training.replace(epochs=epochs, warmup_epochs=warmup))


def config_of(job: Job, folder: Path, minutes: float) -> ExperimentConfig:
    if job.kind == "hand-tuned":
        return override_config(load_config(provenance.CONFIGS / TUNED[job.data]), [f"training.seed={job.seed}"])
    if job.kind == "ActionFormer, published recipe":
        return published(folder, minutes, job.seed)
    return planned(job, folder, minutes)


def run_job(job: Job, root: Path, runs: Path, minutes: float) -> dict[str, Any]:
    """Train, score, and say what it took."""
    folder = root / job.data
    config = config_of(job, folder, minutes)
    out = runs / job.key.replace("/", "_").replace(" ", "_").replace(",", "").replace(":", "")
    resume = (out / "checkpoints" / "last.ckpt").is_file()
    if resume:
        config = load_config(out / "config.yaml")
    best = train(config, folder, out, resume=resume, accelerator="cpu", progress=False)
    said = json.loads((out / "run.json").read_text())
    result: dict[str, Any] = {
        "minutes": said["cpu_seconds"] / 60, "budget": minutes, "steps": said["steps"],
        "validation_mAP": said["validation_mAP"], "training_mAP": said["training_mAP"], "advice": said["advice"],
    }  # fmt: skip
    if job.part == "table":
        checkpoint = load_checkpoint(best)
        stored = config_from_dict(checkpoint.config)
        stored = dataclasses.replace(stored, evaluation=EvaluationConfig(tiou=TIOU))
        scored = evaluate_checkpoint(checkpoint, folder, config=stored, progress=False)
        result |= _scores(scored.report) | {"gmac": scored.gmac, "mean_depth": scored.mean_depth}
    return result


def _scores(report: EvaluationReport) -> dict[str, Any]:
    overall = report.errors["overall"]
    medians = [overall[side]["median"] for side in ("start", "end") if side in overall]
    return {
        "tiou": list(report.score.tiou), "mAP": report.score.mAP.tolist(), "average_mAP": report.score.average_mAP,
        "boundary_median": medians, "missed": overall["missed"], "matched": overall["matched"],
    }  # fmt: skip


def work(folder: Path) -> dict[str, Any]:
    """Multiply-adds of both plans' untrained networks on noise as long as the median training recording.

    Nothing is trained, so the depth is set to its target. Both networks refine the same number of candidates at most.
    """
    found = read_fingerprint(folder, progress=False)
    steps, counts = int(np.median(found.steps)), {}
    for kind in ("tzn", "actionformer"):
        config = make_plan(found, model=kind).config()  # type: ignore[arg-type]
        network = build_model(config.model).eval()
        inference = config.inference.replace(pre_nms_thresh=0.0099, pre_nms_topk=200)
        if kind == "tzn":
            inference = inference.replace(budget=config.training.target_depth)
        features = torch.randn(max(steps // config.data.pool, 1), config.model.feature_dim)
        counts[kind] = count_multiply_adds(lambda n=network, x=features, i=inference: candidates(n, x, i))[1] / 1e9  # type: ignore[misc]
    return {"steps": steps, **counts}


def second_rater(folder: Path) -> dict[str, Any]:
    """The second human rater's segments scored as detections, on the test recordings that both rated."""
    truth = load_annotations(folder / "annotations.json", strict=False)
    other = load_annotations(folder / "annotations_second_rater.json", strict=False, classes=truth.classes)
    both = [r for r in truth.subset("test") if r.id in other.recordings]
    found = {}
    for r in both:
        o = other.recordings[r.id]
        found[r.id] = Detections(o.segments, np.ones(len(o.labels)), o.labels)
    report = evaluate(both, found, truth.classes, EvaluationConfig(tiou=TIOU))
    return _scores(report) | {"recordings": len(both)}


def jobs(part: str, data: list[str], seeds: list[int], rows: list[str], families: list[str]) -> Iterator[Job]:
    for seed in seeds:
        if part == "table":
            for row in rows:
                for name in data:
                    if row != "hand-tuned" or name in TUNED:
                        yield Job("table", name, row, seed)
        else:
            for family in families:
                for i, candidate in enumerate(CANDIDATES[family]):
                    for name in data:
                        # First values are one run, shared by all families.
                        kind = f"{family}: {candidate}" if i else TODAY if family in LATER else FIRST
                        yield Job("rules", name, kind, seed)


def report(store: Store, root: Path) -> str:
    runs = store.read()["runs"]
    earlier = store.read().get("earlier")
    facts = provenance.facts() | {k: v for k, v in store.read().items() if k not in ("runs", "earlier")}
    parts = ["# Planned from the data alone", provenance.line(facts | {"command": "python -m benchmarks.planning"})]
    parts += [_table_text(runs, root), _work_text(runs), _rules_text(runs)]
    if earlier:
        parts.append(
            "## With earlier rules\n\nMeasured before the rules had their present numbers: "
            f"{earlier['rules']}. The goals below them are for these rows.\n\n"
            + _table_text(earlier["runs"], root, heading=False)
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _work_text(runs: dict[str, Any]) -> str:
    rows = []
    for data in SETS:
        if (found := runs.get(f"work/{data}")) is not None:
            ours, base = found["tzn"], found["actionformer"]
            rows.append([data, str(found["steps"]), f"{ours:.3f}", f"{base:.3f}", f"{100 * (1 - ours / base):.0f} %"])
    if not rows:
        return ""
    return "\n\n".join([
        "## Multiply-adds of both plans at equal width",
        "1e9 multiply-adds for a recording of the median length, without a budget of time (width 128): untrained networks on "
        "noise, TemporalZoomNet at its target depth of 0.25.",
        table(["data", "steps", "tzn", "ActionFormer", "fewer"], rows),
    ])  # fmt: skip


def _mean(values: list[float]) -> str:
    return (
        "-"
        if not values
        else f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")
    )


def _of(runs: dict[str, Any], part: str, data: str, kind: str) -> list[dict[str, Any]]:
    return [v for k, v in runs.items() if k.rpartition("/")[0] == f"{part}/{data}/{kind}"]


def _table_text(runs: dict[str, Any], root: Path, heading: bool = True) -> str:
    text = [
        *(["## Test recordings"] if heading else []),
        "Every row is one command without a setting by hand (hand-tuned: `configs/hapt.yaml`, `ludb.yaml` as they are). mAP in "
        "per cent, means over the seeds given (±: standard deviation); boundary error: median of start / end in seconds; GMAC: "
        "1e9 multiply-adds per recording; minutes: CPU minutes of training, of which planned rows had the budget beside them.",
    ]
    rows = []
    for data in SETS:
        for kind in ROWS:
            found = _of(runs, "table", data, kind)
            if not found:
                continue
            value = lambda key, f=found: float(np.mean([r[key] for r in f]))  # noqa: E731
            errors = np.mean([r["boundary_median"] for r in found], axis=0)
            at = {t: [100 * r["mAP"][i] for r in found] for i, t in enumerate(TIOU)}
            rows.append([
                data, kind, str(len(found)), _mean([100 * r["average_mAP"] for r in found]), _mean(at[0.3]), _mean(at[0.5]),
                _mean(at[0.7]), " / ".join(f"{e:.3g}" for e in errors), f"{value('gmac'):.3f}",
                f"{value('minutes'):.1f} of {value('budget'):g}", f"{value('steps'):.0f}",
            ])  # fmt: skip
        measured = any(row[0] == data for row in rows)
        if data in TCN and measured:
            a, b, c = TCN[data]
            rows.append([data, "dilated TCN (data README)", "1", "-", str(a), str(b), str(c), "-", "-", "-", "-"])
        if data == "eye_lund2013" and measured and (root / data / "annotations_second_rater.json").is_file():
            human = second_rater(root / data)
            m = [f"{100 * x:.1f}" for x in human["mAP"]]
            errors = " / ".join(f"{e:.3g}" for e in human["boundary_median"])
            rows.append([
                data, f"second human rater ({human['recordings']} recordings)", "-", f"{100 * human['average_mAP']:.1f}", m[0],
                m[2], m[4], errors, "-", "-", "-",
            ])  # fmt: skip
    if not rows:
        return ""
    header = [
        "data",
        "",
        "seeds",
        "mAP 0.3:0.7",
        "@0.3",
        "@0.5",
        "@0.7",
        "boundary error, s",
        "GMAC",
        "minutes",
        "steps",
    ]
    return "\n\n".join([*text, table(header, rows), _targets(runs)])


def _targets(runs: dict[str, Any]) -> str:
    """What the plan was asked to reach, and what it did."""

    def score(data: str, kind: str, key: str = "average") -> float | None:
        found = _of(runs, "table", data, kind)
        if not found:
            return None
        at = {"average": lambda r: r["average_mAP"], "0.7": lambda r: r["mAP"][4], "gmac": lambda r: r["gmac"] / 100}
        three = lambda r: (r["mAP"][0] + r["mAP"][2] + r["mAP"][4]) / 3  # noqa: E731
        return float(np.mean([100 * (three if key == "three" else at[key])(r) for r in found]))

    lines = []
    for data in TUNED:
        ours, tuned = score(data, "tzn planned"), score(data, "hand-tuned")
        if ours is not None and tuned is not None:
            lines.append(f"{data}: planned minus hand-tuned {ours - tuned:+.1f} points (goal: -1 or more)")
    gains = [
        ours - sum(TCN[d]) / 3
        for d in ("gtea", "eye_lund2013", "sfinge3d")
        if (ours := score(d, "tzn planned", "three"))
    ]
    if gains:
        lines.append(
            f"planned minus TCN, mean of {len(gains)} of gtea, eye_lund2013, sfinge3d and of tIoU 0.3, 0.5, 0.7: "
            f"{np.mean(gains):+.1f} points (goal: +5)"
        )
    pairs = {}
    for data in SETS:
        for key in ("average", "0.7", "gmac"):
            ours, base = score(data, "tzn planned", key), score(data, "ActionFormer planned", key)
            if ours is not None and base is not None:
                pairs.setdefault(key, {})[data] = (ours, base)
    if pairs:
        behind = [f"{d} {a - b:+.1f}" for d, (a, b) in pairs["average"].items() if a < b]
        lines.append(
            f"planned against planned ActionFormer on {len(pairs['average'])} sets: "
            f"mAP {np.mean([a - b for a, b in pairs['average'].values()]):+.1f}, @0.7 "
            f"{np.mean([a - b for a, b in pairs['0.7'].values()]):+.1f} points in the mean (goal: +2.9 @0.7); behind on "
            f"{', '.join(behind) or 'none'} (goal: none); multiply-adds "
            f"{100 * (1 - np.mean([a / b for a, b in pairs['gmac'].values()])):.0f} % fewer (goal: 36 %), least on a set "
            f"{100 * (1 - max(a / b for a, b in pairs['gmac'].values())):.0f} %"
        )
    return "Goals:\n\n" + "\n".join(f"* {line}" for line in lines) if lines else ""


def _rules_text(runs: dict[str, Any]) -> str:
    def held_out_mAP(kind: str) -> dict[str, dict[str, float]]:
        """By set and seed."""
        found: dict[str, dict[str, float]] = {}
        for key, run in runs.items():
            _, data, name, seed = key.split("/") if key.startswith("rules/") else ("",) * 4
            if name == kind:
                found.setdefault(data, {})[seed] = 100 * run["validation_mAP"]
        return found

    rows, verdicts = [], []
    for first, families, name in (
        (FIRST, [f for f in CANDIDATES if f not in LATER], "the first of each family"),
        (TODAY, LATER, "today's rules"),
    ):
        base = held_out_mAP(first)
        if not base:
            continue
        rows.append([name, "", *_by_set({d: float(np.mean(list(of.values()))) for d, of in base.items()}, ".1f")])
        for family in families:
            gains: dict[str, dict[str, float]] = {}
            for candidate in list(CANDIDATES[family])[1:]:
                found = held_out_mAP(f"{family}: {candidate}")
                pairs = {d: [of[s] - base[d][s] for s in of if s in base[d]] for d, of in found.items() if d in base}
                if by_set := {d: float(np.mean(of)) for d, of in pairs.items() if of}:
                    gains[candidate] = by_set
                    rows.append([family, candidate, *_by_set(by_set, "+.1f")])
            if gains:
                verdicts.append(_left_out(family, next(iter(CANDIDATES[family])), gains))
    if not rows:
        return ""
    return "\n\n".join([
        "## Rules, judged on held-out training recordings",
        "mAP 0.3:0.7 of a quarter of the training groups, held out; candidates as differences in points, on the same seeds, to "
        "the first row above them that has no candidate. Test recordings play no part. Sets without such channels have no row.",
        table(["rule", "candidate", *SETS, "mean"], rows),
        "Leave one data set out: the candidate that is best on the others, and what it is worth on the one left out:",
        "\n".join(verdicts),
    ])  # fmt: skip


def _by_set(values: dict[str, float], form: str) -> list[str]:
    return [*(f"{values[d]:{form}}" if d in values else "-" for d in SETS), f"{np.mean(list(values.values())):{form}}"]


def _left_out(family: str, usual: str, gains: dict[str, dict[str, float]]) -> str:
    """A line of what the choice on the other sets gives on each set."""
    data = sorted(set.union(*(set(g) for g in gains.values())))
    said, worth = [], []
    for left in data:
        means = {usual: 0.0} | {
            name: float(np.mean(others))
            for name, g in gains.items()
            if (others := [v for d, v in g.items() if d != left])
        }
        best = max(means, key=lambda name: means[name])
        gain = 0.0 if best == usual else gains[best].get(left, math.nan)
        said.append(f"{left} {best} ({gain:+.1f})")
        worth.append(gain)
    known = [w for w in worth if not math.isnan(w)]
    mean = f"{np.mean(known):+.1f}" if known else "-"
    return f"* {family}: {mean} points against {usual} in the mean; {', '.join(said)}"


def main() -> None:
    p = provenance.parser(__doc__)
    p.add_argument("part", choices=("table", "rules", "work", "report"))
    p.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    p.add_argument("--runs", type=Path, default=Path("runs/planning"), help="folder of the trained runs")
    p.add_argument("--sets", nargs="+", default=list(SETS))
    p.add_argument("--rows", nargs="+", default=list(ROWS), help="rows of the table")
    p.add_argument("--rules", nargs="+", default=list(CANDIDATES), help="families of rules")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of one training")
    o: argparse.Namespace = p.parse_args()
    torch.set_num_threads(1)
    store = Store(o.out / "planning.json")
    if o.part == "work":
        for name in o.sets:
            store.add(f"work/{name}", work(o.data / name))
    elif o.part != "report":
        warnings.simplefilter("ignore")
        for job in jobs(o.part, o.sets, o.seeds, o.rows, o.rules):
            if (lock := store.claim(job.key)) is None:
                continue
            try:
                result = run_job(job, o.data, o.runs, o.minutes)
                store.add(job.key, result)
                score = result.get("average_mAP") or result["validation_mAP"] or 0.0
                print(
                    f"{job.key}: {100 * score:.1f} in {result['minutes']:.1f} minutes, {result['steps']} steps",
                    flush=True,
                )
            finally:
                lock.release()
    provenance.write(o.out, "planning", store.read(), report(store, o.data))


if __name__ == "__main__":
    main()
