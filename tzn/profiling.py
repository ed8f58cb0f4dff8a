"""Counting the multiply-adds that a run really does (docs/design.md section 7).

Counted are matrix products and convolutions; element-wise work (norms, activations, softmax) is not, as usual in this
field. Local attention counts its window's products, ``2 * queries * window * width``, and a variable-depth block what its
active and halo tokens need (docs/design.md section 2), on every back end, however it lays out the work.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tzn import reference
from tzn.models import ActionFormer, Localizer

Result = TypeVar("Result")

# Parts of a localizer by name: attributes of the model that hold them.
ACTIONFORMER_PARTS = {
    "input projections": "backbone.proj", "embedding": "backbone.embd", "stem": "backbone.stem",
    "branch": "backbone.branch", "neck": "neck", "classification head": "cls_head", "regression head": "reg_head",
}  # fmt: skip
TEMPORAL_ZOOM_NET_PARTS = {
    "embedding": "embedding", "shallow blocks": "shallow", "depth predictor": "depth_predictor",
    "refinement": "refinement", "pyramid": "pyramid", "top-down path": "top_down", "classification head": "class_head",
    "regression head": "offset_head", "boundary head": "boundary_head",
    "boundary stream": "boundary_stream",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of one run.

    Attributes:
        parts: multiply-adds by part of the network, in the order of the data flow; "other" is what no part claims.
        steps: T, padding of a batch included.
        padded_steps: T as the network saw it.
        active_share: mean share of tokens that ran a refinement layer; 1 without such layers.
    """

    parts: dict[str, int]
    steps: int
    padded_steps: int
    active_share: float

    @property
    def gmac(self) -> float:
        """Multiply-adds in 1e9."""
        return sum(self.parts.values()) / 1e9

    @property
    def gflop(self) -> float:
        """Floating-point operations in 1e9: two per multiply-add."""
        return 2 * self.gmac

    def table(self) -> str:
        """Markdown: one row per part, and the total."""
        rows = [f"| {name} | {count / 1e9:.3f} |" for name, count in self.parts.items() if count]
        facts = f"T = {self.steps}, padded to {self.padded_steps}, active share {self.active_share:.2f}"
        total = f"| all ({facts}) | {self.gmac:.3f} ({self.gflop:.3f} GFLOP) |"
        return "\n".join(["| part | GMAC |", "| --- | --- |", *rows, total])


def count_flops(model: Localizer, batch: tuple[Tensor, Tensor]) -> FlopCount:
    """Run the network on a batch, all heads everywhere, and count the multiply-adds of each part.

    Args:
        model: a localizer; it runs as it is (in evaluation mode without stochastic depth), without gradients.
        batch: features ``[B, T, input_dim]`` and mask ``[B, T]`` bool; padded here as the network needs it.
    """
    features, mask = batch
    inputs = model.padded(features, mask) if isinstance(model, ActionFormer) else (features, mask)
    with _parts_counted(model) as parts:
        outputs, total = count_multiply_adds(lambda: model(*inputs), parts)
    share = 1.0
    if not isinstance(model, ActionFormer):
        gates, valid = outputs.trunk.depths.gates, outputs.trunk.mask
        if gates.shape[-1]:
            share = float((gates[valid] > 0).float().mean())
    counts = dict(parts.counts)
    return FlopCount({**counts, "other": total - sum(counts.values())}, features.shape[1], inputs[0].shape[1], share)


def count_multiply_adds(run: Callable[[], Result], parts: _Parts | None = None) -> tuple[Result, int]:
    """Run ``run`` without gradients and count its multiply-adds; a training step does three times as many (one product
    forward, two backward; one where nothing asks for the gradient of a factor, as of the features).

    Returns:
        (what ``run`` returned, multiply-adds); 1 GMAC = 2 GFLOP.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        if parts is not None:
            parts.counter = counter
        result = run()
    return result, counter.get_total_flops() // 2


class _Parts:
    """Multiply-adds between entering and leaving each part."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.counter: FlopCounterMode | None = None

    def _total(self) -> int:
        return self.counter.get_total_flops() // 2 if self.counter is not None else 0

    def hooks(self, name: str, module: nn.Module) -> list[Any]:
        self.counts[name] = 0
        begin: list[int] = []

        def leave(*_: Any) -> None:
            self.counts[name] += self._total() - begin.pop()

        return [
            module.register_forward_pre_hook(lambda *_: begin.append(self._total())),
            module.register_forward_hook(leave),
        ]


@contextlib.contextmanager
def _parts_counted(model: nn.Module) -> Iterator[_Parts]:
    parts, handles = _Parts(), []
    names = ACTIONFORMER_PARTS if isinstance(model, ActionFormer) else TEMPORAL_ZOOM_NET_PARTS
    for name, path in names.items():
        found = model
        for attribute in path.split("."):
            found = getattr(found, attribute)
        if found is None:
            continue
        # A list of layers is never called itself.
        for module in found if isinstance(found, nn.ModuleList) else [found]:
            before = parts.counts.get(name, 0)
            handles += parts.hooks(name, module)
            parts.counts[name] = before
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


def _attention_flops(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Any, query_mask: Any, *_: Any, **__: Any
) -> int:
    heads, width = q.shape[1], q.shape[-1]
    shape = q.shape[:1] if q.dim() == 3 else (q.shape[0], q.shape[2])  # packed recordings, or a batch
    chosen = torch.ones(shape, dtype=torch.bool, device=q.device)
    for part in (mask, query_mask):
        chosen = chosen if part is None else chosen & part
    return 2 * 2 * int(chosen.sum()) * min(window, shape[-1]) * heads * width


def _block_flops(x: Tensor, gate: Any, weights: list[Tensor], mask: Any, *_: Any, **__: Any) -> int:
    named = reference.BlockWeights(*weights)
    window, width, hidden = named.position_bias.shape[1], x.shape[-1], named.up_weight.shape[0]
    ones = torch.ones(x.shape[:2], device=x.device) if gate is None else gate
    tokens = reference.active_tokens(ones, window, mask)
    active, halo = tokens.active.numel(), tokens.halo.numel()
    products = 2 * active * width * width + 2 * halo * width * width + 2 * active * width * hidden
    return 2 * (products + 2 * active * min(window, x.shape[1]) * width)


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """The counter hands formulas shapes unless they ask for the tensors themselves."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


# FLOPs (2 per multiply-add) of our ops.
FORMULAS = {
    torch.ops.tzn.local_attention: _raw(_attention_flops),
    torch.ops.tzn.variable_depth_block: _raw(_block_flops),
}
