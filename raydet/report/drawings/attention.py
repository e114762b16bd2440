"""Where the fusions of a trained detector look, on one image.

Read off while the detector runs as always: a hook notes what enters each fusion, and the fusion's own modules say what
they make of it.

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

Streams = tuple[str, str]
"""What the two streams are called, after their modalities."""


@dataclass(frozen=True, slots=True)
class StageAttention:
    """What the fusion of one stage does with an image; all values are in 0..1."""

    stage: int
    """1..4."""
    maps: dict[str, NDArray[np.float32]]
    """[H, W] each, by name: GAFF's gates, averaged over the channels (`rgb ← thermal`: how much of thermal flows into
    rgb); CSSA's spatial attention. Padding is cut off."""
    channel_weights: dict[str, NDArray[np.float32]]
    """[C] by stream: GAFF's squeeze-and-excitation, unless it has none, CSSA's channel weights."""
    stride_hw: tuple[float, float]
    """Canvas pixels per pixel of the maps."""
    switch_below: float | None = None
    """CSSA takes channels with a lower weight from the other stream; None: nothing is switched."""

    @property
    def switched(self) -> dict[str, NDArray[np.bool_]]:
        """[C] by stream: the channels that come from the other one; empty where nothing is switched."""
        if self.switch_below is None:
            return {}
        return {name: weights_C < self.switch_below for name, weights_C in self.channel_weights.items()}


@dataclass(frozen=True, slots=True)
class Attention:
    """An image, and what the fusions do with it."""

    sample: Sample
    """As it was fed: on the canvas."""
    stages: tuple[StageAttention, ...]
    """Those whose fusion weighs pixels and channels (GAFF, CSSA); there may be none."""


def attention_maps(run: TrainedRun, index: int) -> Attention:
    """What the fusions of a run do with image `index` of its source; the detector stays as it is.

    Raises:
        DataError: the image cannot be read.
    """
    sample = eval_transform(run.source.read(index), canvas_hw=run.experiment.data.canvas_hw)
    fusions = [_innermost(fusion) for fusion in run.detector.encoder.fusions]
    device = next(run.detector.parameters()).device
    with torch.no_grad(), _inputs_of(fusions) as inputs:
        run.detector(collate([sample]).to(device))
        streams = stream_names(run.experiment)
        found = [
            _stage(fusion, *inputs[fusion], stage=stage, streams=streams, sample=sample)
            for stage, fusion in enumerate(fusions, 1)
        ]
    return Attention(sample, tuple(stage for stage in found if stage is not None))


def stream_names(experiment: Experiment) -> Streams:
    """The two streams by the modalities that they are given, for example ("rgb", "thermal + event")."""
    model, data = experiment.model, experiment.data
    first, second = (
        " + ".join(data.shown_name(name) for name in names if name not in data.missing) or "nothing"
        for names in (model.rgb_modalities, model.aux_modalities)
    )
    return first, second


@contextmanager
def _inputs_of(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, ...]]]:
    """The newest inputs of each module, as long as the context lasts."""
    inputs: dict[nn.Module, tuple[Tensor, ...]] = {}

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[module] = arguments

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _innermost(fusion: nn.Module) -> nn.Module:
    """The fusion that others are put around."""
    return _innermost(fusion.fusion) if isinstance(fusion, Gated | Guided) else fusion


def _stage(
    fusion: nn.Module, rgb_BCHW: Tensor, aux_BCHW: Tensor, *, stage: int, streams: Streams, sample: Sample
) -> StageAttention | None:
    rgb, aux = streams
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
            name: x.flatten().float().cpu().numpy() for name, x in zip(streams, weights, strict=False)
        },
        stride_hw=stride_hw,
        switch_below=threshold,
    )


def _valid(x_BCHW: Tensor, stride_hw: tuple[float, float], valid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Mean over the channels of the one map of a batch, without the padding: [H, W]."""
    rows, columns = (math.ceil(valid / stride) for valid, stride in zip(valid_hw, stride_hw, strict=True))
    mean_HW: NDArray[np.float32] = x_BCHW[0].float().mean(dim=0)[:rows, :columns].cpu().numpy()
    return mean_HW
