"""A guaranteed dial: the largest threshold that harms at most a share of new groups, by conformal risk control.

A group (person, patient, or recording) is harmed by a threshold when its mAP, mean over the tIoU, is more than
:data:`ALLOWED` points below full depth there, or was at a smaller threshold; and, told apart, when its mAP is or its boundary
error (mean of median start and end error) is more than a grid step larger. Of thresholds with

    (harmed groups + 1) / (groups + 1) <= RISK

on calibration groups, which no training saw, the largest one harms a new exchangeable group with probability at most RISK
(:func:`tzn.calibration.controlled`, the rule of ``tzn calibrate --risk``). Checked here on
random halves of the test groups: one half calibrates, the other counts.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.zoom import real
from benchmarks.evidence.zoom.policies import examples, under
from benchmarks.lib.runs import recordings_of, trained
from benchmarks.planning import Store
from tzn.calibration import controlled
from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict
from tzn.evaluation.report import evaluate
from tzn.planning.groups import find_groups
from tzn.training.dial import boundary_error

SETS = ("ludb", "eye_lund2013", "hapt")
GRID = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 1000.0)  # thresholds; at the last nothing is refined
ALLOWED, RISK = 1.0, 0.2  # points of mAP; share of groups
SPLITS = 2000


def checked(harmed: np.ndarray, gmac: np.ndarray, full_gmac: float, seed: int = 0) -> dict[str, Any]:
    """Random halves: share of groups harmed at the threshold chosen on the other half, and what it saves.

    Args:
        harmed: ``[G, K]`` whether a group is, by group and threshold; gmac: ``[K]``.
    """
    harmed = np.maximum.accumulate(harmed, axis=1)
    random, risks, saved, refused = np.random.default_rng(seed), [], [], 0
    for _ in range(SPLITS):
        order = random.permutation(len(harmed))
        half = len(order) // 2
        chosen = controlled(harmed[order[:half]], RISK) if half + 1 >= 1 / RISK else None
        if chosen is None:
            refused += 1
            risks.append(0.0)
            saved.append(0.0)
            continue
        risks.append(float(harmed[order[half:], chosen].mean()))
        saved.append(1 - gmac[chosen] / full_gmac)
    return {
        "risk": float(np.mean(risks)),
        "saved": float(np.mean(saved)),
        "refused": refused / SPLITS,
        "groups": len(harmed),
    }


def measure(data: str, seed: int, root: Path, runs: Path) -> dict[str, Any]:
    job, folder = real.Job(data, "zoom", seed), root / data
    checkpoint = trained(real.config_of(folder, job), folder, runs / f"risk_{data}_{seed}", seed)
    found = examples(checkpoint, folder)
    recordings = recordings_of(checkpoint, folder)
    group_of, _ = find_groups({r.id: {} for r in recordings})
    groups: dict[str, list[Any]] = {}
    for recording in recordings:
        groups.setdefault(group_of[recording.id], []).append(recording)
    config = config_from_dict(checkpoint.config)

    def by_group(detections: Any) -> np.ndarray:
        """Points of mAP, and minus seconds of boundary error, ``[G, 2]``."""
        reports = [evaluate(g, detections, checkpoint.classes, config.evaluation) for g in groups.values()]
        return np.array([(100 * r.score.average_mAP, -boundary_error(r)) for r in reports])

    full = under(checkpoint, folder, found, [torch.ones_like(e.apart) for e in found])
    best, parts, gmac = by_group(full.detections), [], []
    for threshold in GRID:
        evaluation = under(checkpoint, folder, found, None, threshold=threshold)
        worse = best - by_group(evaluation.detections)
        parts.append(np.nan_to_num(worse, nan=0.0, posinf=1e6))  # infinite at both: nothing is lost
        gmac.append(evaluation.gmac)
    lost, less_exact = np.stack(parts, 1).transpose(2, 0, 1)  # [G, K] each
    step = seconds_per_step(config)
    judge = functools.partial(checked, gmac=np.array(gmac), full_gmac=full.gmac)
    return {
        **judge(lost > ALLOWED), "either": judge((lost > ALLOWED) | (less_exact > step)), "step": step,
        "full_gmac": full.gmac, "gmac": gmac, "lost": lost.round(3).tolist(), "less_exact": less_exact.round(6).tolist(),
    }  # fmt: skip


def seconds_per_step(config: ExperimentConfig) -> float:
    return config.data.pool * config.data.feat_stride / config.data.fps  # type: ignore[operator]


def main(store: Store, seeds: list[int], root: Path, runs: Path, sets: list[str]) -> None:
    for seed in seeds:
        for data in sets or SETS:
            store.once(f"risk/{data}/{seed}", functools.partial(measure, data, seed, root, runs))
