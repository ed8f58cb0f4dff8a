"""Make the model that ships with tzn from a run of benchmarks.evidence.hapt, and check that it still scores the same.

usage: python -m benchmarks.evidence.hapt.export_pretrained runs/hapt_seed0 --data hapt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.lib.runs import load_run
from tzn.inference.evaluate_checkpoint import evaluate_checkpoint
from tzn.models.pretrained import FOLDER, RawSignal, load_pretrained, save_pretrained

SIGNAL = RawSignal(
    ("acceleration x (g)", "acceleration y (g)", "acceleration z (g)",
     "angular velocity x (rad/s)", "angular velocity y (rad/s)", "angular velocity z (rad/s)"),
    rate=50.0, samples_per_step=5,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    checkpoint = load_run(options.run)
    save_pretrained(FOLDER / "hapt.safetensors", checkpoint, SIGNAL)
    for name, loaded in (("checkpoint", checkpoint), ("pretrained", load_pretrained("hapt").checkpoint)):
        result = evaluate_checkpoint(loaded, options.data, progress=False).to_dict()
        print(f"{name}: mAP {[round(100 * v, 2) for v in result['mAP']]}, {result['gmac_per_recording']:.3f} GMAC")
    print(f"{(FOLDER / 'hapt.safetensors').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
