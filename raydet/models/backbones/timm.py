"""Backbones from timm (PyTorch Image Models), split into stages whose maps have strides 4, 8, 16 and 32.

Dilated ones (Rethinking Atrous Convolution, arXiv 1706.05587) stop halving the map at a stride of 8 or 16: the stages
after it have the same layers and weights, but take every second or fourth cell.

ResNet: Deep Residual Learning for Image Recognition, arXiv 1512.03385. ConvNeXt: A ConvNet for the 2020s, arXiv
2201.03545. EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, arXiv 1905.11946. The layers and
their initial weights are timm's (Apache-2.0, imported).

timm's `features_only` lists the layers of a model that return a map. A stage is the layers between two such maps, so
that a fusion may change the input of the next one. This needs a chain: each layer is called once, and takes the output
of the layer before it and nothing else. No list of models says which are chains; timm's own forward pass is watched
once, on tensors without memory. Models that are not chains, and those that need one image size, are refused with a
reason; `hiera` makes one a chain.

Departures from timm:
1. Stochastic depth is our own module with the same random draws, which activation checkpointing can replay.
2. Layers after the last map are not kept.
3. Maps are NCHW between the stages; a model that works on NHWC maps gets them back as such.
4. Stages and batch norms can be frozen.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, TypeVar

import timm
import torch
from timm.layers import DropPath as TimmDropPath
from timm.layers import Format
from timm.models.hieradet_sam2 import HieraDet
from torch import Tensor, nn

from raydet.errors import ConfigError
from raydet.models.backbones.hiera import make_chain
from raydet.models.backbones.stage import STRIDES, Four, Stage

HEAD_CHANNELS = 64
"""Channels per attention head, as in MiT b1 to b5."""
PROBE_PX = 128
T = TypeVar("T")
_ADVICE = "choose another, such as resnet50 or convnext_tiny"


@dataclass(frozen=True, slots=True)
class TimmSizes:
    """`stage.StageSizes` of a timm model.

    The reductions are MiT's, whose maps have the same sizes: the grid of keys and values has a stride of 32. So it has
    in a dilated model.
    """

    channels: Four
    num_heads: Four
    sr_ratios: Four = (8, 4, 2, 1)
    strides: Four = STRIDES


class DropPath(nn.Dropout):
    """Stochastic depth (arXiv 1603.09382): a branch is scaled by 0 or 1 / (1 - p), drawn per sample."""

    def __init__(self, p: float, *, scale_by_keep: bool) -> None:
        super().__init__(p)
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = x.new_empty(len(x), *(1 for _ in x.shape[1:])).bernoulli_(1.0 - self.p)
        return x * (keep / (1.0 - self.p) if self.scale_by_keep else keep)


class TimmStage(Stage):
    """Consecutive layers of a timm model, by their names in its feature net.

    Args:
        channels: channels of the map that the last layer returns.
        takes_nhwc: the first layer takes [B, H, W, C], as do those of a model that works on such maps.
        gives_nhwc: the last layer returns [B, H, W, C].
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        channels: int,
        takes_nhwc: bool = False,
        gives_nhwc: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.channels = channels
        self.takes_nhwc = takes_nhwc
        self.gives_nhwc = gives_nhwc
        self._frozen: list[nn.Module] = []
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, TimmDropPath):
                    setattr(parent, name, DropPath(child.drop_prob, scale_by_keep=child.scale_by_keep))

    def freeze(self, *, norms_only: bool) -> None:
        """Keep the weights, and the statistics of batch norms: of the norms, or of the whole stage, which then runs as
        in evaluation."""
        self._frozen = (
            [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)] if norms_only else [self.layers]
        )
        for module in self._frozen:
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = x_BCHW.permute(0, 2, 3, 1) if self.takes_nhwc else x_BCHW
        for layer in self.layers.values():
            x = layer(x)
        return x.permute(0, 3, 1, 2) if self.gives_nhwc else x

    def block_groups(self) -> list[list[nn.Module]]:
        """One group per block: the first block of a stage often has a shortcut with weights."""
        blocks = [block for layer in self.layers.values() for block in _blocks_of(layer)]
        return [[block] for block in blocks or self.layers.values()]  # VGG has bare layers only


def _blocks_of(layer: nn.Module) -> Iterator[nn.Module]:
    """The children of a layer that have children and parameters; none in a bare convolution or norm."""
    inner = getattr(layer, "blocks", layer)
    parts = inner.children() if isinstance(inner, nn.Sequential | nn.ModuleList) else [layer]
    for part in parts:
        if any(True for _ in part.children()) and any(True for _ in part.parameters()):
            yield part


def timm_stages(
    *,
    name: str,
    in_channels: int,
    drop_path_rate: float = 0.0,
    output_stride: int = 32,
    num_stages: int = 4,
    frozen_stages: int = 0,
    frozen_norms: bool = False,
) -> nn.ModuleList:
    """The first `num_stages` stages of one stream; call `timm_sizes` first, which checks the model.

    Args:
        output_stride: of the last map: 8, 16 or 32.
        frozen_stages: of the first so many stages nothing is trained.
        frozen_norms: of all stages the batch norms are not trained.
    """
    if num_stages == 0:
        return nn.ModuleList()
    net = _feature_net(name, in_channels, drop_path_rate, output_stride)
    stages = _stages_of(net, _last_layers(name, drop_path_rate))[:num_stages]
    for index, stage in enumerate(stages):
        if index < frozen_stages or frozen_norms:
            stage.freeze(norms_only=index >= frozen_stages)
    return nn.ModuleList(stages)


@lru_cache(maxsize=64)
def timm_sizes(name: str, *, drop_path_rate: float = 0.0, output_stride: int = 32) -> TimmSizes:
    """Check a model on the meta device and return the sizes of its stages.

    >>> timm_sizes("resnet50", output_stride=8).strides
    (4, 8, 8, 8)
    >>> timm_sizes("resnet50").channels
    (256, 512, 1024, 2048)

    Raises:
        ConfigError: timm has no such model, or it cannot be split into stages at the four strides, or not be dilated.
    """
    s1, s2, s3, s4 = (min(stride, output_stride) for stride in STRIDES)
    strides = (s1, s2, s3, s4)
    last_layers = _last_layers(name, drop_path_rate)
    with torch.device("meta"):
        net = _feature_net(name, 3, drop_path_rate, output_stride)
        _check_chain(name, net, last_layers)
        stages = _stages_of(net, last_layers)
        _check_buffers(name, stages)
        _check_maps(name, stages, strides)
    c1, c2, c3, c4 = (stage.channels for stage in stages)
    return TimmSizes(
        channels=(c1, c2, c3, c4),
        num_heads=(_num_heads(c1), _num_heads(c2), _num_heads(c3), _num_heads(c4)),
        sr_ratios=(32 // s1, 32 // s2, 32 // s3, 32 // s4),
        strides=strides,
    )


def _num_heads(channels: int) -> int:
    most = max(1, channels // HEAD_CHANNELS)
    return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


def timm_licence(name: str) -> str:
    """Licence that timm records for the model's published weights (of the name's tag, or the default ones)."""
    licence = timm.get_pretrained_cfg(name).license
    return f"{licence or 'none'}, according to timm for its weights of {name}; check the source of the file"


def timm_repository(name: str) -> str:
    """The repository on the Hugging Face hub of timm's weights of a model: of the name's tag, or the default ones.

    >>> timm_repository("resnet50"), timm_repository("resnet50.a1_in1k")
    ('timm/resnet50.a1_in1k', 'timm/resnet50.a1_in1k')

    Raises:
        ConfigError: timm has no such model or tag, or publishes no weights of it.
    """
    _check_name(name)
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        model = name.split(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{model}.*")) or "none"
        raise ConfigError(f"{error} timm {timm.__version__} knows {tags}") from error
    if found is None or not found.hf_hub_id:
        raise ConfigError(
            f"timm {timm.__version__} publishes no weights of {name} on the hub; set the path of a file"
        )
    return "/".join(filter(None, (found.hf_hub_id, found.hf_hub_filename)))


def _check_name(name: str, where: str = "") -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {close[0]}?" if close else "see timm.list_models()"
        raise ConfigError(f"{where}timm {timm.__version__} has no model {name!r}; {hint}")


def _feature_net(name: str, in_channels: int, drop_path_rate: float, output_stride: int) -> Any:
    _check_name(name, "model.backbone.name: ")
    arguments: dict[str, float] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    if output_stride != STRIDES[-1]:
        arguments["output_stride"] = output_stride
    try:
        net = timm.create_model(name, features_only=True, in_chans=in_channels, **arguments)
    except Exception as error:  # any of a thousand models' own errors
        raise ConfigError(
            f"model.backbone: timm cannot build {name} as features ({type(error).__name__}: {error}); {_ADVICE}"
            + (", or output_stride=32" if "output_stride" in arguments else "")
        ) from error
    if isinstance(model := _wrapped(net), HieraDet):
        make_chain(model)
    return net


def _check_chain(name: str, net: Any, last_layers: tuple[str, ...]) -> None:
    """Watch timm's own forward pass of a meta tensor: is each layer called once, on the output of the one before?"""
    layers = _layers_of(net, last_layers[-1])
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = []
    for needed in last_layers:
        if needed not in layers:
            raise ConfigError(
                f"model.backbone.name={name} takes a map from {needed!r}, which is none of its layers "
                f"({type(net).__name__}), so its stages cannot be told apart; {_ADVICE}"
            )
    for layer_name, layer in layers.items():
        layer.register_forward_hook(
            # By default arguments, since a closure would see the last name only.
            lambda _, args, kwargs, output, layer_name=layer_name: calls.append(
                (layer_name, args, kwargs, output)
            ),
            with_kwargs=True,
        )
    x_BCHW = torch.zeros(2, 3, PROBE_PX, PROBE_PX)
    _or_refuse(name, lambda: net(x_BCHW))
    previous: Any = x_BCHW
    for index, expected in enumerate(layers):
        found, args, kwargs, output = calls[index] if index < len(calls) else ("", (), {}, None)
        if found != expected or [id(x) for x in args] != [id(previous)] or kwargs:
            raise ConfigError(
                f"model.backbone.name={name} is not a chain of layers: {expected} must take the output of the layer "
                f"before it and nothing else, so its stages cannot be told apart; {_ADVICE}"
            )
        previous = output
    if len(calls) > len(layers):
        raise ConfigError(
            f"model.backbone.name={name} is not a chain of layers: {calls[len(layers)][0]} is called more than once, "
            f"so its stages cannot be told apart; {_ADVICE}"
        )


def _check_buffers(name: str, stages: list[TimmStage]) -> None:
    for module in nn.ModuleList(stages).modules():
        for buffer in module._non_persistent_buffers_set:
            raise ConfigError(
                f"model.backbone.name={name} keeps {buffer!r} out of its state, so other workers could not receive "
                f"it; {_ADVICE}"
            )


@torch.enable_grad()
def _check_maps(name: str, stages: list[TimmStage], strides: Four) -> None:
    """Run a batch of meta tensors through the stages, forward and backward."""

    def run() -> list[tuple[int, ...]]:
        x_BCHW, maps_BCHW = torch.zeros(2, 3, PROBE_PX, PROBE_PX), []
        for stage in stages:
            x_BCHW = stage(x_BCHW)
            maps_BCHW.append(x_BCHW)
        torch.stack([x_BCHW.sum() for x_BCHW in maps_BCHW]).sum().backward()
        return [tuple(x_BCHW.shape) for x_BCHW in maps_BCHW]

    shapes = _or_refuse(name, run)
    sides = [PROBE_PX // stride for stride in strides]
    expected = [(2, stage.channels, side, side) for stage, side in zip(stages, sides, strict=True)]
    if shapes != expected:
        raise ConfigError(f"model.backbone.name={name}: expected maps of {expected}, got {shapes}; {_ADVICE}")
    for stage in stages:
        for parameter_name, parameter in stage.named_parameters():
            if parameter.grad is None:
                raise ConfigError(
                    f"model.backbone.name={name} does not use its parameter {parameter_name}; {_ADVICE}"
                )


def _or_refuse(name: str, run: Callable[[], T]) -> T:
    try:
        return run()
    except Exception as error:  # any of a thousand models' own errors
        raise ConfigError(
            f"model.backbone.name={name} fails on an image of {PROBE_PX} x {PROBE_PX} "
            f"({type(error).__name__}: {' '.join(str(error).split())}); {_ADVICE}"
        ) from error


@lru_cache(maxsize=64)
def _last_layers(name: str, drop_path_rate: float) -> tuple[str, ...]:
    """The layers that return the last map at strides 4, 8, 16 and 32; in a dilated model they end the stages, too.

    Raises:
        ConfigError: the model has no maps at these strides.
    """
    with torch.device("meta"):
        info = _feature_net(name, 3, drop_path_rate, STRIDES[-1]).feature_info
    strides = info.reduction()
    if not {*STRIDES} <= {*strides}:
        expected, found = (", ".join(map(str, x)) for x in (STRIDES, strides))
        raise ConfigError(
            f"model.backbone.name={name}: expected maps at strides {expected}, got {found}; {_ADVICE}"
        )
    layers = dict(zip(strides, _map_names(info), strict=True))
    return tuple(layers[stride] for stride in STRIDES)


def _map_names(info: Any) -> list[str]:
    """The layers that return maps; of `stages.0` the name is `stages_0`, as in feature nets."""
    return [name.replace(".", "_") for name in info.module_name()]


def _wrapped(net: Any) -> nn.Module:
    """The model inside a net that asks the whole model for its maps; other feature nets hold layers, not a model."""
    return getattr(net, "model", net)


def _layers_of(net: Any, last: str) -> dict[str, nn.Module]:
    """The layers up to the last map's, in the order in which the model registers them.

    Some feature nets have opened the model's containers, as in `stages.0` -> `stages_0`; those of the others are opened
    here.
    """
    model = _wrapped(net)
    if isinstance(model, nn.ModuleDict):
        layers = dict(model.items())
    else:
        layers = {}
        for name, child in model.named_children():
            if isinstance(child, nn.Sequential | nn.ModuleList):
                layers.update({f"{name}_{index}": part for index, part in child.named_children()})
            else:
                layers[name] = child
    names = list(layers)
    return {name: layers[name] for name in names[: names.index(last) + 1]} if last in layers else layers


def _stages_of(net: Any, last_layers: tuple[str, ...]) -> list[TimmStage]:
    """Split after each of the layers."""
    channels = dict(zip(_map_names(net.feature_info), net.feature_info.channels(), strict=True))
    is_nhwc = Format(getattr(_wrapped(net), "output_fmt", "NCHW")) is Format.NHWC
    layers, stages = iter(_layers_of(net, last_layers[-1]).items()), list[TimmStage]()
    for last in last_layers:
        stage_layers = {}
        for layer_name, layer in layers:
            stage_layers[layer_name] = layer
            if layer_name == last:
                break
        stages.append(
            TimmStage(
                stage_layers,
                channels=channels[last],
                takes_nhwc=is_nhwc and bool(stages),
                gives_nhwc=is_nhwc,
            )
        )
    return stages
