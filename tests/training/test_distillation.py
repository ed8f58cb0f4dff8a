from __future__ import annotations

import copy
from pathlib import Path

import pytest
import small_run
import torch
from small_model import build, features

from tzn.config import TrainingConfig
from tzn.config_loading import config_from_dict, config_to_dict
from tzn.errors import CheckpointError, ConfigError
from tzn.models import Outputs, TemporalZoomNet
from tzn.models.checkpoint import load_checkpoint, save_checkpoint
from tzn.training import train
from tzn.training.distillation import Teacher, distillation_losses, load_teacher
from tzn.training.objective import Objective

RADIUS = 6.0
CLASSES = ("class_0", "class_1", "class_2")


def student(**changes) -> TemporalZoomNet:
    torch.manual_seed(5)
    return TemporalZoomNet(build().config.replace(width=8, head_width=8, boundary_width=8, **changes))


def crops(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Recordings of these lengths side by side, with rubbish where they are padded."""
    steps = max(lengths)
    mask = torch.arange(steps) < torch.tensor(lengths).unsqueeze(1)
    x = torch.stack([features(steps, seed) for seed in range(len(lengths))])
    return torch.where(mask.unsqueeze(-1), x, 1e4), mask


@pytest.mark.parametrize("lengths", [(1,), (17,), (40, 23), (33, 1, 32)], ids=str)
def test_a_student_that_is_the_teacher_has_nothing_to_learn(lengths):
    model = build()
    with torch.no_grad():
        losses = distillation_losses(model(*crops(*lengths)), Teacher(model)(*crops(*lengths)), RADIUS)
    assert losses.keys() == {"class", "boundary", "depth"}
    for name, value in losses.items():
        assert float(value) == pytest.approx(0, abs=1e-5), name


@pytest.mark.parametrize("lengths", [(1,), (17,), (40, 23), (33, 1, 32)], ids=str)
def test_gradients_reach_every_head_of_the_student_and_never_the_teacher(lengths):
    teacher, model = Teacher(build()), student(refinement_layers=3)
    outputs, taught = model(*crops(*lengths)), teacher(*crops(*lengths))
    losses = distillation_losses(outputs, taught, RADIUS)
    assert all(torch.isfinite(v) and v >= 0 for v in losses.values()) and losses["class"] > 0
    sum(losses.values()).backward()
    heads = [model.class_head.output.weight, model.depth_predictor.logit.weight, model.embedding.project.weight]
    if (taught.distance.abs() < 0.9 * RADIUS).any():
        heads.append(model.boundary_head.tower.output.weight)
    for weight in heads:
        assert torch.isfinite(weight.grad).all() and weight.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    assert not teacher.model.training and not taught.class_logits.requires_grad


def test_padding_does_not_count():
    teacher, model = Teacher(build()), student()
    with torch.no_grad():
        alone = [distillation_losses(model(*crop), teacher(*crop), RADIUS) for crop in (crops(40), crops(23))]
        x, mask = crops(40, 23)
        x[1, :23] = crops(23)[0][0]
        both = distillation_losses(model(x, mask), teacher(x, mask), RADIUS)
    for name in ("class", "boundary"):
        torch.testing.assert_close(both[name], alone[0][name] + alone[1][name], rtol=1e-4, atol=1e-4)
    mean = (40 * alone[0]["depth"] + 23 * alone[1]["depth"]) / 63
    torch.testing.assert_close(both["depth"], mean, rtol=1e-4, atol=1e-5)


def test_steps_far_from_the_teachers_boundaries_do_not_count():
    outputs = build()(*crops(30))
    far = outputs._replace(distance=torch.full_like(outputs.distance, 0.95 * RADIUS))
    assert float(distillation_losses(outputs, far, RADIUS)["boundary"].detach()) == 0


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"refinement_layers": 0, "shallow_layers": 1}, {"class", "boundary"}),
        ({"boundary_fields": "none"}, {"class", "depth"}),
        ({"refinement_layers": 0, "zoom_layers": 2, "embedding_stride": 2}, {"class", "boundary"}),
    ],
)
def test_terms_of_heads_that_the_student_lacks_are_left_out(changes, terms):
    losses = distillation_losses(student(**changes)(*crops(20)), Teacher(build())(*crops(20)), RADIUS)
    assert losses.keys() == terms


def test_the_objective_adds_the_terms_by_their_weights_over_the_running_counts():
    config = TrainingConfig(distill_class_weight=2.0, distill_boundary_weight=3.0, distill_depth_weight=5.0)
    model, teacher = student(), Teacher(build())
    segments, labels = [torch.tensor([[4.0, 11.0]])], [torch.tensor([1])]
    objective = Objective(model.config, config).eval()
    outputs: Outputs = model(*crops(30))
    plain = objective(outputs, segments, labels, 0.5)
    taught = teacher(*crops(30))
    with_teacher = objective(outputs, segments, labels, 0.5, taught)
    terms = distillation_losses(outputs, taught, RADIUS)
    expected = 2 * terms["class"] / 100 + 3 * terms["boundary"] / 100 + 5 * terms["depth"]  # loss_norm = 100
    torch.testing.assert_close(with_teacher["loss"] - plain["loss"], expected, rtol=1e-4, atol=1e-5)
    assert "distill_class" not in plain and not hasattr(objective, "teacher")


def test_a_copy_of_what_holds_a_teacher_shares_it():
    teacher = Teacher(build())
    assert copy.deepcopy({"teacher": teacher})["teacher"] is teacher


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_run.small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher_run(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    train(small_run.small_config("training.epochs=2"), data, out, accelerator="cpu", progress=False)
    return out


def test_a_student_trains_resumes_to_the_same_weights_and_keeps_no_teacher(data, teacher_run, tmp_path, monkeypatch):
    before = load_checkpoint(teacher_run / "checkpoints" / "last.ckpt").model.state_dict()
    config = small_run.small_config(f"training.teacher={teacher_run}", "model.width=8", "training.epochs=3")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, data, whole, accelerator="cpu", progress=False)

    original = Objective.forward

    def stop_in_the_last_epoch(self, outputs, segments, labels, progress, teacher):
        if progress > 0.7:
            raise RuntimeError("stopped here")
        return original(self, outputs, segments, labels, progress, teacher)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped here"):
        patch.setattr(Objective, "forward", stop_in_the_last_epoch)
        train(config, data, stopped, accelerator="cpu", progress=False)
    train(config, data, stopped, resume=True, accelerator="cpu", progress=False)
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, stopped)]
    for name, value in states[0]["state_dict"].items():
        torch.testing.assert_close(states[1]["state_dict"][name], value, rtol=0, atol=0, msg=name)
    names = {name.removeprefix("model.") for name in states[0]["state_dict"] if name.startswith("model.")}
    assert names == before.keys(), "one network's weights, not two"
    assert max(t.shape[0] for n, t in states[0]["state_dict"].items() if n.endswith("norm.weight")) == 8
    assert not any("teacher" in name for name in states[0]["state_dict"])
    header = (whole / "logs" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert all(f"train/distill_{term}" in header for term in ("class", "boundary", "depth"))
    after = load_checkpoint(teacher_run / "checkpoints" / "last.ckpt").model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_teacher_and_student_see_the_same_crops_and_the_teacher_stays_as_it_was(
    data, teacher_run, tmp_path, monkeypatch
):
    seen, weights = [], {}
    for kind in (Teacher, TemporalZoomNet):
        original = kind.__call__ if kind is Teacher else kind.forward

        def recorded(self, x, mask, original=original, kind=kind):
            if kind is Teacher or (self.training and torch.is_grad_enabled()):
                seen.append((kind, x.clone(), mask.clone()))
            if kind is Teacher:
                weights.update({n: p.clone() for n, p in self.model.state_dict().items()})
            return original(self, x, mask)

        monkeypatch.setattr(kind, "__call__" if kind is Teacher else "forward", recorded)
    config = small_run.small_config(
        f"training.teacher={teacher_run}", "training.epochs=1", "training.warmup_epochs=0", "model.drop_path=0.2"
    )
    train(config, data, tmp_path / "run", accelerator="cpu", progress=False)
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert len(pairs) == 2
    for (first, x, mask), (second, same, same_mask) in pairs:
        assert {first, second} == {Teacher, TemporalZoomNet}
        assert torch.equal(x, same) and torch.equal(mask, same_mask)
    evaluated = load_checkpoint(teacher_run / "checkpoints" / "last.ckpt").model.state_dict()
    assert all(torch.equal(weights[name], evaluated[name]) for name in evaluated), "the weights that evaluation uses"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.first_stride=4"], r"has model.first_stride = 2; expected the student's 4"),
        (["model.regression_ranges=[[0, 8], [8, 16], [16, 9999]]"], r"model.regression_ranges"),
        (["model.boundary_radius=5"], r"has model.boundary_radius = 8.0; expected the student's 5.0"),
        (["model.boundary_fields=region"], r"has model.boundary_fields = start_end; expected the student's region"),
        (["data.feat_stride=2"], r"has data.feat_stride = 1.0; expected the student's 2.0"),
        (["model.input_dim=7"], r"has model.input_dim = 6; expected the student's 7"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher_run, settings, message):
    config = small_run.small_config(f"training.teacher={teacher_run}", *settings)
    with pytest.raises(ConfigError, match=rf"training.teacher = .*{message}"):
        load_teacher(config, CLASSES)


def test_a_teacher_of_other_classes_or_another_kind_is_refused(teacher_run, tmp_path):
    config = small_run.small_config(f"training.teacher={teacher_run}")
    with pytest.raises(ConfigError, match=r"knows the classes class_0, class_1, class_2; expected class_0, class_2,"):
        load_teacher(config, ("class_0", "class_2", "class_1"))
    content = config_to_dict(config)
    del content["model"]
    content["actionformer"] = {
        "input_dim": 6,
        "num_classes": 3,
        "embd_dim": 8,
        "fpn_dim": 8,
        "head_dim": 8,
        "n_head": 2,
    }
    baseline = config_from_dict(content)
    with pytest.raises(ConfigError, match=r"TemporalZoomNet for a student of kind ActionFormer"):
        load_teacher(baseline, CLASSES)
    from tzn.models import build_model

    save_checkpoint(tmp_path / "base.ckpt", build_model(baseline.model), config_to_dict(baseline), CLASSES)
    with pytest.raises(ConfigError, match=r"ActionFormer for a student of kind TemporalZoomNet"):
        load_teacher(small_run.small_config(f"training.teacher={tmp_path / 'base.ckpt'}"), CLASSES)


def test_a_missing_teacher_is_an_error_before_anything_is_written(data, tmp_path):
    config = small_run.small_config(f"training.teacher={tmp_path / 'nothing.ckpt'}")
    with pytest.raises(CheckpointError, match=r"nothing.ckpt: no such checkpoint"):
        train(config, data, tmp_path / "run", accelerator="cpu", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["distill_class_weight=-1", "teacher=''"])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match="training."):
        small_run.small_config(f"training.{setting}")
