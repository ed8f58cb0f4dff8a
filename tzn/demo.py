"""``tzn demo``: the whole way on synthetic recordings, from data to a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tzn.config_loading import PACKAGED, load_config
from tzn.data.annotations import load_annotations
from tzn.data.synthetic import generate_synthetic
from tzn.detections import write_predictions
from tzn.errors import ConfigError
from tzn.evaluation.comparison import comparison_table
from tzn.files import atomic_write
from tzn.inference.evaluate_checkpoint import evaluate_checkpoint
from tzn.inference.traces import save_trace
from tzn.models.checkpoint import load_checkpoint
from tzn.visualization.timeline import plot_timeline

NUM_RECORDINGS = 60


def run_demo(
    out: Path, overrides: Sequence[str] = (), say: Callable[[str], None] = print, progress: bool = True
) -> None:
    """Make recordings, train, evaluate, predict, draw; everything under ``out``. Finished steps are not repeated.

    ``say`` takes what is done, line by line.

    Raises:
        ConfigError: ``out`` holds a demo run with other settings.
    """
    from tzn.training import train

    config = load_config(PACKAGED / "synthetic.yaml", overrides)
    data, run = out / "data", out / "run"
    if not (data / "annotations.json").is_file():
        say(f"making {NUM_RECORDINGS} synthetic recordings in {data}")
        generate_synthetic(data, num_recordings=NUM_RECORDINGS)
    last = run / "checkpoints" / "last.ckpt"
    if not last.is_file():
        say(f"training in {run}")
        train(config, data, run, accelerator="cpu", progress=progress)
    elif overrides:
        raise ConfigError(f"{run} already holds a trained model; choose another --out to try other settings")
    checkpoint = load_checkpoint(last)
    results = {
        "depth as trained": evaluate_checkpoint(checkpoint, data, keep_traces=True, progress=progress),
        "every token at full depth": evaluate_checkpoint(checkpoint, data, budget=1.0, progress=progress),
    }
    first = results["depth as trained"]
    write_predictions(out / "predictions.json", first.detections, checkpoint.classes)
    with atomic_write(out / "report.json") as file:
        json.dump({name: result.to_dict() for name, result in results.items()}, file, indent=1)
    name = next(iter(first.detections))
    save_trace(out / "traces", name, first.traces[name])
    recording = load_annotations(data / "annotations.json").recordings[name]
    plot_timeline(out / "timeline.png", recording, checkpoint.classes, first.detections[name], first.traces[name])
    say("\n" + comparison_table({name: result.to_dict() for name, result in results.items()}))
    say(f"\nwritten: {out / 'predictions.json'}, {out / 'report.json'}, {out / 'timeline.png'}")
