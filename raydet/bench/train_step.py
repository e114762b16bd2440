"""Time, memory and operations of a train step, compared with a plain implementation.

The candidates alternate step by step, and ratios are medians over the rounds, so that load on the machine affects all
of them. The learning rate is 0, so every step does the same work.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from raydet.bench.machine import device_name, matrix_peak, peak_process_bytes, synchronize
from raydet.bench.plain import SEEDS_MIN_SIZE, PlainDetector
from raydet.bench.plain_masks import PlainSegmenter
from raydet.bench.segmentation_losses import banded_ids
from raydet.config import (
    AdamWConfig,
    Experiment,
    FasterRCNNConfig,
    MaskHead,
    Precision,
    RVTConfig,
    SGDConfig,
    YOLOXConfig,
    apply_overrides,
)
from raydet.engine.optim import build_optimizer
from raydet.engine.step import seed_slot, train_step
from raydet.errors import ConfigError
from raydet.models.build import build_model
from raydet.models.model import Model
from raydet.parallel.collectives import World
from raydet.parallel.determinism import deterministic_kernels
from raydet.parallel.parallelize import parallelize
from raydet.parallel.precision import autocast, check_precision
from raydet.plan.flops import forward_flops
from raydet.plan.ledger import ledger
from raydet.structures import Batch, BoxBatch, MaskBatch

Baseline = Literal["plain", "seeds"]
"""plain: the plain implementation in fp32. seeds: the same, after the published runs' resize to 800 pixels; for boxes
only."""

BACKWARD_FLOPS = 2
"""Relative to the forward pass; PyTorch's counter overstates depthwise convolutions by an order of magnitude."""
NUM_OPERATORS = 8
GRADIENT_FLOOR = 1e-9
"""Relative to the largest gradient; what is smaller in both is rounding errors of zero (a bias before a batch norm)."""


@dataclass(frozen=True, slots=True)
class Run:
    """Results of one candidate, with its median step time; some are None on a CPU or for baselines."""

    name: str
    step_s: float
    images_per_s: float
    mfu: float | None
    """Share of the measured peak FLOP/s."""
    saved_bytes: int
    """Tensors saved for the backward pass, without weights."""
    peak_bytes: int | None
    planned_bytes: int | None = None
    """`peak_bytes` as predicted by `raydet plan`."""
    faster_than: dict[str, float] = field(default_factory=dict)
    """Median ratio of step times, by baseline."""
    phases_s: dict[str, float] = field(default_factory=dict)
    operators: dict[str, float] = field(default_factory=dict)
    """Share of the most expensive operators in one profiled step, self time."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Largest relative differences to the plain implementation.

    In fp64, because in fp32 a ReLU near zero or two near-equal proposals may fall to either side. Without dropout of
    single values, which draws by their place in memory, where the two implementations differ.
    """

    images: int
    """One, or as many as a batch norm of the head needs."""
    loss: float
    gradient: float
    """Relative to each tensor's largest gradient; without tensors whose gradient is zero but for rounding."""
    fp32_loss: float


@dataclass(frozen=True, slots=True)
class StepReport:
    experiment: str
    canvas_hw: tuple[int, int]
    batch: int
    objects: int | None
    """Boxes per image; None: masks."""
    repeats: int
    device: str
    torch_version: str
    activation_checkpointing: str
    forward_flops_per_image: int
    """Counted for the plain implementation, which takes no shortcuts."""
    peak_flops: Mapping[str, float]
    runs: list[Run]
    agreement: Agreement | None
    process_peak_bytes: int


def bench_train_step(
    experiment: Experiment,
    *,
    batch_size: int,
    precisions: Sequence[Precision],
    against: Sequence[Baseline] = (),
    repeats: int = 5,
    num_objects: int = 8,
    device: torch.device | None = None,
) -> StepReport:
    """Measure the train step of an experiment on random images.

    Raises:
        ConfigError: the settings do not fit one worker, the device has no bf16, the head needs more images, or a
            baseline is not for masks or has no such model.
    """
    has_boxes = not isinstance(experiment.model.head, MaskHead)
    if "seeds" in against and not has_boxes:
        raise ConfigError(
            f"--against seeds: expected a recipe for boxes, whose published runs resize images to {SEEDS_MIN_SIZE} "
            f"pixels, got {experiment.name} with the head {experiment.model.head.kind}; use --against plain"
        )
    if against and not _has_plain_form(experiment):
        raise ConfigError(
            f"--against {against[0]}: expected a backbone other than rvt and a head other than yolox, got "
            f"{experiment.name} with {experiment.model.backbone.label} and {experiment.model.head.kind}; leave it out"
        )
    world = World(device=device or torch.device("cpu"))
    for precision in precisions:
        check_precision(experiment.train.model_copy(update={"precision": precision}), world.device)
    torch.manual_seed(experiment.seed)
    model = build_model(experiment)
    least = model.head.least_images
    if batch_size < least:
        raise ConfigError(
            f"--batch: expected at least {least} images, as a batch norm of the head {experiment.model.head.kind} sees "
            f"each pooled to one cell, got {batch_size}; set --batch {least}"
        )
    model.set_progress(1.0)  # losses with a schedule have their whole weight
    batch = random_batch(experiment, batch_size, num_objects).to(world.device)
    agreement = agreement_with_plain(model, experiment, batch) if "plain" in against else None
    flops = _forward_flops(model, experiment, batch)
    baselines = [_baseline(name, model, experiment, world) for name in against]
    parallel = parallelize(model, world, units=model.units(), train=experiment.train)
    optimizer = build_optimizer(experiment.optim, parallel.parameters())
    ours = [Candidate(precision, precision, parallel, optimizer) for precision in precisions]
    candidates = [*ours, *baselines]
    with deterministic_kernels(world.device, exact=experiment.train.exact):  # as in training
        turns = _take_turns(candidates, batch, world, repeats)
    peaks: Mapping[str, float] = {precision: matrix_peak(precision, world.device) for precision in precisions}
    runs = []
    for candidate in candidates:
        times = turns[candidate.name]
        step_s = statistics.median(times)
        run = Run(
            name=candidate.name,
            step_s=step_s,
            images_per_s=batch_size / step_s,
            mfu=None,
            saved_bytes=_saved_bytes(candidate, batch, world),
            peak_bytes=_peak_bytes(candidate, batch, world) if world.device.type == "cuda" else None,
        )
        if candidate in ours:
            ratios = {b.name: [x / y for x, y in zip(turns[b.name], times, strict=True)] for b in baselines}
            run = replace(
                run,
                mfu=(1 + BACKWARD_FLOPS) * flops * batch_size / step_s / peaks[candidate.precision],
                planned_bytes=_planned_bytes(experiment, candidate.precision, batch_size, num_objects, world),
                faster_than={name: statistics.median(values) for name, values in ratios.items()},
                phases_s=_phases(candidate, model, batch, world),
                operators=_operators(candidate, batch, world),
            )
        runs.append(run)
    return StepReport(
        experiment=experiment.name,
        canvas_hw=experiment.data.canvas_hw,
        batch=batch_size,
        objects=num_objects if has_boxes else None,
        repeats=repeats,
        device=device_name(world.device),
        torch_version=torch.__version__,
        activation_checkpointing=experiment.train.activation_checkpointing,
        forward_flops_per_image=flops,
        peak_flops=peaks,
        runs=runs,
        agreement=agreement,
        process_peak_bytes=peak_process_bytes(),
    )


@dataclass(frozen=True)
class Candidate:
    """A model and optimizer to be timed."""

    name: str
    precision: Precision
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, batch: Batch, world: World, turn: int) -> None:
        """One train step; all candidates draw the same random numbers in the same turn."""
        train_step(
            self.model,
            [batch],
            self.optimizer,
            lr=0.0,
            clip_norm=None,
            seed=0,
            step=turn,
            world=world,
            precision=self.precision,
        )


def random_batch(experiment: Experiment, size: int, num_objects: int, *, seed: int = 0) -> Batch:
    """Noise on the whole canvas, with boxes from 16 pixels to a third of each side long, or with masks: every class in
    a horizontal band, and a tenth of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    height, width = canvas_hw = experiment.data.canvas_hw
    modalities = {
        name: torch.randint(0, 256, (size, channels, height, width), generator=generator, dtype=torch.uint8)
        for name, channels in experiment.data.channels.items()
    }
    target: BoxBatch | MaskBatch
    if not isinstance(experiment.model.head, MaskHead):
        canvas_wh = torch.tensor([width, height])
        sides = 16 + torch.rand(size, num_objects, 2, generator=generator) * (canvas_wh / 3 - 16)
        corners = torch.rand(size, num_objects, 2, generator=generator) * (canvas_wh - sides)
        target = BoxBatch(
            boxes_xyxy=torch.cat((corners, corners + sides), dim=2),
            labels=torch.randint(0, experiment.num_classes, (size, num_objects), generator=generator),
            counts=torch.full((size,), num_objects),
        )
    else:
        target = MaskBatch(
            banded_ids(size, canvas_hw, experiment.num_classes, ignored=0.1, generator=generator)
        )
    return Batch(
        modalities=modalities,
        valid_hw=torch.tensor([canvas_hw] * size),
        source_hw=torch.tensor([canvas_hw] * size),
        target=target,
        image_ids=tuple(f"random{index}" for index in range(size)),
    )


def _has_plain_form(experiment: Experiment) -> bool:
    model = experiment.model
    return not isinstance(model.backbone, RVTConfig) and not isinstance(model.head, YOLOXConfig)


def _plain(model: Model, experiment: Experiment, *, min_size: int | None = None) -> nn.Module:
    if isinstance(experiment.model.head, FasterRCNNConfig):
        return PlainDetector(model, experiment, min_size=min_size)
    return PlainSegmenter(model, experiment)


def _baseline(name: Baseline, model: Model, experiment: Experiment, world: World) -> Candidate:
    min_size = SEEDS_MIN_SIZE if name == "seeds" else None
    plain = _plain(model, experiment, min_size=min_size).to(world.device)
    parameters = plain.parameters()
    optimizer: torch.optim.Optimizer
    match experiment.optim:
        case SGDConfig(lr=lr, momentum=momentum, weight_decay=decay):
            optimizer = torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=decay)
        case AdamWConfig(lr=lr, betas=betas, weight_decay=decay):
            optimizer = torch.optim.AdamW(parameters, lr, betas, weight_decay=decay)
    return Candidate(name, "fp32", plain, optimizer)


def _take_turns(
    candidates: Sequence[Candidate], batch: Batch, world: World, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every step by candidate, without the first turn, which is a warm-up."""
    turns: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for turn in range(repeats + 1):
        for candidate in candidates:
            synchronize(world.device)
            started = time.perf_counter()
            candidate.step(batch, world, turn)
            synchronize(world.device)
            if turn:
                turns[candidate.name].append(time.perf_counter() - started)
    return turns


# --- memory, operations, phases


def _saved_bytes(candidate: Candidate, batch: Batch, world: World) -> int:
    weights = {tensor.untyped_storage().data_ptr() for tensor in candidate.model.state_dict().values()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself could form a reference cycle with its own operation

    seed_slot(0, 0, slot=0)
    with saved_tensors_hooks(note, lambda tensor: tensor), autocast(candidate.precision, world.device):
        losses = candidate.model(batch).losses
    del losses  # the graph was alive until here, so no storage was reused
    return sum(seen.values())


def _peak_bytes(candidate: Candidate, batch: Batch, world: World) -> int:
    torch.cuda.reset_peak_memory_stats(world.device)
    candidate.step(batch, world, 0)
    return torch.cuda.max_memory_allocated(world.device)


def _planned_bytes(
    experiment: Experiment, precision: Precision, batch_size: int, num_objects: int, world: World
) -> int | None:
    if world.device.type != "cuda":
        return None
    settings = {"train.precision": precision, "train.global_batch": batch_size}
    return ledger(
        apply_overrides(experiment, settings),
        world_size=1,
        strategy="single",
        micro_batch=batch_size,
        num_objects=num_objects,
    ).allocated_bytes


def _forward_flops(model: Model, experiment: Experiment, batch: Batch) -> int:
    if not _has_plain_form(experiment):
        return forward_flops(experiment)["total"]
    plain = _plain(model, experiment).to(batch.valid_hw.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(batch)
    return int(counter.get_total_flops()) // batch.size


def _phases(candidate: Candidate, model: Model, batch: Batch, world: World) -> dict[str, float]:
    """Seconds of the phases of one step."""
    marks: list[tuple[str, float]] = []

    def mark(phase: str, *_: object) -> None:
        """Mark the end of a phase."""
        synchronize(world.device)
        marks.append((phase, time.perf_counter()))

    hooks = [
        model.encoder.register_forward_pre_hook(partial(mark, "forward: images")),
        model.encoder.register_forward_hook(partial(mark, "forward: encoder")),
        model.neck.register_forward_hook(partial(mark, "forward: neck")),
        model.head.register_forward_hook(partial(mark, "forward: head")),
        candidate.optimizer.register_step_pre_hook(partial(mark, "backward")),
        candidate.optimizer.register_step_post_hook(partial(mark, "optimizer")),
    ]
    mark("")
    candidate.step(batch, world, 0)
    for hook in hooks:
        hook.remove()
    return {phase: at - before for (_, before), (phase, at) in pairwise(marks)}


def _operators(candidate: Candidate, batch: Batch, world: World) -> dict[str, float]:
    is_cuda = world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiler:
        candidate.step(batch, world, 0)
    times = {
        event.key: event.self_device_time_total if is_cuda else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    total = sum(times.values())
    slowest = sorted(times, key=lambda name: -times[name])[:NUM_OPERATORS]
    return {name: times[name] / total for name in slowest}


# --- equality


def agreement_with_plain(model: Model, experiment: Experiment, batch: Batch) -> Agreement:
    """See `Agreement`."""
    model = copy.deepcopy(model).to(batch.valid_hw.device)
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.p = 0.0
    plain = _plain(model, experiment).to(batch.valid_hw.device)
    size = model.head.least_images
    few = replace(
        batch,
        modalities={name: images[:size] for name, images in batch.modalities.items()},
        valid_hw=batch.valid_hw[:size],
        source_hw=batch.source_hw[:size],
        target=type(batch.target)(*(x[:size] for x in batch.target)),
        image_ids=batch.image_ids[:size],
    )
    fp32 = _relative(_losses(model, few)[0], _losses(plain, few)[0])
    exact = replace(
        few,
        modalities={name: images.double() / 255 for name, images in few.modalities.items()},
        target=type(few.target)(*(x.double() if x.is_floating_point() else x for x in few.target)),
    )
    losses, gradients = _losses(model.double(), exact)
    plain_losses, plain_gradients = _losses(plain.double(), exact)
    largest = {name: theirs.abs().max().item() for name, theirs in plain_gradients.items()}
    floor = GRADIENT_FLOOR * max(largest.values())
    return Agreement(
        images=size,
        loss=_relative(losses, plain_losses),
        gradient=max(
            (gradients[name] - theirs).abs().max().item() / max(largest[name], floor)
            for name, theirs in plain_gradients.items()
            if max(largest[name], gradients[name].abs().max().item()) > floor
        ),
        fp32_loss=fp32,
    )


def _losses(model: nn.Module, batch: Batch) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients by name."""
    seed_slot(0, 0, slot=0)
    losses = model(batch).losses
    sum(losses.values()).backward()
    gradients = {
        name.removeprefix("parts."): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return {name: loss.item() for name, loss in losses.items()}, gradients


def _relative(ours: dict[str, float], theirs: dict[str, float]) -> float:
    return max(abs(ours[name] - value) / max(abs(value), 1e-12) for name, value in theirs.items())
