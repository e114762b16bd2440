"""Complete runs as functions that return an `Experiment`.

Adding a recipe: write the function, add one line to `RECIPES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from raydet.config import Experiment
from raydet.errors import ConfigError
from raydet.recipes.demo import demo
from raydet.recipes.events import event_demo, rgbte_yolox, rvt
from raydet.recipes.gaff import gaff_as_published
from raydet.recipes.lite0 import small_lite0
from raydet.recipes.rgbte import rgbte
from raydet.recipes.segmentation import (
    seg_demo,
    seg_mit_b0_extremely_fast,
    seg_mit_b5_segformer,
    seg_resnet101_aspp,
    seg_rgbt_mit_b1,
)
from raydet.recipes.streethazards import STREETHAZARDS_MODELS, anomaly_demo, streethazards
from raydet.recipes.tiny import tiny

RECIPES: dict[str, Callable[[], Experiment]] = {
    "demo": demo,
    "tiny": tiny,
    "small_lite0": small_lite0,
    "gaff_as_published": gaff_as_published,
    "rgbte_mit_b0": partial(rgbte, "b0"),
    "rgbte_mit_b1": partial(rgbte, "b1"),
    "rgbte_mit_b2": partial(rgbte, "b2"),
    "rgbte_mit_b3": partial(rgbte, "b3"),
    "rgbte_mit_b4": partial(rgbte, "b4"),
    "rgbte_mit_b5": partial(rgbte, "b5"),
    "seg_demo": seg_demo,
    "seg_rgbt_mit_b1": seg_rgbt_mit_b1,
    "seg_mit_b0_extremely_fast": seg_mit_b0_extremely_fast,
    "seg_mit_b5_segformer": seg_mit_b5_segformer,
    "seg_resnet101_aspp": seg_resnet101_aspp,
    "anomaly_demo": anomaly_demo,
    "event_demo": event_demo,
    "rvt_tiny": partial(rvt, "tiny"),
    "rvt_small": partial(rvt, "small"),
    "rvt_base": partial(rvt, "base"),
    "rvt_base_patch2_4scale": partial(rvt, "base", small_objects=True),
    "rgbte_yolox_mit_b1": rgbte_yolox,
    **{
        f"streethazards_{model}{suffix}": partial(streethazards, model, published=bool(suffix))
        for suffix in ("", "_published")
        for model in STREETHAZARDS_MODELS
    },
}


def recipe(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ConfigError: there is no such recipe; the nearest name is given.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(RECIPES)}"
        raise ConfigError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]()
