"""What a measurement is and which goals it is held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.timing import interleaved, summary

SECONDS, ROUNDS = 15.0, (7, 60)
WARM = 10  # a predecessor that streams hundreds of megabytes through the caches is felt for as many calls


@dataclasses.dataclass
class Goal:
    """A ratio and what it is to reach; ``below``: smaller is better."""

    name: str
    value: float
    least: float
    aim: float
    below: bool = False

    @property
    def mark(self) -> str:
        sign = -1 if self.below else 1
        if sign * self.value >= sign * self.aim:
            return "aim reached"
        return "pass" if sign * self.value >= sign * self.least else "MISSED"


@dataclasses.dataclass
class Measurement:
    """One piece of work: seconds of every way to do it, goals, and how near ours comes to a ceiling of the machine."""

    work: str
    seconds: dict[str, dict[str, float]]
    goals: list[Goal] = dataclasses.field(default_factory=list)
    roofline: str = ""

    def to_dict(self) -> dict[str, Any]:
        goals = [dataclasses.asdict(goal) | {"mark": goal.mark} for goal in self.goals]
        return {"work": self.work, "seconds": self.seconds, "goals": goals, "roofline": self.roofline}


def medians(runs: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Interleaved seconds of each run, after two of each that are not counted."""
    for run in runs.values():
        run()
        run()
    return {name: summary(times) for name, times in interleaved(runs, "cpu", ROUNDS, SECONDS, warm=WARM).items()}
