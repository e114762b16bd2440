"""Building the model of an experiment; with `build_heads`, the only module that knows both models and configs.

Nothing here seeds: callers of `build_model` seed torch first to get reproducible weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

import torch
from torch import nn

from raydet.config import (
    AddFusion,
    CMXFusion,
    ConcatFusion,
    CSSAFusion,
    DataConfig,
    Experiment,
    Flow,
    FPNConfig,
    GAFFFusion,
    IdentityFusion,
    LateConcatFusion,
    MiTConfig,
    Modality,
    ModelConfig,
    NoNeckConfig,
    PAFPNConfig,
    PerStage,
    RVTConfig,
    TimmConfig,
)
from raydet.config import CrossAttentionFusion as CrossAttentionConfig
from raydet.errors import ConfigError
from raydet.models.backbones.dual import DualStreamEncoder, Init, num_aux_stages
from raydet.models.backbones.mit import MIT_VARIANTS, mit_stages
from raydet.models.backbones.rvt import rvt_sizes, rvt_stages
from raydet.models.backbones.stage import StageSizes
from raydet.models.backbones.timm import TimmStage, timm_licence, timm_sizes, timm_stages
from raydet.models.build_heads import build_head
from raydet.models.fusion.base import Fusion
from raydet.models.fusion.basic import Add, Concat, Identity, LateConcat
from raydet.models.fusion.cmx import CMX
from raydet.models.fusion.cross_attention import CrossAttentionFusion
from raydet.models.fusion.cssa import CSSA
from raydet.models.fusion.gaff import GAFF
from raydet.models.fusion.gated import Gated
from raydet.models.fusion.guided import Guided
from raydet.models.fusion.unread import freeze_unread
from raydet.models.heads.base import Head
from raydet.models.inputs import InputStream
from raydet.models.model import Model
from raydet.models.necks.base import Neck
from raydet.models.necks.fpn import FPN
from raydet.models.necks.none import NoNeck
from raydet.models.necks.pafpn import PAFPN
from raydet.models.pretrained.files import read_weights
from raydet.models.pretrained.load import LoadedWeights, load_weights
from raydet.models.pretrained.names import MIT_NAMINGS, Naming, efficientnet_naming, timm_naming

MakeHead = Callable[[Experiment, Sequence[int]], Head]
"""Makes a head for an experiment and the channels of each level of its neck's pyramid."""


def build_model(experiment: Experiment, make_head: MakeHead | None = None) -> Model:
    """The model with its initial weights, on the CPU (without memory under `torch.device("meta")`).

    Args:
        make_head: default: the head that the config describes.

    Raises:
        ConfigError: the modalities do not fit the fusions or their normalisation, timm has no such backbone that can be
            split into stages, or the head reads nothing of the second stream.
    """
    model = experiment.model
    encoder = _build_encoder(model, experiment.data)
    neck: Neck
    match model.neck:
        case FPNConfig(channels=channels):
            neck = FPN(in_channels=encoder.channels, channels=channels)
        case PAFPNConfig(levels=levels, depth=depth):
            neck = PAFPN(in_channels=encoder.channels, num_levels=levels, depth=depth)
        case NoNeckConfig():
            neck = NoNeck(in_channels=encoder.channels)
        case unreachable:
            assert_never(unreachable)
    head = (make_head or build_head)(experiment, neck.channels)
    levels_read = head.levels_read if neck.levels_read is None else neck.levels_read
    if levels_read is not None:
        freeze_unread(encoder, levels_read)
    return Model(
        rgb_input=_build_input(experiment.data, model.rgb_modalities),
        aux_input=_build_input(experiment.data, _aux_modalities(model)),
        encoder=encoder,
        neck=neck,
        head=head,
    )


def load_pretrained(detector: Model, experiment: Experiment) -> LoadedWeights | None:
    """Load the pretrained weights that the experiment names into the detector's encoder; None if it names none.

    Raises:
        ConfigError: the file cannot be read, or does not fit the backbone.
    """
    backbone = experiment.model.backbone
    if backbone.pretrained.path is None:
        return None
    match backbone:
        case MiTConfig():
            namings: tuple[Naming, ...] = MIT_NAMINGS
        case TimmConfig(name=name):
            stages = [stage for stage in detector.encoder.rgb_stages if isinstance(stage, TimmStage)]
            namings = (
                timm_naming([tuple(stage.layers) for stage in stages], licence=timm_licence(name)),
                efficientnet_naming(detector.encoder.rgb_stages.state_dict()),
            )
        case RVTConfig():
            raise AssertionError("its config names no weights")
        case unreachable:
            assert_never(unreachable)
    return load_weights(
        detector.encoder,
        read_weights(backbone.pretrained.path),
        namings=namings,
        strict=backbone.pretrained.strict,
        label=backbone.label,
    )


def describe_parameters(experiment: Experiment) -> dict[str, int]:
    """`parameter_counts` of an experiment's detector, without allocating its weights."""
    with torch.device("meta"):
        return parameter_counts(build_model(experiment))


def parameter_counts(detector: nn.Module) -> dict[str, int]:
    """Number of parameters: `total`, then of each part; the parts sum to the total."""
    counts: Counter[str] = Counter()
    for name, parameter in detector.named_parameters():
        counts[_part_of(name)] += parameter.numel()
    return {"total": counts.total(), **counts}


def _part_of(parameter_name: str) -> str:
    match parameter_name.split("."):
        case ["encoder", "rgb_stages" | "aux_stages" as stages, _, "stage", child, *_] | [
            "encoder",
            "rgb_stages" | "aux_stages" as stages,
            _,
            child,
            *_,
        ]:
            # The names in model_info.json; `layers` are timm's.
            parts = {"patch_embed": "patch_embeds", "norm": "norms", "layers": "trunk"}
            return f"{parts.get(child, child)}_{stages[:3]}"
        case ["encoder", "fusions", *_]:
            return "fusion"
        case ["neck", *_]:
            return "fpn"
        case ["head", part, *_]:
            return part
        case _:
            raise AssertionError(f"parameter {parameter_name} belongs to no part")


def _build_encoder(model: ModelConfig, data: DataConfig) -> DualStreamEncoder:
    if not model.rgb_modalities:
        raise ConfigError("model.rgb_modalities must name at least one modality, got none")
    sizes: StageSizes
    make_stages: Callable[..., nn.ModuleList]
    init: Init = "fusions"  # timm's and RVT's initial weights are kept
    match model.backbone:
        case MiTConfig(variant=variant, drop_path_rate=rate):
            sizes = MIT_VARIANTS[variant]
            make_stages = partial(mit_stages, variant=sizes, drop_path_rate=rate)
            init = model.backbone.init
        case TimmConfig(name=name, drop_path_rate=rate) as timm:
            sizes = timm_sizes(name, drop_path_rate=rate, output_stride=timm.output_stride)
            make_stages = partial(
                timm_stages,
                name=name,
                drop_path_rate=rate,
                output_stride=timm.output_stride,
                frozen_stages=timm.frozen_stages,
                frozen_norms=timm.frozen_norms,
            )
        case RVTConfig(variant=variant, patch=patch) as rvt:
            sizes = rvt_sizes(variant, patch=patch)
            make_stages = partial(rvt_stages, variant=sizes, partition_px=rvt.partition_px, memory=rvt.memory)
        case unreachable:
            assert_never(unreachable)
    rgb_channels, aux_channels = (
        sum(data.channels[name] for name in modalities)
        for modalities in (model.rgb_modalities, _aux_modalities(model))
    )
    # The order matters: all draw from one random generator.
    fusions = [_build_fusion(model, sizes, stage) for stage in (1, 2, 3, 4)]
    return DualStreamEncoder(
        rgb_stages=make_stages(in_channels=rgb_channels, num_stages=4),
        aux_stages=make_stages(in_channels=aux_channels, num_stages=num_aux_stages(fusions)),
        fusions=fusions,
        strides=sizes.strides,
        init=init,
    )


def _build_fusion(model: ModelConfig, sizes: StageSizes, stage: int) -> Fusion:
    """The fusion of stage 1..4."""
    channels, num_heads = sizes.channels[stage - 1], sizes.num_heads[stage - 1]
    flow = model.flow
    match model.fusion_at(stage):
        case AddFusion():
            return Add(flow=flow)
        case ConcatFusion():
            return Concat(channels=channels, flow=flow)
        case LateConcatFusion():
            return LateConcat()
        case CMXFusion():
            return CMX(channels=channels, num_heads=num_heads, flow=flow)
        case GAFFFusion() as gaff:
            return _build_gaff(gaff, stage, channels=channels, flow=flow)
        case CSSAFusion() as cssa:
            return CSSA(
                channels=channels,
                threshold=cssa.threshold,
                kernel_size=cssa.kernel_size,
                straight_through=cssa.straight_through,
                variant=cssa.variant,
                flow=flow,
            )
        case CrossAttentionConfig():
            return CrossAttentionFusion(
                channels=channels, num_heads=num_heads, sr_ratio=sizes.sr_ratios[stage - 1], flow=flow
            )
        case IdentityFusion():
            return Identity()
        case unreachable:
            assert_never(unreachable)


def _build_gaff(config: GAFFFusion, stage: int, *, channels: int, flow: Flow) -> Fusion:
    out_channels = _at_stage(config.out_channels, stage) or channels
    if flow == "fused" and stage < 4 and out_channels != channels:
        raise ConfigError(
            f"model.fusion.out_channels must be {channels} at stage {stage}, got {out_channels}: with model.flow=fused "
            "the fused map enters the next stage of both streams; use model.flow=rectified, or keep that stage's width"
        )
    fusion: Fusion = GAFF(
        channels=channels,
        out_channels=out_channels,
        se_reduction=_at_stage(config.se_reduction, stage),
        inter_shared=config.inter_shared,
        inter_scales=config.inter_scales,
        merge_bottleneck=config.merge_bottleneck,
        merge_weights=config.merge_weights,
        flow=flow,
    )
    if config.gated:
        fusion = Gated(fusion, channels=channels, flow=flow)
    return Guided(fusion, channels=channels, has_choice=config.guide_inter) if config.guide_intra else fusion


def _at_stage(value: PerStage | None, stage: int) -> int | None:
    return value[stage - 1] if isinstance(value, tuple) else value


def modalities_read(model: ModelConfig) -> tuple[Modality, ...]:
    """Modalities that the detector of a config reads, the first stream's first; regardless of `data.missing`."""
    return (*model.rgb_modalities, *_aux_modalities(model))


def _aux_modalities(model: ModelConfig) -> tuple[Modality, ...]:
    """Modalities of the second stream; none if no stage fuses."""
    if all(isinstance(model.fusion_at(stage), IdentityFusion) for stage in (1, 2, 3, 4)):
        return ()
    if not model.aux_modalities:
        raise ConfigError(
            "model.aux_modalities is empty, but a stage fuses two streams; name a modality, or use "
            'model.fusion={"kind": "identity"} and model.elsewhere={"kind": "identity"}'
        )
    return model.aux_modalities


def _build_input(data: DataConfig, modalities: Sequence[Modality]) -> InputStream:
    configs = {"rgb": data.rgb, "thermal": data.thermal, "event": data.event}
    normalization: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for name in modalities:
        channels, mean, std = data.channels[name], configs[name].mean, configs[name].std
        if not {len(mean), len(std)} <= {1, channels}:
            raise ConfigError(
                f"data.{name} must have {channels} mean(s) and std(s), one per channel, or one for all, got "
                f"{len(mean)} and {len(std)}"
            )
        normalization[name] = mean * (channels // len(mean)), std * (channels // len(std))
    return InputStream(normalization, missing=data.missing)
