"""What README.md, docs/commands.md and docs/python.md show runs as it stands there, on small files of those names."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch

from tzn.cli import main
from tzn.config_loading import dump_config, load_config
from tzn.models import build_model

README = Path(__file__).resolve().parent.parent / "README.md"
ROOT = README.parent

# Command, or its beginning: why it is not run here.
NOT_RUN: dict[str, str] = {}
SHORTER = {"training.epochs=30": "training.epochs=2", "20": "0.02"}  # --minutes
# Overrides that make the configurations of the README small enough for a test.
SMALL_ACTIONFORMER = [
    "actionformer.input_dim=6", "actionformer.num_classes=3", "actionformer.embd_dim=16", "actionformer.fpn_dim=16",
    "actionformer.head_dim=16", "actionformer.max_seq_len=576", "data.max_length=576", "training.epochs=2",
    "training.warmup_epochs=1", "training.batch_size=4", "data.train_subset=training",
]  # fmt: skip


def _commands() -> list[str]:
    """``tzn`` commands in fenced blocks and, with arguments, in the text."""
    text = README.read_text() + (ROOT / "docs/commands.md").read_text()
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M))
    lines = [line for line in fenced.splitlines() if line.startswith("tzn ")]
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.S | re.M)
    inline = [" ".join(span.split()) for span in re.findall(r"`(tzn [^`]*)`", prose)]
    # "tzn score" names a command; "tzn info" is a whole one, and so is whatever has an input and nothing left open.
    whole = [c for c in inline if c == "tzn info" or (len(c.split()) > 3 and not re.search(r"…|\||[A-Z]{4}", c))]
    return list(dict.fromkeys(lines + whole))


def _argv(command: str) -> list[str]:
    return [SHORTER.get(word, word) for word in shlex.split(command, comments=True)[1:]]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the commands name."""
    place = tmp_path_factory.mktemp("readme")
    (place / "configs").mkdir()
    rng = np.random.default_rng(0)

    for name in ("mydata", "thumos14", "anet", "hapt"):
        small_run.small_data(place / name)
        path = place / name / "annotations.json"
        content = json.loads(path.read_text())
        entry = next(e for e in content["database"].values() if e["subset"] == "test")
        rec1 = next(key for key, value in content["database"].items() if value is entry)
        content["database"] = {"rec1" if k == rec1 else k: v for k, v in content["database"].items()}
        for i, e in enumerate(content["database"].values()):
            e["fps"] = (10.0, 11.988)[i % 2] if name == "thumos14" else 10.0
        path.write_text(json.dumps(content))
        shutil.move(place / name / f"features/{rec1}.npy", place / name / "features/rec1.npy")
    shutil.copytree(place / "thumos14/features", place / "i3d_features")
    shutil.copy(place / "thumos14/annotations.json", place / "thumos14.json")
    paths = "".join(f"mydata/features/{path.name}\n" for path in sorted((place / "mydata/features").iterdir()))
    (place / "manifest.csv").write_text(f"path\n{paths}")
    for name in ("phone", "monday", "tuesday"):
        np.savetxt(place / f"{name}.csv", rng.normal(size=(700, 6)), delimiter=",")

    student = small_run.small_config("training.epochs=2", "data.fps=10")
    (place / "configs/hapt_student.yaml").write_text(dump_config(student))
    thumos = load_config(ROOT / "configs/actionformer_thumos14_i3d.yaml", SMALL_ACTIONFORMER)
    (place / "configs/actionformer_thumos14_i3d.yaml").write_text(dump_config(thumos))
    torch.manual_seed(0)
    weights = {f"module.{k}": v for k, v in build_model(thumos.model).state_dict().items()}
    torch.save({"epoch": 35, "state_dict": weights, "state_dict_ema": weights}, place / "epoch_034.pth.tar")

    database = json.loads((place / "thumos14.json").read_text())["database"]
    rows = [(name, a) for name, e in database.items() for a in e["annotations"]]
    result = {
        "video-id": [name for name, _ in rows], "t-start": [a["segment"][0] for _, a in rows],
        "t-end": [a["segment"][1] for _, a in rows], "label": [a["label_id"] for _, a in rows],
        "score": [0.5] * len(rows),
    }  # fmt: skip
    (place / "eval_results.pkl").write_bytes(pickle.dumps(result))
    names = sorted({a["label"] for _, a in rows})
    scores = {"class": names, "results": {name: [0.5] * len(names) for name in database}}
    with gzip.open(place / "cuhk_val_simp_share.json.gz", "wt") as file:
        json.dump(scores, file)
    _train_others(place)
    return place


def _train_others(place: Path) -> None:
    """The runs that the README takes for granted."""
    from tzn.training import train

    one_class = small_run.small_config("training.epochs=2", "data.single_class=true", "model.num_classes=1")
    train(one_class, place / "anet", place / "runs/anet", accelerator="cpu", progress=False)
    train(
        small_run.small_config("training.epochs=2"),
        place / "hapt",
        place / "runs/hapt",
        accelerator="cpu",
        progress=False,
    )


def test_every_command_of_the_readme_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    commands = _commands()
    assert len(commands) > 12
    for command in commands:
        if any(command.startswith(begin) for begin in NOT_RUN):
            continue
        assert main(_argv(command)) == 0, f"{command}\n{capsys.readouterr().err}"
        capsys.readouterr()
    assert all(any(c.startswith(begin) for c in commands) for begin in NOT_RUN), "a reason without its command"
    for result in ("predictions.json", "traces/rec1.npz", "plots/rec1.png", "detad.json"):
        assert (place / result).stat().st_size


def test_a_command_that_cannot_run_is_noticed(place, monkeypatch, capsys):
    """The command as the README once had it: no rate for recordings of several rates."""
    monkeypatch.chdir(place)
    convert = next(c for c in _commands() if "--to checkpoint" in c)
    assert main(_argv(convert)) == 0
    capsys.readouterr()
    assert main(_argv("tzn predict thumos.ckpt i3d_features/ --out again.json")) == 2
    assert "--annotations FILE" in capsys.readouterr().err


def _python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)


def _inputs() -> dict[str, torch.Tensor]:
    """What the blocks on ops and modules take for granted."""
    torch.manual_seed(0)
    start = 50 * torch.rand(40)
    return {
        "segments": torch.stack([start, start + 1 + torch.rand(40)], 1), "scores": torch.rand(40),
        "labels": torch.randint(3, (40,)), "tau": torch.rand(2, 60), "x": torch.randn(2, 60, 512),
        "mask": torch.arange(60) < torch.tensor([[60], [45]]),
    }  # fmt: skip


@pytest.mark.parametrize(("page", "results"), [("README.md", ["found.csv"]), ("docs/python.md", ["0.csv", "2.csv"])])
def test_every_python_block_runs(page, results, place, monkeypatch):
    """The blocks of a page one after the other, as one program."""
    from tzn.training import train

    monkeypatch.chdir(place)
    if not (place / "runs/my").is_dir():
        train(small_run.small_config("training.epochs=2"), place / "mydata", place / "runs/my", accelerator="cpu")
    blocks = _python_blocks((ROOT / page).read_text())
    assert len(blocks) >= 2
    program = _inputs()
    for block in blocks:
        exec(compile(block, page, "exec"), program)
    for result in results:
        assert (place / result).stat().st_size
