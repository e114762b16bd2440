"""Building the head of an experiment."""

from __future__ import annotations

from collections.abc import Sequence

from raydet.config import Experiment, FasterRCNNConfig
from raydet.errors import ConfigError
from raydet.models.heads.base import Head
from raydet.models.heads.box import BoxHeads
from raydet.models.heads.faster_rcnn import FasterRCNN
from raydet.models.heads.rpn import RegionProposals
from raydet.models.necks.fpn import LEVELS


def build_head(experiment: Experiment, channels: Sequence[int]) -> Head:
    """The head that the config describes.

    Args:
        channels: of each level of the neck's pyramid, the finest first.
    """
    match experiment.model.head:
        case FasterRCNNConfig() as config:
            return _faster_rcnn(config, channels[0], experiment.num_classes)
        case config:
            raise ConfigError(f"model.head.kind={config.kind} is not built yet")


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
