"""Programs for torch, and packages of machine code that run where no Python is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import features, same

import tzn
from tzn.errors import CheckpointError, ConfigError
from tzn.export import export_localizer
from tzn.ops import backends
from tzn.ops._backend import PACKAGE

EXAMPLE = Path(__file__).resolve().parents[2] / "csrc" / "examples" / "run_package.cpp"
native = pytest.mark.skipif(backends()["cpp"] != "available", reason=backends()["cpp"])
LENGTHS = (1, 2, 7, 31, 64, 211, 1009)


@pytest.mark.parametrize("name", ["small", "actionformer"])
def test_a_program_of_torch_finds_the_same(exports, name):
    source, program = tzn.load(exports.checkpoint(name)), tzn.load(exports.file(name, "pt2"))
    for steps in LENGTHS:
        same(program(features(steps, steps)), source(features(steps, steps)))
    x = features(701)
    same(program(x, budget=0.3), source(x, budget=0.3), at_least=10)
    assert program.classes == source.classes and program.config == source.config


def test_predict_takes_a_program(exports, tmp_path, capsys):
    from tzn.cli import main

    np.save(tmp_path / "x.npy", features(90))
    out = tmp_path / "p.json"
    assert main(["predict", str(exports.file("small", "pt2")), str(tmp_path / "x.npy"), "--out", str(out)]) == 0
    assert '"segment"' in out.read_text()


def test_damaged_programs_are_refused(exports, tmp_path):
    (tmp_path / "cut.pt2").write_bytes(exports.file("small", "pt2").read_bytes()[:4000])
    with pytest.raises(CheckpointError, match=r"cut\.pt2.*cannot load"):
        tzn.load(tmp_path / "cut.pt2")
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "foreign.pt2")
    with pytest.raises(CheckpointError, match="says nothing of classes"):
        tzn.load(tmp_path / "foreign.pt2")


@native
def test_the_whole_block_in_one_call_is_the_block():
    """What packages and inference call is what training runs: the same kernels on the same rows."""
    from small_model import build

    from tzn.kernels.cpu.variable_depth_block import forward

    weights = list(build().refinement[0].weights())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 53, 16, generator=generator)
    mask = torch.arange(53)[None] < torch.tensor([[53], [31]])
    gate = (torch.rand(2, 53, generator=generator) - 0.6).clamp(min=0)
    with torch.no_grad():
        for g, m in ((gate, mask), (gate, None), (None, mask), (None, None), (gate * 0, mask), (gate + 1, None)):
            torch.testing.assert_close(
                torch.ops.tzn_native.variable_depth_block(x, g, weights, m),
                forward(x, g, weights, m, keep=True)[0], rtol=1e-6, atol=1e-6,
            )  # fmt: skip
    with pytest.raises(RuntimeError, match="weights: expected 15"):
        torch.ops.tzn_native.variable_depth_block(x, gate, weights[:3], None)
    with pytest.raises(RuntimeError, match="dtype of x"):
        torch.ops.tzn_native.variable_depth_block(x, gate.double(), weights, None)


@native
@pytest.mark.skipif(shutil.which("g++") is None, reason="packages are compiled with g++")
def test_a_package_runs_from_python_and_from_cpp(exports, tmp_path):
    source, package = tzn.load(exports.checkpoint("small")), tzn.load(exports.file("small", "aoti"))
    for steps in LENGTHS:
        same(package(features(steps, steps)), source(features(steps, steps)))
    same(package(features(701), budget=0.3), source(features(701), budget=0.3), at_least=10)

    torch_folder = Path(torch.__file__).parent
    program = tmp_path / "run_package"
    include = [f"-I{torch_folder}/include", f"-I{torch_folder}/include/torch/csrc/api/include"]
    libraries = [
        f"-L{torch_folder}/lib",
        f"-Wl,-rpath,{torch_folder}/lib",
        "-Wl,--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
    ]
    subprocess.run(
        ["g++", "-std=c++20", "-O0", str(EXAMPLE), "-o", str(program), *include, *libraries, "-ldl"], check=True
    )
    linked = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    assert "libpython" not in linked and "libtorch_python" not in linked

    library = next(iter(sorted(PACKAGE.glob("_native.*so"))))
    for steps, shift in ((1, 0.0), (64, -40.0), (211, -1.0)):
        x = features(steps, steps)
        x.tofile(tmp_path / "x.f32")
        arguments = [exports.file("small", "aoti"), library, tmp_path / "x.f32", tmp_path / "y.f32", shift]
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        wanted = package.network(
            torch.from_numpy(x)[None], torch.ones(1, steps, dtype=torch.bool), torch.full((1, 1), shift)
        )
        assert [list(map(int, line.split())) for line in done.stdout.splitlines()] == [
            list(w.shape) for w in wanted.values()
        ]
        flat = np.concatenate([w.float().numpy().ravel() for w in wanted.values()])
        np.testing.assert_allclose(np.fromfile(tmp_path / "y.f32", np.float32), flat, rtol=1e-4, atol=1e-5)


@native
def test_what_a_package_is_not_made_of(exports, tmp_path):
    with pytest.raises(ConfigError, match="TemporalZoomNet only"):
        export_localizer(exports.checkpoint("actionformer"), tmp_path / "a.pt2", to="aoti")
    assert not list(tmp_path.iterdir())
