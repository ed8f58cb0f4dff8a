"""Fuzzes ops: ``python tests/fuzz OP ... [--seed S] [--cases N]``.

Every case is made from (seed, op, number): ``--first N --cases 1`` repeats one alone. Each op runs in a forked process of
its own, so a crash, a hang or a wrong answer is reported with the case that made it, and the next op goes on.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
from inputs import Random, mutate
from public import PUBLIC
from raw import RAW

from tzn.ops import _backend

OPS = {**PUBLIC, **RAW}
# What a caller may be told: each with a message. AttributeError, IndexError, … would be accidents.
EXPECTED = (ValueError, TypeError, RuntimeError, OverflowError, MemoryError)
MEMORY = 6 << 30


def run_case(op: str, seed: int, number: int) -> str:
    """Makes, messes up and runs one case; "error" or "answer"."""
    rng = Random(f"{seed}:{op}:{number}")
    make, call = OPS[op]
    arguments = make(rng)
    changed = []
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        name = rng.choice(list(arguments))
        arguments[name] = mutate(rng, arguments[name])
        changed.append(name)
    try:
        check = call(arguments)
    except EXPECTED as error:
        assert str(error).strip() or isinstance(error, MemoryError), f"{type(error).__name__} without a message"
        assert changed, f"valid arguments were refused: {error}"
        return "error"
    check(rng)
    return "answer"


def _limit_memory() -> None:
    """A request that is too large is to fail, not to fill the machine; the sanitizers map terabytes they never touch."""
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))


def fuzz(op: str, seed: int, first: int, cases: int, progress: mmap.mmap) -> None:
    """Runs the cases of one op, each noted in ``progress`` before it starts."""
    seen = {"error": 0, "answer": 0}
    for number in range(first, first + cases):
        progress[:8] = number.to_bytes(8, "little")
        seen[run_case(op, seed, number)] += 1
    print(f"{op}: {seen['answer']} answers, {seen['error']} errors", flush=True)


def fuzz_in_a_child(op: str, given: argparse.Namespace) -> str | None:
    """None when all is well, else what happened and how to see it again. torch is imported once, before the fork."""
    progress = mmap.mmap(-1, 8)
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
                signal.alarm(int(given.seconds))  # a hang ends with SIGALRM
                fuzz(op, given.seed, given.first, given.cases, progress)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        said = output.read()
    if status == 0:
        print(said, end="", flush=True)
        return None
    case = int.from_bytes(progress[:8], "little")
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    said = said if len(said) <= 8000 else f"{said[:4000]}\n[...]\n{said[-4000:]}"  # a sanitizer names the fault first
    return f"{op}: {how}; again with\n  python tests/fuzz {op} --seed {given.seed} --first {case} --cases 1\n{said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="+", choices=sorted(OPS), metavar="OP")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=200, help="per op")
    parser.add_argument("--seconds", type=float, default=300, help="what one op may take")
    parser.add_argument("--report", help="JSON file: for every op what went wrong, or null")
    given = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # an output that nobody wrote reads as NaN
    if any(op in RAW for op in given.ops) and _backend.missing_native() is not None:
        sys.exit(_backend.missing_native())
    _limit_memory()
    report = {op: fuzz_in_a_child(op, given) for op in given.ops}
    if given.report:
        Path(given.report).write_text(json.dumps(report))
    wrong = [text for text in report.values() if text]
    sys.exit("\n\n".join(wrong) or None)


if __name__ == "__main__":
    main()
