"""Attention maps and channel weights of a trained detector's fusions, on one image.

A hook records the inputs of each fusion during a normal forward pass; the fusion's own modules then compute the maps.

Legend: C channels, H W map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydet.config import Experiment
from raydet.data.transforms import eval_transform
from raydet.engine.open_run import TrainedRun
from raydet.models.fusion.cssa import CSSA
from raydet.models.fusion.gaff import GAFF, SqueezeExcitation
from raydet.models.fusion.gated import Gated
from raydet.models.fusion.guided import Guided
from raydet.structures import Sample, collate


@dataclass(frozen=True, slots=True)
class StageAttention:
    """Attention of the fusion of one stage; all values are in 0..1."""

    stage: int
    """1..4."""
    maps: dict[str, NDArray[np.float32]]
    """[H, W] by name, without padding: GAFF's gates, averaged over the channels (`rgb ← thermal`: how much of thermal
    flows into rgb), or CSSA's spatial attention."""
    channel_weights: dict[str, NDArray[np.float32]]
    """[C] by stream: weights of GAFF's squeeze-and-excitation, if it has one, or CSSA's channel weights."""
    stride_hw: tuple[float, float]
    """Canvas pixels per pixel of the maps."""
    switch_below: float | None = None
    """CSSA takes channels with a lower weight from the other stream; None: no channel is switched."""

    @property
    def switched(self) -> dict[str, NDArray[np.bool_]]:
        """[C] by stream: channels that come from the other stream; empty if none is switched."""
        if self.switch_below is None:
            return {}
        return {name: weights_C < self.switch_below for name, weights_C in self.channel_weights.items()}


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of all fusions on one image."""

    sample: Sample
    """The input of the detector, on the canvas."""
    stages: tuple[StageAttention, ...]
    """Stages whose fusion has attention (GAFF, CSSA); may be empty."""


def attention_maps(run: TrainedRun, index: int) -> Attention:
    """Compute the attention of a run's fusions on image `index` of its source; the detector is not changed.

    Raises:
        DataError: the image cannot be read.
    """
    sample = eval_transform(run.source.read(index), canvas_hw=run.experiment.data.canvas_hw)
    fusions = [_innermost(fusion) for fusion in run.model.encoder.fusions]
    device = next(run.model.parameters()).device
    with torch.no_grad(), _inputs_of(fusions) as inputs:
        run.model(collate([sample]).to(device))
        names = stream_names(run.experiment)
        found = [
            _stage(fusion, *inputs[fusion], stage=stage, names=names, sample=sample)
            for stage, fusion in enumerate(fusions, 1)
        ]
    return Attention(sample, tuple(stage for stage in found if stage is not None))


def stream_names(experiment: Experiment) -> tuple[str, str]:
    """The two streams, named after their modalities, for example ("rgb", "thermal + event")."""
    model, data = experiment.model, experiment.data
    first, second = (
        " + ".join(data.shown_name(name) for name in names if name not in data.missing) or "nothing"
        for names in (model.rgb_modalities, model.aux_modalities)
    )
    return first, second


@contextmanager
def _inputs_of(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, ...]]]:
    """The latest inputs of each module, recorded within the context."""
    inputs: dict[nn.Module, tuple[Tensor, ...]] = {}

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[module] = arguments

    handles = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _innermost(fusion: nn.Module) -> nn.Module:
    """The fusion inside gated and guided wrappers."""
    return _innermost(fusion.fusion) if isinstance(fusion, Gated | Guided) else fusion


def _stage(
    fusion: nn.Module,
    rgb_BCHW: Tensor,
    aux_BCHW: Tensor,
    *,
    stage: int,
    names: tuple[str, str],
    sample: Sample,
) -> StageAttention | None:
    rgb, aux = names
    match fusion:
        case GAFF():
            into_rgb_BCHW, into_aux_BCHW = fusion.inter(rgb_BCHW, aux_BCHW)
            maps = {f"{rgb} ← {aux}": into_rgb_BCHW, f"{aux} ← {rgb}": into_aux_BCHW}
            excitations = zip((fusion.se_rgb, fusion.se_aux), (rgb_BCHW, aux_BCHW), strict=True)
            weights = [se.weights(x_BCHW) for se, x_BCHW in excitations if isinstance(se, SqueezeExcitation)]
            threshold = None
        case CSSA():
            maps = {"spatial attention": fusion.attention(*fusion.switched(rgb_BCHW, aux_BCHW))}
            weights = [fusion.weights_rgb(rgb_BCHW), fusion.weights_aux(aux_BCHW)]
            threshold = fusion.threshold
        case _:
            return None
    height, width = next(iter(maps.values())).shape[-2:]
    canvas_h, canvas_w = sample.canvas_hw
    stride_hw = canvas_h / height, canvas_w / width
    return StageAttention(
        stage=stage,
        maps={name: _valid(x_BCHW, stride_hw, sample.valid_hw) for name, x_BCHW in maps.items()},
        channel_weights={
            name: x.flatten().float().cpu().numpy() for name, x in zip(names, weights, strict=False)
        },
        stride_hw=stride_hw,
        switch_below=threshold,
    )


def _valid(x_BCHW: Tensor, stride_hw: tuple[float, float], valid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Mean over the channels of a batch of one map, without padding: [H, W]."""
    rows, columns = (math.ceil(valid / stride) for valid, stride in zip(valid_hw, stride_hw, strict=True))
    mean_HW: NDArray[np.float32] = x_BCHW[0].float().mean(dim=0)[:rows, :columns].cpu().numpy()
    return mean_HW
