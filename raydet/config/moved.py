"""Configs of older versions: their files are read, their paths given by hand are answered with the new ones, and a
config that they could have written keeps its fingerprint, so that runs and studies outlive an update."""

from __future__ import annotations

import json
import logging
from typing import Any

MOVED = {"evaluate": "task"}
"""Sections by their old path."""
_NEW_OF_DATA = {"event_channels": 1}
_NEW_OF_OPTIM = {"clip_value": None}
_NEW_OF_AUGMENTATION = {"native_crop": None, "rotation_degrees": 0.0}
_NEW_OF_RGB = {"blur": 0.0, "blur_sigma_px": [0.1, 2.0]}
_NEW_OF_TIMM = {"frozen_stages": 0, "frozen_norms": False, "output_stride": 32}
"""Later fields with their defaults."""

logger = logging.getLogger("raydet")


def current_path(path: str) -> str:
    """The path that a config path has now; a warning if it has moved."""
    for old, new in MOVED.items():
        if path == old or path.startswith(f"{old}."):
            moved = new + path.removeprefix(old)
            logger.warning("the config path %s is now %s", path, moved)
            return moved
    return path


def migrated(text: str) -> str:
    """The JSON of an experiment that an older raydet may have written, as it would be written now."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError:
        return text  # the validation says what is wrong
    if not isinstance(tree, dict) or "evaluate" not in tree or "task" in tree:
        return text
    tree["task"] = {"kind": "detection", **tree.pop("evaluate")}
    return json.dumps(tree)


def as_first_written(tree: dict[str, Any]) -> dict[str, Any]:
    """The JSON of an experiment as the oldest version that knew all of it would have written it: what fingerprints are
    made of. New fields are left out where they have their defaults."""
    tree = tree | {name: dict(tree[name]) for name in ("data", "model", "train")}
    tree["data"] = _without(tree["data"], _NEW_OF_DATA)
    tree["optim"] = _without(tree["optim"], _NEW_OF_OPTIM)
    tree["model"]["backbone"] = _without(tree["model"]["backbone"], _NEW_OF_TIMM)
    augmentation = _without(tree["data"]["augmentation"], _NEW_OF_AUGMENTATION)
    photometric = augmentation["photometric"]
    photometric = photometric | {"rgb": _without(photometric["rgb"], _NEW_OF_RGB)}
    tree["data"]["augmentation"] = augmentation | {"photometric": photometric}
    tree["data"]["source"] = source_as_first_written(tree["data"]["source"])
    if tree["data"]["sampling"] == {"kind": "frames"}:
        del tree["data"]["sampling"]
    if tree["data"]["split"]["kind"] == "group":
        split = tree["data"]["split"]
        new = ("test_fraction", "calibration_fraction")
        tree["data"]["split"] = {name: value for name, value in split.items() if value or name not in new}
    if tree["train"]["steps_per_epoch"] is None:
        del tree["train"]["steps_per_epoch"]
    later = [name for name in ("anomaly", "event") if tree["task"].get(name, True) is None]
    tree["task"] = {name: value for name, value in tree["task"].items() if name not in later}
    if tree["task"]["kind"] == "detection" and tree["task"]["metric"] is None:
        task = tree.pop("task")
        tree["evaluate"] = {name: value for name, value in task.items() if name not in ("kind", "metric")}
    return tree


def _without(tree: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The fields without the later ones that have their defaults."""
    return {name: value for name, value in tree.items() if name not in new or value != new[name]}


def source_as_first_written(tree: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a data source without the fields that were added later, where they have their defaults."""
    return {
        name: value
        for name, value in tree.items()
        if value is not None or name not in ("follow_links", "classes")
    }
