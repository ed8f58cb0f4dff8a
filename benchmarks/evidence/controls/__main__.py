"""A control for every claim: TemporalZoomNet on HAPT with one part off or replaced at a time.

usage: python -m benchmarks.evidence.controls --data hapt [--runs runs] [--seeds 0 1 2]

Every control is trained like configs/hapt.yaml (data, steps, augmentation, averaging) and scored on the test subjects. Runs in
--runs that are finished are used again (hapt_seed0, no_bdr_seed0, ...), stopped ones go on, missing ones are trained.

  no distance head      candidates from anchors, ends by plain regression (model.boundary_fields=none)
  distribution head     the same, offsets as the mean of a distribution over bins (distribution_head.py)
  one region field      one signed distance to the region instead of one field each for starts and ends
  uniform depth         two full blocks for every token instead of up to four where tau asks for them
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import torch

from benchmarks.evidence.controls.distribution_head import distribution_heads
from benchmarks.lib.provenance import CONFIGS, evidence_parser, write
from benchmarks.lib.runs import (
    SMOKE,
    differences,
    ends_of,
    mean_of,
    scored,
    short_of,
    trained,
    with_inference,
    work_of,
)  # fmt: skip
from benchmarks.lib.tables import table
from tzn.config_loading import load_config
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation

SHOWN = ("mAP 0.3:0.7", "mAP 0.5:0.95", "@0.7", "@0.9")
COMPARED = ("mAP 0.5:0.95", "@0.9")
NO_FIELDS = ["model.boundary_fields=none"]
# Runs: settings that replace the configuration's, and the row's name.
CONTROLS: dict[str, tuple[list[str], str]] = {
    "hapt": ([], "TemporalZoomNet"),
    "no_bdr": (NO_FIELDS, "no distance head: plain regression"),
    "distribution": (NO_FIELDS, "distribution head instead of it"),
    "region": (["model.boundary_fields=region"], "one region field instead of starts and ends"),
    "uniform": (["model.refinement_layers=0", "model.shallow_layers=2"], "uniform depth, two blocks"),
}
# The first one's weights run otherwise: inference settings, depth budget, name.
ALSO: dict[str, tuple[dict[str, Any], float | None, str]] = {
    "anchor": ({"mode": "anchor"}, None, "TemporalZoomNet, ends not moved to crossings"),
    "full": ({}, 1.0, "TemporalZoomNet, every token at full depth"),
}


def row(name: str, evaluations: list[dict[str, Any]]) -> list[str]:
    scores = (mean_of(evaluations, metric) for metric in SHOWN)
    return [name, *scores, short_of(evaluations), ends_of(evaluations), work_of(evaluations)]


def markdown(content: dict[str, Any]) -> str:
    names = {key: name for key, (_, name) in CONTROLS.items()} | {key: name for key, (*_, name) in ALSO.items()}
    header = ["", *SHOWN, "short @0.7", "median error start / end", "GMAC"]
    seeds = " ".join(map(str, content["seeds"]))
    differences = [
        f"* {names[key]}: mAP 0.5:0.95 {of['mAP 0.5:0.95'][0]:+.1f} points ({of['mAP 0.5:0.95'][1]:+.1f} to "
        f"{of['mAP 0.5:0.95'][2]:+.1f}), @0.9 {of['@0.9'][0]:+.1f} ({of['@0.9'][1]:+.1f} to {of['@0.9'][2]:+.1f})"
        for key, of in content["differences"].items()
    ]
    return "\n".join([
        "# Controls on HAPT: one part off or replaced at a time", "",
        f"`python -m benchmarks.evidence.controls --data hapt --seeds {seeds}`: test subjects, means over "
        f"{len(content['seeds'])} seed(s). GMAC: 1e9 multiply-adds per recording, counted as run.", "",
        table(header, [row(names[key], content["results"][key]) for key in names]),
        "Each minus TemporalZoomNet as trained, 95 % intervals of a paired bootstrap over recordings and seeds:", "",
        *differences, "",
    ])  # fmt: skip


def main() -> None:
    parser = evidence_parser(__doc__, seeds=(0, 1, 2))
    parser.add_argument("--only", nargs="+", choices=CONTROLS, help="train these and write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    seeds = [options.seed] if options.smoke else options.seeds
    training: dict[str, list[Any]] = {key: [] for key in CONTROLS}
    results: dict[str, list[CheckpointEvaluation]] = {key: [] for key in (*CONTROLS, *ALSO)}
    for seed in seeds:
        for key in options.only or CONTROLS:
            run = options.runs / f"{key}{'_smoke' if options.smoke else ''}_seed{seed}"
            print(run.name, file=sys.stderr, flush=True)
            with distribution_heads() if key == "distribution" else contextlib.nullcontext():
                config = load_config(CONFIGS / "hapt.yaml", [*CONTROLS[key][0], *(SMOKE if options.smoke else [])])
                checkpoint = trained(config, options.data, run, seed)
            if options.only:
                continue
            training[key].append(json.loads((run / "run.json").read_text()))
            results[key].append(scored(checkpoint, options.data))
            for other, (settings, budget, _) in ALSO.items() if key == "hapt" else ():
                results[other].append(scored(with_inference(checkpoint, **settings), options.data, budget))
    if options.only:
        return
    content = {
        "seeds": seeds, "training": training,
        "differences": differences(
            results, {key: ("hapt", key) for key in results if key != "hapt"}, COMPARED, checkpoint, options.data,
            smoke=options.smoke,
        ),
        "results": {key: [e.to_dict() for e in evaluations] for key, evaluations in results.items()},
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip
    write(options.out, "controls", content, markdown(content))


if __name__ == "__main__":
    main()
