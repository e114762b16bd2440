"""Classes of the embedded set `tree` (see `raydet.data.tree`), for the recipes that use it."""

from __future__ import annotations

from raydet.config.task import Level

TREE_CLASSES = ("disc_a", "disc_b", "disc_c", "disc_d", "square_a", "square_b", "bar_a", "bar_b", "ground")
TREE_LEVELS = (
    Level(name="bucket", groups=("disc", "square", "bar", "ground"), parents=(0, 0, 0, 0, 1, 1, 2, 2, 3)),
    Level(name="root", groups=("movable", "fixed"), parents=(0, 0, 1, 1)),
)
