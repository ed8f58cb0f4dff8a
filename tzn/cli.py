"""The ``tzn`` command: parses arguments, calls the package, prints results.

Exit code 0: done, 2: a clear error, 128 + n: ended by signal n.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tzn import __version__
from tzn.errors import TznError
from tzn.formats import FORMATS

OVERRIDES = "settings that replace those of the configuration, e.g. training.epochs=10 inference.nms=hard"

VIDEO_SCORES = "scores of a whole-video classifier (.json[.gz], .pkl), for models of one class as usual on ActivityNet"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``tzn`` command."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes KEY=VALUE arguments only in one place; a user may write them anywhere.
    unknown = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(options, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; see 'tzn {options.command} --help'")
    if rest:
        options.overrides = [*options.overrides, *rest]
    try:
        _check_machine(options)
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _failed(options, "the output was closed before everything was written to it (broken pipe)")
    except TznError as error:
        return _failed(options, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _failed(options, "interrupted", 130)
    except OSError as error:
        return _failed(options, f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        # PyTorch says so in a RuntimeError on the CPU, and in a subclass of it on a GPU.
        if (
            not isinstance(error, MemoryError)
            and "allocate memory" not in str(error)
            and "out of memory" not in str(error)
        ):
            raise
        return _failed(options, f"out of memory ({' '.join(str(error).split())[:120] or 'no details'})")
    return 0


def _failed(options: argparse.Namespace, reason: str, code: int = 2) -> int:
    print(f"tzn {options.command}: {' '.join(reason.split())}", file=sys.stderr)
    return code


def _check_machine(options: argparse.Namespace) -> None:
    """``--device`` and ``TZN_BACKEND`` as asked for are there; said before anything is read or written."""
    if not hasattr(options, "device") and options.command != "demo":
        return
    import torch

    from tzn.errors import ConfigError
    from tzn.ops import choose_backend

    name = getattr(options, "device", "cpu")
    name = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "gpu": "cuda"}.get(name, name)
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        reason = str(error).strip().split("\n")[0][:120]
        raise ConfigError(f"--device {options.device}: not on this machine, which has {there} ({reason})") from None
    try:
        choose_backend(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tzn",
        description="Find actions in untrimmed recordings: (start, end, class, score) from feature sequences.",
        epilog="Start with 'tzn demo --out demo', then 'tzn data check FOLDER' on your own data. "
        "'tzn COMMAND --help' explains each command with an example.",
    )
    parser.add_argument("--version", action="version", version=f"tzn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_features,
        _add_train,
        _add_eval,
        _add_predict,
        _add_score,
        _add_convert,
        _add_data,
        _add_plot,
        _add_view,
        _add_info,
    ):
        add(commands)
    return parser


def _command(commands, name: str, run, help: str, example: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    parser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def _add_demo(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(
        commands, "demo", _demo, "train, evaluate and run a small model on synthetic recordings", "tzn demo --out demo"
    )
    p.add_argument("--out", type=Path, default=Path("demo"), help="folder for data, model, predictions and pictures")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)


def _demo(o: argparse.Namespace) -> None:
    from tzn.demo import run_demo

    run_demo(o.out, o.overrides)


def _add_features(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(
        commands, "features", _features, "make feature files from recordings: video, sound, signals",
        "tzn features clip.mp4 --extractor efficientnet-lite0 --out mydata/features\n"
        "tzn features phone/ --rate 50 --samples-per-step 5 --out mydata/features",
    )  # fmt: skip
    p.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="recordings, or folders of them")
    p.add_argument("--out", type=Path, required=True, help="folder for RECORDING.npy and features.json")
    p.add_argument(
        "--extractor",
        help="efficientnet-lite0 (default for video), torchvision:NAME, timm:NAME, log-mel (default for sound), samples",
    )
    p.add_argument(
        "--rate", type=float,
        help="pictures a second (5), log-mel steps a second (100), or samples a second that signals are resampled to",
    )  # fmt: skip
    p.add_argument(
        "--fit", choices=("stretch", "crop"), default="stretch", help="whole picture squeezed, or its centre"
    )
    p.add_argument("--weights", help="state dict for torchvision:NAME or timm:NAME (default: the library's own)")
    p.add_argument(
        "--channels", default="", help="signals: names of the columns, between commas (default: all numbers)"
    )
    p.add_argument("--samples-per-step", type=int, default=1, help="signals: samples that make one feature step")
    p.add_argument("--time", help="signals: name of the column with the times")
    p.add_argument("--time-unit", choices=("s", "ms", "us", "ns"), help="signals: of that column")
    p.add_argument("--sample-rate", type=float, help="signals: samples a second, for tables without times")
    p.add_argument("--max-gap", type=float, default=1.0, help="signals: longest hole to bridge, in seconds")
    p.add_argument("--no-cache", action="store_true", help="extract again what the cache holds")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    _add_device(p, "cpu")


def _features(o: argparse.Namespace) -> None:
    from tzn.config import FrontEndConfig
    from tzn.errors import ConfigError
    from tzn.readers.front_end import extract_files

    try:
        config = FrontEndConfig(
            extractor=o.extractor, rate=o.rate, fit=o.fit, weights_file=o.weights, samples_per_step=o.samples_per_step,
            channels=tuple(name.strip() for name in o.channels.split(",") if name.strip()), time=o.time,
            time_unit=o.time_unit, sample_rate=o.sample_rate, max_gap=o.max_gap,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(str(error)) from None
    entries = extract_files(
        o.inputs, o.out, config, cache=not o.no_cache, device=o.device, progress=not o.quiet
    ).recordings
    if not o.quiet:
        steps = sum(entry["steps"] for entry in entries.values())
        print(f"{steps} steps in {len(entries)} recordings: {o.out}")


def _add_train(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(
        commands, "train", _train, "train a localizer",
        "tzn train configs/hapt.yaml --data hapt --out runs/hapt training.epochs=10\n"
        "several processes: torchrun --nproc-per-node=2 -m tzn train …",
    )  # fmt: skip
    p.add_argument("config", type=Path, help="YAML configuration, see configs/")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    p.add_argument("--data", type=Path, required=True, help="folder with annotations.json and features/")
    p.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME of the configuration)")
    p.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    _add_device(p, "auto")
    p.add_argument("--devices", type=int, help="devices per machine (default: all that torchrun started, else one)")
    p.add_argument("--num-nodes", type=int, default=1, help="machines")
    p.add_argument("--no-progress", action="store_true", help="no progress bar")


def _train(o: argparse.Namespace) -> None:
    from tzn.config_loading import load_config
    from tzn.training import train

    out = o.out or Path("runs") / o.config.stem
    best = train(
        load_config(o.config, o.overrides), o.data, out, resume=o.resume, accelerator=o.device, devices=o.devices,
        num_nodes=o.num_nodes, progress=not o.no_progress,
    )  # fmt: skip
    print(f"checkpoint: {best}\nnext: tzn eval {best} --data {o.data}")


def _add_eval(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(
        commands, "eval", _eval, "score a trained localizer on a split of a data folder",
        "tzn eval runs/hapt --data hapt --budget trained --budget 1",
    )  # fmt: skip
    p.add_argument("checkpoint", type=Path, help="checkpoint, or the folder of a run")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    p.add_argument("--data", type=Path, required=True, help="folder with annotations.json and features/")
    p.add_argument("--split", choices=("test", "validation", "train"), default="test")
    p.add_argument(
        "--budget", action="append", default=None, metavar="DEPTH",
        help="mean depth in (0, 1] to run at, or 'trained' (default); repeat to compare",
    )  # fmt: skip
    p.add_argument("--video-scores", type=Path, help=VIDEO_SCORES)
    p.add_argument("--out", type=Path, help="folder for predictions.json and report.json of the first budget")
    p.add_argument("--json", action="store_true", help="print JSON instead of tables")
    _add_device(p, "cpu")


def _eval(o: argparse.Namespace) -> None:
    from tzn.detections import write_predictions
    from tzn.evaluation.comparison import comparison_table
    from tzn.inference.evaluate_checkpoint import evaluate_checkpoint

    checkpoint, config = _load(o.checkpoint, o.overrides)
    results = {}
    for budget in o.budget or ["trained"]:
        results[budget] = evaluate_checkpoint(
            checkpoint, o.data, split=o.split, config=config, budget=_budget(budget), video_scores=o.video_scores,
            device=o.device, progress=not o.json,
        )  # fmt: skip
    first = next(iter(results.values()))
    if o.out:
        write_predictions(o.out / "predictions.json", first.detections, first.classes)
        _write_json(o.out / "report.json", {name: r.to_dict() for name, r in results.items()})
    if o.json:
        print(json.dumps({name: r.to_dict() for name, r in results.items()}))
        return
    print(first.report.table())
    print(comparison_table({f"depth {name}": r.to_dict() for name, r in results.items()}))


def _add_predict(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(
        commands, "predict", _predict, "localize actions in feature files",
        "tzn predict runs/hapt hapt/features/exp03_user02.npy --out predictions.json\n"
        "tzn predict thumos.ckpt i3d_features/ --annotations thumos14.json --out predictions.json\n"
        "tzn predict --pretrained hapt phone.csv --fps 100 --out predictions.json\n\n"
        "exit code: 0 all done; 1 done but for the files listed (--keep-going); 2 stopped by an error",
    )  # fmt: skip
    p.add_argument("checkpoint", nargs="?", help="checkpoint, or the folder of a run; none with --pretrained")
    p.add_argument("inputs", nargs="*", metavar="INPUT", help=".npy/.npz feature files or folders of them")
    p.add_argument("--pretrained", help="a model that comes with tzn; INPUT are raw signals (.npy, .csv): hapt")
    p.add_argument("--out", type=Path, help="predictions.json, .csv, or a folder for --format srt; not with --stream")
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
    p.add_argument("--resume", action="store_true", help="continue an interrupted prediction from OUT.part")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    _add_device(p, "cpu")


def _predict(o: argparse.Namespace) -> None:
    import dataclasses

    from tzn.config_loading import config_from_dict, override_trained
    from tzn.errors import ConfigError, DataError
    from tzn.inference.predict import predict_files
    from tzn.models.pretrained import load_pretrained

    given = [text for text in (o.checkpoint, *o.inputs) if text is not None]
    paths = [Path(text) for text in given if "=" not in text or Path(text).exists()]
    overrides = [*o.overrides, *(text for text in given if Path(text) not in paths)]
    if len(paths) < (1 if o.pretrained else 2):
        raise DataError("expected a checkpoint and at least one input; with --pretrained NAME, at least one input")
    if o.pretrained:
        model = load_pretrained(o.pretrained)
        checkpoint, signal, inputs = model.checkpoint, model.signal, paths
        config = override_trained(config_from_dict(checkpoint.config), overrides)
    else:
        (checkpoint, config), signal, inputs = _load(paths[0], overrides), None, paths[1:]
    if o.stream:
        _predict_stream(o, inputs, checkpoint, signal, overrides)
        return
    if o.out is None:
        raise DataError("expected --out FILE (with --stream, detections go to standard output)")
    settings = config.inference
    if o.budget is not None:
        try:
            settings = dataclasses.replace(settings, budget=o.budget)
        except ValueError as error:
            raise ConfigError(f"--budget {o.budget:g}: {error}") from None

    def say(line: str) -> None:
        if not o.quiet:
            print(f"tzn predict: {line}", file=sys.stderr)

    done = predict_files(
        checkpoint, inputs, o.out, fmt=o.format, fps=o.fps, annotations=o.annotations, inference=settings,
        min_score=o.min_score, top=o.top, traces=o.traces, video_scores=o.video_scores, signal=signal, device=o.device,
        keep_going=o.keep_going, resume=o.resume, progress=not o.quiet, say=say,
    )  # fmt: skip
    if not o.quiet:
        print(f"{done.detections} detections in {done.recordings} recordings: {o.out}")
    for reason in done.failed.values():
        print(f"tzn predict: left out: {reason}", file=sys.stderr)
    if done.failed:
        sys.exit(1)


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


def _add_score(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(
        commands, "score", _score, "score a predictions file against annotations (mAP at tIoU, recall)",
        "tzn score predictions.json annotations.json --split test --tiou 0.3:0.7:0.1 --json",
    )  # fmt: skip
    p.add_argument("predictions", type=Path, help="ActivityNet JSON, plain or .gz")
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
    result = score_files(
        o.predictions, o.annotations, split=o.split, tiou=parse_tiou(o.tiou), top_k=top_k, ties=o.ties,
        split_only=o.split_only, lenient=o.lenient, blocked=o.blocked,
    )  # fmt: skip
    for line in result.pop("warnings"):
        print(f"warning: {line}", file=sys.stderr)
    if o.json:
        print(json.dumps(result))
        return
    for tiou, value in zip(result["tiou"], result["mAP"], strict=True):
        print(f"mAP@{tiou:g}  {100 * value:6.2f}")
    print(f"average  {100 * result['average_mAP']:6.2f}")


def _add_convert(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(
        commands, "convert", _convert, "bring in results and checkpoints of other programs, write ground truth for DETAD",
        "tzn convert eval_results.pkl predictions.json --annotations thumos14.json\n"
        "tzn convert thumos14.json detad_thumos14.json --to detad\n"
        "tzn convert released.pth.tar thumos.ckpt --to checkpoint --config configs/actionformer_thumos14_i3d.yaml "
        "--annotations thumos14.json",
    )  # fmt: skip
    p.add_argument(
        "input", type=Path, help="ActionFormer .pkl or .pth.tar, OpenTAD/ActivityNet .json[.gz], annotations"
    )
    p.add_argument("output", type=Path, help="predictions .json, .csv, …; for detad: .json; for checkpoint: .ckpt")
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

        segments, recordings = convert_labels(o.input, o.output, subset=o.subset, fps=o.fps, tiers=o.tier)
        print(f"{segments} segments in {recordings} recordings: {o.output}")
        return
    if o.to == "detad":
        annotations = load_annotations(o.input, strict=False)
        write_detad_ground_truth(annotations, o.output)
        _warn(o.input, annotations.repairs())
        print(f"{sum(len(r.labels) for r in annotations.recordings.values())} segments: {o.output}")
        return
    if o.annotations is None:
        raise DataError("--annotations FILE is needed: it names the classes")
    if o.to == "checkpoint":
        _convert_checkpoint(o)
        return
    bad = Counter[str]() if o.lenient else None
    count, unknown = convert_predictions(o.input, o.output, o.annotations, bad=bad)
    _warn(o.input, [f"{n} detections left out: {why}" for why, n in (bad or {}).items()])
    _warn(o.input, [f"{unknown} detections of unknown classes left out"] if unknown else [])
    print(f"{count} detections: {o.output}")


def _warn(path: Path, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"warning: {path}: {line}", file=sys.stderr)


def _convert_checkpoint(o: argparse.Namespace) -> None:
    from tzn.compat.actionformer import load_any_config
    from tzn.errors import ConfigError
    from tzn.inference.released import convert_released_checkpoint

    if o.config is None:
        raise ConfigError(
            "--config FILE is needed: it describes the network, e.g. configs/actionformer_thumos14_i3d.yaml"
        )
    convert_released_checkpoint(o.input, o.output, load_any_config(o.config, o.overrides), o.annotations)
    print(f"checkpoint: {o.output}\nnext: tzn predict {o.output} FEATURES.npy --out predictions.json")


def _add_data(commands) -> None:  # type: ignore[no-untyped-def]
    data = commands.add_parser("data", help="look at a data folder", description="Look at a data folder.")
    inner = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    p = _command(
        inner, "check", _data_check, "count, validate, and suggest strides, levels and regression ranges",
        "tzn data check hapt --config configs/hapt.yaml",
    )  # fmt: skip
    p.add_argument("folder", type=Path, help="folder with annotations.json and features/, or an annotation file")
    p.add_argument("--config", type=Path, help="configuration whose data section describes the folder")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    p.add_argument("--json", action="store_true", help="print one JSON object")


def _data_check(o: argparse.Namespace) -> None:
    from tzn.config_loading import load_config
    from tzn.data.check import check_dataset

    # Without a configuration only the data section matters; the model's required keys stand in.
    stand_in = [] if o.config else ["model.input_dim=1", "model.num_classes=1"]
    config = load_config(o.config, [*stand_in, *o.overrides])
    report = check_dataset(o.folder, config.data, input_dim=config.model.feature_dim if o.config else None)
    print(json.dumps(report.to_dict()) if o.json else report.text())


def _add_plot(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(
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
        window=o.window, suffix=o.format, min_score=o.min_score, say=lambda line: print(line, file=sys.stderr),
    ):  # fmt: skip
        print(path)


def _add_view(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(
        commands, "view", _view, "write one HTML page to look at recordings, correct detections, and annotate",
        "tzn view predictions.json annotations.json --signal signals --traces traces --out page.html\n"
        "tzn view --annotate clip.mp4 --classes open,close --out page.html",
    )  # fmt: skip
    p.add_argument("files", nargs="*", type=Path, metavar="FILE", help="predictions, annotations, or both (.json[.gz])")
    p.add_argument(
        "--media", "--signal", "--annotate", dest="media", nargs="+", action="extend", default=[], type=Path,
        metavar="FILE", help="videos, audio, or signals (.npy, .npz, .csv), or folders of them, named like the recordings",
    )  # fmt: skip
    p.add_argument("--traces", type=Path, help="folder from 'tzn predict --traces': distance and depth curves")
    p.add_argument("--classes", default="", help="comma list of classes to draw, beyond those in the files")
    p.add_argument("--recording", action="append", help="show this recording; repeat for several (default: all)")
    p.add_argument("--rate", type=float, help="samples of the signals per second (default: over the whole duration)")
    p.add_argument("--channels", help="comma list of signal channels to draw, from 0 (default: the first 12)")
    p.add_argument("--embed", action="store_true", help="put videos into the page (default: it names their place)")
    p.add_argument("--out", type=Path, required=True, help="the page, .html")


def _view(o: argparse.Namespace) -> None:
    from tzn.errors import DataError
    from tzn.view import gather, write_page

    try:
        channels = [int(text) for text in o.channels.split(",")] if o.channels else None
    except ValueError:
        raise DataError(f"--channels {o.channels!r}: expected numbers such as 0,1,2") from None
    if o.rate is not None and not 0 < o.rate < float("inf"):
        raise DataError(f"--rate {o.rate:g}: expected samples per second, above 0")
    classes = [name.strip() for name in o.classes.split(",") if name.strip()]
    sources = gather(
        o.files, media=o.media, traces=o.traces, recordings=o.recording, classes=classes, rate=o.rate,
        channels=channels,
    )  # fmt: skip
    for line in sources.warnings:
        print(f"warning: {line}", file=sys.stderr)
    write_page(o.out, sources, embed=o.embed)
    print(f"{len(sources.recordings)} recordings, {o.out.stat().st_size / 1e6:.1f} MB: open {o.out} in a browser")


def _add_info(commands) -> None:  # type: ignore[no-untyped-def]
    p = _command(commands, "info", _info, "versions, back ends and devices", "tzn info --json")
    p.add_argument("--json", action="store_true", help="print one JSON object")


def _info(o: argparse.Namespace) -> None:
    from tzn.info import collect_info

    info = collect_info()
    if o.json:
        print(json.dumps(info))
        return
    for section, values in info.items():
        print(section)
        for name, value in values.items():
            print(f"  {name}: {value}")


def _add_device(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--device", default=default, help=f"cpu, cuda, … (default: {default})")


def _load(path: Path, overrides: Sequence[str]):  # type: ignore[no-untyped-def]
    """Checkpoint and its configuration with overrides; a run folder stands for its best, else last, checkpoint."""
    from tzn.config_loading import config_from_dict, override_trained
    from tzn.models.checkpoint import load_checkpoint, run_checkpoint

    checkpoint = load_checkpoint(run_checkpoint(path))
    return checkpoint, override_trained(config_from_dict(checkpoint.config), overrides)


def _budget(text: str) -> float | None:
    from tzn.errors import ConfigError

    if text == "trained":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ConfigError(f"--budget {text}: expected 'trained' or a mean depth in (0, 1]")
    return value


def _write_json(path: Path, content: object) -> None:
    from tzn.files import atomic_write

    with atomic_write(path) as file:
        json.dump(content, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
