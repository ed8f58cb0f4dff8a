"""What a measurement of an op is and which goals it is held against."""

from __future__ import annotations

import dataclasses
from typing import Any


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
