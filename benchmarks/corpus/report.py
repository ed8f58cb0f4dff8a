"""What the stages measured as a page, and what an archive would take by it."""

from __future__ import annotations

from typing import Any

from benchmarks.corpus.recordings import KINDS, SHARE
from benchmarks.lib.provenance import line
from benchmarks.lib.tables import table

GOALS = {"over_loop": 3.0, "linear": 0.9}
# A user's archive, and machines to rent. The price is an assumption, everything else is measured.
HOURS, MACHINES, CORES, DOLLARS = 100_000, 64, 16, 0.04  # dollars per core and hour


def rate_over_corpus(rates: dict[str, float]) -> float:
    """Recordings a second of the mixed corpus from those of its kinds."""
    return 1 / sum(SHARE[kind] / rates[kind] for kind in KINDS)


def paper(whole: dict[str, Any]) -> list[list[str]]:
    """What an archive would take, from what ``stage_corpus`` measured."""
    columns = []
    for kind in KINDS:
        w = whole[kind]
        scale = HOURS / w["hours"]
        core_hours = scale * w["seconds"] * w["workers"] / 3600
        minutes = 60 * core_hours / (MACHINES * CORES)
        read = scale * w["input_bytes"]
        columns.append(
            [
                f"{scale * w['recordings'] / 1e6:,.1f} million",
                f"{core_hours:,.0f}",
                f"{minutes:,.1f}",
                f"${DOLLARS * core_hours:,.0f}",
                f"{read / 1e12:.2f}",
                f"{read / minutes / 60 / MACHINES / 1e6:,.0f}",
                f"{scale * w['recordings'] / minutes / 60:,.0f}",
                f"{scale * w['rows'] / 1e9:.2f} billion",
                f"{scale * w['bytes'] / 1e9:,.0f}",
            ]
        )
    names = (
        "recordings", "core-hours", "minutes", "cost", "TB read", "MB a second and machine", "files opened a second",
        "rows", "GB written",
    )  # fmt: skip
    return [[name, *row] for name, *row in zip(names, *columns, strict=True)]


def _cpu(content: dict[str, Any]) -> list[list[str]]:
    rows: list[list[str]] = []
    if loop := content.get("loop"):
        for threads in (2, 1):
            rows.append(
                [f"loop, threads: {threads}", *(f"{loop[k][f'threads_{threads}']['cpu_ms']:.1f}" for k in KINDS)]
            )
    if (whole := content.get("corpus")) and "cpu_ms" in whole[KINDS[0]]:
        rows.append(["tzn predict, start and end included", *(f"{whole[k]['cpu_ms']:.1f}" for k in KINDS)])
    for actors in (1, 2, 4):
        part = content.get(f"ray_{actors}")
        if part and "cpu_ms" in part[KINDS[0]]:
            for who, name in (("actors", "the actors"), ("driver", "the driver"), ("others", "Ray's other processes")):
                rows.append([f"Ray, actors: {actors}, {name}", *(f"{part[k]['cpu_ms'][who]:.1f}" for k in KINDS)])
    return rows


def report(content: dict[str, Any]) -> str:
    loop, whole = content.get("loop"), content.get("corpus")
    rows: list[list[str]] = []
    base = None

    def row(name: str, rates: dict[str, float], goal: str = "") -> None:
        mixed = rate_over_corpus(rates)
        over = "" if base is None else f"{mixed / base:.2f}"
        rows.append([name, *(f"{x:.1f}" for x in (rates["ludb"], rates["hapt"], mixed)), over, goal])

    if loop:
        row("loop over recordings, 2 threads", {k: loop[k]["threads_2"]["per_second"] for k in KINDS})
        base = rate_over_corpus({k: loop[k]["threads_2"]["per_second"] for k in KINDS})
        row("loop over recordings, 1 thread", {k: loop[k]["threads_1"]["per_second"] for k in KINDS})
    if whole:
        name = f"tzn predict --workers {whole['ludb']['workers']}, all {sum(whole[k]['recordings'] for k in KINDS):,}"
        row(name, {k: whole[k]["per_second"] for k in KINDS}, f"goal {GOALS['over_loop']:g}")
    for actors in (1, 2, 4):
        if part := content.get(f"ray_{actors}"):
            row(f"Ray, actors: {actors}", {k: part[k]["per_second"] for k in KINDS})
    text = [f"# A corpus on this machine\n\n{line(content)} {content['processor']}.\n"]
    commits: dict[str, list[str]] = {}
    for name, made in content["stages"].items():
        commits.setdefault(f"commit {made['commit']}, {made['date']}", []).append(name)
    told = "; ".join(f"{', '.join(names)}: {commit}" for commit, names in commits.items())
    text.append(f"Stages were measured as follows: {told}.\n")
    text.append(table(["recordings a second", "ludb", "hapt", "mixed", "over the loop", ""], rows))
    if (one := content.get("ray_1")) and (two := content.get("ray_2")):
        linear = ", ".join(f"{50 * two[k]['per_second'] / one[k]['per_second']:.0f} % ({k})" for k in KINDS)
        text.append(f"Two Ray actors against twice one: {linear}; goal {100 * GOALS['linear']:.0f} %.\n")
    if spent := _cpu(content):
        text.append(
            "CPU time, which depends least on what else the machine does (Ray: between the first files and the last):\n"
        )
        text.append(table(["CPU ms a recording", *KINDS], spent))
    if same := content.get("parity"):
        told = ", ".join(
            f"{same[k]['detections']:,} detections of {same[k]['recordings']} recordings ({k}), largest difference "
            f"{same[k]['largest_difference']:.1e}" for k in KINDS
        )  # fmt: skip
        text.append(f"The same results as one by one: {told}.\n")
    if whole:
        text.append("## Memory over time\n")
        memory = [
            [
                k,
                str(len(whole[k]["samples"])),
                *(f"{q['children']:.0f} + {q['parent']:.0f}" for q in whole[k]["memory_mb"]),
            ]
            for k in KINDS
        ]
        header = ["MB (Pss), children + parent", "samples", "1st quarter", "2nd", "3rd", "4th"]
        text.append(table(header[: len(memory[0])], memory))
        text.append(f"## {HOURS:,} hours on {MACHINES} machines of {CORES} cores, from the rates above\n")
        text.append(table(["", *KINDS], paper(whole)))
        text.append(
            f"A core-hour is taken to cost ${DOLLARS}; rates scale with cores as they do here, which was not tried.\n"
        )
    for name, kill in content.get("kill", {}).items():
        text.append(
            f"`tzn {name}`: the command killed {kill['driver']} times, a process below it {kill['below']} times; the "
            f"{kill['rows']:,} rows of {kill['recordings']:,} recordings are those of an undisturbed run (largest difference "
            f"{kill['largest_difference']:.1e}); {kill['seconds_killed']:.0f} s for {kill['seconds_undisturbed']:.0f}.\n"
        )
    if serve := content.get("serve"):
        text.append("## tzn serve ludb, loopback\n")
        header = ["clients", "requests a second", "p50 ms", "p95 ms", "p99 ms"]
        keys = ("per_second", "p50_ms", "p95_ms", "p99_ms")
        text.append(table(header, [[str(c["clients"]), *(f"{c[k]:.1f}" for k in keys)] for c in serve["clients"]]))
        s = serve["sigterm"]
        text.append(
            f"Memory {serve['memory_before_mb']:.0f} MB before, {serve['memory_after_mb']:.0f} MB after. SIGTERM with 8 "
            f"clients at work: {s['answered']} requests answered, {s['cut_off']} cut off, exit code {s['exit_code']}.\n"
        )
    return "\n".join(text)
