"""Pictures at a fixed rate from files with variable frame rate, rotation, no duration, damage."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tzn.errors import DataError
from tzn.readers.video import sample_frames, stated_duration

av = pytest.importorskip("av")
sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_video import make_video, rotate  # noqa: E402


def _grays(path, rate, **options):
    return [float(image.mean()) for image in sample_frames(path, rate, 32, **options)]


def test_the_picture_on_the_screen_at_the_middle_of_each_step(tmp_path):
    times = [i / 25 for i in range(50)]
    path = make_video(tmp_path / "a.mp4", times, [4 * i for i in range(50)])
    found = _grays(path, 5)
    shown = [4 * int(25 * (i + 0.5) / 5 + 1e-9) for i in range(10)]
    np.testing.assert_allclose(found, shown, atol=3)
    assert len(_grays(path, 10)) == 20 and len(_grays(path, 50)) == 100  # also above the file's own rate


def test_variable_frame_rate_goes_by_timestamps(tmp_path):
    times = [0.0, 0.04, 0.08, 1.0, 1.7, 1.75, 3.0, 3.9]
    grays = [10, 40, 70, 100, 130, 160, 190, 220]
    path = make_video(tmp_path / "a.mkv", times, grays, codec="mpeg4")
    found = _grays(path, 4)
    expected = [grays[np.searchsorted(times, (i + 0.5) / 4, side="right") - 1] for i in range(16)]
    np.testing.assert_allclose(found[:16], expected, atol=4)
    assert len(found) == 16


def test_times_count_from_the_first_picture(tmp_path):
    path = make_video(tmp_path / "a.mp4", [7 + i / 25 for i in range(25)], [10 * (i // 5) for i in range(25)])
    np.testing.assert_allclose(_grays(path, 5), [0, 10, 20, 30, 40], atol=3)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_undone(tmp_path, degrees):
    """The matrix turns the picture clockwise for display, so the bright quarter goes from corner to corner."""
    path = make_video(tmp_path / "a.mp4", [i / 25 for i in range(10)], [20] * 10, corner=220)
    assert next(iter(sample_frames(path, 5, 32)))[:8, :8].mean() > 200
    rotate(path, degrees)
    image = next(iter(sample_frames(path, 5, 32)))
    corners = {90: image[:8, -8:], 180: image[-8:, -8:], 270: image[-8:, :8]}
    assert corners[degrees].mean() > 200 and image[:8, :8].mean() < 60


def test_crop_shows_the_centre(tmp_path):
    path = make_video(tmp_path / "a.mp4", [0, 0.04], [20, 20], corner=220)
    whole, centre = (next(iter(sample_frames(path, 5, 48, fit))) for fit in ("stretch", "crop"))
    assert whole.shape == centre.shape == (48, 48, 3)
    assert (whole[:20].mean((0, 2)) > 120).sum() == pytest.approx(24, abs=2)  # half the width of 64
    assert (centre[:20].mean((0, 2)) > 120).sum() == pytest.approx(24, abs=2)  # pixels 8 to 32
    assert centre[2, 22].mean() > 200 and centre[2, 26].mean() < 60


def test_a_file_that_states_no_duration(tmp_path):
    path = make_video(tmp_path / "a.h264", [i / 25 for i in range(50)], [4 * i for i in range(50)])
    assert stated_duration(path) is None
    assert len(_grays(path, 5)) == 10


def test_a_truncated_file_gives_what_is_there_and_warns(tmp_path):
    rng = np.random.default_rng(0)
    whole = make_video(
        tmp_path / "a.mp4", [i / 25 for i in range(200)], rng.integers(0, 255, 200).tolist(), codec="mpeg4"
    )
    content = whole.read_bytes()
    cut = tmp_path / "b.mp4"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=r"b\.mp4: ends at \d\.\d\d s of the stated 8\.00 s \(truncated file\?\)"):
        found = _grays(cut, 5)
    expected = _grays(whole, 5)
    assert 10 <= len(found) <= 30
    np.testing.assert_allclose(found[:-1], expected[: len(found) - 1], atol=1)


def test_a_damaged_middle_is_left_out(tmp_path):
    path = make_video(tmp_path / "a.avi", [i / 25 for i in range(100)], [2 * i for i in range(100)], codec="mpeg4")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _grays(path, 5)
    np.testing.assert_allclose(found[:7], [2 * int(25 * (i + 0.5) / 5 + 1e-9) for i in range(7)], atol=6)


def test_what_is_no_video_is_one_clear_error(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 50)
    whole = make_video(tmp_path / "b.mp4", [0, 0.04, 0.08], [1, 2, 3]).read_bytes()
    (tmp_path / "c.mp4").write_bytes(whole[:100])  # not even its index
    for name in ("a.mp4", "c.mp4"):
        with pytest.raises(DataError, match=rf"{name}: (cannot be read as video|holds no video stream)"):
            list(sample_frames(tmp_path / name, 5, 32))
    with av.open(str(tmp_path / "d.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"d\.mkv: holds no video stream"):
        list(sample_frames(tmp_path / "d.mkv", 5, 32))


def test_a_timestamp_out_of_the_world_is_refused(tmp_path):
    path = make_video(tmp_path / "a.mkv", [0, 0.04, 9000.0], [1, 2, 3], codec="mpeg4")
    with pytest.raises(DataError, match=r"a\.mkv: the time jumps from 0\.04 s to 9000 s"):
        list(sample_frames(path, 5, 32))


def test_real_files(shared):
    folder = shared / "data" / "videos"
    for name, steps in (("bikes.mp4", 20), ("carphone_pristine.mp4", 8), ("mmaction2_demo.mp4", 20)):
        images = list(sample_frames(folder / name, 2, 32))
        assert len(images) == steps and images[0].shape == (32, 32, 3) and np.ptp(images[-1]) > 50


def test_memory_does_not_grow_with_length(tmp_path):
    """Pictures come one at a time: after a thousand, no more of them are alive than at the start."""
    import gc

    path = make_video(tmp_path / "a.mkv", [i / 25 for i in range(1000)], [i % 200 for i in range(1000)], codec="mpeg4")
    alive = []
    for i, _ in enumerate(sample_frames(path, 25, 32)):
        if i in (20, 980):
            gc.collect()
            alive.append(sum(type(x) is av.VideoFrame for x in gc.get_objects()))
    assert i > 990 and alive[1] <= alive[0] + 2
