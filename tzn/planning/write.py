"""A plan as a YAML file that says why."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from tzn.config_loading import config_to_dict
from tzn.planning.plan import Plan

COLUMNS = 118
ORDER = ("model", "actionformer", "data", "front_end", "training", "inference", "evaluation")


def plan_text(plan: Plan, command: str, *, data: str) -> str:
    """The configuration as YAML, every choice with its reason; ``tzn.config_loading.load_config`` reads it.

    Args:
        plan: the choices.
        command: that made it.
        data: the folder, for the line that says how to train.
    """
    lines = [f"# Made by '{command}' from the data alone. What it found:"]
    for text in plan.found.describe():
        lines += _comment(text, "#   ")
    for note in plan.notes:
        lines += _comment(f"Note: {note}.", "# ")
    if plan.minutes is not None:
        lines.append(
            f"# Training is expected to take {plan.minutes:.1f} CPU minutes (of all threads together) on this machine."
        )
    lines += ["#", f"#   tzn train THIS_FILE --data {data} --out runs/my", ""]
    everything = config_to_dict(plan.config())
    for section in ORDER:
        if section not in everything or (section == "front_end" and section not in plan.sections):
            continue
        choices = plan.sections.get(section, {})
        lines.append(f"{section}:")
        said = ""
        for name, choice in choices.items():
            if choice.reason != said:  # neighbours may share one
                lines += _comment(choice.reason, "  # ")
            said = choice.reason
            lines.append("  " + _setting(name, everything[section][name]))
        rest = [name for name in everything[section] if name not in choices]
        if rest:
            lines.append("  # As always:")
            lines += ["  " + _setting(name, everything[section][name]) for name in rest]
        lines.append("")
    return "\n".join(lines)


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), COLUMNS, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
    )


def _setting(name: str, value: Any) -> str:
    # A list of one value in flow style, without the brackets: the value in one line.
    plain = yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True).strip()
    return f"{name}: {plain[1:-1]}"
