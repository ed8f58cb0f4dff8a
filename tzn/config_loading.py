"""YAML files and command-line overrides into the typed :class:`tzn.config.ExperimentConfig`, and back."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tzn.checked import Checked, choices, describe, hints, kinds, meanings, shown
from tzn.config import DataConfig, EvaluationConfig, ExperimentConfig, FrontEndConfig, InferenceConfig, TrainingConfig
from tzn.errors import ConfigError
from tzn.models.config import ActionFormerConfig, TemporalZoomNetConfig

ACTIONFORMER = ActionFormerConfig.section  # replaces "model" to choose the baseline network
SECTIONS: dict[str, type[Checked]] = {
    kind.section: kind
    for kind in (
        TemporalZoomNetConfig, DataConfig, FrontEndConfig, TrainingConfig, InferenceConfig, EvaluationConfig,
        ActionFormerConfig,
    )
}  # fmt: skip
# Of the section "data", what only training crops go through.
AUGMENTATION = (
    "max_length", "crop_ratio", "trunc_thresh", "noise", "gain", "stretch", "exact_channels", "crops_per_epoch", "balance",
    "samples_per_step",
)  # fmt: skip
PACKAGED = Path(__file__).resolve().parent / "configs"  # configurations that come with the package


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: "section.name".
        types: JSON's names of the types it takes.
        allowed: which values are right, in words.
        choices: all of them, where they are a list of texts.
        required: it has no default.
        default: as plain data; None where required.
        meaning: what it does.
    """

    name: str
    types: tuple[str, ...]
    allowed: str
    choices: tuple[str, ...]
    required: bool
    default: Any
    meaning: str


def config_keys(wanted: str | None = None) -> list[Key]:
    """Keys of a configuration, from the annotations and docstrings that its sections are checked by.

    Args:
        wanted: a key ("training.epochs"), a section ("training"), or a name in any section ("epochs"); None: all.

    Raises:
        ConfigError: there is none of that name; says which comes nearest.
    """
    found = []
    for section, kind in SECTIONS.items():
        texts = meanings(kind)
        for field in dataclasses.fields(kind):
            hint = hints(kind)[field.name]
            required = field.default is dataclasses.MISSING
            found.append(
                Key(
                    f"{section}.{field.name}", tuple(kinds(hint)), describe(hint), tuple(choices(hint)), required,
                    None if required else _plain(field.default), texts.get(field.name, ""),
                )
            )  # fmt: skip
    if wanted is None:
        return found
    chosen = [key for key in found if wanted in (key.name, *key.name.split("."))]
    if not chosen:
        raise ConfigError(f"no key {wanted!r}{_suggest(wanted, [*(key.name for key in found), *SECTIONS], limit=8)}")
    return chosen


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment.

    Args:
        path: YAML file with sections ``model``, ``data``, ``training``, ``inference``, ``evaluation``; None: defaults.
        overrides: ``section.name=value`` texts, the value in YAML (``data.crop_ratio=[0.9,1.0]``); later ones win.

    Raises:
        ConfigError: missing file, invalid YAML, unknown section or name (with the nearest valid one), value of the
            wrong type or outside its range; the message names the file or the override.
    """
    content: dict[str, Any] = {}
    source = "overrides"
    if path is not None:
        source = str(path)
        content = read_yaml(Path(path))
    # Checked on their own first, so that an error names the file and not the override.
    sections = _sections(content, source)
    _apply(sections, overrides)
    return _build(sections, f"{source} with overrides {' '.join(overrides)}" if path and overrides else source)


def override_config(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """``config`` with ``section.name=value`` overrides, checked as by :func:`load_config`."""
    sections = _sections(config_to_dict(config), "configuration")
    _apply(sections, overrides)
    return _build(sections, f"overrides {' '.join(overrides)}")


def override_trained(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """:func:`override_config` for the configuration of a trained network.

    Raises:
        ConfigError: also an override that would change nothing, as the network is made and trained.
    """
    changed = override_config(config, overrides)
    for override in overrides:
        section, name, _ = _parse_override(override)
        if section not in ("data", "inference", "evaluation") or (section == "data" and name in AUGMENTATION):
            raise ConfigError(
                f"override {shown(override)}: has no effect on a trained network; expected one of data, inference or evaluation"
                " that matters after training"
            )
    return changed


def config_from_dict(content: Mapping[str, Any]) -> ExperimentConfig:
    """The inverse of :func:`config_to_dict`; raises ConfigError as :func:`load_config`."""
    return _build(_sections(content, "configuration"), "configuration")


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """The configuration as plain dicts, lists, numbers, texts and None; fit for checkpoints and YAML."""
    return {
        part.section: {f.name: _plain(getattr(part, f.name)) for f in dataclasses.fields(part)}
        for section in dataclasses.fields(config)
        for part in [getattr(config, section.name)]
    }


def dump_config(config: ExperimentConfig) -> str:
    """The configuration as YAML text that :func:`load_config` reads back to an equal configuration."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, default_flow_style=None, allow_unicode=True)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _apply(sections: dict[str, dict[str, Any]], overrides: Sequence[str]) -> None:
    for override in overrides:
        section, name, value = _parse_override(override)
        checked = _sections({section: {name: value}}, f"override {shown(override)}")
        sections.setdefault(section, {}).update(checked[section])


class _Loader(yaml.SafeLoader):
    """YAML lets a repeated key win silently; here it is an error. And 1e3 is a number, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is set twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    """Content of a YAML text; raises ValueError with one line that says what is wrong."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an integer of thousands of digits, a date that is none
        raise ValueError(" ".join(str(error).split())[:300]) from None


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file() and (PACKAGED / path.name).is_file() and path.parent.name in ("", "configs"):
        path = PACKAGED / path.name  # outside a checkout, configs/NAME.yaml is the packaged one
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else PACKAGED
        files = sorted(f.name for f in folder.glob("*.y*ml")) if folder.is_dir() else []
        available = f"{folder} has: {', '.join(files)}" if files else f"{folder} has no YAML files"
        raise ConfigError(f"{path}: no such configuration; {available}")
    try:
        content = _yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections {', '.join(SECTIONS)}, found a {type(content).__name__}")
    return content


def _parse_override(override: str) -> tuple[str, str, Any]:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot or not key:
        hint = _where(section) if equals else ""
        raise ConfigError(f"override {shown(override)}: expected section.name=value, e.g. training.epochs=3{hint}")
    try:
        return section, key, _yaml(text)
    except ValueError as error:
        raise ConfigError(f"override {shown(override)}: value is not valid YAML: {error}") from None


def _sections(content: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """Checked and converted values by section and name."""
    result: dict[str, dict[str, Any]] = {}
    for section, values in content.items():
        if section not in SECTIONS:
            hint = _where(section) or _suggest(section, SECTIONS)
            raise ConfigError(f"{source}: unknown section {shown(section)}{hint}")
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: section {section!r} is {shown(values)}, expected names and values")
        kind = SECTIONS[section]
        for name in values:
            if name not in hints(kind):
                hint = _where(name) or _suggest(name, hints(kind))
                raise ConfigError(f"{source}: unknown name {section}.{name}{hint}")
        try:
            result[section] = {name: kind.convert(name, value) for name, value in values.items()}
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
    return result


def _where(name: object) -> str:
    """Hint where a name belongs that was written in the wrong place."""
    homes = [section for section, kind in SECTIONS.items() if name in hints(kind) and section != ACTIONFORMER]
    return f"; did you mean {' or '.join(f'{home}.{name}' for home in homes)}?" if homes else ""


def _suggest(name: object, valid: Iterable[str], limit: int | None = None) -> str:
    valid = list(valid)
    # The last part on its own too, so that "epoch" comes near to "training.epochs".
    near = {word: text for text in reversed(valid) for word in (text.split(".")[-1], text)}
    close = difflib.get_close_matches(str(name), near, n=1, cutoff=0.5)
    return f"; did you mean {near[close[0]]!r}?" if close else f"; expected one of: {', '.join(valid[-(limit or 0) :])}"


def _build(sections: dict[str, dict[str, Any]], source: str) -> ExperimentConfig:
    if ACTIONFORMER in sections and "model" in sections:
        raise ConfigError(f"{source}: sections 'model' (TemporalZoomNet) and 'actionformer' exclude each other")
    left_out = "model" if ACTIONFORMER in sections else ACTIONFORMER
    parts: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        if name == left_out:
            continue
        values = sections.get(name, {})
        required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        missing = [f"{name}.{key}" for key in required if key not in values]
        if missing:
            raise ConfigError(f"{source}: {' and '.join(missing)} must be set")
        try:
            parts["model" if name == ACTIONFORMER else name] = kind(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
    return ExperimentConfig(**parts)
