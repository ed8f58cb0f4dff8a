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
from tzn.view import gather, write_page
from tzn.visualization.timeline import plot_timeline

NUM_RECORDINGS = 60
SHARPNESS = (0.5, 4.0)  # steps that a boundary takes: from a jump to a fade of 0.4 s
NEXT = """
what next:
  look               open {out}/page.html in a browser (zoom, correct, annotate), or {out}/timeline.png
  your own data      tzn init FOLDER --out my.yaml; tzn train my.yaml --data FOLDER; tzn predict runs/my FILE --out found.json
  models at hand     tzn pretrained list; tzn predict --pretrained hapt phone.csv --out found.json
  the whole way      docs/tutorial.md: from a CSV or a video to a corrected prediction"""


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
        say(f"1/4  making {NUM_RECORDINGS} synthetic recordings, {data}")
        generate_synthetic(data, num_recordings=NUM_RECORDINGS, sharpness=SHARPNESS)
    last = run / "checkpoints" / "last.ckpt"
    if not last.is_file():
        say(f"2/4  training on two thirds of them, {run} (about a minute on two idle cores)")
        train(config, data, run, accelerator="cpu", progress=progress)
    elif overrides:
        raise ConfigError(f"{run} already holds a trained model; choose another --out to try other settings")
    checkpoint = load_checkpoint(last)
    say("3/4  finding the actions of the others, at two depths of the same network")
    results = {
        "depth as trained": evaluate_checkpoint(checkpoint, data, keep_traces=True, progress=progress),
        "every token at full depth": evaluate_checkpoint(checkpoint, data, budget=1.0, progress=progress),
    }
    first = results["depth as trained"]
    say(f"4/4  predictions, pictures and a page to look at, {out}")
    write_predictions(out / "predictions.json", first.detections, checkpoint.classes)
    with atomic_write(out / "report.json") as file:
        json.dump({name: result.to_dict() for name, result in results.items()}, file, indent=1)
    for name, trace in first.traces.items():
        save_trace(out / "traces", name, trace)
    name = next(iter(first.detections))
    recording = load_annotations(data / "annotations.json").recordings[name]
    threshold = checkpoint.score_threshold
    plot_timeline(
        out / "timeline.png", recording, checkpoint.classes, first.detections[name], first.traces[name],
        min_score=threshold,
    )  # fmt: skip
    files = [out / "predictions.json", data / "annotations.json"]
    signals = [data / "features" / f"{name}.npy" for name in first.detections]
    write_page(out / "page.html", gather(files, media=signals, traces=out / "traces"))
    say("\n" + comparison_table({name: result.to_dict() for name, result in results.items()}))
    errors = first.report.errors["overall"]
    found = f"{errors['matched']} of {errors['matched'] + errors['missed']} actions found"
    if errors["matched"]:
        starts, ends = errors["start"]["median"], errors["end"]["median"]
        found += f"; median error of starts {starts:.2f} s, of ends {ends:.2f} s"
    say(f"\n{found}")
    say(NEXT.format(out=out))
