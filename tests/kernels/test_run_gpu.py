"""The GPU benchmark runs to its end without a GPU: no line of it is first run on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tzn.kernels import _launch as launch

ROOT = Path(__file__).resolve().parents[2]


def test_every_stage_runs_dry_and_leaves_its_results(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        [ROOT / "benchmarks" / "run_gpu.sh", "--dry-run"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for stage in ("parity", "small_kernels", "op_times", "end_to_end", "autotune"):
        content = json.loads((tmp_path / f"{stage}.json").read_text())
        assert content["dry_run"] == "times mean nothing"
        assert content["rows"]
        assert [row for row in content["rows"] if "error" in row] == []
    # What autotuning writes can stand where the package's file stands, and says the same where nothing was tuned.
    tuned = json.loads((tmp_path / "configs.json").read_text())
    shipped = launch._table("configs.json")
    assert tuned["sm80"] == shipped["sm80"]
    assert set(tuned["sm90"]) == set(shipped["sm90"])
    assert "32/16" in tuned["sm90"]["attention_forward"]
