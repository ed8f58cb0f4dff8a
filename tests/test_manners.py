"""How the command talks: what goes where and how much of it, pipes, completion, and the list of keys."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import warnings
from pathlib import Path

import numpy as np
import pytest
import small_model
import small_run

from tzn.checked import meanings
from tzn.cli import build_parser, main
from tzn.config_loading import SECTIONS, config_keys, config_to_dict, dump_config
from tzn.console import LOG, talking
from tzn.errors import LimitWarning
from tzn.models.checkpoint import save_checkpoint
from tzn.models.pretrained import pretrained_names

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A checkpoint, three recordings, annotations."""
    folder = tmp_path_factory.mktemp("manners")
    config = dataclasses.replace(small_run.small_config("data.fps=10"), model=small_model.CONFIG)
    save_checkpoint(folder / "small.ckpt", small_model.build(), config_to_dict(config), NAMES)
    (folder / "in").mkdir()
    for i in range(3):
        np.save(folder / "in" / f"r{i}.npy", small_model.features(900, i).numpy())
    rows = [{"segment": [3.0, 5.0], "label": "a"}]
    database = {f"r{i}": {"subset": "test", "duration": 90.0, "annotations": rows} for i in range(3)}
    database |= {"stdin": {"subset": "test", "duration": 90.0, "annotations": rows}}
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    return folder


def run(*arguments: object, terminal: bool = False, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Exit code, standard output and stderr of the command; ``terminal``: stderr is one."""
    command = [sys.executable, "-m", "tzn", *map(str, arguments)]
    if not terminal:
        done = subprocess.run(command, input=stdin, capture_output=True)
        return done.returncode, done.stdout, done.stderr
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:  # the other end is closed
            pass
        out = process.stdout.read()
    os.close(ours)
    return process.returncode, out, seen


# --- keys of a configuration


def test_no_key_lacks_a_meaning():
    keys = config_keys()
    assert len(keys) > 100
    assert [key.name for key in keys if len(key.meaning) < 10] == []
    for section, kind in SECTIONS.items():
        unknown = set(meanings(kind)) - {field.name for field in dataclasses.fields(kind)}
        assert not unknown, f"{section} explains what it has not: {unknown}"


def test_keys_say_what_is_checked(capsys):
    assert main(["config", "--json"]) == 0
    keys = {key["name"]: key for key in json.loads(capsys.readouterr().out)}
    nms = keys["inference.nms"]
    assert nms["choices"] == ["soft", "linear", "hard", "diou", "none"] and nms["default"] == "soft"
    assert nms["types"] == ["string"] and nms["allowed"].startswith("'soft', ")
    assert keys["data.fps"]["types"] == ["number", "null"] and keys["data.fps"]["allowed"] == "a number > 0, or null"
    assert keys["model.input_dim"]["required"] and not keys["model.width"]["required"]
    assert (
        keys["training.learning_rate"]["meaning"] == keys["training.weight_decay"]["meaning"]
    )  # "a, b: …" explains both
    assert "see tzn.ops.batched_nms" in keys["inference.sigma"]["meaning"], "markup of docstrings is for Sphinx"
    for name, key in keys.items():
        kind = SECTIONS[name.split(".")[0]]
        if not key["required"]:
            assert kind.convert(name.split(".")[1], key["default"]) is not NotImplemented
        for choice in key["choices"]:
            assert kind.convert(name.split(".")[1], choice) == choice


def test_config_finds_keys_by_any_name(capsys):
    assert main(["config", "training.epochs"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("training:\n  training.epochs = default 35\n") and "warm-up included" in printed
    assert main(["config", "evaluation"]) == 0
    assert capsys.readouterr().out.count("evaluation.") == 4
    assert main(["config", "input_dim"]) == 0
    printed = capsys.readouterr().out
    assert "model.input_dim = must be set" in printed and "actionformer.input_dim" in printed
    assert main(["config", "epoch"]) == 2
    assert "no key 'epoch'; did you mean 'training.epochs'?" in capsys.readouterr().err


def test_config_shows_a_trained_model(files, capsys):
    assert main(["config", "data.fps", "--model", str(files / "small.ckpt")]) == 0
    assert "data.fps = 10.0 (default null)" in capsys.readouterr().out
    assert main(["config", "--model", "hapt", "--json"]) == 0
    keys = {key["name"]: key for key in json.loads(capsys.readouterr().out)}
    assert keys["model.num_classes"]["value"] == 12 and "actionformer.n_head" not in keys
    assert main(["config", "--model", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


# --- how much is said, and where


def _commands(parser, before=()):
    for action in parser._actions:
        for name, inner in (getattr(action, "choices", None) or {}).items() if action.dest.endswith("command") else ():
            below = list(_commands(inner, (*before, name)))
            yield from below or [((*before, name), inner)]


def test_every_command_can_be_quiet_and_verbose():
    commands = dict(_commands(build_parser()))
    assert ("data", "check") in commands and ("predict",) in commands and len(commands) >= 13
    for name, parser in commands.items():
        assert {"-q", "--quiet", "-v", "--verbose"} <= set(parser._option_string_actions), name


def test_bars_are_on_stderr_and_only_on_terminals(files, tmp_path):
    predict = ["predict", files / "small.ckpt", files / "in", "--out", tmp_path / "p.json"]
    code, out, seen = run(*predict, terminal=True)
    assert code == 0 and b"predict: " in seen and b"3/3" in seen and b"\r" in seen
    assert out == f"{_count(tmp_path / 'p.json')} detections in 3 recordings: {tmp_path / 'p.json'}\n".encode()
    code, out, seen = run(*predict)
    assert code == 0 and b"\r" not in seen and b"3/3" not in seen and out.endswith(b"p.json\n")
    code, out, seen = run(*predict, "--quiet", terminal=True)
    assert (code, out, seen) == (0, b"", b"")


def _count(path: Path) -> int:
    return sum(map(len, json.loads(path.read_text())["results"].values()))


def test_the_bar_of_training(tmp_path):
    small_run.small_data(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(dump_config(small_run.small_config("training.epochs=2")))
    train = ["train", tmp_path / "small.yaml", "--data", tmp_path / "data", "--device", "cpu"]
    code, out, seen = run(*train, "--out", tmp_path / "run", "--verbose", terminal=True)
    assert code == 0, seen
    assert b"train: " in seen and b"loss=" in seen and b"epoch=2/2" in seen
    assert b"ops: " in seen and b"recordings to learn from" in seen  # verbose
    assert out.startswith(b"checkpoint: ") and len(out.splitlines()) == 2
    code, out, seen = run(*train, "--out", tmp_path / "quiet", "-q", terminal=True)
    assert (code, out, seen) == (0, b"", b"")


def test_verbose_says_what_is_done_and_where_errors_come_from(files, tmp_path, capsys):
    predict = ["predict", str(files / "small.ckpt"), str(files / "in" / "r0.npy"), "--out", str(tmp_path / "p.json")]
    assert main([*predict, "-v"]) == 0
    said = capsys.readouterr().err
    assert "tzn predict: tzn " in said and "tzn predict: r0: 900 steps, " in said
    assert main([*predict[:2], "gone.npy", *predict[3:], "-v"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and said.splitlines()[-1] == "tzn predict: gone.npy: no such file or folder"
    assert main([*predict[:2], "gone.npy", *predict[3:], "-q"]) == 2
    assert capsys.readouterr().err == "tzn predict: gone.npy: no such file or folder\n"


def test_warnings_are_one_line_and_quiet_has_none(capsys):
    before = warnings.formatwarning, LOG.level, list(LOG.handlers)
    for options, expected in (
        ({}, "tzn view: warning: two lines of it\ntzn view: half\n"), ({"quiet": True}, ""),
        ({"verbose": True}, "tzn view: half\ntzn view: step\n"),
    ):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with talking("view", **options):
                if "verbose" not in options:
                    # pytest records warnings: what a shell shows is what this function makes of them
                    text = warnings.formatwarning("two\nlines of it", UserWarning, "x.py", 1)
                    shown = [w for w in [text] if not any(f[0] == "ignore" for f in warnings.filters[:1])]
                    sys.stderr.write("".join(shown))
                LOG.warning("half")
                LOG.info("step")
        assert capsys.readouterr().err == expected
    assert (warnings.formatwarning, LOG.level, list(LOG.handlers)) == before


def test_a_limit_that_cuts_many_recordings_is_said_once():
    with talking("eval"):
        said = [warnings.formatwarning(f"cut up to {i}", LimitWarning, "x.py", 1) for i in range(3)]
        assert said == ["tzn eval: warning: cut up to 0\n", "", ""]
        assert warnings.formatwarning("other", UserWarning, "x.py", 1) == "tzn eval: warning: other\n"
    with talking("eval"):  # a command of its own
        assert warnings.formatwarning("cut", LimitWarning, "x.py", 1) == "tzn eval: warning: cut\n"


# --- pipes


def test_predict_reads_and_writes_pipes(files, tmp_path):
    features = (files / "in" / "r0.npy").read_bytes()
    code, out, err = run("predict", files / "small.ckpt", "-", "--out", "-", "--min-score", "0.5", stdin=features)
    assert code == 0, err
    found = json.loads(out)["results"]
    assert list(found) == ["stdin"] and len(found["stdin"]) > 3 and b"detections in 1 recordings: -" in err
    code, table, err = run(
        "predict",
        files / "small.ckpt",
        "-",
        "--out",
        "-",
        "--format",
        "csv",
        "--min-score",
        "0.5",
        "-q",
        stdin=features,
    )
    assert (code, err) == (0, b"") and len(table.decode().splitlines()) == 1 + len(found["stdin"])
    code, scores, err = run("score", "-", files / "annotations.json", "--json", "-q", stdin=out)
    assert code == 0 and "average_mAP" in json.loads(scores)
    code, page, err = run("view", "-", files / "annotations.json", "--out", "-", "-q", stdin=out)
    assert code == 0 and page.startswith(b"<!doctype html>") and page.rstrip().endswith(b"</html>")
    code, _, err = run("predict", files / "small.ckpt", "-", "--out", "-", stdin=b"")
    assert code == 2 and b"standard input is empty" in err


def test_raw_signals_through_a_pipe():
    rows = np.random.default_rng(0).normal(size=(600, 6))
    text = "\n".join(",".join(f"{x:.4f}" for x in row) for row in rows).encode()
    code, out, err = run("predict", "--pretrained", "hapt", "-", "--out", "-", "-q", stdin=text)
    assert (code, err) == (0, b"") and list(json.loads(out)["results"]) == ["stdin"]


def test_convert_writes_standard_output(tmp_path, capsys):
    (tmp_path / "clip.txt").write_text("0.5\t3.5\ttalk\n")
    assert main(["convert", str(tmp_path / "clip.txt"), "-", "--to", "annotations"]) == 0
    said = capsys.readouterr()
    assert list(json.loads(said.out)["database"]) == ["clip"] and "1 segments in 1 recordings: -" in said.err


def test_what_pipes_cannot_do(files):
    for arguments, words in (
        (["-", "-", "--out", "p.json"], "can be read once"),
        (["-", "--resume", "--out", "p.json"], "--resume: nothing can be resumed through a pipe"),
        ([str(files / "in"), "--resume", "--out", "-"], "--resume: nothing can be resumed through a pipe"),
    ):  # fmt: skip
        code, _, err = run("predict", files / "small.ckpt", *arguments, stdin=b"")
        assert code == 2 and words in err.decode()


# --- completion


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Completions of a command line, as bash asks for them with the script that tzn prints."""
    pytest.importorskip("argcomplete")
    folder = tmp_path_factory.mktemp("bin")
    (folder / "tzn").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tzn "$@"\n')
    (folder / "tzn").chmod(0o755)
    (folder / "mine.yaml").write_text("")

    def completions(line: str) -> set[str]:
        words = line.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        code = (
            f"eval \"$(tzn completion bash)\"; COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_TYPE=9\n"
            f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
            '_python_argcomplete tzn; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            ["bash", "--norc", "-c", code], capture_output=True, text=True, cwd=folder, env={**os.environ, **path}
        )
        assert done.returncode == 0, done.stderr
        return {word.strip() for word in done.stdout.splitlines() if word.strip()}

    return completions


def test_bash_completes_commands_options_keys_and_values(shell):
    assert shell("tzn p") == {"plot", "predict", "pretrained"}
    assert {"--out", "--stream", "--pretrained"} <= shell("tzn predict --")
    assert shell("tzn predict --pretrained ") == set(pretrained_names())
    assert "training.epochs=" in shell("tzn train mine.yaml training.ep")
    assert {"soft", "hard", "diou"} <= {text.split("=")[-1] for text in shell("tzn train mine.yaml inference.nms=")}
    assert shell("tzn config inference.nm") == {"inference.nms"}
    assert shell("tzn train mi") == {"mine.yaml"}


@pytest.mark.parametrize("name", ["bash", "zsh", "fish", "tcsh"])
def test_every_shell_has_a_script(name, capsys):
    pytest.importorskip("argcomplete")
    assert main(["completion", name]) == 0
    script = capsys.readouterr().out.lower()
    assert "tzn" in script and "argcomplete" in script


def test_a_full_disk_in_a_thread_of_a_library_is_told_once(monkeypatch, capsys):
    import errno
    import threading

    def run(options):
        def write():
            raise OSError(errno.ENOSPC, "No space left on device")

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        write()

    monkeypatch.setattr("tzn.cli.info._info", run)
    assert main(["info"]) == 2
    assert capsys.readouterr().err.splitlines() == ["tzn info: input or output: No space left on device"]
