"""A localizer as a program of plain arrays: features in, everything that decoding reads out.

One recording at a time, never padded by the caller, of any length. Heads run at every point, because which points have
candidates is decoding's to say.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor, nn

import tzn
from tzn.config_loading import config_from_dict
from tzn.errors import ConfigError
from tzn.models import ActionFormer, Localizer, TemporalZoomNet
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.models.exported_file import FORMAT
from tzn.models.pretrained import RawSignal
from tzn.models.temporal_zoom_net import Trunk

EXAMPLE_STEPS = 203  # of the recording that is traced: no level of it has a length of 0, 1 or of another level


class ZoomProgram(nn.Module):
    """A TemporalZoomNet: ``features`` ``[1, T, C]`` and ``depth_shift`` ``[1, 1]`` to the arrays :attr:`outputs` names."""

    def __init__(self, model: TemporalZoomNet) -> None:
        super().__init__()
        self.model = model
        depths = ["depth", "depth_logits"] if model.depth_predictor is not None else []
        if model.boundary_stream is not None:
            depths = ["depth"]
        fields = ["distance", "distance_scale"] if model.top_down is not None else []
        self.inputs = ["features", "depth_shift"] if depths else ["features"]
        self.outputs = ["scores", "valid", "position", "stride", "level", "offset", "offset_std", *fields, *depths]

    def forward(self, features: Tensor, depth_shift: Tensor | None = None) -> tuple[Tensor, ...]:
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return self.arrays(self.model.trunk(features, mask, depth_shift=depth_shift))

    def arrays(self, trunk: Trunk) -> tuple[Tensor, ...]:
        """What :attr:`outputs` names."""
        points = self.model.points_of(trunk)
        offset, std = points.offsets()
        found: list[Tensor | None] = [points.scores, points.mask, *points.grid[:3], offset, std]
        if points.fields is not None:
            found += points.fields()
        if "depth" in self.outputs:
            found += [trunk.depths.tau, trunk.depths.logits]
        return tuple(x for x in found if x is not None)

    def example(self) -> dict[str, Tensor]:
        features = torch.randn(1, EXAMPLE_STEPS, self.model.config.feature_dim)
        return (
            {"features": features, "depth_shift": torch.zeros(1, 1)} if len(self.inputs) > 1 else {"features": features}
        )

    def dynamic(self) -> dict[str, Any]:
        shapes: dict[str, Any] = {"features": {1: torch.export.Dim("steps")}}
        return shapes | ({"depth_shift": {}} if len(self.inputs) > 1 else {})


class ActionFormerProgram(nn.Module):
    """An ActionFormer: ``features`` ``[1, T, C]`` and ``mask`` ``[1, T]``, padded as :meth:`ActionFormer.padded` does."""

    inputs = ("features", "mask")
    outputs = ("scores", "valid", "position", "stride", "level", "offset")

    def __init__(self, model: ActionFormer) -> None:
        super().__init__()
        if model.config.use_abs_pe:
            raise ConfigError(
                "actionformer.use_abs_pe: its table of positions is stretched by the length of the recording; such a model "
                "is not exported"
            )
        self.model = model

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        points = self.model.points_of(self.model(features, mask), mask)
        offset, _ = points.offsets()
        return points.scores, points.mask, *points.grid[:3], offset

    def example(self) -> dict[str, Tensor]:
        steps = 7 * self.model.config.strides[-1]
        mask = torch.arange(steps)[None] < steps - 3
        return {"features": torch.randn(1, steps, self.model.config.feature_dim), "mask": mask}

    def dynamic(self) -> dict[str, Any]:
        coarsest = self.model.config.strides[-1]
        steps = (
            torch.export.Dim("coarsest_steps", min=2) * coarsest if coarsest > 1 else torch.export.Dim("steps", min=2)
        )
        return {"features": {1: steps}, "mask": {1: steps}}


Program = ZoomProgram | ActionFormerProgram


def program_of(model: Localizer) -> Program:
    """The program of a network, in float32 on the CPU.

    Raises:
        ConfigError: a network that is not exported, and why.
    """
    model = model.eval().float().cpu()
    if isinstance(model, ActionFormer):
        return ActionFormerProgram(model)
    if isinstance(model, TemporalZoomNet):
        return ZoomProgram(model)
    raise ConfigError("this is an exported program already: export the checkpoint it was made from")


def trace(program: Program) -> torch.export.ExportedProgram:
    """``torch.export`` of a program with any number of steps; the ops of tzn stay as they are."""
    # Lengths of 0 and 1 are lengths like others here: the coarsest levels of a short recording have them.
    with torch.no_grad(), fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        traced = torch.export.export(
            program.eval(), tuple(program.example().values()), dynamic_shapes=tuple(program.dynamic().values()), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
    return traced


def describe(
    checkpoint: LoadedCheckpoint, signal: RawSignal | None, config: dict[str, Any], program: Program, kind: str
) -> dict[str, Any]:
    """What the file says of itself: all that running the program and decoding its outputs takes."""
    model, data = program.model, config_from_dict(config).data
    grid = None
    if data.fps is not None and data.fixed_length is None:
        grid = {"step_seconds": data.feat_stride / data.fps, "first_centre_seconds": 0.5 * data.num_frames / data.fps}
    padding = None
    if isinstance(model, ActionFormer):
        c = model.config
        padding = {
            "strides": list(c.strides), "read": max(c.head_kernel_size // 2, c.scale_factor // 2, 1),
            "embedding": c.embd_kernel_size // 2 if c.backbone_arch[0] else 0, "max_seq_len": c.max_seq_len,
            "max_div_factor": c.max_div_factor,
        }  # fmt: skip
    return {
        "format": FORMAT, "tzn": tzn.__version__, "program": kind, "network": type(model).__name__,
        "feature_channels": model.config.feature_dim, "classes": list(checkpoint.classes), "config": config,
        "signal": None if signal is None else dataclasses.asdict(signal),
        "score_threshold": checkpoint.score_threshold, "score_threshold_split": checkpoint.score_threshold_split,
        "calibration": None if checkpoint.calibration is None else checkpoint.calibration.to_dict(),
        "mean": model.feature_mean.tolist(), "std": model.feature_std.tolist(), "time_grid": grid,
        "strides": list(model.config.strides), "receptive_radius": model.receptive_radius,
        "padding": padding, "inputs": list(program.inputs), "outputs": list(program.outputs),
    }  # fmt: skip
