"""Real training steps and an independent count of their bytes, as the reference for the plan."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raydet.config import Experiment, apply_overrides
from raydet.engine.optim import build_optimizer
from raydet.models.build import build_model
from raydet.models.model import Model
from raydet.parallel.precision import autocast
from raydet.parallel.recompute import recompute_activations
from raydet.recipes import recipe
from raydet.structures import Batch, BoxBatch

CANVAS_HW = (256, 320)
NUM_OBJECTS = 3


def experiment(variant: str, **overrides: Any) -> Experiment:
    """The published detector on a small canvas, with fewer proposals, to save time."""
    changes = {
        "model.backbone.variant": variant,
        "model.head.rpn_pre_nms_top_n": [300, 300],
        "model.head.rpn_post_nms_top_n": [300, 300],
        "model.head.box_batch_size_per_image": 128,
        "data.canvas_hw": list(CANVAS_HW),
        **overrides,
    }
    return apply_overrides(recipe("rgbte_mit_b1"), changes)


def detector_of(run: Experiment) -> Model:
    """A detector with real weights in training mode."""
    detector = build_model(run).train()
    units = detector.units()
    recompute_activations([*units.blocks, *units.fusions], run.train.activation_checkpointing)
    return detector


def batch_of(run: Experiment, images: int) -> Batch:
    """Noise with `NUM_OBJECTS` boxes on every image."""
    height, width = run.data.canvas_hw
    corner = torch.rand(images, NUM_OBJECTS, 2) * torch.tensor([width - 64, height - 64])
    size_hw = torch.tensor([[height, width]] * images)
    return Batch(
        modalities={
            name: torch.randint(0, 255, (images, channels, height, width), dtype=torch.uint8)
            for name, channels in run.data.channels.items()
        },
        valid_hw=size_hw,
        source_hw=size_hw,
        target=BoxBatch(
            boxes_xyxy=torch.cat((corner, corner + 60), dim=2),
            labels=torch.zeros(images, NUM_OBJECTS, dtype=torch.int64),
            counts=torch.full((images,), NUM_OBJECTS),
        ),
        image_ids=tuple(map(str, range(images))),
    )


def loss_of(run: Experiment, detector: nn.Module, batch: Batch) -> Tensor:
    with autocast(run.train.precision, torch.device("cpu")):
        losses = detector(batch).losses
    return torch.stack([loss.float() for loss in losses.values()]).sum()


def saved_bytes(run: Experiment, images: int) -> int:
    """Bytes that autograd keeps after a forward pass: unique storages, weights left out.

    A recomputed unit keeps its inputs, which autograd's hooks do not see.
    """
    detector = detector_of(run)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()  # the tensor itself could form a reference cycle with its own operation

    def keep_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor):
                keep(tensor)

    if run.train.activation_checkpointing != "none":
        units = detector.units()
        for unit in (*units.blocks, *units.fusions):
            unit.register_forward_pre_hook(keep_inputs)
    batch = batch_of(run, images)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(run, detector, batch)
    assert loss.isfinite()
    own = {x.untyped_storage().data_ptr() for x in (*detector.parameters(), *detector.buffers())}
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


class _Peak(TorchDispatchMode):
    """Peak bytes of all tensors created inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now_bytes = self.peak_bytes = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self._alive:
                storage = tensor.untyped_storage()
                self._alive.add(id(storage))
                self._grow(storage.nbytes())
                weakref.finalize(storage, self._drop, id(storage), storage.nbytes())
        return result

    def _grow(self, size_bytes: int) -> None:
        self.now_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)

    def _drop(self, key: int, size_bytes: int) -> None:
        self._alive.discard(key)
        self.now_bytes -= size_bytes


def peak_bytes(run: Experiment, images: int) -> int:
    """Bytes of all live tensors at the worst moment of two training steps."""
    torch.manual_seed(0)
    with _Peak() as peak:
        detector, batch = detector_of(run), batch_of(run, images)
        optimizer = build_optimizer(run.optim, detector.parameters())
        for _ in range(2):  # the first one creates the optimizer's state
            loss_of(run, detector, batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return peak.peak_bytes
