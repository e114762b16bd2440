"""Building the head of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, assert_never

from raydet.config import (
    ASPPConfig,
    CrossEntropyLoss,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    Experiment,
    ExtremelyFastSegFormerConfig,
    FasterRCNNConfig,
    FCNConfig,
    HierarchicalLoss,
    Level,
    SegFormerConfig,
    SegmentationTask,
    UltraFastSegFormerConfig,
    YOLOXConfig,
)
from raydet.config.model import MaskHeads
from raydet.models.heads.base import Head
from raydet.models.heads.box import BoxHeads
from raydet.models.heads.faster_rcnn import FasterRCNN
from raydet.models.heads.masks.aspp import ASPP
from raydet.models.heads.masks.base import LAST, THIRD, Auxiliary, Decoder, Projection, SegmentationHead
from raydet.models.heads.masks.deeplabv3 import DeepLabV3
from raydet.models.heads.masks.deeplabv3_plus import DeepLabV3Plus
from raydet.models.heads.masks.extremely_fast_segformer import ExtremelyFastSegFormer
from raydet.models.heads.masks.fcn import FCN
from raydet.models.heads.masks.segformer import SegFormer
from raydet.models.heads.masks.ultrafast_segformer import UltraFastSegFormer
from raydet.models.heads.rpn import RegionProposals
from raydet.models.heads.yolox import YOLOX
from raydet.models.losses.build import build_loss
from raydet.models.necks.fpn import LEVELS


def build_head(experiment: Experiment, channels: Sequence[int]) -> Head:
    """The head that the config describes.

    Args:
        channels: of each level of the neck's pyramid, the finest first.
    """
    match experiment.model.head:
        case FasterRCNNConfig() as config:
            return _faster_rcnn(config, channels[0], experiment.num_classes)
        case YOLOXConfig() as config:
            return _yolox(config, channels, experiment.num_classes)
        case config:
            levels = experiment.task.levels if isinstance(experiment.task, SegmentationTask) else ()
            return _segmentation_head(config, channels, experiment.num_classes, levels)


def _faster_rcnn(config: FasterRCNNConfig, channels: int, num_classes: int) -> FasterRCNN:
    rpn = RegionProposals(
        channels=channels,
        anchor_sizes=config.anchor_sizes,
        aspect_ratios=config.aspect_ratios,
        pre_nms_top_n=config.rpn_pre_nms_top_n,
        post_nms_top_n=config.rpn_post_nms_top_n,
        batch_size_per_image=config.rpn_batch_size_per_image,
    )
    roi_heads = BoxHeads(
        channels=channels,
        num_classes=num_classes,
        hidden=config.box_hidden,
        batch_size_per_image=config.box_batch_size_per_image,
        num_levels=len(LEVELS) if config.pool_level_rois else len(LEVELS) - 1,
        score_threshold=config.score_threshold,
        nms_threshold=config.nms_threshold,
        max_detections=config.max_detections,
    )
    return FasterRCNN(rpn=rpn, roi_heads=roi_heads)


def _yolox(config: YOLOXConfig, channels: Sequence[int], num_classes: int) -> YOLOX:
    return YOLOX(
        channels=channels,
        hidden=config.hidden or channels[-1] // 4,
        num_classes=num_classes,
        size_aware=config.size_aware,
        size_factor=config.size_factor,
        score=config.score,
        score_threshold=config.score_threshold,
        nms_threshold=config.nms_threshold,
        max_detections=config.max_detections,
    )


def _segmentation_head(
    config: MaskHeads, channels: Sequence[int], num_classes: int, levels: Sequence[Level]
) -> SegmentationHead:
    loss = build_loss(config.loss, num_classes=num_classes, levels=levels)
    # The order matters: all draw from one random generator.
    decoder = _decoder(config, channels, loss.num_outputs)
    projection = None if config.projection is None else Projection(channels[LAST], config.projection)
    auxiliary = None
    if config.auxiliary_weight:
        of_classes = build_loss(CrossEntropyLoss(), num_classes=num_classes, levels=())
        auxiliary = Auxiliary(channels[THIRD], loss=of_classes, weight=config.auxiliary_weight)
    triplet = config.loss.triplet if isinstance(config.loss, HierarchicalLoss) else None
    return SegmentationHead(
        decoder=decoder,
        loss=loss,
        projection=projection,
        trains_projection=triplet is not None and triplet.weight > 0,
        auxiliary=auxiliary,
    )


class _Sizes(TypedDict):
    """What all decoders take."""

    in_channels: Sequence[int]
    num_outputs: int
    dropout: float


def _decoder(config: MaskHeads, channels: Sequence[int], num_outputs: int) -> Decoder:
    sizes = _Sizes(in_channels=channels, num_outputs=num_outputs, dropout=config.dropout)
    match config:
        case ASPPConfig():
            return ASPP(
                **sizes,
                channels=config.channels,
                low_channels=config.low_channels,
                dilations=config.dilations,
            )
        case SegFormerConfig():
            return SegFormer(**sizes, channels=config.channels)
        case UltraFastSegFormerConfig():
            return UltraFastSegFormer(**sizes, channels=config.channels)
        case ExtremelyFastSegFormerConfig():
            return ExtremelyFastSegFormer(**sizes, channels=config.channels)
        case DeepLabV3Config():
            return DeepLabV3(**sizes, channels=config.channels, dilations=config.dilations)
        case DeepLabV3PlusConfig():
            return DeepLabV3Plus(
                **sizes,
                channels=config.channels,
                low_channels=config.low_channels,
                dilations=config.dilations,
            )
        case FCNConfig():
            return FCN(**sizes)
        case unreachable:
            assert_never(unreachable)
