"""tzn corpus, merge and compare: many machines, and what came of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tzn.cli._shared import OVERRIDES, Commands, add_device, command, done
from tzn.console import LOG


def add_corpus(commands: Commands) -> None:
    p = command(
        commands, "corpus", _corpus, "localize actions in a corpus on Ray: this machine or a cluster, restartable",
        "tzn corpus runs/hapt manifest.parquet --out found --address auto --actors 64 --batch-size 64\n"
        "tzn corpus --pretrained ludb manifest.parquet --out found\n\n"
        "Started again with the same arguments it does what is left. One machine alone: 'tzn predict --workers'.\n"
        "exit code: 0 all done; 1 done but for the recordings listed; 2 stopped by an error",
    )  # fmt: skip
    p.add_argument(
        "inputs", nargs="+", metavar="[MODEL] MANIFEST", help="checkpoint or folder of a run, then manifests or folders"
    )
    p.add_argument("--pretrained", help="a model that comes with tzn, in place of MODEL")
    p.add_argument(
        "--out", type=Path, required=True, help="folder that all machines see; predictions.parquet is made there"
    )
    p.add_argument(
        "--address", default="local", help="local (default), auto (the cluster this machine is in), or HOST:PORT"
    )
    p.add_argument("--actors", type=int, help="processes in the pool (default: as many as the CPUs or GPUs carry)")
    p.add_argument("--batch-size", type=int, default=32, help="recordings an actor takes at a time (default: 32)")
    p.add_argument("--gpus", type=float, default=0.0, help="of an actor; a fraction shares a GPU (default: 0)")
    p.add_argument("--cpus", type=float, default=1.0, help="of an actor (default: 1)")
    p.add_argument("--fps", type=float, help="of recordings whose manifest says none")
    p.add_argument("--min-score", type=float, help="leave out detections below this score")
    p.add_argument("--top", type=int, help="keep at most so many detections per recording")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    add_device(p, "cpu")


def _corpus(o: argparse.Namespace) -> None:
    from tzn.cli.predict import report_failed
    from tzn.corpus.manifest import gather
    from tzn.corpus.run import Recipe
    from tzn.distributed import predict_on_ray
    from tzn.errors import DataError
    from tzn.localizer import load

    given = [Path(text) for text in o.inputs if "=" not in text or Path(text).exists()]
    overrides = (*o.overrides, *(text for text in o.inputs if Path(text) not in given))
    if len(given) < (1 if o.pretrained else 2):
        raise DataError("expected a model and a manifest; with --pretrained NAME, a manifest")
    source = o.pretrained or str(given[0].resolve())
    model = load(source, overrides)
    items = gather(given if o.pretrained else given[1:], model.config, model.signal, o.fps)
    recipe = Recipe(source, overrides, o.device, o.min_score, o.top)
    made = predict_on_ray(
        recipe, items, o.out.resolve(), address=o.address, actors=o.actors, batch_size=o.batch_size, gpus=o.gpus,
        cpus=o.cpus, progress=not o.quiet, say=LOG.warning,
    )  # fmt: skip
    done(o, f"{made.rows} detections in {made.recordings} recordings: {o.out / 'predictions.parquet'}")
    report_failed(made.failed, str(o.out / "failed.csv"))


def add_merge(commands: Commands) -> None:
    p = command(
        commands, "merge", _merge, "put Parquet files of detections together",
        "tzn merge monday.parquet tuesday.parquet --out week.parquet",
    )  # fmt: skip
    p.add_argument("files", nargs="+", type=Path, help="of 'tzn predict --out FILE.parquet' or 'tzn corpus'")
    p.add_argument(
        "--out", type=Path, required=True, help="the file to write; a recording twice of one run is taken once"
    )


def _merge(o: argparse.Namespace) -> None:
    from tzn.corpus.table import merge

    rows, twice = merge(o.files, o.out)
    if twice:
        LOG.warning("%d detections of recordings that an earlier file has were left out", twice)
    done(o, f"{rows} detections: {o.out}")


def add_compare(commands: Commands) -> None:
    p = command(
        commands, "compare", _compare, "compare two models over a corpus: agreement, counts by class, differences",
        "tzn compare a.parquet b.parquet --tiou 0.5 --out differences.parquet",
    )  # fmt: skip
    p.add_argument("a", type=Path, help="Parquet file of detections")
    p.add_argument("b", type=Path, help="another, over recordings of the same ids")
    p.add_argument("--tiou", type=float, default=0.5, help="least overlap of two detections that agree (default: 0.5)")
    p.add_argument("--min-score", type=float, help="of both (default: each model's own score threshold)")
    p.add_argument("--model-a", metavar="HASH", help="the run of a, where it holds several; the beginning is enough")
    p.add_argument("--model-b", metavar="HASH", help="likewise of b")
    p.add_argument("--out", type=Path, help="Parquet file with every match and every detection without one")
    p.add_argument("--json", action="store_true", help="print one JSON object")


def _compare(o: argparse.Namespace) -> None:
    from tzn.corpus.compare import compare_files

    found = compare_files(o.a, o.b, tiou=o.tiou, min_score=o.min_score, models=(o.model_a, o.model_b))
    summary = found.summary()
    if o.out is not None:
        found.write(o.out)
    if o.json:
        print(json.dumps(summary))
        return
    n = summary["recordings"]
    print(f"recordings in both {n['both']}, only in a {n['only_a']}, only in b {n['only_b']}")
    print(
        f"detections of scores from {found.min_scores[0]:.3g} (a) and {found.min_scores[1]:.3g} (b) on, tIoU >= {o.tiou:g}"
    )
    width = max([len("all"), *map(len, summary["classes"])])
    print(f"{'class':{width}}  {'a':>9}  {'b':>9}  {'matched':>9}  agreement")
    for name, row in {**summary["classes"], "all": summary["detections"]}.items():
        print(f"{name:{width}}  {row['a']:9}  {row['b']:9}  {row['matched']:9}  {row['agreement']:9.3f}")
    for what, unit in (("start", " s"), ("end", " s"), ("score", "")):
        row = summary[f"{what}_difference"]
        if row["median"] is not None:
            print(f"{what} of matches: median difference {row['median']:.3g}{unit}, 90 % below {row['p90']:.3g}{unit}")
    for row in summary["most_different"][:5]:
        print(f"most different: {row['recording']}: {row['only_a']} only in a, {row['only_b']} only in b")
