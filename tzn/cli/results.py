"""Commands on what models and people wrote: score, convert, plot, view."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from tzn.cli._shared import OVERRIDES, Commands, command, done, warn
from tzn.console import LOG, incoming, outgoing


def add_score(commands: Commands) -> None:
    p = command(
        commands, "score", _score, "score a predictions file against annotations (mAP at tIoU, recall)",
        "tzn score predictions.json annotations.json --split test --tiou 0.3:0.7:0.1 --json",
    )  # fmt: skip
    p.add_argument("predictions", type=Path, help="ActivityNet JSON, plain or .gz; - for standard input")
    p.add_argument("annotations", type=Path, help="ActivityNet/ActionFormer JSON, plain or .gz")
    p.add_argument("--split", default="test", help="subset name in the annotations, case-insensitive")
    p.add_argument("--tiou", default="0.3:0.7:0.1", help="thresholds: first:last:step or a comma list")
    p.add_argument("--top-k", default="1,5", help="multiples x of Recall@kx")
    p.add_argument(
        "--ties", choices=("first", "numpy"), default="first",
        help="equal scores: the earlier detection first, or the order of NumPy's sort in the ActivityNet toolkit",
    )  # fmt: skip
    p.add_argument("--split-only", action="store_true", help="leave detections in recordings outside the split out")
    p.add_argument("--lenient", action="store_true", help="leave malformed detections out, and say how many")
    p.add_argument("--blocked", type=Path, metavar="FILE", help="JSON list of recording ids to leave out (OpenTAD)")
    p.add_argument("--json", action="store_true", help="print one JSON object")


def _score(o: argparse.Namespace) -> None:
    from tzn.errors import DataError
    from tzn.evaluation.scoring import parse_tiou, score_files

    try:
        top_k = tuple(int(k) for k in o.top_k.split(","))
    except ValueError:
        raise DataError(f"--top-k {o.top_k!r}: expected positive integers such as 1,5") from None
    with incoming([o.predictions], ".json") as (predictions,):
        result = score_files(
            predictions, o.annotations, split=o.split, tiou=parse_tiou(o.tiou), top_k=top_k, ties=o.ties,
            split_only=o.split_only, lenient=o.lenient, blocked=o.blocked,
        )  # fmt: skip
    warn(result.pop("warnings"))
    if o.json:
        print(json.dumps(result))
        return
    for tiou, value in zip(result["tiou"], result["mAP"], strict=True):
        print(f"mAP@{tiou:g}  {100 * value:6.2f}")
    print(f"average  {100 * result['average_mAP']:6.2f}")


def add_convert(commands: Commands) -> None:
    p = command(
        commands, "convert", _convert, "bring in results and checkpoints of other programs, write ground truth for DETAD",
        "tzn convert eval_results.pkl predictions.json --annotations thumos14.json\n"
        "tzn convert thumos14.json detad_thumos14.json --to detad\n"
        "tzn convert released.pth.tar thumos.ckpt --to checkpoint --config configs/actionformer_thumos14_i3d.yaml "
        "--annotations thumos14.json",
    )  # fmt: skip
    p.add_argument(
        "input", type=Path, help="ActionFormer .pkl or .pth.tar, OpenTAD/ActivityNet .json[.gz], annotations"
    )
    p.add_argument(
        "output", type=Path, help="predictions .json, .csv, …; for detad: .json; for checkpoint: .ckpt; - for JSON on "
        "standard output",
    )  # fmt: skip
    p.add_argument("--to", choices=("predictions", "detad", "checkpoint", "annotations"), default="predictions")
    p.add_argument(
        "--config", type=Path, help="for checkpoint: of the released model, tzn's or ActionFormer's own YAML"
    )
    p.add_argument("--lenient", action="store_true", help="leave malformed detections out, and say how many")
    p.add_argument("--annotations", type=Path, help="names the classes (and the label ids that a .pkl refers to)")
    p.add_argument("--subset", default="training", help="for annotations: of recordings whose file names none")
    p.add_argument("--fps", type=float, help="for annotations: frames a second of the recordings (CVAT)")
    p.add_argument("--tier", action="append", default=[], help="for annotations: tier of ELAN or Praat (default: all)")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)


def _convert(o: argparse.Namespace) -> None:
    from tzn.data.annotations import load_annotations
    from tzn.errors import DataError
    from tzn.evaluation.converters import convert_predictions, write_detad_ground_truth

    if o.to == "annotations":
        from tzn.data.label_formats import convert_labels

        with outgoing(o.output, ".json") as output:
            segments, recordings = convert_labels(o.input, output, subset=o.subset, fps=o.fps, tiers=o.tier)
        done(o, f"{segments} segments in {recordings} recordings: {o.output}")
        return
    if o.to == "detad":
        annotations = load_annotations(o.input, strict=False)
        with outgoing(o.output, ".json") as output:
            write_detad_ground_truth(annotations, output)
        warn(annotations.repairs(), o.input)
        done(o, f"{sum(len(r.labels) for r in annotations.recordings.values())} segments: {o.output}")
        return
    if o.annotations is None:
        raise DataError("--annotations FILE is needed: it names the classes")
    if o.to == "checkpoint":
        _convert_checkpoint(o)
        return
    bad = Counter[str]() if o.lenient else None
    with outgoing(o.output, ".json") as output:
        count, unknown = convert_predictions(o.input, output, o.annotations, bad=bad)
    warn([f"{n} detections left out: {why}" for why, n in (bad or {}).items()], o.input)
    warn([f"{unknown} detections of unknown classes left out"] if unknown else [], o.input)
    done(o, f"{count} detections: {o.output}")


def _convert_checkpoint(o: argparse.Namespace) -> None:
    from tzn.compat.actionformer import load_any_config
    from tzn.errors import ConfigError
    from tzn.inference.released import convert_released_checkpoint

    if o.config is None:
        raise ConfigError(
            "--config FILE is needed: it describes the network, e.g. configs/actionformer_thumos14_i3d.yaml"
        )
    convert_released_checkpoint(o.input, o.output, load_any_config(o.config, o.overrides), o.annotations)
    done(o, f"checkpoint: {o.output}\nnext: tzn predict {o.output} FEATURES.npy --out predictions.json")


def add_plot(commands: Commands) -> None:
    p = command(
        commands, "plot", _plot, "draw a timeline of recordings, or plots of a whole split",
        "tzn plot annotations.json --predictions predictions.json --traces traces --recording exp03_user02 --out plots\n"
        "tzn plot annotations.json --predictions predictions.json --split test --out plots",
    )  # fmt: skip
    p.add_argument("annotations", type=Path, help="ActivityNet/ActionFormer JSON, plain or .gz")
    p.add_argument("--predictions", type=Path, help="from 'tzn predict' or 'tzn eval --out'")
    p.add_argument("--traces", type=Path, help="folder from 'tzn predict --traces'")
    p.add_argument("--recording", action="append", help="draw the timeline of this recording; repeat for several")
    p.add_argument("--split", default="test", help="subset for the plots of a whole split")
    p.add_argument("--min-score", type=float, help="draw detections from this score on (default: the confident ones)")
    p.add_argument("--window", help="start,end in seconds: draw only this part of a timeline")
    p.add_argument("--format", choices=("png", "svg"), default="png")
    p.add_argument("--out", type=Path, required=True, help="folder for the pictures")


def _plot(o: argparse.Namespace) -> None:
    from tzn.visualization.pictures import plot_files

    for path in plot_files(
        o.annotations, o.out, predictions=o.predictions, traces=o.traces, recordings=o.recording, split=o.split,
        window=o.window, suffix=o.format, min_score=o.min_score, say=LOG.warning,
    ):  # fmt: skip
        done(o, str(path))


def add_view(commands: Commands) -> None:
    p = command(
        commands, "view", _view, "write one HTML page to look at recordings, correct detections, and annotate",
        "tzn view predictions.json annotations.json --signal signals --traces traces --out page.html\n"
        "tzn view --annotate clip.mp4 --classes open,close --out page.html",
    )  # fmt: skip
    p.add_argument(
        "files", nargs="*", type=Path, metavar="FILE",
        help="predictions, annotations, or both (.json[.gz]); - for standard input",
    )  # fmt: skip
    p.add_argument(
        "--media", "--signal", "--annotate", dest="media", nargs="+", action="extend", default=[], type=Path,
        metavar="FILE",
        help="videos, audio, signals (tables, EDF, WFDB, .npy, .npz), or folders of them, named like the recordings",
    )  # fmt: skip
    p.add_argument("--traces", type=Path, help="folder from 'tzn predict --traces': distance and depth curves")
    p.add_argument("--classes", default="", help="comma list of classes to draw, beyond those in the files")
    p.add_argument("--recording", action="append", help="show this recording; repeat for several (default: all)")
    p.add_argument(
        "--rate", type=float, help="samples per second, of signals without times (default: over the duration)"
    )
    p.add_argument(
        "--channels", help="comma list of signal channels to draw, from 0 or by name (default: the first 12)"
    )
    p.add_argument("--embed", action="store_true", help="put videos into the page (default: it names their place)")
    p.add_argument("--out", type=Path, required=True, help="the page, .html; - for standard output")


def _view(o: argparse.Namespace) -> None:
    from tzn.errors import DataError
    from tzn.view import gather, write_page

    names = [text.strip() for text in (o.channels or "").split(",") if text.strip()]
    channels = [int(name) if name.isdecimal() else name for name in names] or None
    if o.rate is not None and not 0 < o.rate < float("inf"):
        raise DataError(f"--rate {o.rate:g}: expected samples per second, above 0")
    classes = [name.strip() for name in o.classes.split(",") if name.strip()]
    with incoming(o.files, ".json") as files, outgoing(o.out, ".html") as out:
        sources = gather(
            files, media=o.media, traces=o.traces, recordings=o.recording, classes=classes, rate=o.rate,
            channels=channels,
        )  # fmt: skip
        warn(sources.warnings)
        write_page(out, sources, embed=o.embed)
        size = out.stat().st_size / 1e6
    done(o, f"{len(sources.recordings)} recordings, {size:.1f} MB: open {o.out} in a browser")
