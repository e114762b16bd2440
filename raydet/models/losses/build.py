"""Building the loss of a head for masks."""

from __future__ import annotations

from collections.abc import Sequence

from raydet.config.losses import CrossEntropyLoss, HierarchicalLoss, MaskLoss, RMIConfig, TripletConfig
from raydet.config.task import Level
from raydet.models.losses.base import PixelLoss
from raydet.models.losses.cross_entropy import CrossEntropy
from raydet.models.losses.hierarchical import Hierarchical
from raydet.models.losses.rmi import RMI
from raydet.models.losses.triplet import TreeTriplet


def build_loss(config: MaskLoss, *, num_classes: int, levels: Sequence[Level]) -> PixelLoss:
    """The loss that the config describes.

    Args:
        levels: the class tree, from the level above the classes to the roots; a hierarchical loss needs one level at
            least (`Experiment` checks it).
    """
    match config:
        case CrossEntropyLoss(focal_gamma=gamma):
            return CrossEntropy(num_classes=num_classes, focal_gamma=gamma)
        case HierarchicalLoss():
            return Hierarchical(
                num_classes=num_classes,
                levels=levels[: config.depth],
                weight=config.weight,
                form=config.form,
                focal_gamma=config.focal_gamma,
                rmi=_rmi(config.rmi),
                triplet=_triplet(config.triplet, levels[0]),
            )


def _rmi(config: RMIConfig | None) -> RMI | None:
    return RMI(weight=config.weight, form=config.form) if config is not None and config.weight else None


def _triplet(config: TripletConfig | None, level: Level) -> TreeTriplet | None:
    if config is None or not config.weight:
        return None
    return TreeTriplet(
        groups=level.parents,
        margin=config.margin,
        most=config.most,
        weight=config.weight,
        warmup_fraction=config.warmup_fraction,
    )
