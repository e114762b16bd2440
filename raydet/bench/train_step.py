"""What a train step costs, where the time goes, and how it compares with the plain way to write it.

The contestants take turns, step by step, and ratios are medians over the turns: a busy machine slows all of them.
Nothing is learnt on the way (learning rate 0), so every turn does the same work.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from raydet.bench.machine import device_name, matrix_peak, peak_process_bytes, wait_for
from raydet.bench.plain import SEEDS_MIN_SIZE, PlainDetector
from raydet.config import MODALITY_CHANNELS, AdamWConfig, Experiment, Precision, SGDConfig, apply_overrides
from raydet.engine.optim import build_optimizer
from raydet.engine.step import seed_slot, train_step
from raydet.models.build import build_detector
from raydet.models.detector import Detector
from raydet.models.units import units_of
from raydet.parallel.collectives import World
from raydet.parallel.determinism import deterministic_kernels
from raydet.parallel.parallelize import parallelize
from raydet.parallel.precision import autocast, check_precision
from raydet.plan.ledger import ledger
from raydet.structures import Batch

Opponent = Literal["plain", "seeds"]
"""plain: the plain way on the same canvas, fp32. seeds: the same, after the published runs' resize to 800 pixels."""

BACKWARD_FLOPS = 2
"""Times the forward's. PyTorch's counter overstates the backward of depthwise convolutions by an order of magnitude."""
NUM_OPERATORS = 8
GRADIENT_FLOOR = 1e-9
"""Of the largest gradient: what is smaller is an exact zero (a bias before a batch norm) and its rounding."""


@dataclass(frozen=True, slots=True)
class Run:
    """One contestant."""

    name: str
    step_s: float
    """Median."""
    images_per_s: float
    mfu: float | None
    """Share of the measured matrix peak; None for opponents, whose operations are not these."""
    saved_bytes: int
    """Tensors that the forward pass leaves to the backward pass, weights left out."""
    peak_bytes: int | None
    """Allocated on the GPU at most; None on a CPU."""
    planned_bytes: int | None = None
    """What `raydet plan` says of `peak_bytes`; None on a CPU, and for opponents."""
    faster_than: dict[str, float] = field(default_factory=dict)
    """Median ratio of step times, by opponent."""
    phases_s: dict[str, float] = field(default_factory=dict)
    operators: dict[str, float] = field(default_factory=dict)
    """Share of one profiled step of its most expensive operators, what they call left out."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Largest relative differences between a step and its plain restatement, in fp64, on one image.

    fp64, because in fp32 single units of a ReLU flip at zero, and near-equal proposals change places, in either.
    """

    loss: float
    gradient: float
    """Of each tensor's largest gradient."""
    fp32_loss: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """Everything that was measured."""

    experiment: str
    canvas_hw: tuple[int, int]
    batch: int
    objects: int
    repeats: int
    device: str
    torch_version: str
    activation_checkpointing: str
    forward_flops_per_image: int
    """Of the plain way: what the mathematics asks, whatever shortcut is taken."""
    peak_flops: Mapping[str, float]
    runs: list[Run]
    agreement: Agreement | None
    process_peak_bytes: int
    """All contestants together."""


def bench_train_step(
    experiment: Experiment,
    *,
    batch_size: int,
    precisions: Sequence[Precision],
    against: Sequence[Opponent] = (),
    repeats: int = 5,
    num_objects: int = 8,
    device: torch.device | None = None,
) -> StepReport:
    """Measure the train step of an experiment on random images.

    Raises:
        ConfigError: the settings do not fit one worker, or the device has no bf16.
    """
    world = World(device=device or torch.device("cpu"))
    for precision in precisions:
        check_precision(experiment.train.model_copy(update={"precision": precision}), world.device)
    torch.manual_seed(experiment.seed)
    detector = build_detector(experiment)
    batch = random_batch(experiment, batch_size, num_objects).to(world.device)
    agreement = _agreement(detector, experiment, batch) if "plain" in against else None
    flops = _forward_flops(detector, experiment, batch)
    opponents = [_opponent(name, detector, experiment, world) for name in against]
    model = parallelize(detector, world, units=units_of(detector), train=experiment.train)
    optimizer = build_optimizer(experiment.optim, model.parameters())
    ours = [Contestant(precision, precision, model, optimizer) for precision in precisions]
    contestants = [*ours, *opponents]
    with deterministic_kernels(world.device, exact=experiment.train.exact):  # as in training
        turns = _take_turns(contestants, batch, world, repeats)
    peaks: Mapping[str, float] = {precision: matrix_peak(precision, world.device) for precision in precisions}
    runs = []
    for contestant in contestants:
        step_s, is_ours = statistics.median(turns[contestant.name]), contestant in ours
        run = Run(
            name=contestant.name,
            step_s=step_s,
            images_per_s=batch_size / step_s,
            mfu=(
                (1 + BACKWARD_FLOPS) * flops * batch_size / step_s / peaks[contestant.precision]
                if is_ours
                else None
            ),
            saved_bytes=_saved_bytes(contestant, batch, world),
            peak_bytes=_peak_bytes(contestant, batch, world),
        )
        if is_ours:
            run = replace(
                run,
                planned_bytes=_planned_bytes(
                    experiment, contestant.precision, batch_size, num_objects, world
                ),
                faster_than={o.name: _ratio(turns[o.name], turns[contestant.name]) for o in opponents},
                phases_s=_phases(contestant, detector, batch, world),
                operators=_operators(contestant, batch, world),
            )
        runs.append(run)
    return StepReport(
        experiment=experiment.name,
        canvas_hw=experiment.data.canvas_hw,
        batch=batch_size,
        objects=num_objects,
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
class Contestant:
    """A model that takes a turn."""

    name: str
    precision: Precision
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, batch: Batch, world: World, turn: int) -> None:
        """One whole train step; the same random choices for all at the same turn."""
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
    """Noise on the whole canvas, with boxes from 16 pixels to a third of each side."""
    generator = torch.Generator().manual_seed(seed)
    height, width = canvas_hw = experiment.data.canvas_hw
    modalities = {
        name: torch.randint(0, 256, (size, channels, height, width), generator=generator, dtype=torch.uint8)
        for name, channels in MODALITY_CHANNELS.items()
    }
    canvas_wh = torch.tensor([width, height])
    sides = 16 + torch.rand(size, num_objects, 2, generator=generator) * (canvas_wh / 3 - 16)
    corners = torch.rand(size, num_objects, 2, generator=generator) * (canvas_wh - sides)
    return Batch(
        modalities=modalities,
        valid_hw=torch.tensor([canvas_hw] * size),
        source_hw=torch.tensor([canvas_hw] * size),
        boxes_xyxy=torch.cat((corners, corners + sides), dim=2),
        labels=torch.randint(0, experiment.num_classes, (size, num_objects), generator=generator),
        counts=torch.full((size,), num_objects),
        image_ids=tuple(f"random{index}" for index in range(size)),
    )


def _opponent(name: Opponent, detector: Detector, experiment: Experiment, world: World) -> Contestant:
    min_size = SEEDS_MIN_SIZE if name == "seeds" else None
    plain = PlainDetector(detector, experiment, min_size=min_size).to(world.device)
    return Contestant(name, "fp32", plain, _plain_optimizer(experiment, plain.parameters()))


def _plain_optimizer(experiment: Experiment, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """PyTorch's defaults."""
    match experiment.optim:
        case SGDConfig() as config:
            return torch.optim.SGD(
                parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
            )
        case AdamWConfig() as config:
            return torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=config.weight_decay)


def _take_turns(
    contestants: Sequence[Contestant], batch: Batch, world: World, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every step by contestant; the first turn warms up and does not count."""
    turns: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for turn in range(repeats + 1):
        for contestant in contestants:
            wait_for(world.device)
            started = time.perf_counter()
            contestant.step(batch, world, turn)
            wait_for(world.device)
            if turn:
                turns[contestant.name].append(time.perf_counter() - started)
    return turns


def _ratio(theirs_s: Sequence[float], ours_s: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs_s, ours_s, strict=True))


# --- memory, operations, phases


def _saved_bytes(contestant: Contestant, batch: Batch, world: World) -> int:
    weights = {tensor.untyped_storage().data_ptr() for tensor in contestant.model.state_dict().values()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        # Itself, the output of an operation would keep that operation, and it its output, for ever.
        return tensor.detach()

    seed_slot(0, 0, slot=0)
    with saved_tensors_hooks(note, lambda tensor: tensor), autocast(contestant.precision, world.device):
        losses = contestant.model(batch)
    del losses  # until here the graph was alive: no storage was used twice
    return sum(seen.values())


def _peak_bytes(contestant: Contestant, batch: Batch, world: World) -> int | None:
    if world.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(world.device)
    contestant.step(batch, world, 0)
    return torch.cuda.max_memory_allocated(world.device)


def _planned_bytes(
    experiment: Experiment, precision: Precision, batch_size: int, num_objects: int, world: World
) -> int | None:
    if world.device.type != "cuda":
        return None
    settings = {"train.precision": precision, "train.global_batch": batch_size}
    planned = ledger(
        apply_overrides(experiment, settings),
        world_size=1,
        strategy="single",
        micro_batch=batch_size,
        num_objects=num_objects,
    )
    return planned.allocated_bytes


def _forward_flops(detector: Detector, experiment: Experiment, batch: Batch) -> int:
    plain = PlainDetector(detector, experiment).to(batch.counts.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(batch)
    return int(counter.get_total_flops()) // batch.size


def _phases(contestant: Contestant, detector: Detector, batch: Batch, world: World) -> dict[str, float]:
    """Seconds of one step's parts."""
    marks: list[tuple[str, float]] = []

    def mark(phase: str) -> Callable[..., None]:
        """A hook: the phase ends here."""

        def note(*_: object) -> None:
            wait_for(world.device)
            marks.append((phase, time.perf_counter()))

        return note

    hooks = [
        detector.encoder.register_forward_pre_hook(mark("forward: images")),
        detector.encoder.register_forward_hook(mark("forward: encoder")),
        detector.neck.register_forward_hook(mark("forward: neck")),
        detector.head.register_forward_hook(mark("forward: head")),
        contestant.optimizer.register_step_pre_hook(mark("backward")),
        contestant.optimizer.register_step_post_hook(mark("optimizer")),
    ]
    wait_for(world.device)
    marks.append(("", time.perf_counter()))
    contestant.step(batch, world, 0)
    for hook in hooks:
        hook.remove()
    return {phase: at - before for (_, before), (phase, at) in pairwise(marks)}


def _operators(contestant: Contestant, batch: Batch, world: World) -> dict[str, float]:
    is_cuda = world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiler:
        contestant.step(batch, world, 0)
    times = {
        event.key: event.self_device_time_total if is_cuda else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    total = sum(times.values())
    dearest = sorted(times, key=lambda name: -times[name])[:NUM_OPERATORS]
    return {name: times[name] / total for name in dearest}


# --- equality


def _agreement(detector: Detector, experiment: Experiment, batch: Batch) -> Agreement:
    detector = copy.deepcopy(detector).to(batch.counts.device)
    plain = PlainDetector(detector, experiment).to(batch.counts.device)
    one = _first_image(batch)
    fp32 = _relative(_losses(detector, one)[0], _losses(plain, one)[0])
    exact = replace(
        one,
        modalities={name: images.double() / 255 for name, images in one.modalities.items()},
        boxes_xyxy=one.boxes_xyxy.double(),
    )
    losses, gradients = _losses(detector.double(), exact)
    plain_losses, plain_gradients = _losses(plain.double(), exact)
    floor = GRADIENT_FLOOR * max(gradient.abs().max().item() for gradient in plain_gradients.values())
    return Agreement(
        loss=_relative(losses, plain_losses),
        gradient=max(
            ((gradients[name] - theirs).abs().max() / theirs.abs().max().clamp(min=floor)).item()
            for name, theirs in plain_gradients.items()
        ),
        fp32_loss=fp32,
    )


def _losses(model: nn.Module, batch: Batch) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses, and gradients by name."""
    seed_slot(0, 0, slot=0)
    losses = model(batch)
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


def _first_image(batch: Batch) -> Batch:
    return Batch(
        modalities={name: images[:1] for name, images in batch.modalities.items()},
        valid_hw=batch.valid_hw[:1],
        source_hw=batch.source_hw[:1],
        boxes_xyxy=batch.boxes_xyxy[:1],
        labels=batch.labels[:1],
        counts=batch.counts[:1],
        image_ids=batch.image_ids[:1],
    )
