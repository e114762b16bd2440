"""From an experiment to its detector: the only place where models and configs meet.

Nothing here seeds: whoever calls `build_detector` seeds torch first, and then gets the same weights everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Protocol, assert_never

import torch
from torch import nn

from raydet.config import (
    MODALITY_CHANNELS,
    AddFusion,
    Backbone,
    CMXFusion,
    ConcatFusion,
    CSSAFusion,
    DataConfig,
    Experiment,
    FasterRCNNConfig,
    Flow,
    FPNConfig,
    GAFFFusion,
    IdentityFusion,
    LateConcatFusion,
    MiTConfig,
    Modality,
    ModelConfig,
    PerStage,
    TimmConfig,
)
from raydet.config import CrossAttentionFusion as CrossAttentionConfig
from raydet.errors import ConfigError
from raydet.models.backbones.dual import DualStreamEncoder, Init, num_aux_stages
from raydet.models.backbones.mit import MIT_VARIANTS, mit_stages
from raydet.models.backbones.stage import StageSizes
from raydet.models.backbones.timm import TimmStage, timm_licence, timm_sizes, timm_stages
from raydet.models.detector import Detector, InputStream
from raydet.models.fusion.add import Add
from raydet.models.fusion.base import Fusion
from raydet.models.fusion.cmx import CMX
from raydet.models.fusion.concat import Concat
from raydet.models.fusion.cross_attention import CrossAttentionFusion
from raydet.models.fusion.cssa import CSSA
from raydet.models.fusion.gaff import GAFF
from raydet.models.fusion.gated import Gated
from raydet.models.fusion.guided import Guided
from raydet.models.fusion.identity import Identity
from raydet.models.fusion.late_concat import LateConcat
from raydet.models.heads.box import BoxHeads
from raydet.models.heads.faster_rcnn import FasterRCNN
from raydet.models.heads.rpn import RegionProposals
from raydet.models.necks.fpn import FPN, LEVELS
from raydet.models.pretrained.files import read_weights
from raydet.models.pretrained.load import LoadedWeights, load_weights
from raydet.models.pretrained.names import MIT_NAMINGS, Naming, timm_naming


def build_detector(experiment: Experiment) -> Detector:
    """The detector with its initial weights, on the CPU (or under `torch.device("meta")`, without any).

    Raises:
        ConfigError: the modalities do not fit the fusions or their normalisation; timm has no such backbone, or none
            that can be cut into stages.
    """
    model = experiment.model
    encoder = _build_encoder(model)
    neck = _build_neck(model.neck, encoder)
    head = _build_head(model.head, neck, experiment.num_classes)
    return Detector(
        rgb_input=_build_input(experiment.data, model.rgb_modalities),
        aux_input=_build_input(experiment.data, _aux_modalities(model)),
        encoder=encoder,
        neck=neck,
        head=head,
    )


def load_pretrained(detector: Detector, experiment: Experiment) -> LoadedWeights | None:
    """Set the detector's encoder to the published weights that the experiment names; None where it names none.

    Raises:
        ConfigError: the file cannot be had, or does not fit the backbone.
    """
    backbone = experiment.model.backbone
    if backbone.pretrained.path is None:
        return None
    return load_weights(
        detector.encoder,
        read_weights(backbone.pretrained.path),
        namings=_namings(backbone, detector),
        strict=backbone.pretrained.strict,
        label=backbone.label,
    )


def _namings(backbone: Backbone, detector: Detector) -> tuple[Naming, ...]:
    match backbone:
        case MiTConfig():
            return MIT_NAMINGS
        case TimmConfig(name=name):
            stages = [stage for stage in detector.encoder.rgb_stages if isinstance(stage, TimmStage)]
            layers = [tuple(stage.layers) for stage in stages]
            return (timm_naming(layers, licence=timm_licence(name)),)
        case unreachable:
            assert_never(unreachable)


def describe_parameters(experiment: Experiment) -> dict[str, int]:
    """`parameter_counts` of an experiment's detector, without allocating its weights."""
    with torch.device("meta"):
        return parameter_counts(build_detector(experiment))


def parameter_counts(detector: nn.Module) -> dict[str, int]:
    """Number of parameters: `total`, then each part; the parts sum to the total."""
    counts: Counter[str] = Counter()
    for name, parameter in detector.named_parameters():
        counts[_part_of(name)] += parameter.numel()
    return {"total": counts.total(), **counts}


def _part_of(parameter_name: str) -> str:
    match parameter_name.split("."):
        case ["encoder", "rgb_stages" | "aux_stages" as stages, _, "patch_embed", *_]:
            return f"patch_embeds_{stages[:3]}"
        case ["encoder", "rgb_stages" | "aux_stages" as stages, _, "blocks", *_]:
            return f"blocks_{stages[:3]}"
        case ["encoder", "rgb_stages" | "aux_stages" as stages, _, "norm", *_]:
            return f"norms_{stages[:3]}"
        case ["encoder", "rgb_stages" | "aux_stages" as stages, _, "layers", *_]:
            return f"trunk_{stages[:3]}"
        case ["encoder", "fusions", *_]:
            return "fusion"
        case ["neck", *_]:
            return "fpn"
        case ["head", part, *_]:
            return part
        case _:
            raise AssertionError(f"parameter {parameter_name} belongs to no part")


def _build_encoder(model: ModelConfig) -> DualStreamEncoder:
    if not model.rgb_modalities:
        raise ConfigError("model.rgb_modalities wants at least one modality, got none")
    match model.backbone:
        case MiTConfig(variant=name, drop_path_rate=rate, init=init):
            variant = MIT_VARIANTS[name]
            return _dual(model, variant, partial(mit_stages, variant=variant, drop_path_rate=rate), init)
        case TimmConfig(name=name, drop_path_rate=rate):
            sizes = timm_sizes(name, drop_path_rate=rate)
            # The trunk as its authors start it, the fusions as elsewhere.
            return _dual(model, sizes, partial(timm_stages, name=name, drop_path_rate=rate), "fusions")
        case unreachable:
            assert_never(unreachable)


class _MakeStages(Protocol):
    """The first stages of one stream."""

    def __call__(self, *, in_channels: int, num_stages: int) -> nn.ModuleList: ...


def _dual(model: ModelConfig, sizes: StageSizes, make_stages: _MakeStages, init: Init) -> DualStreamEncoder:
    rgb_channels, aux_channels = (
        sum(MODALITY_CHANNELS[name] for name in modalities)
        for modalities in (model.rgb_modalities, _aux_modalities(model))
    )
    # The order matters: all of them draw from one generator.
    fusions = [_build_fusion(model, sizes, stage) for stage in (1, 2, 3, 4)]
    return DualStreamEncoder(
        rgb_stages=make_stages(in_channels=rgb_channels, num_stages=4),
        aux_stages=make_stages(in_channels=aux_channels, num_stages=num_aux_stages(fusions)),
        fusions=fusions,
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
            f"model.fusion.out_channels wants {channels} at stage {stage}, got {out_channels}: under model.flow=fused "
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
    """What the detector of a config reads, the first stream's first; `data.missing` is not looked at."""
    return (*model.rgb_modalities, *_aux_modalities(model))


def _aux_modalities(model: ModelConfig) -> tuple[Modality, ...]:
    """What the second stream reads: nothing, where no stage fuses."""
    if all(isinstance(model.fusion_at(stage), IdentityFusion) for stage in (1, 2, 3, 4)):
        return ()
    if not model.aux_modalities:
        raise ConfigError(
            "model.aux_modalities is empty, but a stage fuses two streams; name a modality, or use "
            'model.fusion={"kind": "identity"} and model.elsewhere={"kind": "identity"}'
        )
    return model.aux_modalities


def _build_neck(config: FPNConfig, encoder: DualStreamEncoder) -> FPN:
    match config:
        case FPNConfig(channels=channels):
            return FPN(in_channels=encoder.channels, channels=channels)
        case unreachable:
            assert_never(unreachable)


def _build_head(config: FasterRCNNConfig, neck: FPN, num_classes: int) -> FasterRCNN:
    match config:
        case FasterRCNNConfig():
            rpn = RegionProposals(
                channels=neck.channels,
                anchor_sizes=config.anchor_sizes,
                aspect_ratios=config.aspect_ratios,
                pre_nms_top_n=config.rpn_pre_nms_top_n,
                post_nms_top_n=config.rpn_post_nms_top_n,
                batch_size_per_image=config.rpn_batch_size_per_image,
            )
            roi_heads = BoxHeads(
                channels=neck.channels,
                num_classes=num_classes,
                hidden=config.box_hidden,
                batch_size_per_image=config.box_batch_size_per_image,
                num_levels=len(LEVELS) if config.pool_level_rois else len(LEVELS) - 1,
                score_threshold=config.score_threshold,
                nms_threshold=config.nms_threshold,
                max_detections=config.max_detections,
            )
            return FasterRCNN(rpn=rpn, roi_heads=roi_heads)
        case unreachable:
            assert_never(unreachable)


def _build_input(data: DataConfig, modalities: Sequence[Modality]) -> InputStream:
    configs = {"rgb": data.rgb, "thermal": data.thermal, "event": data.event}
    for name in modalities:
        wanted, num_means, num_stds = MODALITY_CHANNELS[name], len(configs[name].mean), len(configs[name].std)
        if num_means != wanted or num_stds != wanted:
            raise ConfigError(
                f"data.{name} wants {wanted} mean(s) and std(s), one per channel, got {num_means} and {num_stds}"
            )
    return InputStream(
        {name: (configs[name].mean, configs[name].std) for name in modalities}, missing=data.missing
    )
