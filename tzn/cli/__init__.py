"""The ``tzn`` command: parses arguments, calls the package, prints results.

A file for each group of commands; to every command belong a function that declares it (``add_…``) and one that runs it,
which imports what it needs, so that ``tzn --help`` is there at once.

Exit code 0: done, 2: a clear error, 128 + n: ended by signal n.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from tzn import __version__
from tzn.cli import calibrate, corpus, data, export, info, manual, plan, predict, pretrained, results, serve, train
from tzn.console import LOG, stoppable, talking
from tzn.errors import Terminated, TznError

# In the order in which they are listed.
COMMANDS = (
    train.add_demo, data.add_features, plan.add_init, train.add_train, train.add_eval, calibrate.add_calibrate,
    predict.add_predict, corpus.add_corpus, corpus.add_merge, corpus.add_compare, serve.add_serve,
    pretrained.add_pretrained, results.add_score, results.add_convert, data.add_data, results.add_plot,
    results.add_view, export.add_export, export.add_app, manual.add_config, info.add_info, manual.add_completion,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``tzn`` command."""
    parser = build_parser()
    manual.complete(parser)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes KEY=VALUE arguments only in one place; a user may write them anywhere.
    unknown = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(options, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; see 'tzn {options.command} --help'")
    if rest:
        options.overrides = [*options.overrides, *rest]
    try:
        with stoppable(), talking(options.command, quiet=options.quiet, verbose=options.verbose):
            _check_machine(options)
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _failed(options, "the output was closed before everything was written to it (broken pipe)")
    except TznError as error:
        return _failed(options, str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        return _failed(options, str(stop) or "stopped", 143 if isinstance(stop, Terminated) else 130)
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
    if options.verbose:
        traceback.print_exc()
    print(f"tzn {options.command}: {' '.join(reason.split())}", file=sys.stderr)
    return code


def _check_machine(options: argparse.Namespace) -> None:
    """``--device`` and ``TZN_BACKEND`` as asked for are there; said before anything is read or written."""
    if not hasattr(options, "device") and options.command != "demo":
        return
    import torch

    from tzn.inference.predict import checked_device

    name = getattr(options, "device", "cpu")
    # What Lightning calls its accelerators.
    place = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "gpu": "cuda"}.get(name, name)
    device = checked_device(place, f"--device {name}")
    if options.verbose:
        from tzn.ops import choose_backend

        backend, threads = choose_backend(device), torch.get_num_threads()
        LOG.info("tzn %s, torch %s, %d threads, %s, ops: %s", __version__, torch.__version__, threads, device, backend)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tzn",
        description="Find actions in untrimmed recordings: (start, end, class, score) from feature sequences.",
        epilog="Start with 'tzn demo --out demo', then 'tzn data check FOLDER' on your own data. "
        "'tzn COMMAND --help' explains each command with an example.",
    )
    parser.add_argument("--version", action="version", version=f"tzn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser
