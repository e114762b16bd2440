"""Trunks from timm (PyTorch Image Models), cut into stages where their maps reach strides 4, 8, 16 and 32.

ResNet: Deep Residual Learning for Image Recognition, arXiv 1512.03385. ConvNeXt: A ConvNet for the 2020s, arXiv
2201.03545. The layers and their initial weights are timm's (Apache-2.0, imported).

timm's `features_only` turns many of its models into layers that are called one after the other and says after which of
them a map is ready. A stage is what lies between two such maps, so that a fusion may change what the next one gets.
Models of other kinds, and those that need images of one size, are refused with a reason.

Departures from timm:
1. Stochastic depth is our own module with the same draws, so that recomputing knows of them.
2. Layers behind the last map are not built.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.layers import DropPath as TimmDropPath
from timm.models import FeatureListNet
from torch import Tensor, nn

from raydet.errors import ConfigError
from raydet.models.backbones.stage import STRIDES, Four, Stage

HEAD_CHANNELS = 64
"""Channels per attention head: with them the heads of MiT b1 to b5, 1, 2, 5, 8, follow from their widths."""
PROBE_PX = 128
_ADVICE = "choose another, such as resnet50 or convnext_tiny"


@dataclass(frozen=True, slots=True)
class TimmSizes:
    """What fusions are made from, see `stage.StageSizes`."""

    channels: Four
    num_heads: Four
    sr_ratios: Four = (8, 4, 2, 1)
    """MiT's: the maps have the same sizes."""


class DropPath(nn.Dropout):
    """Stochastic depth (arXiv 1603.09382): a branch counts 0 or 1 / (1 - p), drawn per sample."""

    def __init__(self, p: float, *, scale_by_keep: bool) -> None:
        super().__init__(p)
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = x.new_empty(len(x), *(1 for _ in x.shape[1:])).bernoulli_(1.0 - self.p)
        return x * (keep / (1.0 - self.p) if self.scale_by_keep else keep)


class TimmStage(Stage):
    """Some layers of a timm model, in order.

    Args:
        layers: by the names that timm's feature net gives them.
        channels: of the map that the last one returns.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.channels = channels
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, TimmDropPath):
                    setattr(parent, name, DropPath(child.drop_prob, scale_by_keep=child.scale_by_keep))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for layer in self.layers.values():
            x_BCHW = layer(x_BCHW)
        return x_BCHW

    def block_runs(self) -> list[list[nn.Module]]:
        """Every block is a run of its own: the first one of a stage often has a shortcut with weights."""
        blocks = [block for layer in self.layers.values() for block in _blocks_of(layer)]
        return [[block] for block in blocks or self.layers.values()]  # VGG's layers are bare


def _blocks_of(layer: nn.Module) -> Iterator[nn.Module]:
    """The parts of a layer that are called as wholes; none in a bare convolution or norm."""
    inner = getattr(layer, "blocks", layer)
    parts = inner.children() if isinstance(inner, nn.Sequential | nn.ModuleList) else [layer]
    for part in parts:
        if any(True for _ in part.children()) and any(True for _ in part.parameters()):
            yield part


def timm_stages(
    *, name: str, in_channels: int, drop_path_rate: float = 0.0, num_stages: int = 4
) -> nn.ModuleList:
    """The first `num_stages` stages of one stream; to be called after `timm_sizes`, which checks the model."""
    if num_stages == 0:
        return nn.ModuleList()
    return nn.ModuleList(_stages_of(_feature_net(name, in_channels, drop_path_rate))[:num_stages])


@lru_cache(maxsize=64)
def timm_sizes(name: str, *, drop_path_rate: float = 0.0) -> TimmSizes:
    """Widths of a model's stages and the numbers of heads for fusions between them.

    >>> timm_sizes("resnet50")
    TimmSizes(channels=(256, 512, 1024, 2048), num_heads=(4, 8, 16, 32), sr_ratios=(8, 4, 2, 1))

    Raises:
        ConfigError: timm has no such model, it does not come in stages at the four strides, or what it needs is not
            to be had here; the message says which.
    """
    with torch.device("meta"):
        net = _feature_net(name, 3, drop_path_rate)
        _check_kind(name, net)
        stages = _stages_of(net)
        _check_buffers(name, stages)
        _check_maps(name, stages)
    channels = tuple(stage.channels for stage in stages)
    return TimmSizes(channels=_four(channels), num_heads=_four(tuple(map(_num_heads, channels))))


def _four(numbers: tuple[int, ...]) -> Four:
    first, second, third, fourth = numbers
    return first, second, third, fourth


def _num_heads(channels: int) -> int:
    most = max(1, channels // HEAD_CHANNELS)
    return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


def timm_licence(name: str) -> str:
    """What timm notes for the model's published weights: those that the name's tag means, or the default ones."""
    licence = timm.get_pretrained_cfg(name).license
    return f"{licence or 'none'}, as timm notes for its weights of {name}; see where the file comes from"


def _feature_net(name: str, in_channels: int, drop_path_rate: float) -> Any:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {close[0]}?" if close else "see timm.list_models()"
        raise ConfigError(f"model.backbone.name: timm {timm.__version__} has no model {name!r}; {hint}")
    arguments = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    try:
        return timm.create_model(name, features_only=True, in_chans=in_channels, **arguments)
    except Exception as error:  # whatever the code of a thousand models raises
        raise ConfigError(
            f"model.backbone: timm cannot build {name} as features ({type(error).__name__}: {error}); {_ADVICE}"
        ) from error


def _check_kind(name: str, net: Any) -> None:
    strides = net.feature_info.reduction()
    if not {*STRIDES} <= {*strides}:
        wanted, came = (", ".join(map(str, x)) for x in (STRIDES, strides))
        raise ConfigError(f"model.backbone.name={name} wants maps at strides {wanted}, got {came}; {_ADVICE}")
    if not isinstance(net, FeatureListNet) or net.output_fmt.value != "NCHW":
        raise ConfigError(
            f"model.backbone.name={name}: timm runs it as a whole or with channels last in shape "
            f"({type(net).__name__}), it cannot be cut where streams fuse; {_ADVICE}"
        )


def _check_buffers(name: str, stages: list[TimmStage]) -> None:
    hidden = [
        buffer
        for stage in stages
        for module in stage.modules()
        for buffer in module._non_persistent_buffers_set
    ]
    if hidden:
        raise ConfigError(
            f"model.backbone.name={name} keeps {hidden[0]!r} out of its state, so other workers could not receive "
            f"it; {_ADVICE}"
        )


@torch.enable_grad()
def _check_maps(name: str, stages: list[TimmStage]) -> None:
    """Run an image without memory through the stages, and back."""
    x_BCHW, maps_BCHW = torch.zeros(2, 3, PROBE_PX, PROBE_PX), []
    try:
        for stage in stages:
            x_BCHW = stage(x_BCHW)
            maps_BCHW.append(x_BCHW)
        shapes = [tuple(x_BCHW.shape) for x_BCHW in maps_BCHW]
        torch.stack([x_BCHW.sum() for x_BCHW in maps_BCHW]).sum().backward()
    except Exception as error:  # as above
        raise ConfigError(
            f"model.backbone.name={name} fails on an image of {PROBE_PX} x {PROBE_PX} "
            f"({type(error).__name__}: {error}); {_ADVICE}"
        ) from error
    sides = [PROBE_PX // stride for stride in STRIDES]
    wanted = [(2, stage.channels, side, side) for stage, side in zip(stages, sides, strict=True)]
    if shapes != wanted:
        raise ConfigError(f"model.backbone.name={name} wants maps of {wanted}, got {shapes}; {_ADVICE}")
    named = [pair for stage in stages for pair in stage.named_parameters()]
    unused = [parameter_name for parameter_name, parameter in named if parameter.grad is None]
    if unused:
        raise ConfigError(f"model.backbone.name={name} does not use its parameter {unused[0]}; {_ADVICE}")


def _stages_of(net: Any) -> list[TimmStage]:
    """Cut after the last map of every stride."""
    infos = zip(net.return_layers, net.feature_info.reduction(), net.feature_info.channels(), strict=True)
    cuts = {stride: (layer, channels) for layer, stride, channels in infos}
    layers, stages = iter(net.items()), []
    for stride in STRIDES:
        last, channels = cuts[stride]
        inside = {}
        for layer_name, layer in layers:
            inside[layer_name] = layer
            if layer_name == last:
                break
        stages.append(TimmStage(inside, channels=channels))
    return stages
