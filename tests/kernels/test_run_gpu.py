"""The GPU benchmark runs to its end without a GPU: no line of it is first run on one, and it says what it did not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu.stage import CUT, FAILED, LOST, Case, Stage, interpreter_reads_numbers
from tzn.kernels import _launch as launch

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("precompile", "parity", "small_kernels", "end_to_end", "op_times", "autotune")


def _run(folder, *arguments, python=sys.executable):
    environment = os.environ | {"OUT": str(folder), "PYTHON": str(python), "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [ROOT / "benchmarks" / "run_gpu.sh", "--dry-run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_every_stage_runs_dry_and_leaves_its_results(tmp_path):
    done = _run(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for stage in STAGES:
        content = json.loads((tmp_path / f"{stage}.json").read_text())
        assert content["dry_run"] == "times mean nothing"
        assert content["rows"]
        assert [row for row in content["rows"] if "error" in row] == content["skipped"] == []
        assert set(content["compiled_libraries"]) == {"_native", "_native_cuda"}
    assert json.loads((tmp_path / "precompile.json").read_text())["rows"][-1]["variants"] > 20
    # What autotuning writes can stand where the package's file stands, and says the same where nothing was tuned.
    tuned = json.loads((tmp_path / "configs.json").read_text())
    shipped = launch._table("configs.json")
    assert tuned["sm80"] == shipped["sm80"]
    assert set(tuned["sm90"]) == set(shipped["sm90"]) | (set(launch.FAMILIES) - {"offsets"})
    assert "32/16" in tuned["sm90"]["attention_forward"]
    assert "32/64" in tuned["sm90"]["qkv_projection"]
    assert tuned["sm90"]["qkv_projection"]["16/4096"] == shipped["sm90"]["linear"]["16/4096"]


def test_a_stage_cut_by_time_is_a_failure_that_lists_what_is_missing(tmp_path):
    done = _run(tmp_path, "--seconds", "0", "--only", "parity")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "parity: 0 rows, 0 failed" in done.stdout
    content = json.loads((tmp_path / "parity.json").read_text())
    assert content["rows"] == []
    skipped = [row["op"] for row in content["skipped"]]
    assert skipped[:3] == ["nms"] * 3  # the cheap and the critical come first
    order = [
        "nms",
        "boundary_crossings",
        "select_candidates",
        "picks placed",
        "detect",
        "attention of more than 2^31 elements",
        "block",
    ]
    assert list(dict.fromkeys(skipped))[:7] == order


FAKE = """#!/bin/sh
[ "$1" != -c ] || exit 0
echo "$@" >>"$OUT/calls"
for word in "$@"; do case $word in benchmarks.gpu.*) stage=${word#benchmarks.gpu.} ;; esac; done
echo '{}' >"$OUT/$stage.json"
number=$(grep -c "benchmarks.gpu.$stage " "$OUT/calls")
code=$(sed -n "s/^$stage $number //p" "$OUT/codes")
[ "$code" != signal ] || kill -SEGV $$
exit ${code:-0}
"""


@pytest.mark.parametrize(
    ("codes", "returned", "calls"),
    [
        ("", 0, 6),
        ("parity 1 2", 2, 6),
        ("parity 1 2\nop_times 1 1", 1, 6),
        ("parity 1 1\nop_times 1 2", 1, 6),
        ("parity 1 75", 1, 7),
        ("parity 1 75\nparity 2 signal\nparity 3 0", 1, 8),
        ("end_to_end 1 137", 2, 6),
        ("precompile 1 75", 1, 6),
        ("small_kernels 1 9", 1, 6),
    ],
    ids=[
        "all-good",
        "cut",
        "cut-then-failed",
        "failed-then-cut",
        "lost",
        "lost-twice",
        "killed",
        "no-resume",
        "memcheck",
    ],
)
def test_how_stages_end_is_how_the_run_ends(tmp_path, codes, returned, calls):
    """A stage that loses the device goes on in a new process; one that fails does not keep the others from running."""
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    (tmp_path / "codes").write_text(codes + "\n")
    done = _run(tmp_path, python=fake)
    assert done.returncode == returned, done.stdout + done.stderr
    made = (tmp_path / "calls").read_text().splitlines()
    assert len(made) == calls
    assert [line for line in made if "--resume" in line] == [
        line for number, line in enumerate(made) if number and line.split()[3] == made[number - 1].split()[3]
    ]


@pytest.mark.parametrize("wrong", [["--seconds", "soon"], ["--only", "all"], ["--fast"]], ids=" ".join)
def test_a_wrong_call_is_said(tmp_path, wrong):
    done = _run(tmp_path, *wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("run_gpu.sh: ") and wrong[-1] in done.stderr and "expected" in done.stderr


def _stage(folder, **changes):
    return Stage("trial", folder, True, time.monotonic() + 100, **changes)


def _case(name, run=lambda: {"value": 1.0}):
    return Case({"row": name}, run)


def _fail():
    raise ValueError("wrong")


def _no_parity():
    raise SystemExit("no parity")


def test_a_row_that_fails_does_not_end_the_stage(tmp_path):
    s = _stage(tmp_path)
    groups = [("a", lambda s: [_case("1"), _case("2", _fail), _case("3", _no_parity)]), ("b", lambda s: [_case("4")])]
    assert s.run(groups) == FAILED
    content = json.loads(s.file.read_text())
    assert [row.get("error") for row in content["rows"]] == [None, "ValueError: wrong", "SystemExit: no parity", None]
    assert content["groups"] == {"a": "done", "b": "done"}


def test_rows_after_the_deadline_are_listed(tmp_path):
    s = _stage(tmp_path)

    def last():
        s.deadline = 0.0
        return {"value": 2.0}

    assert s.run([("a", lambda s: [_case("1", last), _case("2")]), ("b", lambda s: [_case("3")])]) == CUT
    assert json.loads(s.file.read_text())["skipped"] == [{"row": "2"}, {"row": "3"}]


def test_what_is_missing_is_on_disk_before_a_process_is_killed(tmp_path):
    s = _stage(tmp_path)

    def look():
        assert json.loads(s.file.read_text())["skipped"] == [{"row": "1"}, {"row": "2"}]
        return {}

    assert s.run([("a", lambda s: [_case("1", look), _case("2")])]) == 0


def test_after_a_lost_device_the_next_process_begins_with_the_next_group(tmp_path, monkeypatch):
    groups = [
        ("a", lambda s: [_case("1")]),
        ("b", lambda s: [_case("2", _fail), _case("3")]),
        ("c", lambda s: [_case("4")]),
    ]
    lost = iter([False, True])
    monkeypatch.setattr(Stage, "_device_is_lost", lambda self: next(lost, False))
    first = _stage(tmp_path)
    assert first.run(groups) == LOST
    assert json.loads(first.file.read_text())["skipped"] == [{"row": "4"}]
    second = _stage(tmp_path, resume=True)
    assert second.run(groups) == FAILED
    content = json.loads(second.file.read_text())
    assert [(row["row"], "error" in row) for row in content["rows"]] == [
        ("1", False),
        ("2", True),
        ("3", True),
        ("4", False),
    ]
    assert content["groups"] == {"a": "done", "b": "lost", "c": "done"}


def test_a_crash_within_a_group_is_a_row(tmp_path):
    groups = [("a", lambda s: [_case("1", _crash), _case("2")]), ("b", lambda s: [_case("3")])]
    with pytest.raises(Gone):
        _stage(tmp_path).run(groups)
    second = _stage(tmp_path, resume=True)
    assert second.run(groups) == FAILED
    content = json.loads(second.file.read_text())
    assert [row.get("group", row.get("row")) for row in content["rows"]] == ["a", "3"]
    assert "error" in content["rows"][0]


class Gone(BaseException):
    """Stands in for the end of a process: no handler of errors sees it."""


def _crash():
    raise Gone


LAUNCH = """
import torch, triton
from tzn.kernels import _aot
from tzn.kernels.active_tokens import compact

def run():
    gate = torch.ones(1, 64)
    lists = compact(gate, gate > 0, 1, 64, 5, gate.device)
    return gate, lists

"""
PRECOMPILE = """
with _aot.variants(90) as found:
    gate, lists = run()
assert gate.sum() == 0 and lists.counts.sum() == 0
assert [v.kernel for v in found] == ["mark_kernel", "write_kernel"]
assert [_aot.compile_variant(v, 90) for v in found] == [True, True]
assert [_aot.compile_variant(v, 90) for v in found] == [False, False]
"""
PROGRAMMATIC = """
for capability, wanted in ((80, 0), (90, 1), (100, 1)):
    with _aot.collect(capability) as compiled:
        run()
    for name, kernel in compiled:
        ptx = kernel.asm["ptx"]
        assert ptx.count("griddepcontrol.wait") == ptx.count("griddepcontrol.launch_dependents") == wanted, name
        assert kernel.metadata.launch_pdl == bool(wanted), name
        found = _aot.resources(str(capability), name, "", kernel)
        assert found.early == 0, found
        if wanted:
            first = min(ptx.find(word) for word in ("ld.global", "st.global", "bra", "ret;") if word in ptx)
            assert ptx.find("griddepcontrol.wait") < ptx.find("griddepcontrol.launch_dependents") < first, name
"""
LOOK = """
hits = []
triton.knobs.compilation.listener = lambda cache_hit, **_: hits.append(cache_hit)
with _aot.collect(90) as compiled:
    run()
assert [name for name, _ in compiled] == ["mark_kernel", "write_kernel"]
assert hits == [True, True], hits
"""


FOLLOW = """
import sys
from benchmarks.gpu import precompile
precompile.prepare()
for place in (("parity", "detection"), ("parity", "persistent"), ("end_to_end", "16 bits"), ("end_to_end", "stream")):
    for number, case in enumerate(precompile.cases_of(*place, True)):
        assert not case.compiles or precompile.follow((*place, number), 90, True), (place, number)
"""


def test_whole_inferences_can_be_followed_ahead():
    """Through their decoding as well, though nothing that they compute has a value then."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", FOLLOW], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_compiled_ahead_is_what_a_launch_looks_for(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    for program in (PRECOMPILE, LOOK):  # processes of their own: what one keeps in memory says nothing about the disk
        command = [sys.executable, "-c", LAUNCH + program]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]


def test_programmatic_launches_wait_before_they_touch_memory(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TZN_PDL": "1"}
    command = [sys.executable, "-c", LAUNCH + PROGRAMMATIC]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_dry_run_reads_numbers_as_numpy_allows(monkeypatch):
    from triton.runtime import interpreter

    class Numbers:  # NumPy 2.4's array of one element and one axis
        def __int__(self):
            raise TypeError("only 0-dimensional arrays can be converted to Python scalars")

        def squeeze(self):
            return 3

    class Scope:
        def set_attr(self, of, name, value):
            setattr(of, name, value)

    class Tensor:
        handle = SimpleNamespace(data=Numbers())

    def of_triton_3_6(tensor, scope):
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", of_triton_3_6)
    interpreter._patch_lang_tensor(Tensor, Scope())
    with pytest.raises(TypeError):
        range(Tensor())
    interpreter_reads_numbers()
    interpreter._patch_lang_tensor(Tensor, Scope())
    assert list(range(Tensor())) == [0, 1, 2]
