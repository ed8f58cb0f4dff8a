"""Make a model that ships with tzn from a run, and check that it still scores the same.

usage: python -m benchmarks.export_pretrained {hapt,ludb,sp_sw_har} RUN --data hapt
       python -m benchmarks.export_pretrained hapt --data hapt --on-test 'user[0-9]+'

RUN is best calibrated first (``tzn calibrate``); what that stored goes with the model. The second form calibrates the model
that ships on the test groups, which it has not seen: their boundaries are used for that alone, and are no test of the
intervals any more; printed is how those of all but one group cover that one's. Weights are written in half precision to
tzn/pretrained/NAME.safetensors; the card beside it, NAME.md, is written by hand from what this program prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from benchmarks.lib.runs import load_run
from tzn.config_loading import config_from_dict
from tzn.inference.evaluate_checkpoint import evaluate_checkpoint
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.models.pretrained import FOLDER, RawSignal, load_pretrained, save_pretrained
from tzn.training.calibrate import by_group, cross_coverage, fit, held_out_by, uncalibrated

MOTION = tuple(f"{kind} {axis} ({{}})" for kind in ("acceleration", "angular velocity") for axis in "xyz")
LEADS = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6")


def motion(unit: str, where: str = "") -> tuple[str, ...]:
    return tuple(where + name.format(unit if name.startswith("acc") else "rad/s") for name in MOTION)


SIGNALS = {
    "hapt": RawSignal(motion("g"), rate=50.0, samples_per_step=5),
    "ludb": RawSignal(tuple(f"lead {name} (microvolt)" for name in LEADS), rate=250.0, samples_per_step=1),
    "sp_sw_har": RawSignal(
        (*motion("m/s^2", "phone "), *motion("m/s^2", "watch ")), rate=50.0, samples_per_step=2
    ),
}  # fmt: skip


def on_samples(checkpoint: LoadedCheckpoint, signal: RawSignal) -> LoadedCheckpoint:
    """The checkpoint with its grid said in samples of the signal, the same grid in seconds.

    Raises:
        ValueError: the run was trained on another grid.
    """
    data = config_from_dict(checkpoint.config).data
    size = signal.samples_per_step
    if data.fps is None or data.feat_stride / data.fps != size / signal.rate or data.num_frames != data.feat_stride:
        raise ValueError(f"the run's step is {data.feat_stride} / {data.fps} s, the signal's {size} / {signal.rate} s")
    grid = {"fps": signal.rate, "feat_stride": float(size), "num_frames": float(size)}
    return dataclasses.replace(checkpoint, config={**checkpoint.config, "data": {**checkpoint.config["data"], **grid}})


def on_test(name: str, data: Path, group: str) -> LoadedCheckpoint:
    """The model that ships, calibrated on the test groups; prints how they judge each other."""
    checkpoint = load_pretrained(name).checkpoint
    config = uncalibrated(checkpoint)
    held = held_out_by(checkpoint, config, data, group, split="test")
    calibration = fit(held, config.inference, "test")
    for level, (expected, guaranteed) in cross_coverage(by_group(held), config.inference, (0.5, 0.8, 0.9)).items():
        print(
            f"{level:.0%} intervals: {expected:.1%} expected, {guaranteed:.1%} guaranteed, a group at a time left out"
        )
    inference = {**checkpoint.config["inference"], "std_scale": list(calibration.std_scale)}
    return dataclasses.replace(
        checkpoint, config={**checkpoint.config, "inference": inference}, calibration=calibration
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(SIGNALS))
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--on-test", metavar="REGEX", help="no RUN: calibrate on the test groups that this finds")
    options = parser.parse_args()
    if (options.run is None) == (options.on_test is None):
        parser.error("expected a RUN, or --on-test")
    path = FOLDER / f"{options.name}.safetensors"
    checkpoint = load_run(options.run) if options.run else on_test(options.name, options.data, options.on_test)
    save_pretrained(path, on_samples(checkpoint, SIGNALS[options.name]), SIGNALS[options.name])
    for name, loaded in (("checkpoint", checkpoint), ("pretrained", load_pretrained(options.name).checkpoint)):
        result = evaluate_checkpoint(loaded, options.data, progress=False).to_dict()
        errors = result["boundary_error"]["overall"]
        ends = ", ".join(f"{side} {1e3 * errors[side]['median']:.1f} ms" for side in ("start", "end"))
        print(f"{name}: mAP {[round(100 * v, 2) for v in result['mAP']]} at {result['tiou']}, {ends}, "
              f"{result['gmac_per_recording']:.3f} GMAC, mean depth {result['mean_depth']:.2f}")  # fmt: skip
    print(f"{path.stat().st_size / 1e6:.2f} MB")
    if options.run:
        print(f"trained in {json.loads((options.run / 'run.json').read_text())['cpu_seconds']:.0f} CPU seconds")


if __name__ == "__main__":
    main()
