"""Rules from a fingerprint to a configuration; every value with its reason.

The numbers in :class:`Rules` are what ``benchmarks/planning.py`` compares, each time on data sets that had no part in the
choice (``benchmarks/results/planning.md``); the rest follows from geometry and is said beside the value.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict
from tzn.data.suggest import MOST_LEVELS, OPEN_END, suggest
from tzn.errors import ConfigError
from tzn.planning.channels import EXACT, HEAVY
from tzn.planning.fingerprint import Fingerprint, grid_steps
from tzn.planning.groups import held_out

ModelKind = Literal["tzn", "actionformer"]
WIDEST_FLAT = 128  # channels that pooled steps may have side by side; wider ones are averaged
SPECTRUM_FROM = (
    8  # stored steps in a grid step, from which on a spectrogram is taken rather than the mean (docs/evidence.md)
)
SPECTRUM_WIDTH = 64  # channels that it makes
BATCH_STEPS = 4608  # grid steps of a batch: two crops of 2304
LOG_FROM = 3.0  # median sizes up to which a heavy-tailed channel stays nearly linear
MOST_CROPS = 16  # of a batch
LONGEST_CROP = 16384
EPOCHS = 20  # an epoch is what lies between two checkpoints
VALIDATIONS = (10, 5, 4, 2, 1)
VALIDATION_SHARE = 0.1  # of the budget
LOOKED_AT = 16384  # grid steps of training recordings that are scored at the end
USED = 0.7  # of the budget: by so much are steps dearer than alone (averaging, logs, a shared machine)
WIDTHS = (128, 96, 64)


@dataclass(frozen=True)
class Rules:
    """Numbers that data sets decided.

    Attributes:
        learning_rate: of AdamW at width 128; it goes with one over the root of the width.
        passes: how often training sees every step, least_steps: optimiser steps below which it never plans (of either,
            the larger; fewer where the budget ends before).
        half_life: of the weight average, as a share of the steps.
        shortest: grid steps that the shortest 2 % of segments should have, where pooling can choose.
        window: attention window.
        width: of the network, where the budget allows least_share of the wanted steps; else it is narrower.
        noise: added to standardised features.
        tame: heavy-tailed channels become logarithmic.
        rare: a class with less than this share of the median class's segments counts as rare.
        depth_weight: of the loss that holds the mean depth.
    """

    learning_rate: float = 1e-3
    passes: float = 40.0
    least_steps: int = 800
    half_life: float = 0.08
    shortest: float = 16.0
    window: int = 19
    width: int = 128
    least_share: float = 0.6
    noise: float = 0.1
    tame: bool = True
    rare: float = 0.2
    depth_weight: float = 1.0


@dataclass(frozen=True)
class Choice:
    """A value of a configuration, and why."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Cost:
    """What this machine was found to take, in CPU seconds (of all threads together).

    Attributes:
        step: of one optimiser step, averaged over a training.
        grid_step: of one grid step of a recording that detections are made for.
    """

    step: float
    grid_step: float


@dataclass
class Plan:
    """Choices by section and name, in the order in which they should be read.

    Attributes:
        found: the fingerprint that they follow from.
        sections: "model" (or "actionformer"), "data", "front_end", "training", "inference", "evaluation".
        notes: what a user should know and no single value shows.
        minutes: CPU minutes that training is expected to take; None: not timed.
    """

    found: Fingerprint
    sections: dict[str, dict[str, Choice]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    minutes: float | None = None

    def set(self, section: str, name: str, value: Any, reason: str) -> None:
        """Add a choice, or replace one."""
        self.sections.setdefault(section, {})[name] = Choice(value, reason)

    def value(self, section: str, name: str) -> Any:
        return self.sections[section][name].value

    def config(self) -> ExperimentConfig:
        """The configuration that the choices make, defaults where there is none."""
        plain = {s: {n: c.value for n, c in choices.items()} for s, choices in self.sections.items()}
        return config_from_dict(plain)


def make_plan(
    found: Fingerprint,
    *,
    model: ModelKind = "tzn",
    minutes: float = 20.0,
    rules: Rules | None = None,
    measure: Callable[[ExperimentConfig], Cost] | None = None,
    seed: int = 0,
) -> Plan:
    """Choose everything.

    Args:
        found: of the data folder.
        model: which network.
        minutes: CPU minutes that training may take.
        rules: others than the built-in ones.
        measure: times a configuration on this machine (:func:`tzn.planning.timing.measure_cost`); None: the budget plays
            no part, and all wanted steps are planned.
        seed: of the training.

    Raises:
        ConfigError: a budget of no time.
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes {minutes:g}: expected CPU minutes above 0")
    rules = rules or Rules()
    plan = Plan(found)
    pool = _data(plan, rules, model)
    on_grid = grid_steps(found, pool)
    crop = _model(plan, on_grid, rules, model)
    batch = _crops(plan, on_grid, crop)
    _augmentation(plan, on_grid, rules)
    _validation(plan)
    _inference(plan, on_grid)
    _fixed_training(plan, rules, model, seed)
    _schedule(plan, on_grid, rules, model, batch, minutes, measure)
    return plan


def _data(plan: Plan, rules: Rules, model: ModelKind) -> int:
    """Time grid; returns the stored steps in a grid step."""
    found, data = plan.found, plan.found.data
    if found.front_end.extractor is not None:
        for f in dataclasses.fields(found.front_end):
            value = getattr(found.front_end, f.name)
            plan.set(
                "front_end", f.name, list(value) if isinstance(value, tuple) else value, "as the features were made"
            )
    for name in ("annotations", "features", "file_prefix", "file_suffix", "npz_key"):
        plan.set("data", name, getattr(data, name), "as the files are named")
    plan.set("data", "train_subset", data.train_subset, "the subset to learn from")
    plan.set("data", "test_subset", data.test_subset, "the subset that 'tzn eval' scores; never looked at here")
    problems = ", ".join(f"{n} {why}" for why, n in found.problems.items())
    plan.set(
        "data",
        "strict",
        data.strict,
        f"bad segments are repaired or left out: {problems}" if problems else "no bad segments",
    )
    plan.set(
        "data", "fps", data.fps, "frames a second, of all recordings" if data.fps else "each recording has its own"
    )
    plan.set("data", "feat_stride", data.feat_stride, f"from durations and lengths: {found.rate:g} steps a second")
    plan.set("data", "num_frames", data.num_frames, "a step sees what lies before the next")
    shortest = found.percentile(2)
    pool = max(int(shortest // rules.shortest), 1)
    # A grid step must not swallow the recordings.
    pool = max(min(pool, int(np.percentile(found.steps, 5)) // 32), 1)
    flat = found.width * pool <= WIDEST_FLAT
    spectrum = not flat and model == "tzn" and pool >= SPECTRUM_FROM and not found.channels.of(*EXACT)
    plan.set(
        "data", "pool", pool,
        f"the shortest 2 % of segments last {shortest:.3g} stored steps; {rules.shortest:g} are enough"
        + ("" if pool > 1 else ", so every step is kept"),
    )  # fmt: skip
    if flat:
        kept = f"{found.width * pool} channels side by side"
    elif spectrum:
        kept = f"{pool} samples of {found.width} channels, for the front end"
    else:
        kept = f"{found.width} channels are averaged over {pool} steps"
    plan.set("data", "pool_kind", "flatten" if flat or spectrum else "mean", kept)
    return pool


def _model(plan: Plan, found: Fingerprint, rules: Rules, model: ModelKind) -> int:
    """Sizes of the network that follow from lengths; returns the steps of a crop."""
    sizes = suggest(found.lengths, found.steps.astype(float))
    plan.notes += sizes.notes
    flat = plan.value("data", "pool_kind") == "flatten"
    pool = plan.value("data", "pool") if flat else 1
    channels = plan.found.width * pool
    section = "model" if model == "tzn" else "actionformer"
    plan.set(section, "input_dim", channels, "channels of a grid step")
    if channels > WIDEST_FLAT and pool > 1:
        plan.set(section, "front_end", "spectrogram", f"a step has {pool} samples: what their frequencies are is kept")
        plan.set(section, "front_end_samples", pool, "as data.pool")
        plan.set(section, "front_end_window", 2 * pool + pool % 2, "twice a step, an even number more")
        plan.set(section, "front_end_width", SPECTRUM_WIDTH, "channels after it")
    plan.set(
        section,
        "num_classes",
        len(found.classes),
        ", ".join(found.classes[:8]) + (", …" if len(found.classes) > 8 else ""),
    )
    shortest, longest = found.percentile(2), found.percentile(98)
    if model == "actionformer":
        levels = min(1 + max(math.ceil(math.log2(max(longest, 1) / 2 / 4)), 0), MOST_LEVELS)
        edges = [0, *(4 * 2**i for i in range(levels - 1)), OPEN_END]
        plan.set(
            section, "backbone_arch", [2, 2, levels - 1], f"levels up to half of the longest 2 % ({longest:.4g} steps)"
        )
        plan.set(section, "regression_range", [list(r) for r in itertools.pairwise(edges)], "2 to 4 strides of a level")
        plan.set(section, "n_mha_win_size", rules.window, "the published window")
        coarsest = 1 << (levels - 1)
    else:
        levels = sizes.num_levels
        plan.set(
            section, "first_stride", sizes.first_stride, f"four points inside the shortest 2 % ({shortest:.3g} steps)"
        )
        plan.set(section, "num_levels", levels, f"up to half of the longest 2 % ({longest:.4g} steps)")
        plan.set(section, "regression_ranges", [list(r) for r in sizes.regression_ranges], "2 to 4 strides of a level")
        plan.set(section, "window", rules.window, "steps that a token sees; four layers see four times as far")
        plan.set(
            section, "boundary_radius", sizes.boundary_radius,
            f"a quarter of the shortest 10 % ({found.percentile(10):.3g} steps), so that the other end lies outside; features "
            f"change within {found.sharp_width} steps of a boundary",
        )  # fmt: skip
        plan.set(section, "shallow_layers", 0, "the embedding's convolution is enough to choose depths by")
        plan.set(section, "refinement_layers", 4, "depth where it is needed")
        plan.set(section, "mlp_ratio", 2.0, "as the tuned recipes of HAPT and LUDB")
        coarsest = sizes.first_stride << (levels - 1)
    wanted = max(2304.0, 4 * longest)
    crop = min(float(np.percentile(found.steps, 95)) if len(found.steps) > 1 else float(found.steps.max()), wanted)
    crop = math.ceil(min(crop, LONGEST_CROP) / coarsest) * coarsest
    if longest > crop:
        plan.notes.append(f"the longest 2 % of segments ({longest:.0f} steps) do not fit into a crop of {crop} steps")
    return crop


def _width(plan: Plan, model: ModelKind, width: int, reason: str) -> None:
    if model == "actionformer":
        for name in ("embd_dim", "fpn_dim", "head_dim"):
            plan.set("actionformer", name, width, reason)
        plan.set("actionformer", "n_head", 4, "as published")
        return
    plan.set("model", "width", width, reason)
    plan.set("model", "num_heads", 4, f"of {width // 4} channels")
    plan.set("model", "head_width", max(width // 2, 32), "half of the width")
    plan.set("model", "boundary_width", max(width // 2, 32), "half of the width")


def _crops(plan: Plan, found: Fingerprint, crop: int) -> int:
    """Crops and batch; returns the crops of a batch."""
    section = "model" if "model" in plan.sections else "actionformer"
    if section == "actionformer":
        plan.set(section, "max_seq_len", crop, "as data.max_length")
    share = float(np.mean(found.steps <= crop))
    plan.set(
        "data", "max_length", crop,
        f"{100 * share:.0f} % of the recordings are seen whole, the others in crops",
    )  # fmt: skip
    batch = int(np.clip(round(BATCH_STEPS / crop), 1 if crop > BATCH_STEPS else 2, MOST_CROPS))
    plan.set("training", "batch_size", batch, f"about {BATCH_STEPS} steps, as two crops of 2304")
    return batch


def _augmentation(plan: Plan, found: Fingerprint, rules: Rules) -> None:
    channels = found.channels
    exact = channels.of(*EXACT)
    changes = len(exact) < found.width
    plan.set(
        "data", "noise", rules.noise if changes else 0.0, "of the standardised channels" if changes else "flags only"
    )
    plan.set("data", "gain", 0.1 if changes else 0.0, "10 % of a channel's amplitude" if changes else "flags only")
    plan.set(
        "data", "exact_channels", list(exact),
        f"neither noise nor gain: {', '.join(sorted({channels.kinds[i] for i in exact}))}" if exact else "none are flags, "
        "levels or angles that wrap",
    )  # fmt: skip
    spread = _length_spread(found)
    stretch = float(np.clip(round(spread / 2, 2), 0.0, 0.15))
    stretch = 0.0 if stretch < 0.03 else stretch
    plan.set(
        "data", "stretch", stretch,
        f"lengths within a class vary by {100 * spread:.0f} %; half of it leaves the rhythm its class"
        if stretch
        else f"lengths within a class vary by {100 * spread:.1f} %: the rhythm is the class",
    )  # fmt: skip
    heavy = [c for c in channels.of(HEAVY) if channels.middle[c] > 1e-6 * channels.std[c]] if rules.tame else []
    why = (
        "have rare large values: logarithmic beyond a few times their median size"
        if heavy
        else "none have rare large values"
    )
    plan.set("data", "log_channels", heavy, why)
    plan.set("data", "log_scales", [float(f"{LOG_FROM * channels.middle[c]:.3g}") for c in heavy], why)


def _length_spread(found: Fingerprint) -> float:
    """Standard deviation of log lengths within a class (median over segments' classes), as a share."""
    logs = np.log(np.maximum(found.lengths, 1e-9))
    spreads = [
        (n, logs[found.labels == c].std()) for c in np.unique(found.labels) if (n := (found.labels == c).sum()) > 2
    ]
    if not spreads:
        return 0.3
    counts, values = np.array([n for n, _ in spreads]), np.array([s for _, s in spreads])
    order = np.argsort(values)
    middle = np.searchsorted(counts[order].cumsum(), counts.sum() / 2)
    return float(np.expm1(values[order][middle]))


def _validation(plan: Plan) -> None:
    found = plan.found
    recordings = list(zip(found.recordings, found.recording_classes, strict=True))
    chosen, reason = held_out(recordings, found.groups)
    # Ids are patterns here.
    escaped = ["".join(f"[{c}]" if c in "*?[" else c for c in key) for key in chosen]
    plan.set("data", "validation", escaped, reason)


def _inference(plan: Plan, found: Fingerprint) -> None:
    radius = plan.sections.get("model", {}).get("boundary_radius")
    if radius is not None:
        plan.set(
            "inference", "vote_window", max(int(radius.value) // 2, 1), "half of the boundary radius on either side"
        )
    else:
        plan.set("inference", "mode", "anchor", "ActionFormer's segments as they are")
    plan.set(
        "inference", "max_segments", None, f"training counts the densest stretch ({found.density:.3g} per 1,000 steps)"
    )
    crowded = found.density * 16.384 > 250
    plan.set(
        "inference",
        "pre_nms_topk",
        5000 if crowded else 2000,
        "of every level and 16,384 steps, well above the density",
    )
    plan.set(
        "inference", "nms", "soft",
        "segments of a class overlap; soft suppression keeps them" if found.same_class_overlap > 0.01
        else "segments of a class do not overlap; lowered scores cost nothing",
    )  # fmt: skip
    plan.set(
        "inference", "multiclass", True,
        "classes overlap" if found.overlap > 0.01 else "mAP ranks classes apart: others nearby may keep their scores",
    )  # fmt: skip
    seconds = found.lengths / found.rate
    edges = sorted({float(f"{np.percentile(seconds, q):.2g}") for q in (20, 40, 60, 80)})
    plan.set("evaluation", "length_buckets", edges, "a fifth of the segments each")


def _fixed_training(plan: Plan, rules: Rules, model: ModelKind, seed: int) -> None:
    plan.set("training", "seed", seed, "of weights, order and crops")
    plan.set("training", "loss_norm", 100.0, "only where the running count begins")
    if model == "tzn":
        plan.set("training", "boundary_weight", 0.3, "as the tuned recipes of HAPT and LUDB")
        plan.set("training", "target_depth", 0.25, "a quarter of the depth on average")
        plan.set(
            "training",
            "depth_weight",
            rules.depth_weight,
            "holds the mean depth near its target; ten times as much takes the features from the classes",
        )


def _schedule(
    plan: Plan, found: Fingerprint, rules: Rules, model: ModelKind, batch: int, minutes: float,
    measure: Callable[[ExperimentConfig], Cost] | None,
) -> None:  # fmt: skip
    """Width, steps, epochs and what follows from their number."""
    crop = plan.value("data", "max_length")
    total = float(found.steps.sum())
    wanted = max(math.ceil(rules.passes * total / (batch * min(crop, found.steps.mean()))), rules.least_steps)
    why = (
        f"{rules.passes:g} passes over {total:.0f} grid steps"
        if wanted > rules.least_steps
        else "the least that is planned"
    )
    _set_steps(plan, rules, model, wanted, batch, 1, why)
    held = set(plan.value("data", "validation"))
    validated = sum(int(n) for key, n in zip(plan.found.recordings, found.steps, strict=True) if key in held)
    _width(plan, model, rules.width, "as the tuned recipe of HAPT")
    if measure is None:
        _set_steps(plan, rules, model, wanted, batch, 5, why)
        return
    width, narrower = rules.width, [w for w in WIDTHS if w < rules.width]
    budget = 60 * minutes * USED
    while True:
        cost = measure(plan.config())
        # At the end detections are made once more, of held-out and of some training recordings.
        once = validated * cost.grid_step
        last = (validated + min(total, LOOKED_AT) if held else total) * cost.grid_step
        count = next((n for n in VALIDATIONS if held and n * once <= VALIDATION_SHARE * budget), 1)
        left = budget - last - (count * once if held else 0.0)
        afforded = max(int(left / cost.step), 1)
        if afforded >= rules.least_share * wanted or not narrower:
            break
        # Only widths that may do are timed; a step's cost falls at least as fast as the width.
        while len(narrower) > 1 and afforded * (width / narrower[0]) ** 1.5 < rules.least_share * wanted:
            narrower = narrower[1:]
        width, narrower = narrower[0], narrower[1:]
        _width(plan, model, width, "the widest for which the budget allows enough steps")
    steps = min(wanted, afforded)
    if steps < wanted:
        why = f"what {minutes:g} CPU minutes allow here ({cost.step:.2g} s a step); the data would like {wanted}"
    steps = _set_steps(plan, rules, model, steps, batch, count, why)
    plan.minutes = (steps * cost.step + last + count * once) / 60
    if steps < 0.25 * wanted:
        plan.notes.append(f"{steps} steps are few for these data ({wanted}): more --minutes would help")


def _set_steps(plan: Plan, rules: Rules, model: ModelKind, steps: int, batch: int, validations: int, why: str) -> int:
    """Everything that the number of steps decides; returns that number as the epochs make it."""
    epochs = max(min(EPOCHS, steps), 1)
    each = max(round(steps / epochs), 1)
    steps = epochs * each
    every = max(epochs // validations, 1)
    plan.set(
        "data", "crops_per_epoch", each * batch, f"{steps} steps in all: {why}; spread by length of the recordings"
    )
    counts = plan.found.class_counts[plan.found.class_counts > 0]
    rare = counts < rules.rare * np.median(counts)
    plan.set(
        "data", "balance", 0.25 if rare.any() else 0.0,
        f"{rare.sum()} of {len(counts)} classes are rare (under {rules.rare:g} of the median class)" if rare.any()
        else "no class is rare",
    )  # fmt: skip
    plan.set("training", "epochs", epochs, f"{each} steps each; an epoch is from checkpoint to checkpoint")
    plan.set("training", "warmup_epochs", min(2, epochs - 1), "a tenth of the steps")
    plan.set("training", "validate_every", every, f"{-(-epochs // every)} times; costs a tenth of the time at most")
    held = bool(plan.value("data", "validation"))
    patience = max(epochs // every // 2, 2) if held and epochs // every >= 4 else 0
    plan.set(
        "training", "patience", patience,
        "so many worse validations in a row, by more than chance, end it" if patience else "too few validations to stop by",
    )  # fmt: skip
    plan.set("training", "retries", 2, "a loss that does not fall begins anew with a third of the learning rate")
    width = plan.sections.get("model", {}).get("width") or plan.sections.get("actionformer", {}).get("embd_dim")
    scale = math.sqrt(128 / width.value) if width else 1.0
    rate = float(f"{rules.learning_rate * scale:.2g}")
    plan.set(
        "training", "learning_rate", rate, f"{rules.learning_rate:g} at width 128, with one over the root of the width"
    )
    decay = min(0.5 ** (1 / max(rules.half_life * steps, 1.0)), 0.9999)
    plan.set(
        "training", "ema_decay", round(decay, 5),
        f"weights are averaged with a half-life of {100 * rules.half_life:g} % of the steps",
    )  # fmt: skip
    return steps
