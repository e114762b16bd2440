"""`fusion_methods` on masks: every fusion at all four stages, each sensor alone, and each twice, by mIoU."""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.spaces import require_masks
from raydet.tune.study import Study
from tune_spaces import fusion_methods


def study(base: Experiment) -> Study:
    """The study `fusion_methods` of a base whose task is segmentation."""
    require_masks(base, "seg_fusion")
    return fusion_methods.study(base).model_copy(update={"name": "seg_fusion"})
