"""tzn serve: a localizer behind HTTP."""

from __future__ import annotations

import argparse

from tzn.cli._shared import OVERRIDES, Commands, add_device, command


def add_serve(commands: Commands) -> None:
    p = command(
        commands, "serve", _serve, "answer HTTP requests: POST a signal, get its segments",
        "tzn serve ludb --port 8000\n"
        "curl --data-binary @ecg.npy -H 'content-type: application/octet-stream' 'localhost:8000/segments?min_score=0.3'",
    )  # fmt: skip
    p.add_argument(
        "model", help="a model that comes with tzn, a checkpoint, the folder of a run, or a file of 'tzn export'"
    )
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    p.add_argument("--port", type=int, default=8000, help="default: 8000")
    p.add_argument("--max-megabytes", type=float, default=64.0, help="of a request (default: 64)")
    p.add_argument("--max-seconds", type=float, default=86400.0, help="of a signal (default: a day)")
    p.add_argument("--max-waiting", type=int, default=256, help="requests at a time; more are refused (default: 256)")
    p.add_argument("--timeout", type=float, default=60.0, help="seconds that a request may take (default: 60)")
    p.add_argument(
        "--batch-wait", type=float, default=5.0, help="milliseconds that a request waits for others (default: 5)"
    )
    p.add_argument("--threads", type=int, help="of the network (default: PyTorch's)")
    p.add_argument("--min-score", type=float, help="leave out segments below this score")
    p.add_argument("--top", type=int, help="answer at most so many segments")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    add_device(p, "cpu")


def _serve(o: argparse.Namespace) -> None:
    from tzn.corpus.run import Recipe
    from tzn.serve import Limits, serve

    recipe = Recipe(o.model, tuple(o.overrides), o.device, o.min_score, o.top, o.threads)
    limits = Limits(o.max_megabytes, o.max_seconds, o.max_waiting, o.timeout, batch_wait=o.batch_wait / 1000)
    serve(recipe, limits, host=o.host, port=o.port, quiet=o.quiet)
