"""Networks of the study on real data, one planned recipe per set and the same steps for all, and what is scored of them."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.zoom.policies import Example, examples, policies, under
from benchmarks.lib.ranks import rank_correlation
from benchmarks.lib.runs import TIOU, scored, trained
from tzn.config import EvaluationConfig, ExperimentConfig
from tzn.config_loading import override_config
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.planning.fingerprint import read_fingerprint
from tzn.planning.plan import USED, Cost, Rules, make_plan

SETS = ("hapt", "ludb", "gtea", "eye_lund2013", "sfinge3d", "sp_sw_har", "gesture_phase")
STEPS, WIDTH, LAYERS = 400, 64, 4
ACTIONFORMER_WIDTHS = (32, 64, 96)
# Where the plan starts its pyramid at full rate, the zoomed network's coarse part still runs at a quarter of it.
COARSEST_START = 4
BUDGETS = (0.1, 0.25, 0.5)
THRESHOLDS = (0.5, 1.0, 2.0, 4.0, 8.0)
UNIFORM = (0, 1, 2, 3, 4)  # blocks for every step
DIAL = (0.02, 0.1, 0.25, 0.5, 1.0)
NEAREST = 0.15  # share of steps
SIX = 6  # blocks of the paper's form
RAW = {"hapt": 5}  # samples that a stored step lays side by side
RAW_STRIDE = 16  # of the coarse part on single samples: a little finer in time than COARSEST_START stored steps


@dataclasses.dataclass(frozen=True)
class Job:
    """One training. ``network``: "zoom", "zoom raw" (the stream on single samples), "atr", "six" (today's network with six
    blocks for every step) or "actionformer"; ``depth`` "random" trains every step at its own."""

    data: str
    network: str
    seed: int
    width: int = WIDTH
    depth: str = "learned"

    @property
    def key(self) -> str:
        return f"{self.data}/{self.network}/{self.depth}/{self.width}/{self.seed}"


@functools.cache
def planned(folder: Path, model: str, width: int) -> ExperimentConfig:
    """What ``tzn init`` plans for a data set when a budget allows :data:`STEPS` steps of a network ``width`` wide."""
    minutes = 1.0
    plan = make_plan(
        read_fingerprint(folder, progress=False), model=model, minutes=minutes,  # type: ignore[arg-type]
        rules=Rules(width=width, least_share=0.0), measure=lambda _: Cost(60 * minutes * USED / STEPS, 0.0),
    )  # fmt: skip
    plan.set("data", "validation", (), "scored on the test recordings; nothing is chosen by them")
    plan.set("training", "patience", 0, "equal steps")
    plan.set("training", "validate_every", 0, "nothing is held out")
    return dataclasses.replace(plan.config(), evaluation=EvaluationConfig(tiou=TIOU))


def config_of(folder: Path, job: Job) -> ExperimentConfig:
    config = planned(folder, "actionformer" if job.network == "actionformer" else "tzn", job.width)
    changes = [f"training.seed={job.seed}"]
    if job.network != "actionformer":
        changes.append(f"training.depth={job.depth}")
    if job.network == "six":
        changes += [f"model.refinement_layers={SIX}", "training.target_depth=1"]
    if job.network.startswith("zoom"):
        model = config.model
        stride, ranges = model.first_stride, list(model.regression_ranges)  # type: ignore[union-attr]
        while stride < COARSEST_START and len(ranges) > 1:  # the next level answers for the finer one's segments too
            stride, ranges = 2 * stride, [(ranges[0][0], ranges[1][1]), *ranges[2:]]
        changes += [
            "model.refinement_layers=0", f"model.first_stride={stride}", f"model.embedding_stride={stride}",
            f"model.num_levels={len(ranges)}", f"model.regression_ranges={[list(r) for r in ranges]}",
            f"model.zoom_layers={LAYERS}", "training.target_depth=1",
        ]  # fmt: skip
    config = override_config(config, changes)
    return on_samples(config, RAW[job.data]) if job.network == "zoom raw" else config


def on_samples(config: ExperimentConfig, samples: int) -> ExperimentConfig:
    """The same network with its boundary stream on every sample of a stored step; coarse part and context as near as powers
    of two allow, all lengths in seconds as they were."""
    model, data = config.model, config.data
    finer = RAW_STRIDE // model.embedding_stride  # type: ignore[union-attr]
    ranges = [[finer * low, finer * high] for low, high in model.regression_ranges]  # type: ignore[union-attr]
    coarsest = RAW_STRIDE << (model.num_levels - 1)  # type: ignore[union-attr]
    width = model.input_dim // samples
    tamed = [(c, s) for c, s in zip(data.log_channels, data.log_scales, strict=True) if c < width]
    return override_config(config, [
        f"model.input_dim={width}", f"model.embedding_stride={RAW_STRIDE}", f"model.first_stride={RAW_STRIDE}",
        f"model.regression_ranges={ranges}", f"model.boundary_radius={samples * model.boundary_radius}",  # type: ignore[union-attr]
        f"data.feat_stride={data.feat_stride / samples}", f"data.num_frames={data.num_frames / samples}",
        f"data.max_length={-(-samples * data.max_length // coarsest) * coarsest}",
        f"data.log_channels={[c for c, _ in tamed]}", f"data.log_scales={[s for _, s in tamed]}",
        f"inference.vote_window={samples * config.inference.vote_window}",
    ])  # fmt: skip


def single_samples(folder: Path, samples: int, out: Path) -> Path:
    """A copy of a data folder in which every stored step is ``samples`` steps."""
    (out / "features").mkdir(parents=True, exist_ok=True)
    (out / "annotations.json").write_text((folder / "annotations.json").read_text())
    for path in sorted((folder / "features").glob("*.npy")):
        steps = np.load(path)
        np.save(out / "features" / path.name, steps.reshape(len(steps) * samples, -1))
    return out


def point(label: str, evaluation: CheckpointEvaluation, found: list[Example] | None = None) -> dict[str, Any]:
    """mAP (percent) by tIoU, median boundary errors in seconds (None: no segment found), 1e9
    multiply-adds and seconds per recording, mean depth."""
    errors = evaluation.report.errors["overall"]
    content: dict[str, Any] = {
        "label": label, "mAP": [round(100 * float(x), 3) for x in evaluation.report.score.mAP],
        **{side: errors[side]["median"] if side in errors else None for side in ("start", "end")}, "gmac": evaluation.gmac,
        "seconds": evaluation.seconds, "depth": evaluation.mean_depth,
    }  # fmt: skip
    if found is not None and evaluation.mean_depth > 0:
        depth = np.concatenate([t["depth"] for t in evaluation.traces.values()])
        apart = torch.cat([e.apart for e in found]).numpy()
        nearest = np.argsort(apart, kind="stable")[: round(NEAREST * len(apart))]
        content["share_nearest"] = float(depth[nearest].sum() / depth.sum())
        content["rank_with_nearness"] = rank_correlation(depth, -apart)
    return content


def run(job: Job, root: Path, runs: Path) -> dict[str, Any]:
    """Train and score."""
    folder, out = root / job.data, runs / job.key.replace("/", "_")
    begin, config = time.process_time(), config_of(folder, job)
    if job.network == "zoom raw":
        folder = single_samples(folder, RAW[job.data], runs / f"{job.data}_samples")
    checkpoint = trained(config, folder, out, job.seed)
    minutes = (time.process_time() - begin) / 60
    content: dict[str, Any] = {"minutes": minutes, "points": score(job, checkpoint, folder)}
    if job.depth == "random":
        content["exits"] = exits(checkpoint, folder)
    shutil.rmtree(out)
    return content


def exits(checkpoint: LoadedCheckpoint, folder: Path) -> list[float]:
    """Boundary loss in nats per step within the radius, by number of blocks."""
    found = examples(checkpoint, folder)
    losses, apart = torch.cat([e.losses for e in found], 1), torch.cat([e.apart for e in found])
    return [float(x[apart < checkpoint.model.config.boundary_radius].mean()) for x in losses]  # type: ignore[union-attr]


def score(job: Job, checkpoint: LoadedCheckpoint, folder: Path) -> list[dict[str, Any]]:
    if job.network == "actionformer":
        return [point("actionformer", scored(checkpoint, folder))]
    found = examples(checkpoint, folder)
    known = policies(found, job.seed)
    points = []

    def given(label: str, name: str, depth: float) -> None:
        points.append(point(label, under(checkpoint, folder, found, known[name](depth))))

    if job.network == "six":
        for blocks in (*UNIFORM[::2], SIX):
            given(f"uniform {blocks}", "uniform", blocks / SIX)
        return points
    for blocks in UNIFORM:
        given(f"uniform {blocks}", "uniform", blocks / LAYERS)
    for budget in BUDGETS:
        given(f"random {budget:g}", "random", budget)
        if job.depth == "random":
            given(f"uniform at {budget:g}", "uniform", budget)
            given(f"oracle {budget:g}", "oracle gain", budget)
            given(f"near {budget:g}", "near true boundaries", budget)
    if job.depth == "random":
        return points
    if job.network.startswith("zoom"):
        for threshold in THRESHOLDS:
            points.append(
                point(f"zoom {threshold:g}", under(checkpoint, folder, found, None, threshold=threshold), found)
            )
    else:
        points.append(point("as trained", under(checkpoint, folder, found, None), found))
        for budget in DIAL:
            points.append(point(f"dial {budget:g}", under(checkpoint, folder, found, None, budget=budget), found))
    return points
