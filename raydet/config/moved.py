"""Config paths that have moved: old files are read, and old paths given by hand are answered with the new one."""

from __future__ import annotations

import json
import logging

LAST_OF_OLDER_CONFIGS = "ac6f741"
"""The last commit of raydet with the old paths."""
MOVED = {"evaluate": "task"}
"""Sections by their old path."""

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
