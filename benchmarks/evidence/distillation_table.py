"""The tables of distillation.py."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hapt import FINE, TIOU

NAMES = {
    "teacher": "TemporalZoomNet, the teacher", "taught": "student, with the teacher", "alone": "student, without",
    "actionformer": "ActionFormer, augmented and averaged like ours",
}  # fmt: skip
COARSE = [0.3, 0.4, 0.5, 0.6, 0.7]
METRICS = {"mAP 0.3:0.7": COARSE, "0.5:0.95": FINE, "@0.7": [0.7], "@0.9": [0.9]}
PAIRS = (("teacher", "taught"), ("alone", "taught"), ("teacher", "alone"), ("actionformer", "taught"))


def values(evaluation: dict[str, Any]) -> dict[str, float]:
    at = dict(zip(TIOU, (100 * v for v in evaluation["mAP"]), strict=True))
    return {name: statistics.fmean(at[t] for t in tious) for name, tious in METRICS.items()}


def row(name: str, evaluations: list[dict[str, Any]]) -> list[str]:
    scores = [values(e) for e in evaluations]
    errors = [e["boundary_error"]["overall"] for e in evaluations]
    ends = [[e.get(side, {}).get("median", float("nan")) for e in errors] for side in ("start", "end")]
    return [
        NAMES[name], *(f"{statistics.fmean(s[metric] for s in scores):.1f}" for metric in METRICS),
        " / ".join(f"{statistics.fmean(side):.2f}" for side in ends) + " s",
        f"{statistics.fmean(e['mean_depth'] for e in evaluations):.2f}",
        f"{statistics.fmean(e['gmac_per_recording'] for e in evaluations):.3f}",
    ]  # fmt: skip


def kept(content: dict[str, Any], name: str) -> str:
    """Percent of the teacher's mAP, with the interval of the difference; by metric."""
    found = []
    for metric, (value, low, high) in content["differences"][f"{name} - teacher"].items():
        base = statistics.fmean(values(e)[metric] for e in content["results"]["teacher"])
        found.append(
            f"{metric} {100 + 100 * value / base:.1f} % ({100 + 100 * low / base:.1f} to {100 + 100 * high / base:.1f})"
            if base
            else f"{metric} -"
        )
    return ", ".join(found)


def markdown(content: dict[str, Any]) -> str:
    cost, seeds = content["costs"], content["seeds"]
    header = ["", *METRICS, "median error start / end", "mean depth", "GMAC"]
    work = [
        ["ActionFormer", "1.00"],
        ["student, without a teacher", f"{cost['student alone']:.2f}"],
        ["student and the teacher's answers", f"{cost['not amortised']:.2f}"],
        ["the same and the teacher's own training", f"{cost['amortised']:.2f}"],
        ["TemporalZoomNet", f"{cost['TemporalZoomNet']:.2f}"],
        ["uniform twin of equal full depth, four blocks for every token", f"{cost['four blocks']:.2f}"],
        ["uniform twin of about equal cost, two blocks for every token", f"{cost['two blocks']:.2f}"],
    ]
    apart = {
        f"{NAMES[second]} minus {NAMES[first]}": content["differences"][f"{second} - {first}"]
        for first, second in PAIRS
    }
    return "\n".join([
        "# Distillation on HAPT, and what training costs", "",
        f"`python benchmarks/evidence/distillation.py --data hapt --seeds {' '.join(map(str, seeds))}`: test subjects, means "
        f"over {len(seeds)} seed(s). GMAC: 1e9 multiply-adds per recording, counted as run.", "",
        report.table(header, [row(name, content["results"][name]) for name in NAMES]),
        "Of the teacher's mAP (95 % intervals of a paired bootstrap over recordings and seeds):", "",
        f"* with the teacher the student keeps {kept(content, 'taught')}",
        f"* without it {kept(content, 'alone')}", "",
        "Differences in points:", "",
        *(
            f"* {name}: " + ", ".join(f"{m} {v:+.1f} ({low:+.1f} to {high:+.1f})" for m, (v, low, high) in of.items())
            for name, of in apart.items()
        ),
        "", f"Training, forward and backward, every {content['every']}th step counted on the same batches; ActionFormer: "
        f"{cost['actionformer GMAC per step']:.1f} GMAC a step. A network that learns counts three forward passes, a "
        "teacher one.", "",
        report.table(["multiply-adds of training", "of ActionFormer's"], work),
        f"TemporalZoomNet over its uniform twins: {cost['over four blocks']:.2f} of four blocks ({cost['first step']:.2f} "
        f"at the first step, {cost['last step']:.2f} at the last counted one; mean depth over the training "
        f"{cost['mean depth']:.2f}), {cost['over two blocks']:.2f} of two.", "",
    ])  # fmt: skip
