"""The bytes of a training step, measured on tensors without memory.

The detector itself runs forward and backward, under the run's precision and activation checkpointing, with two
changes: of blocks that are alike only the first one runs, and the head runs in outline (`plan.heads`). Fake
tensors lie on the CPU, so the run needs no accelerator and the numbers are those of CPU kernels: what autograd keeps is
the same, up to a few small tensors.

Everything grows linearly with the images of a micro-batch but for what belongs to the weights. Two runs, with 1 and
`MANY` images, give both parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from raydet.config import MODALITY_CHANNELS, Experiment, MiTConfig, MiTVariant, Precision
from raydet.models.backbones.mit import MIT_VARIANTS
from raydet.models.backbones.stage import STRIDES
from raydet.models.build import build_detector
from raydet.models.detector import Detector
from raydet.models.fusion.base import FusionOutput
from raydet.models.units import units_of
from raydet.parallel.precision import autocast
from raydet.parallel.recompute import recompute_activations
from raydet.plan.counts import essence
from raydet.plan.heads import ROI_HEADS, DeviceType, HeadInOutline
from raydet.plan.live import LiveBytes, Tag
from raydet.plan.sections import HEAD, NECK, sections_of
from raydet.structures import Batch

MANY = 16
IMAGES = "images"
GRADIENTS = "gradients"
WEIGHT_COPIES = "bf16 copies of weights"
WORKSPACE = "workspace"

Amounts = Mapping[Tag, int]
Growing = Mapping[Tag, "Linear"]


@dataclass(frozen=True, slots=True)
class Linear:
    """Bytes that grow with the number of images in a micro-batch."""

    fixed_bytes: float
    image_bytes: float

    def at(self, images: int) -> int:
        """The bytes for that many images."""
        return round(self.fixed_bytes + images * self.image_bytes)

    def plus(self, other: Linear, *, times: int = 1) -> Linear:
        """The sum with `times` others."""
        return Linear(
            self.fixed_bytes + times * other.fixed_bytes, self.image_bytes + times * other.image_bytes
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What one run with one block of a kind shows; in bytes, by who made them."""

    forward: dict[str, Amounts]
    """The worst moment of each place of the forward pass, in order of time."""
    at_end: Amounts
    """When the head ends; autocast's copies of weights are still alive."""
    kept: Amounts
    """When the forward pass is over: what the backward pass needs."""
    backward: dict[str, Amounts]
    """The worst moment of each place of the backward pass."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A `Run` for any number of images."""

    forward: dict[str, Growing]
    at_end: Growing
    kept: Growing
    backward: dict[str, Growing]


def measure(experiment: Experiment, *, num_objects: int, device_type: DeviceType) -> Measurement:
    """Run an experiment's detector; equal ones are run once per process.

    Args:
        num_objects: ground truths per image.
        device_type: whose kernels the head uses.

    Raises:
        ConfigError: the model cannot be built.
    """
    return _measure(_shallow(essence(experiment)), num_objects, device_type)


def _shallow(experiment: Experiment) -> Experiment:
    """The same widths in the first variant that has them: the depth of a MiT does not matter here."""
    backbone = experiment.model.backbone
    if not isinstance(backbone, MiTConfig):
        return experiment
    mine = MIT_VARIANTS[backbone.variant]
    twins: list[MiTVariant] = [
        name  # type: ignore[misc]
        for name, variant in MIT_VARIANTS.items()
        if replace(variant, depths=mine.depths) == mine
    ]
    shallow = backbone.model_copy(update={"variant": twins[0]})
    model = experiment.model.model_copy(update={"backbone": shallow})
    return experiment.model_copy(update={"model": model})


@lru_cache(maxsize=64)
def _measure(experiment: Experiment, num_objects: int, device_type: DeviceType) -> Measurement:
    # Batch norm refuses a single value per channel: one image of which the last stage leaves a single cell.
    few = 2 if experiment.data.canvas_hw == (STRIDES[-1], STRIDES[-1]) else 1
    first, last = (_run(experiment, images, num_objects, device_type) for images in (few, MANY))

    def line(first: Amounts, last: Amounts) -> Growing:
        return _line(first, last, few)

    return Measurement(
        forward={place: line(first.forward[place], last.forward[place]) for place in first.forward},
        at_end=line(first.at_end, last.at_end),
        kept=line(first.kept, last.kept),
        backward={place: line(first.backward[place], last.backward[place]) for place in first.backward},
    )


def _line(first: Amounts, last: Amounts, few: int) -> Growing:
    """Through the bytes of `few` and of `MANY` images."""
    slopes = {
        tag: (last.get(tag, 0) - first.get(tag, 0)) / (MANY - few) for tag in dict.fromkeys([*last, *first])
    }
    return {tag: Linear(first.get(tag, 0) - few * slope, slope) for tag, slope in slopes.items()}


def _run(experiment: Experiment, images: int, num_objects: int, device_type: DeviceType) -> Run:
    with torch.device("meta"):
        detector = build_detector(experiment).train()
    for stage in detector.encoder.stages():
        stage.shorten()
    units = units_of(detector)
    recompute_activations([*units.blocks, *units.fusions], experiment.train.activation_checkpointing)
    with FakeTensorMode(), _one_thread():
        _without_memory(detector)
        with LiveBytes([*detector.parameters(), *detector.buffers()], copies_row=WEIGHT_COPIES) as live:
            watch = _Watch(live)
            watch.follow(detector)
            detector.head = HeadInOutline(  # type: ignore[assignment]
                rpn=detector.head.rpn,
                roi_heads=detector.head.roi_heads,
                device_type=device_type,
                tell=watch.in_head,
            )
            live.enter(f"forward {IMAGES}", Tag(IMAGES, IMAGES))
            return _step(detector, live, _images(experiment, images, num_objects), experiment.train.precision)


@contextmanager
def _one_thread() -> Iterator[None]:
    """On a CPU attention cuts its work by the number of threads, which must not decide about a GPU's memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _step(detector: Detector, live: LiveBytes, batch: Batch, precision: Precision) -> Run:
    with autocast(precision, torch.device("cpu")):
        loss = torch.stack([loss.float() for loss in detector(batch).values()]).sum()
        at_end = live.live_bytes()
    kept = live.live_bytes()
    last = f"{HEAD}, {ROI_HEADS}"
    live.enter(f"backward {last}", Tag(WORKSPACE, last))
    loss.backward()
    return Run(
        forward=_stretches(live, "forward"), at_end=at_end, kept=kept, backward=_stretches(live, "backward")
    )


def _stretches(live: LiveBytes, direction: str) -> dict[str, Amounts]:
    prefix = f"{direction} "
    return {
        name.removeprefix(prefix): stretch.by_tag
        for name, stretch in live.stretches.items()
        if name.startswith(prefix)
    }


def _without_memory(module: nn.Module) -> None:
    """Give every parameter and buffer a fake one on the CPU. Building under fake tensors fails: initial values are
    looked at."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(
                    torch.empty_strided(parameter.shape, parameter.stride())
                )
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _images(experiment: Experiment, images: int, num_objects: int) -> Batch:
    names = {*experiment.model.rgb_modalities, *experiment.model.aux_modalities} - {*experiment.data.missing}
    canvas_hw = experiment.data.canvas_hw
    return Batch(
        modalities={
            name: torch.empty(images, MODALITY_CHANNELS[name], *canvas_hw, dtype=torch.uint8)
            for name in sorted(names)
        },
        valid_hw=torch.empty(images, 2, dtype=torch.int64),
        source_hw=torch.empty(images, 2, dtype=torch.int64),
        boxes_xyxy=torch.empty(images, max(1, num_objects), 4),
        labels=torch.empty(images, max(1, num_objects), dtype=torch.int64),
        counts=torch.empty(images, dtype=torch.int64),
        image_ids=("",) * images,
    )


class _Watch:
    """Tells a `LiveBytes` which place is running: forward by calls, backward by the gradients that arrive."""

    def __init__(self, live: LiveBytes) -> None:
        self.live = live
        self._seen = WeakTensorKeyDictionary()

    def follow(self, detector: Detector) -> None:
        for section in sections_of(detector):
            for stage in section.streams:
                self._forward(stage.module, stage.name, before=stage.embedding)
                self._backward(stage.module, stage.norm)
                for run in stage.runs:
                    (block,) = run.blocks
                    is_first, is_last = run is stage.runs[0], run is stage.runs[-1]
                    self._forward(block, stage.name, before=run.name, after=stage.norm if is_last else None)
                    self._backward(block, run.name, above=stage.embedding if is_first else None)
            self._forward(section.fusion, section.fusion_name, before=section.fusion_name)
            self._backward(section.fusion, section.fusion_name)
        self._forward(detector.neck, NECK, before=NECK)
        self._backward(detector.neck, NECK)
        for parameter in detector.parameters():
            parameter.register_post_accumulate_grad_hook(self._note_gradient)

    def _forward(self, module: nn.Module, row: str, *, before: str, after: str | None = None) -> None:
        module.register_forward_pre_hook(lambda *_: self.live.enter(f"forward {before}", Tag(row, before)))
        if after is not None:
            module.register_forward_hook(lambda *_: self.live.enter(f"forward {after}", Tag(row, after)))

    def _backward(self, module: nn.Module, place: str, *, above: str | None = None) -> None:
        """The gradient of an output begins `place`; that of an input begins the place before, `above`."""
        module.register_forward_hook(lambda _, inputs, outputs: self._begin(_maps(outputs), place))
        if above is not None:
            module.register_forward_pre_hook(lambda _, inputs: self._begin(inputs, above))

    def _begin(self, tensors: Any, place: str) -> None:
        for tensor in tree_leaves(tensors):
            # A tensor that is handed on belongs to whoever made it, who met it first.
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor not in self._seen:
                self._seen[tensor] = place
                tensor.register_hook(lambda _: self.live.enter(f"backward {place}", Tag(WORKSPACE, place)))

    def in_head(self, row: str) -> None:
        """The head works for that row now."""
        place = f"{HEAD}, {row}"
        self.live.enter(f"forward {place}", Tag(row, place))

    def _note_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.live.retag(parameter.grad, Tag(GRADIENTS, ""))


def _maps(outputs: Any) -> Any:
    """Guides are left out: their gradients come before those of all maps."""
    return outputs.maps if isinstance(outputs, FusionOutput) else outputs
