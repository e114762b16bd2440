"""The bytes of a training step, measured on fake tensors.

The model itself runs forward and backward, under the run's precision and activation checkpointing, with two changes:
of a group of blocks only the first one runs, and the head is replaced (`plan.heads`). Fake tensors are on the CPU, so
no accelerator is needed; CPU kernels save the same tensors for the backward pass, except for a few small ones.

Bytes are linear in the images of a micro-batch. Two runs, with 1 and `MANY` images, give slope and intercept.
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

from raydet.config import Experiment, MaskHead, MiTConfig, Precision
from raydet.models.backbones.mit import MIT_VARIANTS
from raydet.models.backbones.stage import STRIDES
from raydet.models.build import MakeHead, build_model
from raydet.models.fusion.base import FusionOutput
from raydet.models.heads.base import DeviceType
from raydet.models.model import Model
from raydet.models.sections import HEAD, NECK
from raydet.parallel.precision import autocast
from raydet.parallel.recompute import recompute_activations
from raydet.plan.counts import canonical
from raydet.plan.live import LiveBytes, Tag
from raydet.structures import Batch, BoxBatch, MaskBatch

MANY = 16
IMAGES = "images"
GRADIENTS = "gradients"
WEIGHT_COPIES = "bf16 copies of weights"
WORKSPACE = "workspace"

Bytes = Mapping[Tag, int]
LinearBytes = Mapping[Tag, "Linear"]


@dataclass(frozen=True, slots=True)
class Linear:
    """Bytes as a linear function of the number of images in a micro-batch."""

    fixed_bytes: float
    image_bytes: float

    def at(self, images: int) -> int:
        return round(self.fixed_bytes + images * self.image_bytes)

    def plus(self, other: Linear, *, times: int = 1) -> Linear:
        """The sum with `times` times the other."""
        return Linear(
            self.fixed_bytes + times * other.fixed_bytes, self.image_bytes + times * other.image_bytes
        )


@dataclass(frozen=True, slots=True)
class Run:
    """Live bytes of one run with one block of each group."""

    forward: dict[str, Bytes]
    """The peak in each scope of the forward pass, in chronological order."""
    at_end: Bytes
    """At the end of the head, when autocast's copies of weights are still alive."""
    kept: Bytes
    """Bytes kept after the forward pass, for the backward pass."""
    backward: dict[str, Bytes]
    """The peak in each scope of the backward pass."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A `Run` for any number of images."""

    forward: dict[str, LinearBytes]
    at_end: LinearBytes
    kept: LinearBytes
    backward: dict[str, LinearBytes]


def measure(
    experiment: Experiment,
    *,
    num_objects: int,
    device_type: DeviceType,
    make_head: MakeHead | None = None,
) -> Measurement:
    """Run an experiment's model with the head's kernels of a device type; results are cached.

    Raises:
        ConfigError: the model cannot be built.
    """
    return _measure(_shallow(canonical(experiment)), num_objects, device_type, make_head)


def _shallow(experiment: Experiment) -> Experiment:
    """The experiment with the first MiT variant of the same widths, since the depth does not matter here."""
    backbone = experiment.model.backbone
    if not isinstance(backbone, MiTConfig):
        return experiment
    own = MIT_VARIANTS[backbone.variant]
    first = next(name for name, other in MIT_VARIANTS.items() if replace(other, depths=own.depths) == own)
    model = experiment.model.model_copy(update={"backbone": backbone.model_copy(update={"variant": first})})
    return experiment.model_copy(update={"model": model})


@lru_cache(maxsize=64)
def _measure(
    experiment: Experiment, num_objects: int, device_type: DeviceType, make_head: MakeHead | None
) -> Measurement:
    # Batch norm refuses a single value per channel, as of one image with a single cell in the last stage, or pooled to
    # one cell by a head for masks.
    has_one_cell = experiment.data.canvas_hw == (STRIDES[-1], STRIDES[-1])
    few = 2 if has_one_cell or isinstance(experiment.model.head, MaskHead) else 1
    first, last = (_run(experiment, images, num_objects, device_type, make_head) for images in (few, MANY))

    def line(first: Bytes, last: Bytes) -> LinearBytes:
        tags = dict.fromkeys([*last, *first])
        slopes = {tag: (last.get(tag, 0) - first.get(tag, 0)) / (MANY - few) for tag in tags}
        return {tag: Linear(first.get(tag, 0) - few * slope, slope) for tag, slope in slopes.items()}

    return Measurement(
        forward={scope: line(first.forward[scope], last.forward[scope]) for scope in first.forward},
        at_end=line(first.at_end, last.at_end),
        kept=line(first.kept, last.kept),
        backward={scope: line(first.backward[scope], last.backward[scope]) for scope in first.backward},
    )


def _run(
    experiment: Experiment, images: int, num_objects: int, device_type: DeviceType, make_head: MakeHead | None
) -> Run:
    with torch.device("meta"):
        model = build_model(experiment, make_head).train()
    for stage in model.encoder.stages():
        stage.keep_first_blocks()
    units = model.units()
    recompute_activations([*units.blocks, *units.fusions], experiment.train.activation_checkpointing)
    # On a CPU attention is split by the number of threads, which must not affect the plan for a GPU.
    with FakeTensorMode(), single_cpu_thread():
        _make_fake(model)
        with LiveBytes([*model.parameters(), *model.buffers()], copies_row=WEIGHT_COPIES) as live:
            tracker = _ScopeTracker(live)
            tracker.register(model)
            model.head = model.head.outline(device_type, tracker.enter_head)
            live.enter(f"forward {IMAGES}", Tag(IMAGES, IMAGES))
            return _step(model, live, _images(experiment, images, num_objects), experiment.train.precision)


@contextmanager
def single_cpu_thread() -> Iterator[None]:
    """Run the block with one torch thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _step(model: Model, live: LiveBytes, batch: Batch, precision: Precision) -> Run:
    with autocast(precision, torch.device("cpu")):
        loss = torch.stack([loss.float() for loss in model(batch, want="losses").losses.values()]).sum()
        at_end = live.live_bytes()
    kept = live.live_bytes()
    last = f"{HEAD}, {model.head.last_row}"
    live.enter(f"backward {last}", Tag(WORKSPACE, last))
    loss.backward()
    return Run(
        forward=_intervals(live, "forward"), at_end=at_end, kept=kept, backward=_intervals(live, "backward")
    )


def _intervals(live: LiveBytes, direction: str) -> dict[str, Bytes]:
    prefix = f"{direction} "
    return {
        name.removeprefix(prefix): interval.by_tag
        for name, interval in live.intervals.items()
        if name.startswith(prefix)
    }


def _make_fake(module: nn.Module) -> None:
    """Replace all parameters and buffers by fake ones on the CPU; building under fake tensors would fail."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = torch.empty_strided(parameter.shape, parameter.stride())
                part._parameters[name] = nn.Parameter(fake)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _images(experiment: Experiment, images: int, num_objects: int) -> Batch:
    names = {*experiment.model.rgb_modalities, *experiment.model.aux_modalities} - {*experiment.data.missing}
    canvas_hw = experiment.data.canvas_hw
    return Batch(
        modalities={
            name: torch.empty(images, experiment.data.channels[name], *canvas_hw, dtype=torch.uint8)
            for name in sorted(names)
        },
        valid_hw=torch.empty(images, 2, dtype=torch.int64),
        source_hw=torch.empty(images, 2, dtype=torch.int64),
        target=_masks(images, canvas_hw)
        if isinstance(experiment.model.head, MaskHead)
        else _boxes(images, max(1, num_objects)),
        image_ids=("",) * images,
    )


def _boxes(images: int, num_objects: int) -> BoxBatch:
    return BoxBatch(
        boxes_xyxy=torch.empty(images, num_objects, 4),
        labels=torch.empty(images, num_objects, dtype=torch.int64),
        counts=torch.empty(images, dtype=torch.int64),
    )


def _masks(images: int, canvas_hw: tuple[int, int]) -> MaskBatch:
    return MaskBatch(ids_BHW=torch.empty(images, *canvas_hw, dtype=torch.uint8))


class _ScopeTracker:
    """Notifies a `LiveBytes` of the running scope: forward by calls, backward by the gradients that arrive."""

    def __init__(self, live: LiveBytes) -> None:
        self.live = live
        self._seen = WeakTensorKeyDictionary()

    def register(self, model: Model) -> None:
        for section in model.sections():
            for stage in section.streams:
                self._forward(stage.module, stage.name, before=stage.embedding)
                self._backward(stage.module, stage.norm)
                for group in stage.groups:
                    (block,) = group.blocks
                    is_first, is_last = group is stage.groups[0], group is stage.groups[-1]
                    self._forward(block, stage.name, before=group.name, after=stage.norm if is_last else None)
                    self._backward(block, group.name, previous=stage.embedding if is_first else None)
            self._forward(section.fusion, section.fusion_name, before=section.fusion_name)
            self._backward(section.fusion, section.fusion_name)
        self._forward(model.neck, NECK, before=NECK)
        self._backward(model.neck, NECK)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._tag_gradient)

    def enter_head(self, row: str) -> None:
        scope = f"{HEAD}, {row}"
        self.live.enter(f"forward {scope}", Tag(row, scope))

    def _forward(self, module: nn.Module, row: str, *, before: str, after: str | None = None) -> None:
        module.register_forward_pre_hook(lambda *_: self.live.enter(f"forward {before}", Tag(row, before)))
        if after is not None:
            module.register_forward_hook(lambda *_: self.live.enter(f"forward {after}", Tag(row, after)))

    def _backward(self, module: nn.Module, scope: str, *, previous: str | None = None) -> None:
        """Enter `scope` at the gradient of an output, and `previous` at that of an input."""

        def on_forward(_: nn.Module, inputs: Any, outputs: Any) -> None:
            # Without a fusion's guides: their gradients come before those of all maps.
            self._enter_at_gradient(outputs.maps if isinstance(outputs, FusionOutput) else outputs, scope)

        module.register_forward_hook(on_forward)
        if previous is not None:
            module.register_forward_pre_hook(lambda _, inputs: self._enter_at_gradient(inputs, previous))

    def _enter_at_gradient(self, tensors: Any, scope: str) -> None:
        for tensor in tree_leaves(tensors):
            # A tensor that is passed on belongs to the scope that created it.
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor not in self._seen:
                self._seen[tensor] = scope
                tensor.register_hook(lambda _: self.live.enter(f"backward {scope}", Tag(WORKSPACE, scope)))

    def _tag_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.live.retag(parameter.grad, Tag(GRADIENTS, ""))
