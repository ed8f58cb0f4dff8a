"""The picture on top of README: a person that the model has not seen, from the first test recording of its data set.

usage: python docs/pictures/timeline.py ../shared/data/sp_sw_har      (writes timeline.png beside this file)

Data: Matey-Sanz et al. 2023, CC BY 4.0. The model is the one that comes with tzn; nothing is chosen but the recording,
and that by name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tzn.data.annotations import load_annotations
from tzn.inference.evaluate_checkpoint import evaluate_checkpoint
from tzn.models.pretrained import load_pretrained
from tzn.visualization.timeline import draw_timeline

MIN_SCORE = 0.3  # where the model does not know from which score on its detections are confident

HERE = Path(__file__).resolve().parent


def main(data: Path) -> None:
    checkpoint = load_pretrained("sp_sw_har").checkpoint
    done = evaluate_checkpoint(checkpoint, data, keep_traces=True, progress=False)
    name = min(done.detections)
    recording = load_annotations(data / "annotations.json").recordings[name]
    found = done.detections[name]
    threshold = checkpoint.score_threshold or MIN_SCORE
    figure = draw_timeline(recording, checkpoint.classes, found, done.traces[name], min_score=threshold)
    figure.set_size_inches(10.5, 5.2)  # a page shows it about half as wide as it is
    figure.suptitle("")
    for text in figure.texts:
        text.set_visible(False)
    figure.axes[0].set_title(
        f"annotated (upper bars) and detected with score ≥ {threshold:.2g} (lower bars; whiskers: one standard error)",
        fontsize=10,
        loc="left",
    )
    figure.savefig(HERE / "timeline.png", dpi=160)
    print(f"{name}: {len(found)} detections, mAP of the whole split {done.report.score.average_mAP:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
