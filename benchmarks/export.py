"""Time of exported networks: onnxruntime beside PyTorch, and WebAssembly in a browser.

usage: python -m benchmarks.export [--threads 2] [--no-browser] [--out benchmarks/results]

A TemporalZoomNet at THUMOS14 shape (2048-d input, width 512, window 19) whose depth is a fixed pattern: a share of the tokens,
in clusters of 64 steps, runs all three refinement layers, the others none. Both runtimes compute the same outputs: class
scores, offsets and distance fields at every point. They are compared before a shape is timed; runs are interleaved.

In the browser (headless Chromium, one thread) the model that comes along runs on a recording of random steps, beside both
runtimes with one thread; the depth dial is turned to a mean depth of 0.25 and to 1.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import tzn
from benchmarks.lib import parity
from benchmarks.lib.contenders import CLASSES, INPUT_DIM, clustered_depth
from benchmarks.lib.provenance import facts, line, parser, write
from benchmarks.lib.tables import table
from benchmarks.lib.timing import interleaved, summary
from tzn.export import export_localizer
from tzn.export.program import ZoomProgram
from tzn.export.write import onnx_bytes
from tzn.models import TemporalZoomNet, TemporalZoomNetConfig
from tzn.models.exported_file import onnx_session
from tzn.nn import budget_shift

STEPS = (576, 2304, 9216)
SHARES = (1.0, 0.25)
SECONDS, ROUNDS = 25.0, (5, 15)  # of a shape: aim; least and most rounds
BROWSER_STEPS, BROWSER_ROUNDS = 2304, 9
SAME = {"rtol": 1e-3, "atol": 2e-3}


class GivenDepth(ZoomProgram):
    """The program with depths ``tau`` ``[1, T]`` as an input, in the place of those that the network predicts."""

    def __init__(self, model: TemporalZoomNet) -> None:
        super().__init__(model)
        self.inputs = ["features", "tau"]
        self.outputs = self.outputs[:-1]  # without logits

    def forward(self, features: Tensor, tau: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
        return self.arrays(self.model.trunk(features, mask, tau=tau))

    def example(self) -> dict[str, Tensor]:
        features = super().example()["features"]
        return {"features": features, "tau": torch.rand(1, features.shape[1])}

    def dynamic(self) -> dict[str, Any]:
        steps = torch.export.Dim("steps")
        return {"features": {1: steps}, "tau": {1: steps}}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--no-browser", action="store_true")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    content = facts(packages=("tzn", "torch", "onnx", "onnxscript", "onnxruntime")) | {"cpu": cpu_name()}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        content["cells"] = thumos(Path(folder))
        content["browser"] = None if options.no_browser else browser(Path(folder))
    write(options.out, "export", content, markdown(content))


def thumos(folder: Path) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    config = TemporalZoomNetConfig(input_dim=INPUT_DIM, num_classes=CLASSES)
    program = GivenDepth(TemporalZoomNet(config).eval()).eval()
    path = folder / "thumos.onnx"
    path.write_bytes(onnx_bytes(program, json.dumps({"tzn": tzn.__version__})))
    _, run = onnx_session(path)
    cells = []
    for steps in tqdm(STEPS, desc="shapes"):
        features = torch.randn(1, steps, INPUT_DIM)
        inputs = {share: {"features": features, "tau": clustered_depth(share, steps)} for share in SHARES}
        runs: dict[Any, Callable[[], Any]] = {}
        for share, given in inputs.items():
            found, wanted = list(run(given).values()), list(program(*given.values()))
            parity.same(f"onnxruntime and PyTorch, T = {steps}, share {share}", found, wanted, **SAME)
            runs["PyTorch", share] = lambda given=given: program(*given.values())
            runs["onnxruntime", share] = lambda given=given: run(given)
        for (runtime, share), seconds in interleaved(runs, "cpu", ROUNDS, SECONDS, warm=1).items():
            cells.append({"runtime": runtime, "share": share, "steps": steps, **summary(seconds)})
    return cells


def browser(folder: Path) -> list[dict[str, Any]]:
    from tzn.view.app import write_app

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        path = export_localizer("hapt", folder / "hapt.onnx")
        source, program = tzn.load("hapt").network, tzn.load(path).network
        write_app(path, folder / "app")
        features = torch.randn(1, BROWSER_STEPS, source.config.feature_dim) * source.feature_std + source.feature_mean
        mask = torch.ones(1, BROWSER_STEPS, dtype=torch.bool)
        logits = source.depth_logits(features, mask)
        dials = {1.0: torch.full((1, 1), 40.0), 0.25: budget_shift(logits, mask, 0.25)}
        whole = ZoomProgram(source).eval()
        cells = []
        with chromium(folder / "app" / "index.html") as driver:
            driver.execute_async_script("const done = arguments[0]; openSession().then(() => done());")
            for share, dial in dials.items():
                wanted = dict(zip(whole.outputs, whole(features, dial), strict=True))
                parity.same(
                    "onnxruntime and PyTorch",
                    list(program(features, mask, dial).values()),
                    list(wanted.values()),
                    **SAME,
                )
                found = driver.execute_async_script(
                    IN_BROWSER, features.flatten().tolist(), BROWSER_STEPS, float(dial), BROWSER_ROUNDS
                )
                scores = torch.tensor(found["scores"]).view_as(wanted["scores"])
                parity.same("the browser and PyTorch", scores, wanted["scores"], **SAME)
                runs = {
                    "PyTorch": lambda dial=dial: whole(features, dial),
                    "onnxruntime": lambda dial=dial: program(features, mask, dial),
                }
                seconds = interleaved(runs, "cpu", (5, BROWSER_ROUNDS), SECONDS, warm=1)
                seconds["WebAssembly"] = [x / 1000 for x in found["milliseconds"]]
                cells += [
                    {"runtime": name, "share": share, "steps": BROWSER_STEPS, **summary(t)}
                    for name, t in seconds.items()
                ]
        return cells
    finally:
        torch.set_num_threads(threads)


IN_BROWSER = """
const [values, steps, shift, rounds, done] = arguments, features = Float32Array.from(values);
(async () => {
  const milliseconds = [];
  let found = await runProgram(features, steps, shift);
  for (let i = 0; i < rounds; i++) {
    const begin = performance.now();
    found = await runProgram(features, steps, shift);
    milliseconds.push(performance.now() - begin);
  }
  done({ milliseconds, scores: [...found.scores] });
})();
"""


@contextmanager
def chromium(page: Path) -> Iterator[Any]:
    from selenium import webdriver

    binary, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        raise SystemExit("no browser: install chromium and chromium-driver, or give --no-browser")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        driver.set_script_timeout(300)
        driver.get(page.resolve().as_uri())
        yield driver
    finally:
        driver.quit()


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")), "unknown")


def markdown(content: dict[str, Any]) -> str:
    parts = [f"{line(content)} CPU: {content['cpu']}.", ""]
    parts += [
        "TemporalZoomNet at THUMOS14 shape, medians (quartiles). Saved: 1 - time at 25 % active over time at 100 %.",
        "",
    ]
    parts += [rows_of(content["cells"])]
    if content["browser"]:
        parts += ["The model hapt in headless Chromium beside both runtimes, one thread each, T = 2,304.", ""]
        parts += [rows_of(content["browser"])]
    return "\n".join(parts)


def rows_of(cells: list[dict[str, Any]]) -> str:
    at = {(c["runtime"], c["steps"], c["share"]): c for c in cells}
    rows = []
    for runtime, steps in dict.fromkeys((c["runtime"], c["steps"]) for c in cells):
        full, part = (at[runtime, steps, share] for share in SHARES)
        texts = [f"{1e3 * c['median']:,.0f} ms ({1e3 * c['q1']:,.0f}-{1e3 * c['q3']:,.0f})" for c in (full, part)]
        rows.append([f"{steps:,}", runtime, *texts, f"{100 * (1 - part['median'] / full['median']):.0f} %"])
    return table(
        ["T", "runtime", "100 % active", "25 % active", "saved"], sorted(rows, key=lambda r: int(r[0].replace(",", "")))
    )


if __name__ == "__main__":
    main()
