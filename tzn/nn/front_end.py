"""Front ends for raw signals: samples in, one vector a step out, trained with the network.

A step's features are ``samples`` consecutive samples of ``channels`` channels, flattened sample by sample, so grid, masks,
chunks and streams are those of steps. What a front end sees beyond its own step is finite (``reach``, in samples), and
whatever lies outside of the recording is zero for it: chunks with that much overlap give the values of one pass.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOOR = 1e-2  # power below which a log-spectrogram is flat; standardised signals have power 1


def prime_factors(number: int) -> list[int]:
    """Of 12: 3, 2, 2; the largest first, of 1 none."""
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found[::-1]


class ConvStem(nn.Module):
    """Convolutions at the samples' rate, then strided ones down to the steps' rate.

    Args:
        samples: of a step. channels: of a sample. width: channels of every layer and of the output.
        layers: convolutions of stride 1 before the strided ones.
        kernel: odd; a strided layer sees ``kernel // 2`` samples of its input beyond those it stands for on each side.
    """

    def __init__(self, samples: int, channels: int, width: int, layers: int, kernel: int) -> None:
        super().__init__()
        self.samples, self.channels, self.width = samples, channels, width
        self.pad = kernel // 2
        self.strides = [1] * layers + prime_factors(samples)
        inputs = [channels] + [width] * (len(self.strides) - 1)
        self.convs = nn.ModuleList(
            nn.Conv1d(size, width, stride + 2 * self.pad, stride, bias=False)
            for size, stride in zip(inputs, self.strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.strides)

    @property
    def reach(self) -> int:
        """Samples beyond a step's own, on each side, that its output sees."""
        reach, rate = 0, 1
        for stride in self.strides:
            reach += self.pad * rate
            rate *= stride
        return reach

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, T, samples * channels]`` zero outside ``mask`` ``[B, T]`` to ``[B, T, width]``."""
        x = x.reshape(x.shape[0], -1, self.channels)
        rate = self.samples
        for conv, norm, stride in zip(self.convs, self.norms, self.strides, strict=True):
            rate //= stride
            x = F.pad(x, (0, 0, self.pad, self.pad))
            x = F.gelu(norm(conv(x.transpose(1, 2)).transpose(1, 2)))
            x = x * mask.repeat_interleave(rate, 1).unsqueeze(-1)
        return x


class LogSpectrogram(nn.Module):
    """Log power of ``window // 2 + 1`` frequencies around every step, beside the step's own samples, mixed to ``width``.

    The samples stay because a window blurs what happens inside it, and boundaries are to be sharp.

    Args:
        samples, channels, width: as of :class:`ConvStem`.
        window: samples of the Hann window centred at a step; as odd or even as ``samples``, not shorter.
    """

    basis: Tensor

    def __init__(self, samples: int, channels: int, width: int, window: int) -> None:
        super().__init__()
        if window < samples or (window - samples) % 2:
            raise ValueError(f"window: got {window}, expected {samples} or more by an even number")
        self.samples, self.channels, self.window = samples, channels, window
        self.bins = window // 2 + 1
        phase = 2 * math.pi * torch.arange(self.bins).unsqueeze(1) * torch.arange(window) / window
        hann = torch.hann_window(window + 2, periodic=False)[1:-1]  # symmetric about the middle of the step, no zeros
        hann = hann / hann.square().sum().sqrt()
        # White noise of power 1 has power 1 at every frequency.
        self.register_buffer("basis", torch.cat([phase.cos(), phase.sin()]).mul(hann).unsqueeze(1), persistent=False)
        self.norm = nn.LayerNorm(channels * self.bins)
        self.frequencies = nn.Linear(channels * self.bins, width)
        self.own = nn.Linear(samples * channels, width)

    @property
    def reach(self) -> int:
        """Samples beyond a step's own, on each side, that its output sees."""
        return (self.window - self.samples) // 2

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, T, samples * channels]`` zero outside ``mask`` ``[B, T]`` to ``[B, T, width]``."""
        batch, steps, _ = x.shape
        signal = x.reshape(batch, steps * self.samples, self.channels).transpose(1, 2).flatten(0, 1).unsqueeze(1)
        waves = F.conv1d(F.pad(signal, (self.reach, self.reach)), self.basis.to(x.dtype), stride=self.samples)
        waves = waves.to(torch.promote_types(waves.dtype, torch.float32))
        power = waves.unflatten(1, (2, self.bins)).square().sum(1)
        log = (power + FLOOR).log().reshape(batch, self.channels * self.bins, steps).transpose(1, 2)
        return (self.frequencies(self.norm(log).to(x.dtype)) + self.own(x)) * mask.unsqueeze(-1)


class LocalSqueezeExcitation(nn.Module):
    """Channel gates from the mean of the surroundings (Hu, Shen, Sun 2018, with a finite window in place of everything).

    A mean over the whole recording would make every output depend on every step, and streams and chunks impossible.

    Args:
        width: channels. window: steps on each side that the mean is over. ratio: hidden channels are ``width // ratio``.
    """

    def __init__(self, width: int, window: int, ratio: int = 4) -> None:
        super().__init__()
        self.window = window
        hidden = max(width // ratio, 4)
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)  # gates begin at one
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, T, width]`` zero outside ``mask`` ``[B, T]`` to the same."""
        size = 2 * self.window + 1
        both = torch.cat([x, mask.unsqueeze(-1).to(x.dtype)], 2).transpose(1, 2)
        # Padding counts neither above nor below the line.
        means = F.avg_pool1d(both, size, stride=1, padding=self.window).transpose(1, 2)
        around = means[..., :-1] / means[..., -1:].clamp(min=0.5 / size)
        gate = 2 * torch.sigmoid(self.up(F.relu(self.down(around))))
        return x * gate


class FrontEnd(nn.Module):
    """One of the kinds above, then gates where ``squeeze`` is not 0.

    Args:
        kind: "conv" or "spectrogram".
        samples: of a step. channels: of a sample. width: of the output.
        layers, kernel: of :class:`ConvStem`. window: of :class:`LogSpectrogram`, in samples.
        squeeze: steps on each side of :class:`LocalSqueezeExcitation`; 0: none.
    """

    def __init__(
        self, kind: str, samples: int, channels: int, width: int, *, layers: int, kernel: int, window: int, squeeze: int
    ) -> None:
        super().__init__()
        self.samples = samples
        self.signal: ConvStem | LogSpectrogram = (
            ConvStem(samples, channels, width, layers, kernel)
            if kind == "conv"
            else LogSpectrogram(samples, channels, width, window)
        )
        self.gates = LocalSqueezeExcitation(width, squeeze) if squeeze else None

    @property
    def radius(self) -> int:
        """Steps on each side that an output sees."""
        return -(-self.signal.reach // self.samples) + (self.gates.window if self.gates else 0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, T, samples * channels]`` zero outside ``mask`` ``[B, T]`` to ``[B, T, width]``, zero outside it."""
        x = self.signal(x, mask)
        return x if self.gates is None else self.gates(x, mask)
