"""Front ends for raw signals: what they see, and that chunks, streams, batches and counters know of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_model import CONFIG, GRID
from small_run import losses, small_config, small_data

from tzn.config import InferenceConfig
from tzn.data.dataset import RecordingDataset, load_split_annotations, select_recordings
from tzn.errors import ConfigError, DataError
from tzn.inference.localize import candidates, localize
from tzn.inference.localize_many import localize_many
from tzn.inference.stream import StreamLocalizer
from tzn.models import TemporalZoomNet
from tzn.models.checkpoint import load_checkpoint, run_checkpoint
from tzn.nn.front_end import FLOOR, ConvStem, FrontEnd, LocalSqueezeExcitation, LogSpectrogram, prime_factors
from tzn.profiling import count_multiply_adds
from tzn.training import train

KINDS = {
    "conv": {"front_end": "conv", "front_end_samples": 6, "front_end_width": 12},
    "spectrogram": {"front_end": "spectrogram", "front_end_samples": 6, "front_end_window": 40, "front_end_width": 12},
    "gates": {"front_end": "conv", "front_end_samples": 3, "front_end_width": 12, "front_end_squeeze": 4},
}


def build(kind: str) -> TemporalZoomNet:
    """Random, with something to decode."""
    torch.manual_seed(3)
    model = TemporalZoomNet(CONFIG.replace(input_dim=12, **KINDS[kind])).eval()
    with torch.no_grad():
        model.class_head.output.weight.mul_(4)
        model.class_head.output.bias.fill_(-2.0)
        rows = model.boundary_head.tower.output.weight[:2]
        rows.normal_(std=2.0)
        rows.sub_(rows.mean(1, keepdim=True))
        model.boundary_head.tower.output.bias[2:].fill_(-1.0)
        model.offset_head.tower.output.bias.fill_(2.0)
        model.depth_predictor.logit.weight.normal_(std=2.0)
        model.depth_predictor.logit.bias.zero_()
        if model.front_end.gates is not None:
            model.front_end.gates.up.weight.normal_()
    return model


def signal(steps: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(steps, 12, generator=torch.Generator().manual_seed(seed))


def front_ends() -> dict[str, FrontEnd]:
    common = {"layers": 2, "kernel": 5, "window": 40}
    torch.manual_seed(0)
    made = {
        "conv": FrontEnd("conv", 12, 2, 8, squeeze=0, **common),
        "one sample a step": FrontEnd("conv", 1, 24, 8, squeeze=0, **common),
        "spectrogram": FrontEnd("spectrogram", 12, 2, 8, squeeze=0, **common),
        "gates": FrontEnd("spectrogram", 12, 2, 8, squeeze=3, **common),
    }
    if made["gates"].gates is not None:
        torch.nn.init.normal_(made["gates"].gates.up.weight)
    return {name: part.double() for name, part in made.items()}


@pytest.mark.parametrize("name", ["conv", "one sample a step", "spectrogram", "gates"])
def test_a_step_sees_its_radius_and_nothing_beyond(name):
    part, steps = front_ends()[name], 61
    x, mask = torch.randn(1, steps, 24, dtype=torch.float64, requires_grad=True), torch.ones(1, steps, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(part(x, mask)[0, 30].sum(), x)
    seen = gradient[0].abs().amax(-1).nonzero()[:, 0]
    assert int(seen.min()) == 30 - part.radius and int(seen.max()) == 30 + part.radius


@pytest.mark.parametrize("name", ["conv", "one sample a step", "spectrogram", "gates"])
def test_padding_says_nothing(name):
    part = front_ends()[name]
    x = torch.randn(1, 40, 24, dtype=torch.float64)
    alone = part(x[:, :25], torch.ones(1, 25, dtype=torch.bool))
    mask = (torch.arange(40) < 25)[None]
    padded = part(x * mask.unsqueeze(-1), mask)
    torch.testing.assert_close(padded[:, :25], alone, rtol=1e-6, atol=1e-7)
    assert padded[:, 25:].abs().max() == 0


def test_the_spectrogram_is_that_of_fourier_and_centred():
    part = LogSpectrogram(4, 1, 3, 20).double()
    samples = np.random.default_rng(0).standard_normal(4 * 30)
    window = np.hanning(22)[1:-1]
    window /= np.sqrt((window**2).sum())
    padded = np.pad(samples, part.reach)
    frames = np.stack([padded[4 * t : 4 * t + 20] for t in range(30)])
    wanted = np.log(np.abs(np.fft.rfft(frames * window, axis=1)) ** 2 + FLOOR)
    seen = {}
    part.norm.register_forward_hook(lambda m, inputs, output: seen.update(log=inputs[0]))
    x, mask = torch.from_numpy(samples).reshape(1, 30, 4), torch.ones(1, 30, dtype=torch.bool)
    part(x, mask)
    np.testing.assert_allclose(seen["log"][0].numpy(), wanted, rtol=1e-4, atol=1e-5)
    # A signal read backwards has its spectrum backwards: no window leans to one side.
    part(x.flip(1, 2), mask)
    np.testing.assert_allclose(seen["log"][0].flip(0).numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_white_noise_has_power_one_everywhere():
    part = LogSpectrogram(8, 2, 4, 64)
    seen = {}
    part.norm.register_forward_hook(lambda m, inputs, output: seen.update(log=inputs[0]))
    part(torch.randn(1, 4000, 16), torch.ones(1, 4000, dtype=torch.bool))
    power = seen["log"][0, 10:-10].exp().mean(0) - FLOOR
    assert power.min() > 0.85 and power.max() < 1.15


def test_strides_multiply_to_the_samples_of_a_step():
    for samples in (1, 2, 5, 12, 50, 60):
        assert np.prod(prime_factors(samples), dtype=int) == samples
        stem = ConvStem(samples, 3, 4, layers=1, kernel=3)
        assert stem(torch.randn(2, 9, 3 * samples), torch.ones(2, 9, dtype=torch.bool)).shape == (2, 9, 4)


def test_gates_begin_open_and_look_around_only():
    gates = LocalSqueezeExcitation(8, 2)
    x, mask = torch.randn(1, 20, 8), torch.ones(1, 20, dtype=torch.bool)
    assert torch.equal(gates(x, mask), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [None, 0.4])
def test_chunks_give_the_one_pass_result(kind, budget):
    model, x = build(kind), signal(1500)
    config = InferenceConfig(budget=budget, pre_nms_thresh=0.05, pre_nms_topk=60)
    whole, chunked = candidates(model, x, config), candidates(model, x, dataclasses.replace(config, chunk=256))
    assert len(whole.scores) == len(chunked.scores) > 20
    for a, b in zip(whole[:4], chunked[:4], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_the_one_pass_result(kind):
    model, x = build(kind), signal(900)
    config = InferenceConfig(pre_nms_topk=100_000, max_segments=1_000_000)
    wanted, _ = localize(model, x, GRID, 90.0, config)
    stream = StreamLocalizer(model, GRID, config, reach=400)
    parts = [*(stream.push(part) for part in x.tensor_split((7, 300, 650))), stream.close()]
    found = np.concatenate([p.segments for p in parts])
    scores = np.concatenate([p.scores for p in parts])
    assert len(scores) == len(wanted) > 20
    np.testing.assert_allclose(np.sort(scores), np.sort(wanted.scores), atol=1e-4)
    np.testing.assert_allclose(np.sort(found.ravel()), np.sort(wanted.segments.ravel()), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_side_by_side_is_as_alone(kind):
    model, config = build(kind), InferenceConfig(max_segments=500)
    xs = [signal(140, 1), signal(151, 2)]
    both = localize_many(model, xs, [GRID] * 2, [14.0, 15.1], config)
    for x, duration, (found, _) in zip(xs, (14.0, 15.1), both, strict=True):
        alone, _ = localize(model, x, GRID, duration, config)
        assert len(found) == len(alone)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_its_work_is_counted(kind):
    model, steps = build(kind), 64
    x, mask = signal(steps)[None], torch.ones(1, steps, dtype=torch.bool)
    _, counted = count_multiply_adds(lambda: model.front_end(x, mask))
    c = model.config
    samples, channels, width = c.front_end_samples, 12 // c.front_end_samples, c.front_end_width
    if c.front_end == "conv":
        wanted, rate, inputs = 0, samples, channels
        for stride in [1] * c.front_end_layers + prime_factors(samples):
            rate //= stride
            wanted += steps * rate * inputs * width * (stride + 2 * (c.front_end_kernel // 2))
            inputs = width
    else:
        bins = c.front_end_window // 2 + 1
        wanted = steps * (channels * 2 * bins * c.front_end_window + channels * bins * width + 12 * width)
    if c.front_end_squeeze:
        wanted += 2 * steps * width * max(width // 4, 4)
    assert counted == wanted


def test_it_learns_and_is_saved_with_the_run(tmp_path):
    data = small_data(tmp_path / "data")
    settings = ("model.front_end=conv", "model.front_end_samples=2", "model.front_end_width=8", "model.front_end_squeeze=2",
                "data.samples_per_step=2", "data.gain=0.1", "data.stretch=0.1", "training.learning_rate=5e-3")  # fmt: skip
    train(small_config(*settings), data, tmp_path / "run", accelerator="cpu", progress=False)
    curve = list(losses(tmp_path / "run").values())
    assert curve[-1] < curve[0]
    model = load_checkpoint(run_checkpoint(tmp_path / "run")).model
    assert model.config.front_end == "conv" and model.front_end is not None
    assert model.front_end.gates.up.weight.abs().max() > 0  # it was trained with the rest
    assert model.receptive_radius >= TemporalZoomNet(small_config().model).receptive_radius


def test_samples_of_a_step_are_augmented_as_one_signal(tmp_path):
    data = small_data(tmp_path)
    config = small_config("data.gain=0.5", "data.noise=0", "data.crop_ratio=null", "data.samples_per_step=3").data
    annotations = load_split_annotations(data, config)
    chosen = select_recordings(annotations, config, "train")

    def dataset(changed):
        return RecordingDataset(annotations, chosen, data / "features", changed, 6, training=True)

    plain = dataset(config.replace(gain=0.0, max_length=999))[0].features
    gained = dataset(config.replace(max_length=999))[0].features
    factor = (gained / plain).median(0).values.reshape(3, 2)
    assert torch.allclose(factor, factor[:1].expand(3, 2), rtol=1e-4) and factor[0, 0] != factor[0, 1]
    stretched = dataset(config.replace(gain=0.0, stretch=0.3, max_length=999))[0].features
    ramp = torch.arange(len(plain) * 3.0)[:, None].expand(-1, 2).reshape(len(plain), 6)
    source = dataset(config.replace(gain=0.0, stretch=0.3, max_length=999))
    source._cache[0], source._stored_length[0] = ramp, len(plain)
    rising = source[0].features.reshape(-1, 2)[:, 0].diff()[5:-5]
    assert len(stretched) == len(source[0].features) != len(plain)
    assert rising.min() > 0 and (rising - rising.mean()).abs().max() < 1e-2  # no saw of three-sample teeth
    with pytest.raises(DataError, match="expected a divisor of the features' width 6"):
        dataset(config.replace(samples_per_step=4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"front_end": "conv", "front_end_samples": 5},
            "front_end_samples = 5: expected a divisor of model.input_dim = 12",
        ),
        ({"front_end_squeeze": 3}, "front_end = 'none': expected 'conv' or 'spectrogram'"),
        ({"front_end": "conv", "front_end_layers": 0}, "front_end_layers = 0: expected at least 1"),
        ({"front_end": "spectrogram", "front_end_samples": 4, "front_end_window": 9}, "front_end_window = 9: expected"),
        ({"front_end": "conv", "front_end_kernel": 4}, "front_end_kernel = 4: expected an odd integer"),
        ({"front_end": "wavelet"}, "front_end = 'wavelet': expected 'none', 'conv' or 'spectrogram'"),
    ],
)
def test_what_cannot_be_is_named(changes, said):
    with pytest.raises(ConfigError) as error:
        CONFIG.replace(input_dim=12, **changes)
    assert said in str(error.value)
