"""Time and memory of the losses of masks, compared with plain implementations.

A candidate takes logits (and an embedding) to the losses and back to their gradients. Both alternate, and ratios are
medians over the rounds, so that load on the machine affects both. Memory is that of all tensors that live at one time,
inputs left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydet.bench import plain_losses as plain
from raydet.bench.machine import synchronize
from raydet.config.losses import CrossEntropyLoss, HierarchicalLoss, RMIConfig, TripletConfig
from raydet.config.task import Level
from raydet.models.losses.build import build_loss
from raydet.models.losses.triplet import TreeTriplet
from raydet.plan.live import LiveBytes
from raydet.structures import IGNORE

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits, embedding and ids to a scalar."""


@dataclass(frozen=True, slots=True)
class LossSize:
    """What the losses are measured on."""

    batch: int = 8
    canvas_hw: tuple[int, int] = (150, 150)
    stride: int = 4
    """Of the logits."""
    embedding: tuple[int, int, int] = (256, 5, 5)
    """Channels, height and width."""
    ignored: float = 0.1
    """Part of the pixels."""


@dataclass(frozen=True, slots=True)
class LossSpeed:
    """Medians over the rounds."""

    name: str
    seconds: float
    plain_seconds: float
    ratio: float
    """Of the plain implementation's time to ours, median over the rounds, with its range."""
    ratio_low: float
    ratio_high: float
    peak_bytes: int
    plain_peak_bytes: int


CLASSES = 9
KINDS = Level(name="kind", groups=("flower", "tree", "grass", "animal"), parents=(0, 0, 0, 0, 1, 1, 1, 2, 3))
REALMS = Level(name="realm", groups=("plant", "animal"), parents=(0, 0, 0, 1))
"""SegHiero's example."""


def bench_losses(
    size: LossSize | None = None, *, rounds: int = 7, device: torch.device | None = None
) -> list[LossSpeed]:
    """Measure cross-entropy, the two-level loss, the three-level loss with region mutual information, and triplets."""
    size = size or LossSize()
    device = device or torch.device("cpu")
    return [
        _measured(name, ours, theirs, _inputs(size, num_outputs, device), rounds)
        for name, (ours, theirs, num_outputs) in _candidates(device).items()
    ]


def _candidates(device: torch.device) -> dict[str, tuple[Loss, Loss, int]]:
    """Ours, the plain one, and the channels of the logits."""
    two, three = [KINDS], [KINDS, REALMS]
    flat = build_loss(CrossEntropyLoss(), num_classes=CLASSES, levels=())
    tree = HierarchicalLoss(form="seghiero")
    on_two = build_loss(tree, num_classes=CLASSES, levels=two)
    full = tree.model_copy(update={"weight": 2.5, "rmi": RMIConfig(form="seghiero")})
    on_three = build_loss(full, num_classes=CLASSES, levels=three)
    pooled = tree.model_copy(update={"weight": 2.5, "rmi": RMIConfig(form="hieraseg")})
    on_three_pooled = build_loss(pooled, num_classes=CLASSES, levels=three)
    settings = TripletConfig()
    triplet = TreeTriplet(groups=KINDS.parents, margin=settings.margin, most=settings.most)
    for module in (flat, on_two, on_three, on_three_pooled, triplet):
        module.to(device)

    def summed(loss: Callable[..., dict[str, Tensor]]) -> Loss:
        return lambda logits, embedding, ids: torch.stack([*loss(logits, embedding, ids).values()]).sum()

    def plain_tree(levels: Sequence[Level], weight: float) -> Loss:
        def loss(logits: Tensor, _: Tensor, ids: Tensor) -> Tensor:
            wide = plain.upsampled(logits, ids)
            entropies = plain.cross_entropies(wide, ids, levels)
            return weight * plain.binary_losses(wide, ids, levels) + torch.stack(entropies).sum()

        return loss

    def plain_three(pool: bool) -> Loss:
        def loss(logits: Tensor, embedding: Tensor, ids: Tensor) -> Tensor:
            wide = plain.upsampled(logits, ids)
            on_tree = plain_tree(three, 2.5)(wide, embedding, ids)
            return on_tree + plain.rmi(wide, ids, three, pool=pool, center=pool)

        return loss

    def plain_flat(logits: Tensor, _: Tensor, ids: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(plain.upsampled(logits, ids), ids.long(), ignore_index=255)

    return {
        "cross-entropy": (summed(flat), plain_flat, flat.num_outputs),
        "two levels": (summed(on_two), plain_tree(two, 5.0), on_two.num_outputs),
        "three levels, RMI": (summed(on_three), plain_three(pool=False), on_three.num_outputs),
        "three levels, pooled RMI": (summed(on_three_pooled), plain_three(pool=True), on_three.num_outputs),
        "triplets": (
            lambda logits, embedding, ids: triplet.unweighted(embedding, ids),
            lambda logits, embedding, ids: plain.triplet(embedding, ids, KINDS.parents),
            1,
        ),
    }


def _inputs(size: LossSize, num_outputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits, unit embeddings, and ids in horizontal bands."""
    generator = torch.Generator().manual_seed(0)
    height, width = size.canvas_hw
    map_hw = (-(-height // size.stride), -(-width // size.stride))
    logits = torch.randn(size.batch, num_outputs, *map_hw, generator=generator)
    embedding = torch.randn(size.batch, *size.embedding, generator=generator)
    embedding = torch.nn.functional.normalize(embedding, dim=1)
    ids = banded_ids(size.batch, size.canvas_hw, CLASSES, ignored=size.ignored, generator=generator)
    return logits.to(device), embedding.to(device), ids.to(device)


def banded_ids(
    batch: int, canvas_hw: tuple[int, int], num_classes: int, *, ignored: float, generator: torch.Generator
) -> Tensor:
    """uint8 [B, H, W]: every class in a horizontal band, and a part of the pixels ignored."""
    height, width = canvas_hw
    bands = torch.arange(1, height + 1) * num_classes // (height + 1)
    ids = bands[None, :, None].repeat(batch, 1, width).to(torch.uint8)
    ids[torch.rand(ids.shape, generator=generator) < ignored] = IGNORE
    return ids


def _measured(
    name: str, ours: Loss, theirs: Loss, inputs: tuple[Tensor, Tensor, Tensor], rounds: int
) -> LossSpeed:
    logits, embedding, ids = inputs

    def step(loss: Loss) -> None:
        leaves = logits.detach().requires_grad_(), embedding.detach().requires_grad_()
        loss(*leaves, ids).backward()

    peaks = []
    for loss in (ours, theirs):
        step(loss)
        with LiveBytes(inputs, copies_row="") as live:
            step(loss)
        peaks.append(max(interval.total_bytes for interval in live.intervals.values()))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for loss, own in zip((ours, theirs), times, strict=True):
            synchronize(logits.device)
            started = time.perf_counter()
            step(loss)
            synchronize(logits.device)
            own.append(time.perf_counter() - started)
    ratios = [y / x for x, y in zip(*times, strict=True)]
    seconds, plain_seconds = (statistics.median(own) for own in times)
    return LossSpeed(
        name, seconds, plain_seconds, statistics.median(ratios), min(ratios), max(ratios), *peaks
    )
