"""Time, memory and multiply-adds of ActionFormer and TemporalZoomNet at THUMOS14 shape.

usage: python -m benchmarks.latency [--quick | --long] [--device cpu] [--threads 2] [--out benchmarks/results]

Runs are interleaved: every round runs each row once, rows rotate. Medians with quartiles over rounds, p95; peak memory of
the run that warms up. "forward": network outputs, heads everywhere. "detect": features in, final
detections out. Before anything is timed, the published path and ours must give
the same outputs, and every network of ours those that the ops' definitions give. Depth is a fixed pattern:
a share of the tokens, in clusters of 64 steps, runs all refinement layers, the others none.
"""

from __future__ import annotations

from typing import Any

import torch
from tqdm import tqdm

from benchmarks.lib import parity
from benchmarks.lib.contenders import COMPILED, FULL, PORT, SLOW, Contender, batch, contenders, share_name
from benchmarks.lib.peak_memory import peak_megabytes
from benchmarks.lib.provenance import facts, line, parser, write, write_json
from benchmarks.lib.tables import table
from benchmarks.lib.timing import interleaved, summary
from tzn import ops

# (batch, steps): --quick, default, --long
CELLS = {
    "quick": [(1, 576), (1, 2304)],
    "default": [(1, 576), (1, 600), (1, 2304), (1, 9216), (1, 18432), (8, 576), (8, 2304)],
    "long": [(8, 576), (8, 2304), (8, 9216), (8, 18432)],
}
# Some rows will do where padding, or growth with length, is in question.
FEW = (SLOW, PORT, FULL, share_name(0.25))
LONGEST = 18432  # steps of a batch, beyond which detections are not timed
COMPILED_STEPS = (576, 2304)  # each new shape compiles for about a minute
SECONDS, ROUNDS = 20.0, {"quick": (3, 15), "default": (3, 15), "long": (2, 9)}  # of a shape: aim; least and most rounds
CHECKED_STEPS = 600  # no multiple of what anything is padded to
SAME = {"rtol": 1e-3, "atol": 1e-4}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="two shapes, few rounds")
    arguments.add_argument("--long", action="store_true", help="batches of 8 up to T = 18432, fewer rows; 15 minutes")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--no-compile", action="store_true")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    size = "long" if options.long else "quick" if options.quick else "default"
    name = f"latency{'' if size == 'default' else '_' + size}"
    rows = contenders(options.device, compiled=not options.no_compile)
    check_same_outputs(rows, options.device)
    cells = []
    for count, steps in tqdm(CELLS[size], desc="shapes"):
        cells += measure(rows, (count, steps), options.device, size)
        content = {**facts(options.device), "backends": ops.backends(), "cells": cells}
        write_json(options.out / f"{name}.json", content)  # after every shape: what is measured stays
    write(options.out, name, content, markdown(content))


def check_same_outputs(rows: list[Contender], device: str) -> None:
    """The published path and the port give the same class logits and detections; every row is what the ops define."""
    slow, port = rows[0], rows[1]
    inputs = batch(1, CHECKED_STEPS, device)
    with torch.no_grad():
        ours = port.forward(*inputs)
        parity.same("the published path and ours", logits(slow.forward(*inputs), ours.masks), logits(ours), **SAME)
        wanted, found = slow.detect(*inputs)[0], port.detect(*inputs)[0][0]
        parity.same("detections of the published path and ours", wanted[1].cpu(), torch.as_tensor(found.scores), **SAME)
        for row in rows:
            if row.name not in (SLOW, COMPILED):  # neither runs tzn's ops by another name
                outputs = logits(row.forward(*inputs))
                wanted = parity.by_definition(lambda row=row: logits(row.forward(*inputs)))
                parity.same(f"{row.name} and its definition", outputs, wanted, **SAME)


def logits(outputs: Any, masks: Any = None) -> Any:
    """Class logits; of a list of levels the steps that ``masks`` (by default the outputs' own) hold valid."""
    if isinstance(outputs.class_logits, torch.Tensor):
        return outputs.class_logits
    masks = outputs.masks if masks is None else masks
    return [x[:, : int(m[0].sum())] for x, m in zip(outputs.class_logits, masks, strict=True)]


def measure(rows: list[Contender], shape: tuple[int, int], device: str, size: str) -> list[dict[str, Any]]:
    """One shape: network outputs; detections too unless the other run has them, or there is too much to wait for."""
    count, steps = shape
    inputs = batch(count, steps, device)
    if size == "long" or steps in (600, 18432):
        rows = [r for r in rows if r.name in FEW]
    rows = [r for r in rows if r.name != COMPILED or (count == 1 and steps in COMPILED_STEPS)]
    runs = {(r.name, "forward"): (lambda r=r: r.forward(*inputs)) for r in rows}
    if (count == 1 or size == "long") and count * steps <= LONGEST and steps < LONGEST:
        runs |= {(r.name, "detect"): (lambda r=r: r.detect(*inputs)) for r in rows if r.detect}
    with torch.no_grad():
        for row in rows:
            if row.name == COMPILED:  # compiled anew for every shape
                given, wanted = (r.forward(*inputs) for r in (row, rows[1]))
                parity.same(f"{COMPILED}, T = {steps}", logits(given), logits(wanted), **SAME)
        memory = {key: peak_megabytes(run, device) for key, run in runs.items()}  # the runs that warm up, too
        times = interleaved(runs, device, ROUNDS[size], SECONDS)
    results = []
    for row in rows:
        gmac = count * row.gmac(*batch(1, steps, device))
        entry = {"row": row.name, "base": row.base, "batch": count, "steps": steps, "gmac": gmac}
        entry |= {"peak_megabytes": memory[row.name, "forward"]}
        entry |= {kind: summary(seconds) for (name, kind), seconds in times.items() if name == row.name}
        results.append(entry)
    return results


def markdown(content: dict[str, Any]) -> str:
    """A table per shape, then the two ratios that the port is held to."""
    used = ", ".join(name for name, state in content["backends"].items() if state == "available")
    lines = [f"{line(content)} Back ends: {used}.", ""]
    at = {(c["row"], c["batch"], c["steps"]): c for c in content["cells"]}
    for count, steps in dict.fromkeys((c["batch"], c["steps"]) for c in content["cells"]):
        lines += [f"Batch {count}, T = {steps}", ""]
        header = ["", "GMAC", "forward (quartiles)", "p95", "detect", "peak", "saved time / saved multiply-adds"]
        rows = [cell for cell in content["cells"] if (cell["batch"], cell["steps"]) == (count, steps)]
        lines += [table(header, [cells(row, at[row["base"], count, steps]) for row in rows])]
    return "\n".join(lines + ratios(at))


def cells(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    forward, detect = row["forward"], row.get("detect")
    saved = 1 - row["gmac"] / base["gmac"]
    ratio = (1 - forward["median"] / base["forward"]["median"]) / saved if saved > 0.01 else None
    return [
        row["row"], f"{row['gmac']:.1f}", f"{_ms(forward['median'])} ({_ms(forward['q1'])}-{_ms(forward['q3'])}) ms",
        f"{_ms(forward['p95'])} ms", f"{_ms(detect['median'])} ms" if detect else "-",
        f"{row['peak_megabytes']:.0f} MB", "-" if ratio is None else f"{ratio:.2f}",
    ]  # fmt: skip


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}"


def ratios(at: dict[tuple[str, int, int], dict[str, Any]]) -> list[str]:
    lines = []
    for (row, count, steps), cell in at.items():
        if row != SLOW:
            continue
        for name in (PORT, FULL):
            other = at[name, count, steps]
            parts = [
                f"{kind} {cell[kind]['median'] / other[kind]['median']:.2f} x"
                for kind in ("forward", "detect")
                if kind in cell and kind in other
            ]
            lines.append(
                f"* batch {count}, T = {steps}: {name} is faster than the published path by {', '.join(parts)}"
            )
    return lines + [""]


if __name__ == "__main__":
    main()
