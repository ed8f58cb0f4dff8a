"""Features from containers and addresses give what a folder gives, in training too."""

from __future__ import annotations

import functools
import http.server
import io
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch

from tzn.data.dataset import RecordingDataset, load_split_annotations, select_recordings
from tzn.data.stores import Store, fetched, is_container, is_url, located, read_anywhere
from tzn.errors import DataError

KINDS = (
    "folder",
    "folder-of-pt",
    "h5",
    "lmdb",
    "tar",
    "zarr",
    "pt",
    "memory",
    "file",
    "http",
    "memory-tar",
    "memory-h5",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_run.small_data(tmp_path_factory.mktemp("stores"))


def _arrays(data: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in sorted((data / "features").iterdir())}


def _h5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def _tar(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """By WebDataset's own writer."""
    import webdataset

    with webdataset.TarWriter(str(path)) as writer:
        for name, array in arrays.items():
            writer.write({"__key__": name, "npy": array})


def make(kind: str, data: Path, to: Path, monkeypatch) -> tuple[str, list[str]]:
    """``data.features`` and further settings of a copy of the data in this form."""
    arrays = _arrays(data)
    shutil.copy(data / "annotations.json", to / "annotations.json")
    if kind == "folder":
        shutil.copytree(data / "features", to / "features")
        return "features", []
    if kind == "folder-of-pt":
        (to / "features").mkdir()
        for name, array in arrays.items():
            torch.save(torch.from_numpy(array), to / "features" / f"{name}.pt")
        return "features", ["data.file_suffix=.pt"]
    if kind != "memory":
        _h5(to / "f.h5", arrays)
        return "f.h5", []
    if kind == "lmdb":
        import lmdb

        with (
            lmdb.open(str(to / "f.lmdb"), map_size=1 << 28) as environment,
            environment.begin(write=True) as transaction,
        ):
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                transaction.put(name.encode(), buffer.getvalue())
        return "f.lmdb", []
    if kind == "tar":
        _tar(to / "f.tar", arrays)
        return "f.tar", []
    if kind == "zarr":
        import zarr

        zarr.save_group(str(to / "f.zarr"), **arrays)
        return "f.zarr", []
    if kind == "pt":
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, to / "f.pt")
        return "f.pt", []
    import fsspec

    monkeypatch.setenv("TZN_CACHE", str(to / "cache"))
    memory = fsspec.filesystem("memory")
    if kind == "memory":
        for path in (data / "features").iterdir():
            memory.pipe(f"/bucket/features/{path.name}", path.read_bytes())
        return "memory://bucket/features", []
    if kind in ("memory-tar", "memory-h5"):
        suffix = kind.removeprefix("memory-")
        {"tar": _tar, "h5": _h5}[suffix](to / f"x.{suffix}", arrays)
        memory.pipe(f"/bucket/x.{suffix}", (to / f"x.{suffix}").read_bytes())
        return f"memory://bucket/x.{suffix}", []
    if kind == "file":
        return f"file://{data / 'features'}", []
    raise AssertionError(kind)


@pytest.fixture
def web(data):
    """A web server of the data folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(data)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_gives_the_same_examples(kind, data, tmp_path, monkeypatch, request):
    if kind == "http":
        monkeypatch.setenv("TZN_CACHE", str(tmp_path / "cache"))
        shutil.copy(data / "annotations.json", tmp_path / "annotations.json")
        features, more = f"{request.getfixturevalue('web')}/features", []
    else:
        features, more = make(kind, data, tmp_path, monkeypatch)
    config = small_run.small_config(f"data.features={features}", *more)
    annotations = load_split_annotations(tmp_path, config.data)
    chosen = select_recordings(annotations, config.data, "train")
    place = located(tmp_path, config.data.features)
    mine = RecordingDataset(annotations, chosen, place, config.data, None, training=False)
    wanted = RecordingDataset(
        annotations, chosen, data / "features", small_run.small_config().data, None, training=False
    )
    # As a loader process gets it.
    mine = pickle.loads(pickle.dumps(mine))
    assert mine.input_dim == wanted.input_dim == 6
    for i in range(len(wanted)):
        assert torch.equal(mine[i].features, wanted[i].features)
    store = Store(place, config.data)
    name = chosen[0].id
    header = store.header(name)
    assert header.steps == len(wanted.raw(0)[0]) and header.channels == 6
    assert name in store and "nobody" not in store
    with pytest.raises(DataError, match="nobody.*no features of this recording"):
        store.load("nobody")
    with pytest.raises(DataError, match="expected model.input_dim = 5"):
        store.load(name, 5)


def test_training_reads_containers(data, tmp_path, monkeypatch):
    """With a loader process, in which the container is opened anew; the same losses as from a folder."""
    from tzn.training import train

    settings = ["training.epochs=1", "training.warmup_epochs=0"]
    train(small_run.small_config(*settings), data, tmp_path / "plain", accelerator="cpu", progress=False)
    for kind in ("h5", "lmdb"):
        place = tmp_path / kind
        place.mkdir()
        features, _ = make(kind, data, place, monkeypatch)
        config = small_run.small_config(*settings, f"data.features={features}", "training.num_workers=1")
        train(config, place, place / "run", accelerator="cpu", progress=False)
        assert small_run.losses(place / "run") == small_run.losses(tmp_path / "plain")


def test_missing_recordings_and_places_are_said(data, tmp_path, monkeypatch):
    arrays = _arrays(data)
    gone = sorted(arrays)[3]
    shutil.copy(data / "annotations.json", tmp_path / "annotations.json")
    _h5(tmp_path / "f.h5", {name: x for name, x in arrays.items() if name != gone})
    config = small_run.small_config("data.features=f.h5").data
    annotations = load_split_annotations(tmp_path, config)
    every = list(annotations.recordings.values())
    with pytest.raises(DataError, match=rf"f\.h5: 1 of {len(every)} recordings have no feature file: {gone}"):
        RecordingDataset(annotations, every, tmp_path / "f.h5", config, None, training=False)
    for name in ("g.h5", "g.tar", "g.lmdb", "g.zarr", "g.pt", "g"):
        with pytest.raises(DataError, match=name):
            Store(tmp_path / name, config).load("a")
    (tmp_path / "bad.h5").write_bytes(b"no")
    with pytest.raises(DataError, match=r"bad\.h5: cannot be read"):
        Store(tmp_path / "bad.h5", config).load("a")


def test_what_came_from_afar_is_kept_until_it_changes(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("TZN_CACHE", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.pipe("/kept/a.npy", b"first")
    first = fetched("memory://kept/a.npy")
    assert first.read_bytes() == b"first" and fetched("memory://kept/a.npy") == first
    with pytest.raises(DataError, match="memory://kept/b.npy: nothing there"):
        fetched("memory://kept/b.npy")
    assert is_url("s3+x://a") and not is_url("/a/b") and is_container("a/b.ZARR/") and not is_container("features")


def test_recordings_of_a_manifest_lie_anywhere(tmp_path, monkeypatch):
    import fsspec

    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    config = small_run.small_config().data
    _h5(tmp_path / "f.h5", {"one": array})
    with read_anywhere(f"{tmp_path}/f.h5::one", config) as found:
        assert np.array_equal(found, array)
    with (
        pytest.raises(DataError, match="f.h5::two: nothing of this name"),
        read_anywhere(f"{tmp_path}/f.h5::two", config),
    ):
        pass
    buffer = io.BytesIO()
    np.save(buffer, array)
    fsspec.filesystem("memory").pipe("/m/one.npy", buffer.getvalue())
    with read_anywhere("memory://m/one.npy", config) as found:
        assert np.array_equal(np.load(found), array)
    assert not found.exists()
    with pytest.raises(DataError, match="memory://m/two.npy"), read_anywhere("memory://m/two.npy", config):
        pass
