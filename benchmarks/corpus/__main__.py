"""A corpus of 20,000 synthetic recordings of LUDB's and HAPT's shape on this machine: rates, memory, kills, Ray, serving.

usage: python -m benchmarks.corpus [--recordings 20000] [--folder build/corpus] [--stages …] [--smoke] [--out FOLDER]

Three quarters are electrocardiograms (12 leads, 250 samples a second, 4.7 to 8.9 s) for the model ``ludb``, a quarter motion
sensors (6 channels, 50 samples a second, 3.3 to 10.7 min) for the model ``hapt``: lengths as the real sets have them. They are
made in --folder first, and stay there for the next time.

Stages: ``parity`` (ends the program unless a corpus run gives the detections of a loop), ``loop`` (a loop over recordings, with
the threads that PyTorch takes by itself and with one), ``corpus`` (all of them, with memory over time), ``ray`` (1, 2, 4
actors), ``kill`` (drivers, workers and actors are killed; same rows), ``serve`` (loopback). Every stage is a process of
its own, and writes what it measured at once; ``--stages`` runs some anew and reports all that are there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.corpus.kills import stage_kill
from benchmarks.corpus.rates import stage_corpus, stage_loop, stage_parity, stage_ray
from benchmarks.corpus.recordings import SHARE, make
from benchmarks.corpus.report import GOALS, report
from benchmarks.corpus.serving import stage_serve
from benchmarks.lib.provenance import facts, parser, processor, write
from tzn.files import atomic_write

STAGES = ("parity", "loop", "corpus", "ray", "kill", "serve")
COUNTS = {"parity": 60, "loop": 400, "ray": 3200, "kill": 4000}  # recordings of all kinds that a stage takes
ACTORS = (1, 2, 4)
SMOKE = {"recordings": 80, "scale": 0.1, "seconds": 2.0}
SECONDS = 15.0  # of load on the server, for every number of clients


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--recordings", type=int, default=20_000)
    options.add_argument("--folder", type=Path, default=Path("build/corpus"), help="where recordings and outputs lie")
    options.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES), help="none: only the report")
    options.add_argument("--scale", type=float, default=1.0, help="of the recordings that each stage takes")
    options.add_argument("--make", action="store_true", help="make the recordings and end")
    options.add_argument("--smoke", action="store_true", help="few recordings, for trying out")
    options.add_argument("--one", help="internal: one stage in this process, its result into a file")
    o = options.parse_args()
    scale = SMOKE["scale"] if o.smoke else o.scale
    recordings = int(SMOKE["recordings"]) if o.smoke else o.recordings
    paths = make(o.folder, recordings)
    if o.make:
        return
    if o.one:
        one(o.one, paths, o.folder, {stage: max(round(n * scale), 24) for stage, n in COUNTS.items()}, o.smoke)
        return
    for run in (
        f"ray:{n}" if stage == "ray" else stage for stage in o.stages for n in (ACTORS if stage == "ray" else (0,))
    ):
        print(f"stage {run} …", flush=True)
        program = [sys.executable, "-m", "benchmarks.corpus", "--one", run, "--folder", str(o.folder)]
        program += ["--recordings", str(recordings), "--scale", str(scale)]
        subprocess.run([*program, *(["--smoke"] if o.smoke else [])], check=True)
    content: dict[str, Any] = {
        **facts(), "processor": processor(), "goals": GOALS, "share": SHARE, "recordings": recordings,
    }  # fmt: skip
    content["stages"] = {}  # when and of which commit each was measured, and what else ran
    for path in sorted(o.folder.glob("stage_*.json")):
        name, made = path.stem.removeprefix("stage_"), json.loads(path.read_text())
        content[name] = made["result"]
        content["stages"][name] = {key: made[key] for key in ("commit", "date", "load")}
    write(o.out, "corpus", content, report(content))


def one(run: str, paths: dict[str, list[Path]], folder: Path, counts: dict[str, int], smoke: bool) -> None:
    """One stage, its result in ``stage_NAME.json``."""
    stage, _, number = run.partition(":")
    result: dict[str, Any]
    if stage == "corpus":
        result = stage_corpus(paths, folder)
    elif stage == "ray":
        result = stage_ray(paths, folder, counts["ray"], int(number))
    elif stage == "serve":
        result = stage_serve(paths, folder, SMOKE["seconds"] if smoke else SECONDS)
    else:
        stages = {"parity": stage_parity, "loop": stage_loop, "kill": stage_kill}
        result = stages[stage](paths, folder, counts[stage])
    with atomic_write(folder / f"stage_{run.replace(':', '_')}.json") as file:
        json.dump({**facts(), "load": os.getloadavg()[0], "result": result}, file)


if __name__ == "__main__":
    main()
