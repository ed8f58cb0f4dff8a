"""Speed of ``tzn score`` against scorers that go row by row, on real THUMOS14 detections.

usage: python -m benchmarks.score [--shared ../shared] [--out benchmarks/results]

Peers (``benchmarks/peers``), written anew in the style of the ActivityNet toolkit: ``row_scorer`` keeps rows in dicts,
``frame_scorer`` in pandas frames as the toolkit does (only where pandas is installed). Runs are interleaved; medians of
5 rounds, one run for the frames. No figure is printed unless all scorers give the same mAP and recall, with the same
order of ties. Every scorer is timed from arrays or rows in memory, and from files (gzip JSON) to numbers.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib import parity
from benchmarks.lib.provenance import ROOT, facts, line, parser, write
from benchmarks.lib.tables import table
from benchmarks.peers.row_scorer import Row, prediction_rows, score_rows, truth_rows
from tzn.detections import read_predictions
from tzn.evaluation.detection_map import score_detections
from tzn.evaluation.flat import GroundTruth
from tzn.evaluation.scoring import score_files

INPUTS = ("a2net_action_detection_af38", "turn_union_no_nms")
SPLIT, TIOU, TOP_K = "test", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), (1, 5)
OURS, ROWS, FRAMES = "tzn", "rows in dicts", "rows in pandas frames"
ROUNDS = 5
SAME = 1e-12

Scorers = dict[str, dict[str, Callable[[], Any]]]


def scorers(predictions: Path, annotations: Path) -> Scorers:
    """By name of the scorer: how to score what is in memory, and how to score the files."""
    truth, found = truth_rows(annotations, SPLIT), prediction_rows(predictions)
    classes = sorted({row["label"] for row in truth})
    arrays, detections = _ground_truth(truth, classes), read_predictions(predictions, classes)[0]

    def rows_from_files() -> Any:
        return score_rows(truth_rows(annotations, SPLIT), prediction_rows(predictions), TIOU, TOP_K)

    kinds: Scorers = {
        OURS: {
            "memory": lambda: _numbers(score_detections(arrays, detections, classes, TIOU, TOP_K)),
            "files": lambda: score_files(predictions, annotations, split=SPLIT, tiou=TIOU, top_k=TOP_K),
        },
        ROWS: {"memory": lambda: score_rows(truth, found, TIOU, TOP_K), "files": rows_from_files},
    }
    if importlib.util.find_spec("pandas"):
        import pandas as pd

        from benchmarks.peers.frame_scorer import score_frames

        frames = pd.DataFrame(truth), pd.DataFrame(found)
        kinds[FRAMES] = {"memory": lambda: score_frames(*frames, TIOU, TOP_K)}
    return kinds


def _ground_truth(rows: list[Row], classes: list[str]) -> dict[str, GroundTruth]:
    by_video = defaultdict(list)
    for row in rows:
        by_video[row["video-id"]].append((row["t-start"], row["t-end"], classes.index(row["label"])))
    tables = {video: np.array(table, dtype=float) for video, table in by_video.items()}
    return {video: GroundTruth(table[:, :2], table[:, 2].astype(np.int64)) for video, table in tables.items()}


def _numbers(score: Any) -> dict[str, Any]:
    return {"mAP": score.mAP, "recall": score.recall}


def measure(name: str, kinds: Scorers, wanted: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Median seconds by scorer and start, of results that are all the same."""
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for round_ in range(-1, ROUNDS):  # the first is a warm-up
        for kind, starts in kinds.items():
            if kind == FRAMES and round_ != ROUNDS // 2:
                continue
            for start, run in starts.items():
                begin = time.perf_counter()
                found = run()
                if round_ >= 0:
                    times[kind][start].append(time.perf_counter() - begin)
                for key in ("mAP", "recall"):
                    given, right = (np.asarray(result[key]) for result in (found, wanted))
                    parity.same(f"{name}, {kind}, {key}", given, right, rtol=0, atol=SAME)
    return {kind: {s: statistics.median(t) for s, t in starts.items()} for kind, starts in times.items()}


def markdown(content: dict[str, Any]) -> str:
    rows = []
    for entry in content["inputs"]:
        what, ours = f"{entry['name']} ({entry['detections']:,})", entry["seconds"][OURS]
        for kind, seconds in entry["seconds"].items():
            rows.append([what, kind, *(c for s in ("memory", "files") for c in _cells(seconds.get(s), ours[s]))])
    text = f"{line(content)} THUMOS14 test, tIoU 0.1 to 0.7, recall@1x and @5x. All results agree to {SAME:g}."
    return f"{text}\n\n" + table(["detections", "scorer", "from memory", "ratio", "from files", "ratio"], rows)


def _cells(seconds: float | None, ours: float) -> tuple[str, str]:
    return ("-", "-") if seconds is None else (f"{1e3 * seconds:,.0f} ms", f"{seconds / ours:.1f} x")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    options = arguments.parse_args()
    torch.set_num_threads(2)
    recorded = json.loads((options.shared / "goldens/map_real.json").read_text())
    inputs = []
    for name in INPUTS:
        data = options.shared / "data"
        kinds = scorers(data / f"predictions/{name}.json.gz", data / "thumos14/annotations.json")
        seconds = measure(name, kinds, kinds[ROWS]["memory"]())
        inputs.append({"name": name, "detections": recorded[name]["detections"], "seconds": seconds})
    packages = [name for name in ("tzn", "numpy", "pandas") if importlib.util.find_spec(name)]
    content = {**facts(packages=packages), "rounds": ROUNDS, "inputs": inputs}
    write(options.out, "score", content, markdown(content))


if __name__ == "__main__":
    main()
