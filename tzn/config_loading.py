"""YAML files and command-line overrides into the typed :class:`tzn.config.ExperimentConfig`, and back."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tzn.config import ExperimentConfig
from tzn.errors import ConfigError
from tzn.models.config import ActionFormerConfig, TemporalZoomNetConfig

ACTIONFORMER = "actionformer"  # section that replaces "model" to choose the baseline network
PACKAGED = Path(__file__).resolve().parent / "configs"  # configurations that come with the package


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
        content = _read_yaml(Path(path))
    # Checked on their own first, so that an error names the file and not the override.
    sections = _sections(content, source)
    _apply(sections, overrides)
    return _build(sections, f"{source} with overrides {' '.join(overrides)}" if path and overrides else source)


def override_config(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """``config`` with ``section.name=value`` overrides, checked as by :func:`load_config`."""
    sections = _sections(config_to_dict(config), "configuration")
    _apply(sections, overrides)
    return _build(sections, f"overrides {' '.join(overrides)}")


def config_from_dict(content: Mapping[str, Any]) -> ExperimentConfig:
    """The inverse of :func:`config_to_dict`; raises ConfigError as :func:`load_config`."""
    return _build(_sections(content, "configuration"), "configuration")


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """The configuration as plain dicts, lists, numbers, texts and None; fit for checkpoints and YAML."""
    return {
        name: {f.name: _plain(getattr(part, f.name)) for f in dataclasses.fields(part)}
        for section in dataclasses.fields(config)
        for part in [getattr(config, section.name)]
        for name in [ACTIONFORMER if isinstance(part, ActionFormerConfig) else section.name]
    }


def dump_config(config: ExperimentConfig) -> str:
    """The configuration as YAML text that :func:`load_config` reads back to an equal configuration."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, default_flow_style=None, allow_unicode=True)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _apply(sections: dict[str, dict[str, Any]], overrides: Sequence[str]) -> None:
    for override in overrides:
        section, name, value = _parse_override(override)
        checked = _sections({section: {name: value}}, f"override {override!r}")
        sections.setdefault(section, {}).update(checked[section])


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a repeated key win silently; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is set twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file() and (PACKAGED / path.name).is_file() and path.parent.name in ("", "configs"):
        path = PACKAGED / path.name  # outside a checkout, configs/NAME.yaml is the packaged one
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else PACKAGED
        files = sorted(f.name for f in folder.glob("*.y*ml")) if folder.is_dir() else []
        available = f"{folder} has: {', '.join(files)}" if files else f"{folder} has no YAML files"
        raise ConfigError(f"{path}: no such configuration; {available}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections {', '.join(_section_types())}, found a {type(content).__name__}")
    return content


def _parse_override(override: str) -> tuple[str, str, Any]:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot or not key:
        hint = _where(section) if equals else ""
        raise ConfigError(f"override {override!r}: expected section.name=value, e.g. training.epochs=3{hint}")
    try:
        return section, key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: value is not valid YAML: {' '.join(str(error).split())}") from None


def _section_types() -> dict[str, type]:
    hints = typing.get_type_hints(ExperimentConfig)
    return {**hints, "model": TemporalZoomNetConfig, ACTIONFORMER: ActionFormerConfig}


def _field_types(section: str) -> dict[str, Any]:
    return typing.get_type_hints(_section_types()[section])


def _sections(content: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """Checked and converted values by section and name."""
    result: dict[str, dict[str, Any]] = {}
    for section, values in content.items():
        if section not in _section_types():
            hint = _where(section) or _suggest(section, _section_types())
            raise ConfigError(f"{source}: unknown section {section!r}{hint}")
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: section {section!r} is {values!r}, expected names and values")
        hints = _field_types(section)
        result[section] = {}
        for name, value in values.items():
            if name not in hints:
                hint = _where(name) or _suggest(name, hints)
                raise ConfigError(f"{source}: unknown name {section}.{name}{hint}")
            try:
                result[section][name] = _convert(value, hints[name])
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{source}: {section}.{name} = {value!r}: expected {error}") from None
    return result


def _where(name: object) -> str:
    """Hint where a name belongs that was written in the wrong place."""
    homes = [section for section in _section_types() if name in _field_types(section) and section != ACTIONFORMER]
    return f"; did you mean {' or '.join(f'{home}.{name}' for home in homes)}?" if homes else ""


def _suggest(name: object, valid: Iterable[str]) -> str:
    valid = list(valid)
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of: {', '.join(valid)}"


def _convert(value: Any, wanted: Any) -> Any:
    """``value`` as type ``wanted``; raises ValueError that says what was expected."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        expected = []
        for inner in arguments:
            if inner is type(None):
                expected.append("null")
                continue
            try:
                return _convert(value, inner)
            except ValueError as error:
                expected.append(str(error))
        raise ValueError(", or ".join(expected))
    if origin is tuple:
        return _convert_tuple(value, arguments)
    if wanted is bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    return _SCALARS[wanted](value)


def _convert_tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    open_ended = len(arguments) == 2 and arguments[1] is Ellipsis
    expected = "a list" if open_ended else f"a list of {len(arguments)} values"
    if not isinstance(value, (list, tuple)) or not (open_ended or len(value) == len(arguments)):
        raise ValueError(expected)
    inner = [arguments[0]] * len(value) if open_ended else arguments
    try:
        return tuple(_convert(v, t) for v, t in zip(value, inner, strict=True))
    except ValueError as error:
        raise ValueError(f"{expected}, each {error}") from None


def _to_int(value: Any) -> int:
    number = _number(value)
    if number is None or not float(number).is_integer():
        raise ValueError("an integer")
    return int(number)


def _to_float(value: Any) -> float:
    number = _number(value)
    if number is None:
        raise ValueError("a number")
    return float(number)


def _number(value: Any) -> int | float | None:
    """Finite numbers; also texts such as ``1e-3``, which YAML 1.1 does not take for a number."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def _to_str(value: Any) -> str:
    # An override such as training.precision=32 or data.validation=[12] reads as a number.
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError("a text")


_SCALARS: dict[Any, Any] = {int: _to_int, float: _to_float, str: _to_str}


def _build(sections: dict[str, dict[str, Any]], source: str) -> ExperimentConfig:
    parts = {}
    if ACTIONFORMER in sections and "model" in sections:
        raise ConfigError(f"{source}: sections 'model' (TemporalZoomNet) and 'actionformer' exclude each other")
    left_out = "model" if ACTIONFORMER in sections else ACTIONFORMER
    for name, kind in _section_types().items():
        if name == left_out:
            continue
        values = sections.get(name, {})
        required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        missing = [f"{name}.{key}" for key in required if key not in values]
        if missing:
            raise ConfigError(f"{source}: {' and '.join(missing)} must be set")
        try:
            parts["model" if name == ACTIONFORMER else name] = kind(**values)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None
    return ExperimentConfig(**parts)
