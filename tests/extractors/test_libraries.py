"""torchvision's and timm's networks from a user's own files of weights: the real libraries, random weights.

A process of its own (``make test-extractors``), because PyPI's torchvision asks for a CUDA torch. Beside another one its
compiled operators cannot be loaded, and as long as it is installed nothing that looks for it imports, Lightning included.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tzn.errors import DataError
from tzn.readers.extractors import load_extractor


@pytest.fixture(scope="module")
def torchvision():
    """The real torchvision. Where its compiled operators cannot be loaded it imports all the same once two of their
    schemas exist; no network here calls them."""
    try:
        import torchvision
    except ModuleNotFoundError:
        pytest.skip("torchvision is not installed; 'make test-extractors' brings it into a folder of its own")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for op in ("nms", "qnms"):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision._schemas = library  # alive as long as the module
    return torchvision


def _pictures(count=3, size=224):
    return [np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8) for i in range(count)]


def test_torchvision_from_a_file_of_weights(torchvision, tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    extractor = load_extractor("torchvision:mobilenet_v3_small", tmp_path / "w.pth")
    assert extractor.size == 224 and extractor.mean == pytest.approx((123.675, 116.28, 103.53))
    found = np.concatenate(list(extractor.run(_pictures(2))))
    x = (torch.from_numpy(np.stack(_pictures(2))).permute(0, 3, 1, 2) / 255 - torch.tensor(
        [0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)  # fmt: skip
    with torch.inference_mode():
        expected = network.classifier[:-1](network.avgpool(network.features(x)).flatten(1)).numpy()
    assert found.shape == (2, 1024)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    torch.manual_seed(1)
    torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), tmp_path / "other.pth")
    assert load_extractor("torchvision:mobilenet_v3_small", tmp_path / "other.pth").weights != extractor.weights


def test_timm_from_a_file_of_weights(torchvision, tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050").eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    extractor = load_extractor("timm:mobilenetv3_small_050", tmp_path / "w.safetensors")
    assert extractor.size == 224 and extractor.mean == pytest.approx((123.675, 116.28, 103.53))
    found = np.concatenate(list(extractor.run(_pictures(2))))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (extractor.mean, extractor.std))
    x = (torch.from_numpy(np.stack(_pictures(2))).permute(0, 3, 1, 2) - mean) / std
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(x), pre_logits=True).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("torchvision:resnot18", None, "torchvision has no such model with weights"),
        ("torchvision:r3d_18", None, "expected a classifier of single pictures"),
        ("torchvision:resnet18", "gone.pth", r"gone\.pth: no such file of weights"),
        ("torchvision:resnet18", "bad.pth", r"bad\.pth: not the weights of this network"),
        ("timm:resnot18", None, "timm has no such model"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_error(torchvision, tmp_path, name, weights, message):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match=message) as error:
        load_extractor(name, weights and tmp_path / weights)
    assert "\n" not in str(error.value)


def test_weights_that_cannot_be_downloaded_say_so(torchvision, monkeypatch):
    def offline(*_, **__):
        raise OSError("network unreachable")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(DataError, match=r"its weights cannot be had \(OSError: network unreachable\); download them"):
        load_extractor("torchvision:resnet18")
