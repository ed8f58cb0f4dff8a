"""The page of ``tzn app``: recordings in, the model in WebAssembly, the detections that Python finds."""

from __future__ import annotations

import json
import shutil
import tarfile

import numpy as np
import pytest
from exported import features

import tzn
from tzn.cli import main
from tzn.errors import CheckpointError, ConfigError, DataError
from tzn.view import app

pytest.importorskip("onnxruntime", reason="pip install 'tzn[onnx]'")


@pytest.fixture
def opened(exports, runtime, tmp_path, page):
    def make(name: str):
        folder = tmp_path / "app"
        arguments = ["app", exports.file(name, "onnx"), "--out", folder, "--runtime", runtime]
        assert main([str(a) for a in arguments]) == 0
        page.driver.get((folder / "index.html").resolve().as_uri())
        page.wait("return document.documentElement.dataset.waiting === 'true'")
        return page

    return make


def drop(page, path, recordings: int = 1) -> None:
    page.driver.find_element("id", "file").send_keys(str(path))
    page.wait(
        "return !byId('drop-error').hidden || (byId('drop').hidden && recordings.length === arguments[0])",
        recordings,
        seconds=60,
    )
    assert page.js("return byId('drop-error').hidden ? '' : byId('drop-error').textContent") == ""


def found(page, name: str) -> list[dict]:
    return json.loads(page.js("return predictionsText()"))["results"][name]


def same(rows: list[dict], wanted, at_least: int = 0) -> None:
    """The page's detections are Python's up to rounding; nearly equal scores may have changed places."""
    assert len(rows) == len(wanted) >= at_least
    order = np.lexsort((wanted.segments[:, 0].round(2), wanted.labels, -wanted.scores.round(3)))
    labels = np.array([wanted.classes.index(row["label"]) for row in rows], dtype=int)
    segments, scores = np.array([row["segment"] for row in rows]), np.array([row["score"] for row in rows])
    mine = np.lexsort((segments[:, 0].round(2), labels, -scores.round(3)))
    np.testing.assert_array_equal(labels[mine], wanted.labels[order])
    np.testing.assert_allclose(scores[mine], wanted.scores[order], atol=5e-5)
    np.testing.assert_allclose(segments[mine], wanted.segments[order], atol=5e-3)
    if wanted.std is not None:
        std = np.array([row["segment_std"] for row in rows])
        np.testing.assert_allclose(std[mine], wanted.std[order], atol=1e-3)


def test_real_recordings_are_localized_as_in_python(opened, shared, tmp_path):
    model = tzn.load("hapt")
    page = opened("hapt")
    for number, name in enumerate(("exp04_user02", "exp18_user09"), 1):
        samples = np.load(shared / f"data/hapt/features/{name}.npy").astype(np.float32).reshape(-1, 6)
        path = tmp_path / f"{name}.csv"
        np.savetxt(path, samples, delimiter=";" if number > 1 else ",", fmt="%.9g", header="a,b,c,d,e,f", comments="")
        if number > 1:
            page.click("open")
        drop(page, path, number)
        same(found(page, name), model(samples), at_least=100)
        assert page.js("return state.rec.id") == name and page.js("return document.title").startswith(name)
    page.wait("return state.rec.shown && state.rec.shown.length > 5")  # the timeline has drawn them
    assert page.js("return state.rec.signal.length") == 6 and page.js("return state.rec.trace.starts.length") > 5
    page.click("download")
    content = json.loads(page.downloaded("predictions.json").read_text())
    assert list(content["results"]) == ["exp04_user02", "exp18_user09"]
    assert content.get("score_threshold") == model.score_threshold


def test_another_rate_is_resampled_and_bad_files_are_said(opened, shared, tmp_path):
    model = tzn.load("hapt")
    page = opened("hapt")
    bad = tmp_path / "bad.csv"
    for text, words in (
        ("1,2,3\n", "line 1 has 3 columns, expected 6"),
        ("a,b,c,d,e,f\n1,2,3,4,5,6\n1,2,x,4,5,6\n", "line 3 holds something that is not a finite number: x"),
        ("a,b\n", "holds no samples"),
        ("1,2,3,4,5,6\n", "less than one step of 5"),
    ):
        bad.write_text(text)
        page.driver.find_element("id", "file").send_keys(str(bad))
        page.wait("return !byId('drop-error').hidden")
        assert words in page.js("return byId('drop-error').textContent")
        page.js("byId('drop-error').hidden = true")
    samples = np.load(shared / "data/hapt/features/exp04_user02.npy").astype(np.float32).reshape(-1, 6)[:9000]
    np.save(tmp_path / "phone.npy", samples.astype(np.float64))
    page.js("byId('rate').value = '43.75'")
    drop(page, tmp_path / "phone.npy")
    same(found(page, "phone"), model(samples, fps=43.75), at_least=20)


@pytest.mark.parametrize("name", ["small", "actionformer"])
def test_models_of_features_at_awkward_lengths(opened, exports, tmp_path, name):
    model = tzn.load(exports.checkpoint(name))
    page = opened(name)
    for number, steps in enumerate((1, 13, 64, 211), 1):
        path = tmp_path / f"r{steps}.csv"
        np.savetxt(path, features(steps, steps), delimiter="\t", fmt="%.9g")
        drop(page, path, number)
        same(found(page, path.stem), model(features(steps, steps)))
        page.click("open")


SETTINGS = (
    ["nms=linear", "iou_threshold=0.3", "estimator=crossing", "quality=0"],
    ["nms=hard", "iou_threshold=0.4", "estimator=vote_mean", "max_segments=9"],
    ["nms=diou", "iou_threshold=0.3", "mode=anchor"],
    ["nms=none", "pre_nms_topk=20"],
    ["multiclass=false", "voting_thresh=0.6", "vote_weight=score"],
    ["nms=hard", "multiclass=false", "per_class_voting=true", "voting_thresh=0.5"],
    ["budget=0.4", "chunk=256"],
)


def test_every_setting_of_decoding(opened, exports, tmp_path):
    """The same page with settings put in: what `tzn export … inference.nms=hard` writes."""
    x = features(701)
    np.savetxt(tmp_path / "x.csv", x, delimiter=" ", fmt="%.9g")
    page = opened("small")
    drop(page, tmp_path / "x.csv")
    for number, settings in enumerate(SETTINGS, 2):
        model = tzn.load(exports.checkpoint("small"), [f"inference.{setting}" for setting in settings])
        config = vars(model.config.inference)
        page.js("Object.assign(program.config.inference, arguments[0])", json.loads(json.dumps(config)))
        page.click("open")
        page.js("recordings.forEach((rec, i) => { rec.id = `old ${i}`; })")
        drop(page, tmp_path / "x.csv", number)
        same(found(page, "x"), model(x), at_least=5)


def test_dropping_and_keys(opened, tmp_path):
    np.savetxt(tmp_path / "x.csv", features(300), delimiter=",", fmt="%.9g")
    page = opened("small")
    page.keys("n", "?")  # the timeline behind the panel has nothing to walk along yet
    text = (tmp_path / "x.csv").read_text()
    page.js(
        "const files = new DataTransfer(); files.items.add(new File([arguments[0]], 'dropped.csv'));"
        "document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }))",
        text,
    )  # fmt: skip
    page.wait("return byId('drop').hidden && recordings.length === 1", seconds=60)
    page.keys("n")
    assert page.js("return selection() !== null")
    page.click("open")
    assert page.js("return document.querySelector('main').inert")
    from selenium.webdriver.common.keys import Keys

    page.keys(Keys.ESCAPE)
    assert page.js("return byId('drop').hidden && !document.querySelector('main').inert")


def test_what_the_folder_holds(exports, runtime, tmp_path):
    files = app.write_app(exports.file("small", "onnx"), tmp_path / "app", runtime=runtime)
    assert {path.name for path in files} == {"index.html", "network.js", "runtime.js", "LICENSE.onnxruntime-web.txt"}
    text = (tmp_path / "app" / "index.html").read_text()
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text  # nothing from elsewhere
    assert "MIT License" in (tmp_path / "app" / "LICENSE.onnxruntime-web.txt").read_text()


def test_the_runtime_from_a_folder_and_without_a_network(exports, runtime, tmp_path, monkeypatch):
    with tarfile.open(runtime) as archive:
        archive.extractall(tmp_path, filter="data")
    model = exports.file("small", "onnx")
    assert app.write_app(model, tmp_path / "a", runtime=tmp_path / "package")
    monkeypatch.setenv("TZN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="npm, which is not installed.*--runtime"):
        app.write_app(model, tmp_path / "b")
    fails = tmp_path / "npm"
    fails.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(fails))
    with pytest.raises(DataError, match=r"no network.*offline.*--runtime"):
        app.write_app(model, tmp_path / "b")
    with pytest.raises(DataError, match="expected the npm package"):
        app.write_app(model, tmp_path / "b", runtime=tmp_path)
    (tmp_path / "x.tgz").write_text("no archive")
    with pytest.raises(DataError, match="not the archive"):
        app.write_app(model, tmp_path / "b", runtime=tmp_path / "x.tgz")
    with pytest.raises(CheckpointError, match="no such file"):
        app.write_app(tmp_path / "gone.onnx", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_settings_that_the_page_has_no_code_for(exports, tmp_path, monkeypatch):
    facts = app.read_description(exports.file("small", "onnx"))
    for section, key, value in (
        ("inference", "mode", "pair"),
        ("data", "fixed_length", 100),
        ("data", "single_class", True),
    ):
        changed = json.loads(json.dumps(facts))
        changed["config"][section][key] = value
        monkeypatch.setattr(app, "read_description", lambda path, changed=changed: changed)
        with pytest.raises(ConfigError, match=key):
            app.write_app(exports.file("small", "onnx"), tmp_path / "app")
