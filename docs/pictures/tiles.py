"""What each kernel reads, writes and skips, as pictures (SVG) of tokens and tiles.

usage: python docs/pictures/tiles.py      (writes NAME.svg beside this file)

Every picture is computed by the definitions of tzn.reference on a small example, so it shows what they do.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import torch

from tzn import reference

HERE = Path(__file__).resolve().parent
IDLE, HALO, ACTIVE, WARM, LINE, INK = "#e8eaf0", "#a9c9e8", "#0072B2", "#D55E00", "#8a94a6", "#222222"
CELL = 26


class Picture:
    """Shapes on a white ground, in pixels from the upper left."""

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height
        self.parts: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, fill: str, line: str = LINE) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{line}" rx="2"/>'
        )

    def cells(self, x: float, y: float, colours: list[str], names: list[str] | None = None) -> None:
        for i, colour in enumerate(colours):
            self.box(x + i * CELL, y, CELL - 3, CELL - 3, colour)
            if names and names[i]:
                dark = colour in (ACTIVE, WARM)
                self.text(x + i * CELL + (CELL - 3) / 2, y + 16, names[i], "#fff" if dark else INK, 11, "middle")

    def text(self, x: float, y: float, text: str, fill: str = INK, size: int = 13, anchor: str = "start") -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def line(self, points: list[tuple[float, float]], colour: str = LINE, width: float = 1.5, dash: str = "") -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>')

    def dot(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="4.5" fill="{colour}"/>')

    def save(self, name: str, title: str) -> None:
        w, h = self.size
        (HERE / f"{name}.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" '
            f'font-family="DejaVu Sans, Helvetica, Arial, sans-serif"><title>{escape(title)}</title>'
            f'<rect width="{w}" height="{h}" fill="#ffffff"/>\n' + "\n".join(self.parts) + "\n</svg>\n",
            encoding="utf-8",
        )


GATE = torch.tensor([[0, 0, 0, 0.6, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0.3, 0, 0, 0, 0, 0]])
WINDOW = 5


def roles() -> tuple[set[int], set[int]]:
    tokens = reference.active_tokens(GATE, WINDOW)
    return set(tokens.active.tolist()), set(tokens.halo.tolist())


def colours() -> list[str]:
    active, halo = roles()
    return [ACTIVE if i in active else HALO if i in halo else IDLE for i in range(GATE.shape[1])]


def legend(p: Picture, x: float, y: float) -> None:
    for i, (colour, name) in enumerate(
        ((ACTIVE, "active: updated"), (HALO, "halo: read as keys"), (IDLE, "idle: not touched"))
    ):
        p.box(x + i * 190, y, 14, 14, colour)
        p.text(x + 20 + i * 190, y + 12, name)


def active_tokens() -> None:
    active, halo = sorted(roles()[0]), sorted(roles()[1])
    p = Picture(760, 250)
    legend(p, 120, 12)
    p.text(10, 66, "gates")
    p.cells(120, 50, colours(), [f"{g:g}" if g else "" for g in GATE[0].tolist()])
    p.text(10, 126, "active")
    p.cells(120, 110, [ACTIVE] * len(active), [str(i) for i in active])
    p.text(10, 176, "halo")
    p.cells(120, 160, [ACTIVE if i in active else HALO for i in halo], [str(i) for i in halo])
    p.text(120, 226, f"window {WINDOW}: every valid token within {WINDOW // 2} steps of an active one; lists ascend")
    p.save("active_tokens", "From gates to lists of active and halo tokens")


def local_attention() -> None:
    active, halo = sorted(roles()[0]), sorted(roles()[1])
    p = Picture(760, 300)
    legend(p, 120, 12)
    x0, y0 = 120, 70
    p.text(10, y0 + 16, "keys →")
    p.cells(x0, y0, [ACTIVE if i in active else HALO for i in halo], [str(i) for i in halo])
    for row, query in enumerate(active):
        y = y0 + 40 + row * CELL
        p.cells(x0 - 34, y, [ACTIVE], [str(query)])
        p.cells(x0, y, [WARM if abs(key - query) <= WINDOW // 2 else "#ffffff" for key in halo])
    p.text(10, y0 + 56, "queries")
    below = y0 + 40 + len(active) * CELL + 24
    p.text(x0, below, "orange: pairs that are computed; a row per active token, a column per halo token.")
    p.text(x0, below + 22, "The gap between the two clusters is no column: it is never read.")
    p.save("local_attention", "Which pairs of tokens local attention computes")


def variable_depth_block() -> None:
    p = Picture(760, 330)
    legend(p, 120, 12)
    tau = torch.tensor([0.1, 0.1, 0.2, 0.5, 0.9, 1, 0.7, 0.4, 0.1, 0, 0, 0.1, 0.2, 0.3, 0.5, 0.3, 0.1, 0, 0, 0])
    layers = 3
    gates = reference.depth_gates(tau, layers)
    p.text(10, 66, "depth τ")
    p.cells(120, 50, ["#ffffff"] * len(tau), [f"{t:g}" for t in tau.tolist()])
    for layer in range(layers):
        gate = gates[None, :, layer]
        tokens = reference.active_tokens(gate, WINDOW)
        active, halo = set(tokens.active.tolist()), set(tokens.halo.tolist())
        y = 100 + layer * 56
        p.text(10, y + 16, f"block {layer}")
        shown = [ACTIVE if i in active else HALO if i in halo else IDLE for i in range(len(tau))]
        p.cells(120, y, shown, [f"{g:.1f}".lstrip("0") if g else "" for g in gate[0].tolist()])
        p.text(650, y + 16, f"{len(active)} rows updated", size=12)
    p.text(120, 285, "the gate of a block is clamp(3 τ − block, 0, 1); y = x + g · Attention, z = y + g · MLP")
    p.text(120, 307, "rows of tokens that are not active leave as they came")
    p.save("variable_depth_block", "Three variable-depth blocks on one recording")


def boundary_crossings() -> None:
    p = Picture(760, 300)
    steps, noise = 20, [0.3, -0.2, 0.4, -0.3, 0.1, 0.1, 0.2, 0.2, 0.0, 0.3, -0.3, 0.2, -0.2, 0.4, 0.1, -0.3, 0.3, -0.1]
    true = torch.tensor([[5.4, 13.2]])
    distance = reference.signed_distance(true, steps, 4.0) + torch.tensor([[*noise, 0.2, 0.0]])
    scale = torch.full((1, steps), 0.4)
    found = reference.boundary_crossings(distance, scale, estimator="vote_median", vote_window=3, min_slope=0.5)

    def at(t: float, d: float) -> tuple[float, float]:
        return 60 + 34 * t, 130 - 20 * d

    p.line([at(0, 0), at(steps - 1, 0)], LINE, 1)
    p.text(8, 134, "d = 0")
    for boundary in true[0].tolist():
        p.line([at(boundary, 4.6), at(boundary, -4.6)], WARM, 1.5, "4 4")
    p.line([at(t, float(distance[0, t])) for t in range(steps)], ACTIVE, 1)
    for t in range(steps):
        p.dot(*at(t, float(distance[0, t])), ACTIVE)
    for k in range(int(found.count[0])):
        place, std = float(found.position[0, k]), float(found.std[0, k])
        p.line([at(place - std, 0), at(place + std, 0)], INK, 4)
        p.dot(*at(place, 0), INK)
        p.text(at(place, 0)[0], 262, f"{place:.2f} ± {std:.2f}", anchor="middle")
    p.text(
        60, 24, "blue: signed distances of 20 steps; orange: true boundaries 5.4 and 13.2; black: what the votes give"
    )
    p.text(60, 288, "where the field jumps down, half way between two boundaries, there is no crossing", size=12)
    p.save("boundary_crossings", "A distance field and its up-crossings")


def select_candidates() -> None:
    p = Picture(760, 250)
    generator = torch.Generator().manual_seed(3)
    sizes, topk, floor = (16, 8, 4), 3, 0.3
    p.text(10, 22, f"scores of one class by pyramid level; kept: above {floor}, at most {topk} a level")
    for level, size in enumerate(sizes):
        scores = torch.rand(size, generator=generator)
        kept = reference.select_candidates(
            scores[:, None], torch.zeros(size, dtype=torch.int64), min_score=floor, topk=topk
        )
        chosen = set(kept.point.tolist())
        y = 45 + level * 55
        p.text(10, y + 16, f"level {level}")
        step = CELL * 2**level
        for i in range(size):
            colour = ACTIVE if i in chosen else HALO if scores[i] > floor else IDLE
            p.box(120 + i * step, y, step - 3, CELL - 3, colour)
            p.text(
                120 + i * step + (step - 3) / 2, y + 16, f"{scores[i]:.2f}"[1:], "#fff" if i in chosen else INK, 11,
                "middle",
            )  # fmt: skip
    p.text(120, 225, "dark: kept; light blue: above the threshold, but not among the best; grey: below it")
    p.save("select_candidates", "The best entries of every pyramid level")


def decode_segments() -> None:
    p = Picture(760, 210)
    e, q, c, s = 3.0, 0.8, 2.2, 0.4
    fused = (e / q**2 + c / s**2) / (1 / q**2 + 1 / s**2)
    error = math.sqrt(1 / (1 / q**2 + 1 / s**2))

    def x(t: float) -> float:
        return 100 + 60 * t

    for y, place, std, colour, name in (
        (40, e, q, LINE, f"regressed start {e:g} ± {q:g}"),
        (85, c, s, ACTIVE, f"crossing {c:g} ± {s:g}"),
        (130, fused, error, WARM, f"fused {fused:.2f} ± {error:.2f}"),
    ):
        p.line([(x(place - std), y), (x(place + std), y)], colour, 3)
        p.dot(x(place), y, colour)
        p.text(x(4.2), y + 5, name)
    p.line([(x(0), 165), (x(4), 165)], INK, 1)
    for t in range(5):
        p.line([(x(t), 161), (x(t), 169)], INK, 1)
        p.text(x(t), 186, str(t), size=12, anchor="middle")
    p.text(x(4.2), 170, "grid steps", size=12)
    p.save("decode_segments", "An end meets the nearest crossing")


def pair_segments() -> None:
    p = Picture(760, 230)
    starts, ends = [1.5, 6.0, 11.0], [4.5, 9.0, 15.0]

    def x(t: float) -> float:
        return 90 + 38 * t

    p.line([(x(0), 60), (x(17), 60)], INK, 1)
    for t in starts:
        p.dot(x(t), 60, ACTIVE)
    for t in ends:
        p.dot(x(t), 60, WARM)
    p.text(90, 30, "blue: start crossings; orange: end crossings; bars: pairs with the next two ends")
    row = 0
    for start in starts:
        for end in [t for t in ends if t > start][:2]:
            y = 82 + 22 * row
            p.box(x(start), y, x(end) - x(start), 14, HALO)
            row += 1
    p.text(
        90, 82 + 22 * row + 22, "a pair's score in a class: the mean probability inside, from prefix sums: two reads"
    )
    p.save("pair_segments", "Starts joined with the ends that follow")


def nms() -> None:
    p = Picture(760, 250)
    segments = torch.tensor([[1.0, 6.0], [1.4, 6.6], [5.0, 8.0], [10.0, 14.0], [10.2, 13.0]])
    scores = torch.tensor([0.9, 0.8, 0.6, 0.7, 0.5])
    index, decayed = reference.soft_nms(
        segments, scores, iou_threshold=0.1, sigma=0.5, min_score=0.001, method="gaussian", max_seg_num=0
    )
    after = dict(zip(index.tolist(), decayed.tolist(), strict=True))
    for i, (start, end) in enumerate(segments.tolist()):
        y = 40 + i * 34
        p.box(60 + 30 * start, y, 30 * (end - start), 20, ACTIVE if after[i] == scores[i] else HALO)
        p.text(500, y + 15, f"{scores[i]:.2f} → {after[i]:.2f}" + (", untouched" if after[i] == scores[i] else ""))
    p.text(60, 24, "one class, soft-NMS (Gaussian, σ = 0.5)")
    p.text(500, 24, "score → after suppression")
    p.text(60, 232, "each pick multiplies what overlaps it by exp(−overlap² / σ)")
    p.save("nms", "Soft suppression of five candidates")


if __name__ == "__main__":
    for draw in (
        active_tokens, local_attention, variable_depth_block, boundary_crossings, select_candidates, decode_segments,
        pair_segments, nms,
    ):  # fmt: skip
        draw()
