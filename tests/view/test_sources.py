from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import struct
import zlib

import numpy as np
import pytest

from tzn.cli import main
from tzn.errors import DataError
from tzn.view import gather, write_page
from tzn.view.payload import pack, quantise
from tzn.visualization.pictures import TRACE_KEYS


@pytest.fixture
def files(tmp_path):
    rows = [
        {"segment": [1.0, 1.0], "label": "walk"},  # no length: left out
        {"segment": [5.0, 15.0], "label": "walk"},
        {"segment": [45.0, 51.0], "label": "run"},  # a second over the end: kept as it is
    ]
    database = {
        "first": {"subset": "test", "duration": 50.0, "fps": 10.0, "annotations": rows},
        "second": {"subset": "test", "duration": 20.0, "annotations": []},
    }
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    found = {"first": [{"segment": [5.2, 14.5], "label": "swim", "score": 0.9, "segment_std": [0.1, None]}]}
    (tmp_path / "predictions.json").write_text(json.dumps({"results": found}))
    time = np.arange(100) / 2 + 0.25
    arrays = {k: np.array([5.0]) if "crossings" in k else time - 25 for k in TRACE_KEYS} | {"time": time}
    (tmp_path / "traces").mkdir()
    np.savez(tmp_path / "traces" / "first.npz", **arrays)
    np.save(tmp_path / "first.npy", np.arange(1000.0, dtype=np.float32).reshape(500, 2))
    (tmp_path / "second.csv").write_text("time;x\n" + "".join(f"{i};{i * i}\n" for i in range(40)))
    (tmp_path / "first.mp4").write_bytes(b"not really")
    return tmp_path


def test_everything_is_brought_together(files):
    sources = gather(
        [files / "annotations.json", files / "predictions.json"],  # in any order
        media=[files / "first.npy", files / "first.mp4"], traces=files / "traces", classes=["jump", "run"],
    )  # fmt: skip
    assert sources.classes == ("run", "walk", "swim", "jump")
    (first,) = sources.recordings  # those with predictions
    assert first.segments.tolist() == [[5.0, 15.0], [45.0, 51.0]] and first.origin.tolist() == [1, 2]
    assert first.labels.tolist() == [1, 0] and first.detections.labels.tolist() == [2]
    assert first.signal.rate == 10.0 and first.signal.names == ("channel 0", "channel 1")
    assert first.media == files / "first.mp4" and set(first.trace) == set(TRACE_KEYS)
    assert len(sources.warnings) == 1 and "segment 0" in sources.warnings[0] and "zero length" in sources.warnings[0]


def test_annotations_alone_signals_alone_and_a_choice(files):
    both = gather([files / "annotations.json"], media=[files / "second.csv"])
    assert [r.id for r in both.recordings] == ["first", "second"] and not both.predicted
    assert both.recordings[1].signal.names == ("x",) and both.recordings[1].signal.rate == 1.0  # the column of times
    rows = (files / "second.csv").read_text().replace("time;x", "u;x")
    (files / "other.csv").write_text(rows)
    alone = gather(media=[files / "other.csv"], rate=4.0, channels=["x"])
    assert alone.recordings[0].duration == 10.0 and alone.recordings[0].signal.samples[:3, 0].tolist() == [0, 1, 4]
    spread = gather([files / "annotations.json"], media=[(files / "other.csv").rename(files / "second.csv")])
    assert spread.recordings[1].signal.names == ("u", "x") and spread.recordings[1].signal.rate == 2.0
    chosen = gather([files / "annotations.json"], media=[files], recordings=["second"])
    assert [r.id for r in chosen.recordings] == ["second"] and chosen.recordings[0].signal is not None
    renamed = (files / "first.mp4").rename(files / "clip.mp4")  # one file, one recording: no names needed
    assert gather([files / "predictions.json"], media=[renamed]).recordings[0].media == renamed


def test_signals_of_all_readers(tmp_path):
    """EDF, WFDB and Parquet are drawn with their own rate and names; sound as its level, where it is loud and where not."""
    pyedflib, wfdb = pytest.importorskip("pyedflib"), pytest.importorskip("wfdb")
    parquet, soundfile = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("soundfile")
    import pyarrow

    t = np.arange(1000) / 100
    wave = np.sin(2 * np.pi * t)
    parquet.write_table(pyarrow.table({"time": t, "a": wave, "b": -wave}), tmp_path / "table.parquet")
    wfdb.wrsamp("heart", fs=100, units=["mV"], sig_name=["II"], p_signal=wave[:, None], write_dir=str(tmp_path))
    with pyedflib.EdfWriter(str(tmp_path / "night.edf"), 1, file_type=pyedflib.FILETYPE_EDFPLUS) as file:
        file.setSignalHeader(0, {
            "label": "Fpz-Cz", "dimension": "uV", "sample_frequency": 100, "physical_min": -2.0, "physical_max": 2.0,
            "digital_min": -32768, "digital_max": 32767, "prefilter": "", "transducer": "",
        })  # fmt: skip
        file.writeSamples([wave])
    sound = np.random.default_rng(0).normal(0, 0.3, 40000) * (np.arange(40000) > 20000)
    soundfile.write(tmp_path / "song.wav", sound, 16000)
    pages = {page.id: page for page in gather(media=[tmp_path]).recordings}
    assert set(pages) == {"table", "heart", "night", "song"}
    signals = {name: page.signal for name, page in pages.items()}
    assert signals["table"].names == ("a", "b") and signals["heart"].names == ("II",)
    assert signals["night"].names == ("Fpz-Cz",) and {signals[n].rate for n in ("table", "heart", "night")} == {100.0}
    for name in ("table", "heart", "night"):
        assert np.abs(signals[name].samples[:, 0] - wave).max() < 2e-3 and pages[name].duration == 10.0
    level = signals["song"]
    assert pages["song"].media == tmp_path / "song.wav" and level.names == ("level",) and level.rate == 100.0
    assert level.samples[150:].mean() > level.samples[:100].mean() + 2
    with pytest.raises(DataError, match=r"--channels III: .*heart\.hea has channels 0 to 0: II"):
        gather(media=[tmp_path / "heart.hea"], channels=["III"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to show: give predictions.json"),
        (["predictions.json", "predictions.json"], "both hold predictions; expected at most one"),
        (["other.json"], "neither predictions"),
        (["predictions.json", "--recording", "frist"], "--recording 'frist': no recording of this name; did you mean 'first'"),
        (["annotations.json", "--media", "thrid.mp4"], "media 'thrid'"),
        (["predictions.json", "--media", "clip.avi"], "browsers do not play .avi; convert it: ffmpeg -i clip.avi clip.mp4"),
        (["--media", "first.npy", "predictions.json"], "predictions and annotations come before --media"),
        (["predictions.json", "--media", "notes.md"], "expected one of .mp4"),
        (["predictions.json", "--media", "gone.mp4"], "no such file or folder"),
        (["predictions.json", "--media", "empty"], "no video, audio or signal files"),
        (["--media", "first.npy"], "how many samples are a second? Add --rate"),
        (["annotations.json", "--media", "first.npy", "--channels", "0,2"], "--channels 2:"),
        (["annotations.json", "--media", "first.npy", "--channels", "x"], "--channels x: first.npy has channels 0 to 1"),
        (["annotations.json", "--rate", "-1"], "--rate -1"),
        (["predictions.json", "--traces", "nowhere"], "nowhere: no such folder"),
        (["annotations.json", "--recording", "second", "--traces", "traces"], "no trace of 'second'"),
        (["predictions.json", "--out", "page.txt"], "pages are written as .html"),
    ],
)  # fmt: skip
def test_clear_errors(files, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    (files / "other.json").write_text("{}")
    for name in ("clip.avi", "thrid.mp4", "notes.md"):
        (files / name).write_bytes(b"")
    (files / "empty").mkdir()
    before = sorted(files.rglob("*"))
    out = [] if "--out" in arguments else ["--out", "page.html"]
    assert main(["view", *arguments, *out]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("tzn view: ") and error.count("\n") == 1
    assert sorted(files.rglob("*")) == before


class _Parsed(html.parser.HTMLParser):
    """Contents of script and style elements by id or tag, attributes that name something to load."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.texts, self.loads, self.policy = "", {}, [], ""

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [v for k, v in attrs if k in ("src", "href")]
        self.policy += values["content"] if values.get("http-equiv") == "Content-Security-Policy" else ""
        self.open = values.get("id", tag) if tag in ("script", "style", "title") else ""

    def handle_data(self, data):
        if self.open:
            self.texts[self.open] = self.texts.get(self.open, "") + data

    def handle_endtag(self, tag):
        self.open = ""


def _page(path) -> _Parsed:
    parsed = _Parsed()
    parsed.feed(path.read_text(encoding="utf-8"))
    return parsed


def test_the_page_loads_nothing_and_allows_only_its_own_script_and_style(files):
    write_page(files / "page.html", gather([files / "predictions.json", files / "annotations.json"]), title="a & <b>")
    parsed = _page(files / "page.html")
    assert parsed.loads == [] and parsed.texts["title"] == "a & <b>"
    for what in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parsed.texts[what].encode()).digest()).decode()
        assert f"{what}-src 'sha256-{digest}'" in parsed.policy
    assert "default-src 'none'" in parsed.policy and "unsafe" not in parsed.policy and "http" not in parsed.policy


def test_media_are_named_by_relative_path_or_put_inside(files):
    (files / "clips").mkdir()
    clip = (files / "first.mp4").rename(files / "clips" / "my clip #1.mp4")
    sources = gather(media=[clip])
    write_page(files / "pages" / "page.html", sources)
    data = json.loads(_page(files / "pages" / "page.html").texts["tzn-data"])
    assert data["recordings"][0]["media"]["src"] == "../clips/my%20clip%20%231.mp4"
    write_page(files / "page.html", sources, embed=True)
    parsed = _page(files / "page.html")
    assert base64.b64decode(parsed.texts["media-0"]) == b"not really" and "src" not in parsed.texts["tzn-data"]


def test_a_number_that_is_not_finite_is_an_error(files):
    text = (files / "annotations.json").read_text().replace('"database"', '"quality": NaN, "database"')
    (files / "annotations.json").write_text(text)
    with pytest.raises(DataError, match="not finite"):
        write_page(files / "page.html", gather([files / "annotations.json"]))
    assert not (files / "page.html").exists()


def test_the_template_has_no_place_left_over(files):
    write_page(files / "page.html", gather([files / "predictions.json"]))
    assert not re.search("@@[A-Z]+@@", (files / "page.html").read_text())


def test_arrays_survive_packing():
    arrays = {
        "a": np.array([1.5, np.nan, -3.25]), "b": np.arange(5, dtype=np.uint16), "c": np.zeros(0, np.float32),
        "d": np.array([7, -8], dtype=np.int16),
    }  # fmt: skip
    table, text = pack(arrays)
    content = zlib.decompress(base64.b64decode(text))
    for name, (kind, offset, length) in table.items():
        assert offset % 8 == 0
        code = {"f8": "d", "f4": "f", "u2": "H", "i2": "h"}[kind]
        values = struct.unpack_from(f"<{length}{code}", content, offset)
        np.testing.assert_array_equal(values, arrays[name])


@pytest.mark.parametrize("values", [[0.0, 1.0, -2.5, np.nan, np.inf], [3.0, 3.0], [np.nan], [-1e-30, 1e-30], []])
def test_quantised_values_are_near_and_gaps_stay_gaps(values):
    values = np.array(values)
    q = quantise(values)
    back = np.where(q.values == -32768, np.nan, q.low + (q.values + 32767.0) / 65534 * (q.high - q.low))
    finite = np.isfinite(values)
    assert np.isnan(back[~finite]).all()
    np.testing.assert_allclose(back[finite], values[finite], atol=(q.high - q.low) / 65534)
