"""Pages in a browser: what a user sees and does."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest

from tzn.cli import main
from tzn.data.annotations import load_annotations
from tzn.detections import Detections, write_predictions
from tzn.evaluation.detection_map import matched
from tzn.evaluation.flat import GroundTruth, flatten
from tzn.view import gather, write_page

CLASSES = ("walk", "sit", "run")
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><!--<script>\u2028&amp;"


@pytest.fixture
def files(tmp_path):
    """Two recordings of 60 s: "a" annotated and detected, "b" detected only; another, "c", not on the page."""
    entries = {
        "a": {
            "subset": "test", "duration": 60.0, "fps": 10.0, "url": "kept",
            "annotations": [
                {"segment": [5.0, 15.0], "label": "walk", "label_id": 4, "sure": True},
                {"segment": [20.0, 30.0], "label": "sit", "label_id": 7},
                {"segment": [40.0, 50.0], "label": "run", "label_id": 9},
            ],
        },
        "c": {"subset": "train", "annotations": [{"segment": [1.0, 2.0], "label": "run", "label_id": 9}]},
    }  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps({"version": "mine", "database": entries}))
    a = Detections(
        np.array([[5.5, 15.5], [6.0, 15.0], [20.0, 31.0], [41.0, 44.0], [52.0, 58.0]]),
        np.array([0.9, 0.8, 0.7, 0.6, 0.3]), np.array([0, 0, 0, 2, 1]),
        np.array([[0.5, 0.2], [np.nan, np.nan], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1]]),
    )  # fmt: skip
    b = Detections(np.array([[1.0, 9.0]]), np.array([0.5]), np.array([1]))
    write_predictions(tmp_path / "predictions.json", {"a": a, "b": b}, CLASSES)
    return tmp_path


@pytest.fixture
def opened(files, page):
    arguments = ["view", files / "predictions.json", files / "annotations.json", "--out", files / "page.html"]
    assert main([str(a) for a in arguments]) == 0
    page.open(files / "page.html")
    return page


def _counts(page) -> dict[str, int]:
    page.settle()
    return page.js("return Object.fromEntries(STATUSES.map((s, k) => [s.name, state.rec.counts[k]]))")


def test_errors_against_the_annotations_and_the_threshold(opened):
    expected = {"correct": 1, "repeated": 1, "wrong class": 1, "poorly localised": 1, "false": 1, "missed": 2}
    assert _counts(opened) == expected
    opened.js("byId('tiou').value = 0.25; byId('tiou').dispatchEvent(new Event('input'))")
    assert _counts(opened) == expected | {"correct": 2, "poorly localised": 0, "missed": 1}
    assert opened.js("return byId('tiou-text').textContent") == "0.25"
    # A key pressed before the next frame must not keep the panels from following.
    opened.js("byId('tiou').value = 0.95; byId('tiou').dispatchEvent(new Event('input')); step(1, isError)")
    opened.settle()
    assert opened.js("return byId('statuses').textContent").startswith("correct0")


def test_the_page_matches_as_the_scorer_does(opened):
    rng = np.random.default_rng(0)
    for tiou in (0.1, 0.5, 0.75):
        truth_starts = np.round(rng.uniform(0, 100, 60), 1)  # rounded: equal IoUs and touching ends come up
        truth_segments = np.stack([truth_starts, truth_starts + np.round(rng.exponential(4, 60), 1)], 1)
        truth_segments[50:] = truth_segments[:10]  # repetitions, some of another class
        truth_labels = rng.integers(0, 3, 60)
        near = truth_segments[rng.integers(0, 60, 300)] + np.round(rng.normal(0, 1, (300, 2)), 1)
        segments = np.sort(near, 1)
        scores, labels = np.sort(rng.uniform(0, 1, 300).round(2))[::-1], rng.integers(0, 3, 300)
        flat = flatten({"r": GroundTruth(truth_segments, truth_labels)}, {"r": Detections(segments, scores, labels)}, 3)
        taken = matched(flat, [tiou])[1][0]
        hits = sorted(map(tuple, np.column_stack([flat.segments, flat.labels])[taken >= 0].tolist()))
        pairs = sorted(map(tuple, flat.truth_segments[taken[taken >= 0]].tolist()))
        status, held = opened.js(
            "const [segments, labels, truth, tiou] = arguments;"
            "const r = classify({segments, labels}, truth.map(([s, e, c]) => ({s, e, c})), tiou);"
            "return [[...r.status], [...r.taken]]",
            segments.ravel().tolist(), labels.tolist(), np.column_stack([truth_segments, truth_labels]).tolist(), tiou,
        )  # fmt: skip
        status, held = np.array(status), np.array(held)
        assert sorted(map(tuple, np.column_stack([segments, labels])[status == 0].tolist())) == hits
        assert sorted(map(tuple, truth_segments[held[held >= 0]].tolist())) == pairs
        assert ((status == 0) == (held >= 0)).all() and len(hits) > 20
        # The other kinds, from their definitions.
        length = np.maximum(0, np.minimum(segments[:, None, 1], truth_segments[None, :, 1])
                            - np.maximum(segments[:, None, 0], truth_segments[None, :, 0]))  # fmt: skip
        spans = np.diff(segments, axis=1) + np.diff(truth_segments, axis=1).T - length
        iou = np.where(np.diff(truth_segments, axis=1).T >= 1e-3, length / np.where(spans > 0, spans, 1), 0)
        own = labels[:, None] == truth_labels[None, :]
        same, other = (iou * own).max(1), (iou * ~own).max(1)
        kinds = np.select([same >= tiou, other >= tiou, same >= 0.1], [1, 2, 3], 4)
        np.testing.assert_array_equal(status[status > 0], kinds[status > 0])


def test_dragging_an_end_corrects_it_and_undo_takes_it_back(opened):
    before = opened.truth()
    opened.drag(opened.place(15.0 - 0.02, 0, 0.3), opened.place(17.0, 0, 0.3), opened.place(18.0, 0, 0.3))
    after = opened.truth()
    assert after[0][:1] == [5.0] and after[0][1] == pytest.approx(18.0, abs=0.1) and after[1:] == before[1:]
    assert opened.js("return selection().kind") == "truth"
    assert "not saved" in opened.js("return byId('recording-facts').textContent")
    opened.click("undo")
    assert opened.truth() == before
    opened.click("redo")
    assert opened.truth() == after


def test_correcting_a_detection_makes_an_annotation_and_leaves_the_detection(opened):
    found = opened.js("return [...state.rec.found.segments]")
    opened.js("state.hiddenStatuses.add(0); changed()")
    start = opened.place(55.0, 1, 0.72)
    opened.drag(start, (start[0] + 5, start[1]), opened.place(55.5, 1, 0.72))
    added = opened.truth()[-1]
    assert added[2] == 1 and added[1] - added[0] == pytest.approx(6.0)
    assert added[0] == pytest.approx(52.5, abs=0.1)
    assert opened.js("return [...state.rec.found.segments]") == found


def test_moving_a_segment_to_another_lane_changes_its_class(opened):
    start = opened.place(45.0, 2, 0.3)
    opened.drag(start, opened.place(45.0, 1), opened.place(45.0, 0))
    assert opened.truth()[-1] == [pytest.approx(40, abs=0.1), pytest.approx(50, abs=0.1), 0]


def test_escape_in_the_middle_of_a_drag_leaves_everything(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    before = opened.truth()
    x, y = opened.place(10.0, 0, 0.3)
    canvas = opened.driver.find_element("id", "timeline")
    width, height = opened.js("return [size.width, size.height]")
    held = ActionChains(opened.driver, duration=10)
    held.move_to_element_with_offset(canvas, int(x - width / 2), int(y - height / 2)).click_and_hold()
    held.move_by_offset(60, 0).perform()
    opened.settle()
    assert opened.js("return drag.segment.s") > 6
    ActionChains(opened.driver).send_keys(Keys.ESCAPE).release().perform()
    opened.settle()
    assert opened.truth() == before and opened.js("return state.undo.length") == 0


def test_drawn_changed_deleted_and_saved(opened):
    opened.drag(opened.place(32.0, 1, 0.3), opened.place(35.0, 1, 0.3), opened.place(38.0, 1, 0.3))
    opened.js(
        "byId('field-class').value = 2; byId('field-class').dispatchEvent(new Event('change'));"
        "byId('field-start').value = '33.25'; byId('field-start').dispatchEvent(new Event('change'))"
    )
    drawn = opened.truth()[2]
    assert drawn == [33.25, pytest.approx(38, abs=0.1), 2]
    opened.drag(opened.place(25.0, 1, 0.3))
    opened.click("delete")
    opened.js("addClass('jump')")
    opened.js("addSegment(0, 2, 3)")
    opened.click("save")
    text = json.loads(opened.downloaded().read_text())
    rows = text["database"]["a"]["annotations"]
    assert [r["label"] for r in rows] == ["jump", "walk", "run", "run"]
    assert rows[1] == {"segment": [5.0, 15.0], "label": "walk", "label_id": 4, "sure": True}
    assert rows[0]["label_id"] == 10 and text["version"] == "mine" and text["database"]["a"]["url"] == "kept"
    loaded = load_annotations(opened.downloaded())
    assert loaded.classes == ("walk", "run", "jump") and list(loaded.recordings) == ["a", "c"]
    np.testing.assert_allclose(loaded.recordings["a"].segments[:, 0], [0, 5, 33.25, 40])
    assert "not saved" not in opened.js("return byId('recording-facts').textContent")


def test_saving_without_an_edit_gives_the_file_back(opened, files):
    opened.click("save")
    assert json.loads(opened.downloaded().read_text()) == json.loads((files / "annotations.json").read_text())


def test_saving_to_a_chosen_file_writes_the_same_file_again(opened):
    opened.js(
        "window.written = []; window.asked = 0;"
        "window.showSaveFilePicker = async () => { window.asked++; return { name: 'mine.json', createWritable: async () => ({"
        "write: async (text) => { window.written.push(text); }, close: async () => {} }) }; }"
    )
    opened.js("addSegment(0, 2, 1)")
    opened.click("save")
    opened.wait("return window.written.length === 1 && !state.dirty")
    opened.js("addSegment(2, 3, 1)")
    opened.click("save")
    opened.wait("return window.written.length === 2")
    assert opened.js("return window.asked") == 1
    saved = json.loads(opened.js("return window.written[1]"))
    assert len(saved["database"]["a"]["annotations"]) == 5


def test_filters_by_score_class_and_error(opened):
    shown = "if (stale) refresh(); return [...state.rec.shown]"
    assert opened.js(shown) == [0, 1, 2, 3, 4]
    opened.js("byId('score').value = 0.65; byId('score').dispatchEvent(new Event('input'))")
    assert opened.js(shown) == [0, 1, 2]
    assert _counts(opened)["false"] == 0
    opened.js("byId('statuses').children[1].firstChild.click()")
    assert opened.js(shown) == [0, 2]
    opened.js("byId('classes').children[0].firstChild.click()")
    assert opened.js(shown) == []
    only = (
        "const e = new MouseEvent('click', {shiftKey: true}); byId('classes').children[2].firstChild.dispatchEvent(e);"
    )
    assert opened.js(only + "return [...state.hiddenClasses]") == [0, 1]
    opened.click("all-classes")
    assert opened.js(shown) == [0, 2]
    opened.click("accept-all")
    assert [row[:2] for row in opened.truth()[:2]] == [[5.0, 15.0], [5.5, 15.5]]
    opened.js("undo()")
    assert len(opened.truth()) == 3


def test_the_score_filter_starts_where_the_model_is_confident(files, page):
    path = files / "predictions.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"score_threshold": 0.65}))
    write_page(files / "page.html", gather([path]))
    page.open(files / "page.html")
    assert page.js("return [state.minScore, Number(byId('score').value), state.rec.shown.length]") == [0.65, 0.65, 3]


def test_keyboard_only(opened):
    from selenium.webdriver.common.keys import Keys

    opened.keys("n")
    assert opened.js("return selection().s") == 5.0 and opened.js("return state.now") == 5.0
    announced = opened.js("return byId('status').textContent")
    assert announced.startswith("Annotated walk, 0:05.00 – 0:15.00")
    opened.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "[")
    assert opened.truth()[0] == [7.0, 15.0, 0]
    opened.keys("2")
    assert opened.truth()[0] == [7.0, 15.0, 1]
    opened.chord(Keys.CONTROL, "z")
    opened.chord(Keys.CONTROL, "z")
    assert opened.truth()[0] == [5.0, 15.0, 0]
    opened.keys("e")
    assert opened.js("return selection().status ?? 5") > 0
    opened.keys(Keys.ESCAPE, "3", Keys.END, Keys.ENTER, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ENTER)
    assert opened.truth()[-1] == [58.0, 60.0, 2]
    opened.keys(Keys.DELETE)
    assert len(opened.truth()) == 3
    spans = [opened.js("return state.to - state.from")]
    opened.keys("+")
    spans.append(opened.js("return state.to - state.from"))
    opened.keys("0")
    assert spans[1] < spans[0] == pytest.approx(opened.js("return state.to - state.from"))
    opened.keys(Keys.PAGE_DOWN)
    opened.wait("return state.rec.id === 'b'")
    opened.keys("a")
    assert opened.truth() == []  # nothing is selected
    opened.keys("n", "a")
    assert opened.truth() == [[1.0, 9.0, 1]]
    opened.keys("?")
    assert opened.js("return byId('shortcuts').open && document.querySelectorAll('dt').length") > 20
    opened.keys(Keys.ESCAPE)
    assert not opened.js("return byId('shortcuts').open")


def test_without_media_the_playhead_runs_by_the_clock(opened):
    opened.js("look(0, 10); byId('speed').value = '8'")
    opened.click("play")
    opened.wait("return state.now > 10 && state.from > 0")  # the view follows
    opened.click("play")
    stopped = opened.js("return playing ? null : state.now")
    opened.settle()
    assert opened.js("return state.now") == stopped
    opened.js("seek(59.9)")
    opened.click("play")
    opened.wait("return !playing && state.now === 60")


def test_times_as_people_read_them(opened):
    times = [(0, 1), (59.999, 0.01), (3661.5, 0.1), (7325, 60), (-1.5, 0.5)]
    read = opened.js("return arguments[0].map((t) => timeText(...t))", times)
    assert read == ["0:00", "1:00.00", "1:01:01.5", "2:02:05", "−0:01.5"]


def test_undo_goes_back_to_the_recording_where_it_happened(opened):
    opened.js("addSegment(0, 1, 0)")
    opened.driver.execute_async_script("show(recordings[1]).then(arguments[0])")
    opened.click("undo")
    opened.wait("return state.rec.id === 'a' && state.rec.truth.length === 3")


def test_everything_to_press_has_a_name(opened):
    nameless = opened.js(
        "return [...document.querySelectorAll('button, input, select, canvas[tabindex]')].filter((e) =>"
        "!(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []


def test_wheel_zooms_about_the_pointer_and_the_overview_pans(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    canvas = opened.driver.find_element("id", "timeline")
    x, y = opened.place(30.0, 0)
    width, height = opened.js("return [size.width, size.height]")
    origin = ScrollOrigin.from_element(canvas, int(x - width / 2), int(y - height / 2))
    ActionChains(opened.driver).scroll_from_origin(origin, 0, -600).perform()
    opened.wait("return state.to - state.from < 40")
    assert opened.js("return xOf(30)") == pytest.approx(x, abs=2)
    strip = opened.driver.find_element("id", "overview")
    x, middle = opened.js("return [overviewX(50), overview.clientWidth / 2]")
    ActionChains(opened.driver).move_to_element_with_offset(strip, int(x - middle), 0).click().perform()
    assert opened.js("return state.from < 50 && state.to > 50 && state.from > 25")


def test_two_fingers_zoom_and_draw_nothing(opened):
    left, top = opened.js("const r = canvas.getBoundingClientRect(); return [r.left, r.top]")
    y = top + opened.place(33.0, 0)[1]
    xs = [left + opened.place(seconds, 0)[0] for seconds in (32.0, 34.0)]

    def touch(kind: str, *places: float) -> None:
        points = [{"x": x, "y": y, "id": i} for i, x in enumerate(places)]
        opened.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    before = opened.truth()
    touch("touchStart", xs[0])
    touch("touchStart", *xs)
    for spread in (20, 60, 120):
        touch("touchMove", xs[0] - spread, xs[1] + spread)
    touch("touchEnd")
    opened.settle()
    assert opened.js("return xOf(32)") == pytest.approx(xs[0] - 120 - left, abs=2)
    assert opened.js("return xOf(34)") == pytest.approx(xs[1] + 120 - left, abs=2)
    assert opened.truth() == before and opened.js("return pinch === null && drag === null && fingers.size === 0")


def test_the_recording_chosen_last_is_the_one_shown(opened):
    opened.driver.execute_async_script(
        "Promise.all([show(recordings[1]), show(recordings[0])]).then(() => arguments[0]())"
    )
    assert opened.js("return [state.rec.id, byId('recording-name').textContent]") == ["a", "a"]


def test_light_and_dark(opened):
    pixel = "draw(); return [...context.getImageData(Math.round(canvas.width / 2), canvas.height - 4, 1, 1).data]"
    background = "return getComputedStyle(document.body).backgroundColor"
    light, light_page = opened.js(pixel), opened.js(background)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    opened.wait("return document.documentElement.dataset.theme === 'dark'")
    dark = opened.js(pixel)
    assert sum(light[:3]) > 3 * 200 and sum(dark[:3]) < 3 * 60 and opened.js(background) != light_page
    opened.click("theme")
    assert opened.js(pixel) == light and opened.js(background) == light_page


def test_hostile_names_are_only_names(page, tmp_path):
    database = {
        name: {"subset": "test", "duration": 10.0, "annotations": [{"segment": [1.0, 2.0], "label": HOSTILE}]}
        for name in (HOSTILE, "__proto__")
    }
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    sources = gather([tmp_path / "annotations.json"], classes=["@@SCRIPT@@"])
    write_page(tmp_path / "page.html", sources, title=HOSTILE)
    page.open(tmp_path / "page.html")
    assert page.js("return document.images.length + document.querySelectorAll('body > img').length") == 0
    assert page.js("return byId('recording-name').textContent") == HOSTILE
    assert page.js("return document.title").count(HOSTILE[:40]) == 2
    assert page.js("return classes") == [HOSTILE, "@@SCRIPT@@"]
    page.driver.execute_async_script("show(recordings[1]).then(arguments[0])")
    page.js("addSegment(3, 4, 1)")
    page.click("save")
    saved = load_annotations(page.downloaded())
    assert list(saved.recordings) == [HOSTILE, "__proto__"] and len(saved.recordings["__proto__"].labels) == 2


def test_an_injected_script_does_not_run(opened):
    opened.js(
        "const s = document.createElement('script'), i = document.createElement('img');"
        "s.textContent = 'window.injected = 1'; i.setAttribute('onerror', 'window.injected = 2'); i.src = 'x';"
        "document.body.append(s, i)"
    )
    opened.settle()
    assert opened.js("return window.injected") is None
    opened.expected = "Content Security Policy"


def test_a_signal_of_two_million_samples(page, tmp_path):
    rng = np.random.default_rng(0)
    samples = np.cumsum(rng.normal(size=(2_000_000, 2)), 0).astype(np.float32)
    np.save(tmp_path / "long.npy", samples)
    write_page(tmp_path / "page.html", gather(media=[tmp_path / "long.npy"], rate=100.0, classes=["x"]))
    page.open(tmp_path / "page.html")
    assert page.js("return state.rec.duration") == 20_000
    quantum = float(np.ptp(samples[:, 1])) / 65534
    for first, last in [(0, 1_999_999), (123_456, 777_777), (5, 9), (1_000_003, 1_000_003)]:
        least, most = page.js("return state.rec.signal[1].curve.between(...arguments)", first, last)
        # Whole blocks may take in up to an eighth more on either side, never less.
        margin = max(1, (last - first + 1)) // 1
        inside, around = samples[first : last + 1, 1], samples[max(0, first - margin) : last + 1 + margin, 1]
        assert around.min() - quantum <= least <= inside.min() + quantum
        assert inside.max() - quantum <= most <= around.max() + quantum
    points = page.js(
        "let n = 0; const c = { moveTo() { n++; }, lineTo() { n++; } };"
        "state.rec.signal[0].curve.trace(c, xOf, (v) => v, state.from, state.to); return n"
    )
    assert points < 4 * 1400  # as many as pixels, not samples


def test_twenty_thousand_detections(page, tmp_path):
    rng = np.random.default_rng(0)
    starts, lengths = rng.uniform(0, 7000, 20_000), rng.exponential(5, 20_000) + 0.1
    found = Detections(
        np.stack([starts, starts + lengths], 1), np.sort(rng.uniform(0, 1, 20_000))[::-1], rng.integers(0, 20, 20_000),
        rng.exponential(0.2, (20_000, 2)),
    )  # fmt: skip
    write_predictions(tmp_path / "p.json", {"long": found}, [f"class {i}" for i in range(20)])
    write_page(tmp_path / "page.html", gather([tmp_path / "p.json"]))
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    page.open(tmp_path / "page.html")
    np.testing.assert_array_equal(page.js("return [...state.rec.found.segments]"), found.segments.ravel())
    page.js("byId('score').value = 0; byId('score').dispatchEvent(new Event('input'))")
    page.settle()
    assert page.js("return state.rec.shown.length") == 20_000
    page.js("look(3000, 3010)")
    page.settle()
    inside = int(((starts < 3010) & (starts + lengths > 3000)).sum())
    assert 0 < page.js("return hits.length") <= inside < 100


def test_sound_plays_in_step_and_an_annotator_starts_from_nothing(page, tmp_path):
    with wave.open(str(tmp_path / "my sound #1.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(2 * 8000 * 5))
    out = tmp_path / "pages" / "page.html"
    assert (
        main(["view", "--annotate", str(tmp_path / "my sound #1.wav"), "--classes", "hit, miss", "--out", str(out)])
        == 0
    )
    page.open(out)
    page.wait("return state.rec.duration === 5")
    page.keys(" ")
    page.wait("return state.now > 0.2 && playing")
    page.keys(" ")
    page.wait("return !playing && video.paused")
    page.js("seek(3)")
    page.wait("return video.currentTime === 3 && xOf(state.now) === xOf(3)")
    page.drag(page.place(4.0, 1), (page.place(4.0, 1)[0] + 1, page.place(4.0, 1)[1]))
    page.wait("return Math.abs(video.currentTime - 4) < 0.05")  # a click seeks
    page.drag(page.place(1.0, 1), page.place(1.5, 1), page.place(2.0, 1))
    page.click("save")
    loaded = load_annotations(page.downloaded(), classes=("hit", "miss"))
    recording = loaded.recordings["my sound #1"]
    assert recording.duration == 5 and recording.labels.tolist() == [1]
    np.testing.assert_allclose(recording.segments, [[1.0, 2.0]], atol=0.02)


def test_media_inside_the_page_and_media_that_is_gone(page, tmp_path):
    for name in ("first", "second"):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(2 * 8000))
    media = [tmp_path / "first.wav", tmp_path / "second.wav"]
    write_page(tmp_path / "embedded.html", gather(media=media), embed=True)
    write_page(tmp_path / "beside.html", gather(media=media))
    for path in media:
        path.unlink()
    page.open(tmp_path / "embedded.html")
    page.wait("return state.rec.duration === 1")
    page.open(tmp_path / "beside.html")
    page.wait("return !byId('missing-media').hidden")
    assert "first.wav cannot be played" in page.js("return byId('missing-text').textContent")
    page.expected = "ERR_FILE_NOT_FOUND"


def test_a_video(page, shared, tmp_path):
    clip = shared / "data" / "videos" / "bikes.mp4"
    if not clip.is_file():
        pytest.skip(f"{clip}: not here")
    write_page(tmp_path / "page.html", gather(media=[clip], classes=["ride"]))
    page.open(tmp_path / "page.html")
    page.wait("return video.readyState >= 2 && state.rec.duration === 10")
    page.js("seek(6.5)")
    page.wait("return video.currentTime === 6.5 && !video.seeking")
    colours = page.js(
        "const c = document.createElement('canvas').getContext('2d'); c.drawImage(video, 0, 0, 20, 20);"
        "try { return new Set(c.getImageData(0, 0, 20, 20).data).size } catch (error) { return error.name }"
    )
    assert colours == "SecurityError" or colours > 10  # a file of another origin may be shown, not read
