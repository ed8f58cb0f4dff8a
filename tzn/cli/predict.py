"""tzn predict: files, or rows of standard input with ``--stream``, to detections."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tzn.cli._shared import OVERRIDES, VIDEO_SCORES, Commands, add_device, command, done
from tzn.console import LOG, STANDARD, incoming, outgoing
from tzn.formats import FORMATS

if TYPE_CHECKING:
    from tzn.config import ExperimentConfig
    from tzn.models.pretrained import RawSignal

SHOWN = 20  # failed recordings that are listed on stderr


def add_predict(commands: Commands) -> None:
    p = command(
        commands, "predict", _predict, "localize actions in recordings or feature files",
        "tzn predict runs/hapt hapt/features/exp03_user02.npy --out predictions.json\n"
        "tzn predict thumos.ckpt i3d_features/ --annotations thumos14.json --out predictions.json\n"
        "tzn predict --pretrained hapt phone.csv --fps 100 --out predictions.json\n"
        "tzn predict runs/hapt manifest.parquet --workers 8 --out predictions.parquet --resume\n\n"
        "exit code: 0 all done; 1 done but for the files listed (--keep-going); 2 stopped by an error",
    )  # fmt: skip
    p.add_argument(
        "checkpoint",
        nargs="?",
        help="checkpoint, folder of a run, or .onnx/.pt2 of 'tzn export'; none with --pretrained",
    )
    p.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="recordings, feature files, folders of them, or manifests (docs/corpus.md); - for standard input",
    )
    p.add_argument("--pretrained", help="a model that comes with tzn; INPUT are raw signals (tables, EDF, .npy): hapt")
    p.add_argument(
        "--out", type=Path,
        help="predictions.json, .csv, .parquet (many recordings), or a folder for --format srt; - for standard output (JSON, "
        "or --format)",
    )  # fmt: skip
    p.add_argument(
        "--stream", action="store_true",
        help="INPUT is -: CSV rows from standard input, a detection a line (JSON) as soon as it is final",
    )  # fmt: skip
    p.add_argument("--format", choices=tuple(FORMATS), help="default, and not another than: the suffix of --out")
    p.add_argument(
        "--annotations", type=Path,
        help='frame rate ("fps") and "duration" of each recording, ActivityNet/ActionFormer JSON; segments are not read',
    )  # fmt: skip
    p.add_argument(
        "--fps", type=float,
        help="raw frames per second of all recordings; of raw signals, their samples per second (they are resampled)",
    )  # fmt: skip
    p.add_argument("--budget", type=float, help="mean depth in (0, 1] to run at")
    p.add_argument(
        "--min-score", type=float,
        help="leave out detections below this score (default: all stay; in srt, the checkpoint's score threshold)",
    )  # fmt: skip
    p.add_argument("--top", type=int, help="keep at most so many detections per recording")
    p.add_argument("--video-scores", type=Path, help=VIDEO_SCORES)
    p.add_argument("--traces", type=Path, help="folder for distance and depth curves, for 'tzn plot'")
    p.add_argument(
        "--keep-going", action="store_true", help="leave out files that cannot be used, list them at the end"
    )
    p.add_argument(
        "--resume", action="store_true", help="continue an interrupted prediction from OUT.part (.parquet: OUT.parts)"
    )
    p.add_argument(
        "--workers", type=int,
        help="for .parquet: processes that compute, each with one that reads ahead (default: one a core)",
    )  # fmt: skip
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    add_device(p, "cpu")


def _predict(o: argparse.Namespace) -> None:
    import dataclasses

    from tzn.config_loading import config_from_dict, override_trained
    from tzn.errors import ConfigError, DataError
    from tzn.inference.predict import predict_files
    from tzn.models.any_source import load_model
    from tzn.models.pretrained import load_pretrained

    given = [text for text in (o.checkpoint, *o.inputs) if text is not None]
    paths = [Path(text) for text in given if "=" not in text or Path(text).exists()]
    overrides = [*o.overrides, *(text for text in given if Path(text) not in paths)]
    if len(paths) < (1 if o.pretrained else 2):
        raise DataError("expected a checkpoint and at least one input; with --pretrained NAME, at least one input")
    if o.pretrained:
        model = load_pretrained(o.pretrained)
        checkpoint, inputs = model.checkpoint, paths
        signal: RawSignal | None = model.signal
        config = override_trained(config_from_dict(checkpoint.config), overrides)
    else:
        checkpoint, signal, _ = load_model(paths[0])
        config, inputs = override_trained(config_from_dict(checkpoint.config), overrides), paths[1:]
    if o.stream:
        _predict_stream(o, inputs, checkpoint, signal, overrides)
        return
    if o.out is not None and o.out.suffix == ".parquet":
        _predict_corpus(o, inputs, o.pretrained or str(paths[0]), config, signal, overrides)
        return
    if o.workers is not None:
        raise DataError(f"--workers {o.workers}: for many recordings, expected --out FILE.parquet")
    if o.out is None:
        raise DataError("expected --out FILE (with --stream, detections go to standard output)")
    settings = config.inference
    if o.budget is not None:
        try:
            settings = dataclasses.replace(settings, budget=o.budget)
        except ValueError as error:
            raise ConfigError(f"--budget {o.budget:g}: {error}") from None

    if o.resume and STANDARD in (str(path) for path in (o.out, *inputs)):
        raise DataError("--resume: nothing can be resumed through a pipe; expected files instead of -")
    with (
        incoming(inputs, _piped_suffix(config, signal)) as files,
        outgoing(o.out, FORMATS[o.format or "json"].suffix) as out,
    ):
        made = predict_files(
            checkpoint, files, out, fmt=o.format, fps=o.fps,
            annotations=o.annotations, inference=settings, min_score=o.min_score, top=o.top, traces=o.traces,
            video_scores=o.video_scores, signal=signal, device=o.device, keep_going=o.keep_going, resume=o.resume,
            progress=not o.quiet, say=LOG.warning,
        )  # fmt: skip
    done(o, f"{made.detections} detections in {made.recordings} recordings: {o.out}")
    for reason in made.failed.values():
        print(f"tzn predict: left out: {reason}", file=sys.stderr)
    if made.failed:
        sys.exit(1)


def _predict_corpus(
    o: argparse.Namespace, inputs: list[Path], source: str, config: ExperimentConfig, signal: RawSignal | None,
    overrides: list[str],
) -> None:  # fmt: skip
    """Recordings by any number of processes to a Parquet table."""
    from tzn.corpus.manifest import gather
    from tzn.corpus.run import Recipe, predict_corpus
    from tzn.errors import DataError

    refused = ("annotations", "traces", "video_scores", "format")
    if given := [f"--{name.replace('_', '-')}" for name in refused if getattr(o, name)]:
        raise DataError(f"{given[0]}: not with --out FILE.parquet (rates and durations come from a manifest)")
    if STANDARD in map(str, inputs):
        raise DataError("-: standard input is one recording; a .parquet table is made of files")
    if o.fps is not None and not o.fps > 0:
        raise DataError(f"--fps {o.fps:g}: expected a number above 0")
    recipe = Recipe(source, _with_budget(overrides, o.budget), o.device, o.min_score, o.top)
    made = predict_corpus(
        recipe, gather(inputs, config, signal, o.fps), o.out, workers=o.workers, resume=o.resume, progress=not o.quiet,
        say=LOG.warning,
    )  # fmt: skip
    done(o, f"{made.rows} detections in {made.recordings} recordings: {o.out}")
    report_failed(made.failed, f"{o.out}.failed.csv")


def _with_budget(overrides: list[str], budget: float | None) -> tuple[str, ...]:
    return (*overrides, *([] if budget is None else [f"inference.budget={budget!r}"]))


def report_failed(failed: dict[str, str], where: str) -> None:
    """Recordings that a corpus lost, on stderr, the first of them in full; exit code 1 where there are any."""
    for name, reason in list(failed.items())[:SHOWN]:
        print(f"tzn: left out: {name}: {reason}", file=sys.stderr)
    if failed:
        print(f"tzn: {len(failed)} recordings were left out; all with their reasons: {where}", file=sys.stderr)
        sys.exit(1)


def _piped_suffix(config: ExperimentConfig, signal: RawSignal | None) -> str:
    """Of what comes through standard input, where its first bytes do not say it."""
    from tzn.readers.front_end import kind_of_extractor

    extractor = config.front_end.extractor
    if signal is not None or extractor is None:
        return ".csv" if signal else ".npy"
    return {"samples": ".csv", "sound": ".wav", "video": ".mp4"}[kind_of_extractor(extractor)]


def _predict_stream(o: argparse.Namespace, inputs, checkpoint, signal, overrides) -> None:  # type: ignore[no-untyped-def]
    """Rows of CSV from standard input to detections as JSON lines on standard output."""
    from tzn.errors import DataError
    from tzn.formats import rows
    from tzn.inference.stream import read_rows
    from tzn.localizer import Localizer

    if [str(path) for path in inputs] != ["-"] or o.out is not None:
        raise DataError(
            "--stream reads standard input and writes standard output: expected the one input -, and no --out"
        )
    refused = ("budget", "annotations", "top", "traces", "video_scores", "format", "resume", "keep_going")
    if given := [f"--{name.replace('_', '-')}" for name in refused if getattr(o, name)]:
        raise DataError(f"{given[0]} needs whole recordings: not with --stream")
    model = Localizer(checkpoint, signal, overrides=overrides).to(o.device)
    live = model.stream(fps=o.fps, min_score=o.min_score)

    def say(found) -> None:  # type: ignore[no-untyped-def]
        for row in rows(found, None):
            print(json.dumps(row))
        if len(found):
            sys.stdout.flush()

    for line in read_rows(sys.stdin.buffer, model.channels):
        say(live.push(line))
    say(live.close())
