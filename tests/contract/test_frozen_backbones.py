"""Stages and batch norms of a pretrained backbone that training leaves as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from raydet.config import Experiment, apply_overrides
from raydet.engine.optim import build_optimizer
from raydet.errors import ConfigError
from raydet.models.build import build_model, load_pretrained
from raydet.models.model import Model
from raydet.plan.ledger import ledger
from raydet.recipes import recipe
from tests.contract.test_timm_backbones import images, weighed

NAMES = ("test_resnet", "tf_efficientnet_lite0")


def experiment(name: str, **settings: Any) -> Experiment:
    backbone = {"kind": "timm", "name": name, "pretrained": {"path": "w.safetensors"}, **settings}
    return apply_overrides(recipe("demo"), {"model.backbone": backbone, "model.fusion.kind": "concat"})


def trained(name: str, steps: int = 2, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Model]:
    """The encoder's tensors before and after some steps with weight decay, and the detector."""
    config = experiment(name, **settings)
    detector = build_model(config).train()
    before = {key: value.clone() for key, value in detector.encoder.state_dict().items()}
    optimizer = build_optimizer(config.optim, detector.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        weighed(detector.encoder(*images(64, 64)).maps).backward()
        optimizer.step()
    return before, detector.encoder.state_dict(), detector


@pytest.mark.parametrize("name", NAMES)
def test_frozen_norms_keep_weights_and_statistics(name: str) -> None:
    before, after, _ = trained(name, frozen_norms=True)
    kept = {key for key in before if torch.equal(before[key], after[key])}
    norms = {key for key in before if f"{key.rpartition('.')[0]}.running_mean" in before and "stages" in key}
    assert kept == norms


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen_stages", [1, 4])
def test_frozen_stages_keep_everything(name: str, frozen_stages: int) -> None:
    before, after, detector = trained(name, frozen_stages=frozen_stages)
    kept = {key for key in before if torch.equal(before[key], after[key])}
    expected = {
        key for key in before if "_stages." in key and int(key.split("_stages.")[1][0]) < frozen_stages
    }
    assert kept == expected
    parameters = dict(detector.encoder.named_parameters())
    assert all(parameters[key].grad is None for key in expected & parameters.keys())


def test_a_frozen_stage_runs_as_in_evaluation() -> None:
    detector = build_model(experiment("convnext_atto", frozen_stages=4, drop_path_rate=0.5))
    inputs = images(64, 64)
    in_training = detector.train().encoder(*inputs).maps
    in_evaluation = detector.eval().encoder(*inputs).maps
    assert all(torch.equal(x, y) for x, y in zip(in_training, in_evaluation, strict=True))


def test_the_files_weights_are_loaded_and_kept(tmp_path: Path) -> None:
    published = timm.create_model("test_resnet", pretrained=False)
    with torch.no_grad():
        for name, buffer in published.named_buffers():
            if name.endswith("running_mean"):
                buffer.fill_(0.25)
    file = tmp_path / "w.safetensors"
    save_file(published.state_dict(), file)
    config = experiment("test_resnet", frozen_norms=True, pretrained={"path": str(file)})
    detector = build_model(config).train()
    assert load_pretrained(detector, config) is not None
    detector.encoder(*images(64, 64))
    means = [x for name, x in detector.encoder.named_buffers() if name.endswith("running_mean")]
    assert means
    assert all(torch.equal(x, torch.full_like(x, 0.25)) for x in means)


@pytest.mark.parametrize("setting", [{"frozen_stages": 1}, {"frozen_norms": True}])
def test_without_pretrained_weights_nothing_can_be_frozen(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"set pretrained\.path"):
        experiment("test_resnet", pretrained={"path": None}, **setting)


def test_another_kind_of_backbone_forgets_them() -> None:
    config = experiment("test_resnet", frozen_stages=1)
    assert apply_overrides(config, {"model.backbone.kind": "mit", "model.backbone.variant": "b0"})


def test_the_plan_counts_less_for_frozen_stages() -> None:
    peaks = [
        ledger(
            experiment("test_resnet", frozen_stages=stages), world_size=1, strategy="single", micro_batch=2
        ).peak_bytes
        for stages in (0, 2, 4)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3
