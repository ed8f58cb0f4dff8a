"""Speed of ``tzn score`` against scorers that go row by row, on real THUMOS14 detections.

usage: python benchmarks/score.py [--shared ../shared] [--out benchmarks/results/score.json]

Peers (``benchmarks/peers``), written anew in the style of the ActivityNet toolkit: ``row_scorer`` keeps rows in dicts,
``frame_scorer`` in pandas frames as the toolkit does (only where pandas is installed). Runs are interleaved; medians of
5 rounds, one run for the frames. No figure is printed unless all scorers give the same mAP and recall, with the same
order of ties. Every scorer is timed from arrays or rows in memory, and from files (gzip JSON) to numbers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from peers.row_scorer import Row, prediction_rows, score_rows, truth_rows

import tzn
from tzn.detections import read_predictions
from tzn.evaluation.detection_map import score_detections
from tzn.evaluation.flat import GroundTruth
from tzn.evaluation.scoring import score_files
from tzn.files import atomic_write

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
        from peers.frame_scorer import score_frames

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


def measure(kinds: Scorers) -> tuple[dict[str, dict[str, float]], float]:
    """Median seconds by scorer and start, and the largest difference between any two results."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    results = [run() for starts in kinds.values() for name, run in starts.items() if starts is not kinds.get(FRAMES)]
    for round_ in range(ROUNDS):
        for kind, starts in kinds.items():
            if kind == FRAMES and round_ != ROUNDS // 2:
                continue
            for start, run in starts.items():
                begin = time.perf_counter()
                results.append(run())
                times[kind, start].append(time.perf_counter() - begin)
    worst = max(
        float(np.abs(np.array(result[key]) - np.array(results[0][key])).max())
        for result in results
        for key in ("mAP", "recall")
    )
    medians: dict[str, dict[str, float]] = defaultdict(dict)
    for (kind, start), seconds in times.items():
        medians[kind][start] = statistics.median(seconds)
    return dict(medians), worst


def markdown(content: dict[str, Any]) -> str:
    lines = [
        f"`{content['command']}`, {content['date']}, {content['machine']}, {content['threads']} thread(s), "
        + ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        + f". THUMOS14 test, tIoU 0.1 to 0.7, recall@1x and @5x. All results agree to {SAME:g}.",
        "",
        "| detections | scorer | from memory | ratio | from files | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for entry in content["inputs"]:
        ours = entry["seconds"][OURS]
        for kind, seconds in entry["seconds"].items():
            cells = [_cells(seconds.get(start), ours[start]) for start in ("memory", "files")]
            lines.append(f"| {entry['name']} ({entry['detections']:,}) | {kind} | {' | '.join(cells)} |")
        if "seconds_original" in entry:
            cell = _cells(entry["seconds_original"], ours["files"])
            lines.append(
                f"| {entry['name']} ({entry['detections']:,}) | original program, recorded elsewhere | - | - | {cell} |"
            )
    return "\n".join(lines) + "\n"


def _cells(seconds: float | None, ours: float) -> str:
    return "- | -" if seconds is None else f"{1e3 * seconds:,.0f} ms | {seconds / ours:.1f} x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results/score.json")
    options = parser.parse_args()
    recorded = json.loads((options.shared / "goldens/map_real.json").read_text())
    inputs = []
    for name in INPUTS:
        data = options.shared / "data"
        kinds = scorers(data / f"predictions/{name}.json.gz", data / "thumos14/annotations.json")
        seconds, worst = measure(kinds)
        if worst > SAME:
            raise SystemExit(f"{name}: results differ by {worst:g}, expected at most {SAME:g}: no speed-up to report")
        entry = {
            "name": name,
            "detections": recorded[name]["detections"],
            "seconds": seconds,
            "largest_difference": worst,
        }
        inputs.append(entry | {"seconds_original": recorded[name]["seconds_original_scorer"]})
    packages = [name for name in ("numpy", "pandas") if importlib.util.find_spec(name)]
    content = {
        "command": "python benchmarks/score.py", "date": date.today().isoformat(), "machine": platform.machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)), "rounds": ROUNDS,
        "versions": {"tzn": tzn.__version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
        "inputs": inputs,
    }  # fmt: skip
    table = markdown(content)
    print(table)
    with atomic_write(options.out) as file:
        json.dump(content, file, indent=1)
    with atomic_write(options.out.with_suffix(".md")) as file:
        file.write(table)


if __name__ == "__main__":
    main()
