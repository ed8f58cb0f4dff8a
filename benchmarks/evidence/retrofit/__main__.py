"""Retrofit: add tzn.nn.BoundaryDistanceHead to a trained ActionFormer, whose own weights stay as they are.

usage: python -m benchmarks.evidence.retrofit --data hapt runs/actionformer_hapt_seed0 [more runs: one per seed]

The whole retrofit is the 40 lines between the two rules. The head reads the finest pyramid level; at inference each
segment's ends move to the boundary crossings near them, before suppression.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import torch

from benchmarks.lib.provenance import evidence_parser, write
from benchmarks.lib.runs import dataset_of, ends_of, load_run, short_of
from benchmarks.lib.tables import table
from tzn import ops
from tzn.config_loading import config_from_dict
from tzn.data.dataset import collate
from tzn.evaluation.report import evaluate
from tzn.inference.localize import candidates, suppress
from tzn.nn import BoundaryDistanceHead
from tzn.nn.losses import boundary_distance_loss
from tzn.training.objective import boundary_targets

RADIUS = 8.0  # grid steps

# ----------------------------------------------------------------------------------------------------------------------


def train_head(model, dataset, epochs: int) -> BoundaryDistanceHead:
    head = BoundaryDistanceHead(model.config.fpn_dim, width=64, radius=RADIUS)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True, collate_fn=collate, drop_last=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * len(loader))
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        for batch in loader:
            with torch.no_grad():
                outputs = model(*model.padded(batch.features, batch.mask))
            features, mask = outputs.features[0], outputs.masks[0]
            distance, scale = head(features, mask)
            target = boundary_targets(batch.segments, mask.shape[1], RADIUS, "start_end")
            near = mask.unsqueeze(1).expand_as(target)
            total, steps = boundary_distance_loss(
                distance, scale, target, RADIUS, near, kind="laplace", slope_weight=0.1
            )
            optimizer.zero_grad()
            (total / steps.clamp(min=1)).backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def refined(model, head, features, raw):
    """The same candidates, their ends fused with the crossings of the head's fields."""
    mask = torch.ones(1, features.shape[0], dtype=torch.bool)
    outputs = model(*model.padded(features.unsqueeze(0), mask))
    distance, scale = (f[0, :, : features.shape[0]] for f in head(outputs.features[0], outputs.masks[0]))
    starts, ends = (ops.boundary_crossings(distance[i : i + 1], scale[i : i + 1]) for i in (0, 1))
    centre, half = raw.segments.mean(1), (raw.segments[:, 1] - raw.segments[:, 0]) / 2
    unsure = (1.0 + 0.2 * half).unsqueeze(1).expand(-1, 2)  # ActionFormer does not say how sure it is of an end
    found = ops.decode_segments(centre, half.unsqueeze(1).expand(-1, 2), unsure, starts, ends)
    return raw._replace(segments=found.segments)


# ----------------------------------------------------------------------------------------------------------------------


def compared(run: Path, data: Path, epochs: int, seed: int) -> list[dict]:
    """Reports without and with the head."""
    torch.manual_seed(seed)
    checkpoint = load_run(run)
    config, model = config_from_dict(checkpoint.config), checkpoint.model
    training, test = (
        dataset_of(config, data, split, checkpoint.classes, training=split == "train") for split in ("train", "test")
    )
    head, found = train_head(model, training, epochs), ({}, {})
    for i in range(len(test)):
        example = test[i]
        raw = candidates(model, example.features, config.inference)
        for side, part in zip(found, (raw, refined(model, head, example.features, raw)), strict=True):
            side[example.id] = suppress(part, example.grid, example.duration, config.inference)
    return [evaluate(test.recordings, side, checkpoint.classes, config.evaluation).to_dict() for side in found]


def main() -> None:
    parser = evidence_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(2)
    epochs = 12 if options.smoke else 15
    results = [compared(run, options.data, epochs, options.seed) for run in options.runs]

    def row(name: str, side: int) -> list[str]:
        sides = [pair[side] for pair in results]
        strict = results[0][0]["tiou"].index(0.7)
        return [
            name, f"{100 * fmean(r['average_mAP'] for r in sides):.1f}", f"{100 * fmean(r['mAP'][strict] for r in sides):.1f}",
            short_of(sides), ends_of(sides),
        ]  # fmt: skip

    text = "\n".join([
        "# A boundary distance head on a trained ActionFormer", "",
        f"`python -m benchmarks.evidence.retrofit --data hapt RUNS`: HAPT test subjects, {len(results)} seed(s), "
        f"{epochs} epochs of the head alone on frozen weights.", "",
        table(
            ["", "mAP 0.3:0.7", "@0.7", "short @0.7", "median error start / end"],
            [row("ActionFormer", 0), row("the same weights + BoundaryDistanceHead", 1)],
        ),
    ])  # fmt: skip
    content = {"runs": [run.name for run in options.runs], "epochs": epochs, "results": results}
    write(options.out, "retrofit", content, text)


if __name__ == "__main__":
    main()
