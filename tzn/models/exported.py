"""A localizer that another runtime runs: what inference asks of a network, over the arrays of an exported program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn.errors import ConfigError
from tzn.models.actionformer import padded_length
from tzn.models.config import ActionFormerConfig, TemporalZoomNetConfig
from tzn.nn import budget_shift
from tzn.nn.pyramid import PointGrid, Points

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # a program: arrays by name in and out, all on the CPU


class ExportedNetwork(nn.Module):
    """A program written by ``tzn export`` in the place of the network that it was made from.

    It takes one recording at a time, runs on the CPU and cannot be trained. Class scores, offsets and distance fields all
    come from one run, so that asking for some rows of them spares nothing.

    Args:
        run: the program, see :data:`Run`; ``docs/export.md`` lists its inputs and outputs.
        config: of the network.
        receptive_radius: of the network; None: it reads a recording as a whole.
        mean, std: the standardisation, which is part of the program; for who looks.
        digest: of the file, so that results of different programs are told apart.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self, run: Run, config: TemporalZoomNetConfig | ActionFormerConfig, *, receptive_radius: int | None,
        mean: Tensor, std: Tensor, digest: bytes,
    ) -> None:  # fmt: skip
        super().__init__()
        self._run, self.config, self.receptive_radius = run, config, receptive_radius
        self.register_buffer("feature_mean", mean)
        self.register_buffer("feature_std", std)
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))
        refined = zoomed = 0
        if isinstance(config, TemporalZoomNetConfig):
            refined, zoomed = config.refinement_layers, config.zoom_layers
        self.depth_predictor = self.depth_logits if refined else None
        self.has_dial = refined + zoomed > 0

    def forward(self, features: Tensor, mask: Tensor, depth_shift: Tensor | None = None) -> dict[str, Tensor]:
        """The program's outputs by name. ``features`` ``[1, T, C]``, ``mask`` ``[1, T]``, all True.

        Raises:
            ValueError: several recordings, or padding.
        """
        if features.shape[0] != 1 or not bool(mask.all()):
            raise ValueError(f"features: {tuple(features.shape)}: an exported program takes one recording, not padded")
        given = {"features": features.float().contiguous()}
        if isinstance(self.config, ActionFormerConfig):
            extra = padded_length(self.config, features.shape[1]) - features.shape[1]
            given = {"features": F.pad(given["features"], (0, 0, 0, extra)), "mask": F.pad(mask, (0, extra))}
        if self.has_dial:
            given["depth_shift"] = torch.zeros(1, 1) if depth_shift is None else depth_shift.float()
        return dict(self._run(given))

    def depth_logits(self, features: Tensor, mask: Tensor) -> Tensor:
        """Logits of tau ``[1, T]`` for the budget dial."""
        return self(features, mask)["depth_logits"]  # type: ignore[no-any-return]

    def points(
        self, features: Tensor, mask: Tensor, *, budget: float | None = None, depth_shift: Tensor | None = None
    ) -> Points:
        """As of the network. A budget takes a run of its own first, for the depths as trained."""
        if budget is not None and self.depth_predictor is not None:
            depth_shift = budget_shift(self.depth_logits(features, mask), mask, budget)
        found = self(features, mask, depth_shift)
        level = found["level"]
        ranges = torch.zeros(level.shape[0], 2)  # of training's assignment; inference does not look
        grid = PointGrid(found["position"], found["stride"], level, ranges)

        def offsets(rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            parts = [found["offset"], found.get("offset_std")]
            return tuple(x if x is None or rows is None else x[0, rows] for x in parts)  # type: ignore[return-value]

        def fields(rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
            both = found["distance"], found["distance_scale"]
            if rows is None:
                return both
            chosen = tuple(torch.full_like(x, float("nan")).index_copy(2, rows, x[:, :, rows]) for x in both)
            return chosen[0], chosen[1]

        depth = found.get("depth", torch.ones(features.shape[:2]))
        return Points(grid, found["valid"], found["scores"], depth, offsets, fields if "distance" in found else None)

    def _apply(self, fn: Any, recurse: bool = True) -> ExportedNetwork:
        if fn(torch.empty(0)).device.type != "cpu":
            raise ConfigError(
                "an exported program runs on the CPU; on other devices, load the checkpoint it was made from"
            )
        return super()._apply(fn, recurse)
