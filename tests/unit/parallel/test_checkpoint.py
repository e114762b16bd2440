"""Checkpoints: what was saved comes back, what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from raydet.config import AdamWConfig, Optimizer, SGDConfig
from raydet.errors import CheckpointError
from raydet.parallel.checkpoint import load_checkpoint, save_checkpoint
from raydet.train.optim import build_optimizer


def small_model(seed: int, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    generator = torch.Generator().manual_seed(count)
    losses = []
    for _ in range(count):
        loss = model(torch.randn(8, 4, generator=generator)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("config", [SGDConfig(lr=0.01), AdamWConfig(lr=0.01)])
def test_training_goes_on_as_if_nothing_had_happened(config: Optimizer, tmp_path: Path) -> None:
    model = small_model(1)
    optimizer = build_optimizer(config, model.parameters())
    steps(model, optimizer, 3)
    save_checkpoint(tmp_path, model=model, optimizer=optimizer, state={"step": 3})
    straight = steps(model, optimizer, 5)

    other = small_model(2)
    other_optimizer = build_optimizer(config, other.parameters())
    assert load_checkpoint(tmp_path, model=other, optimizer=other_optimizer) == {"step": 3}
    assert steps(other, other_optimizer, 5) == straight


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found_before_anything_is_loaded(name: str, damage: str, tmp_path: Path) -> None:
    model = small_model(1)
    optimizer = build_optimizer(SGDConfig(), model.parameters())
    steps(model, optimizer, 1)
    save_checkpoint(tmp_path, model=model, optimizer=optimizer, state={"step": 1})
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content) if damage == "flip" else bytes(content[:-1]))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(tmp_path, model=model, optimizer=optimizer)


def test_a_checkpoint_without_manifest_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path, model=small_model(1))


def test_another_model_is_refused(tmp_path: Path) -> None:
    model = small_model(1)
    optimizer = build_optimizer(SGDConfig(), model.parameters())
    save_checkpoint(tmp_path, model=model, optimizer=optimizer, state={})
    with pytest.raises(CheckpointError, match="belongs to another model: 7 tensors differ"):
        load_checkpoint(tmp_path, model=small_model(1, width=7))
