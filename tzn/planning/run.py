"""``tzn init`` and ``tzn train DATA``: from a folder to a plan, timed on this machine."""

from __future__ import annotations

from pathlib import Path

from tzn.errors import ConfigError
from tzn.files import atomic_write
from tzn.planning.fingerprint import read_fingerprint
from tzn.planning.plan import ModelKind, Plan, Rules, make_plan
from tzn.planning.write import plan_text


def plan_folder(
    data: Path, *, model: ModelKind = "tzn", minutes: float = 20.0, device: str = "cpu", rules: Rules | None = None,
    seed: int = 0, progress: bool = True,
) -> Plan:  # fmt: skip
    """The plan for a data folder and this machine.

    Raises:
        ConfigError: a budget of no time. DataError: see :func:`tzn.planning.read_fingerprint`.
    """
    from tzn.planning.timing import measure_cost

    if not minutes > 0:
        raise ConfigError(f"--minutes {minutes:g}: expected CPU minutes above 0")
    found = read_fingerprint(data, progress=progress)
    place = "cpu" if device == "auto" else device
    return make_plan(found, model=model, minutes=minutes, rules=rules, measure=measure_cost(data, place), seed=seed)


def write_plan(plan: Plan, path: Path, command: str, data: Path) -> None:
    """The plan as a commented YAML file; what is there is not overwritten.

    Raises:
        ConfigError: the file is there.
    """
    if path.exists():
        raise ConfigError(f"{path}: is there already; choose another --out")
    with atomic_write(path) as file:
        file.write(plan_text(plan, command, data=str(data)))


def summary(plan: Plan) -> str:
    """A few lines for the terminal."""
    training = plan.sections["training"]
    steps = plan.value("training", "epochs") * plan.value("data", "crops_per_epoch") // training["batch_size"].value
    expected = "" if plan.minutes is None else f", about {plan.minutes:.1f} CPU minutes"
    lines = [*plan.found.describe(), f"plan: {steps} steps of {training['batch_size'].value} crops of "
             f"{plan.value('data', 'max_length')} steps{expected}"]  # fmt: skip
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])
