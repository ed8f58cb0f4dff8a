"""The tables of benchmarks.evidence.distillation."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from benchmarks.lib.runs import ends_of, mean_of, percent, work_of
from benchmarks.lib.tables import table

NAMES = {
    "teacher": "TemporalZoomNet, the teacher", "taught": "student, with the teacher", "alone": "student, without",
    "actionformer": "ActionFormer, augmented and averaged like ours",
}  # fmt: skip
COMPARED = ("mAP 0.3:0.7", "mAP 0.5:0.95", "@0.7", "@0.9")
PAIRS = {
    f"{second} - {first}": (first, second)
    for first, second in (("teacher", "taught"), ("alone", "taught"), ("teacher", "alone"), ("actionformer", "taught"))
}


def row(name: str, evaluations: list[dict[str, Any]]) -> list[str]:
    return [
        NAMES[name], *(mean_of(evaluations, metric) for metric in COMPARED), ends_of(evaluations),
        f"{fmean(e['mean_depth'] for e in evaluations):.2f}", work_of(evaluations),
    ]  # fmt: skip


def kept(content: dict[str, Any], name: str) -> str:
    """Percent of the teacher's mAP, with the interval of the difference; by metric."""
    found = []
    for metric, (value, low, high) in content["differences"][f"{name} - teacher"].items():
        base = fmean(percent(e, metric) for e in content["results"]["teacher"])
        found.append(
            f"{metric} {100 + 100 * value / base:.1f} % ({100 + 100 * low / base:.1f} to {100 + 100 * high / base:.1f})"
            if base
            else f"{metric} -"
        )
    return ", ".join(found)


def markdown(content: dict[str, Any]) -> str:
    cost, seeds = content["costs"], content["seeds"]
    header = ["", *COMPARED, "median error start / end", "mean depth", "GMAC"]
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
        f"{NAMES[second]} minus {NAMES[first]}": content["differences"][name] for name, (first, second) in PAIRS.items()
    }
    return "\n".join([
        "# Distillation on HAPT, and what training costs", "",
        f"`python -m benchmarks.evidence.distillation --data hapt --seeds {' '.join(map(str, seeds))}`: test subjects, means "
        f"over {len(seeds)} seed(s). GMAC: 1e9 multiply-adds per recording, counted as run.", "",
        table(header, [row(name, content["results"][name]) for name in NAMES]),
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
        table(["multiply-adds of training", "of ActionFormer's"], work),
        f"TemporalZoomNet over its uniform twins: {cost['over four blocks']:.2f} of four blocks ({cost['first step']:.2f} "
        f"at the first step, {cost['last step']:.2f} at the last counted one; mean depth over the training "
        f"{cost['mean depth']:.2f}), {cost['over two blocks']:.2f} of two.", "",
    ])  # fmt: skip
