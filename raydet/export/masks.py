"""Predicted masks as PNG files: indices with a palette, so that a viewer shows colours and a program reads ids.

Legend: L levels with that of the classes, H W image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from raydet.errors import ConfigError
from raydet.ops.colours import as_colours, class_colours, painted
from raydet.structures import IGNORE, Sample


class MaskFiles:
    """Writes the masks of images below a directory: `masks/` for the classes, `masks_<level>/` for every level of a
    class tree, under the images' ids.

    Args:
        colours: RGB of each class, 0..255.
        levels: names of the levels above the classes.

    Raises:
        ConfigError: two images would have the same file.
    """

    def __init__(
        self,
        directory: Path,
        *,
        image_ids: Sequence[str],
        colours: Sequence[tuple[int, int, int]],
        levels: Sequence[str],
    ) -> None:
        self.names = {image_id: _file_name(image_id) for image_id in image_ids}
        if len(set(self.names.values())) < len(self.names):
            raise ConfigError(
                "the ids of two images differ in characters only that file names cannot have; rename one"
            )
        self.colours = colours
        self.directories = [directory / name for name in ("masks", *(f"masks_{level}" for level in levels))]

    def write(self, image_id: str, ids_LHW: Tensor) -> None:
        """Write an image's masks; ids are labels, 255 is no class.

        Args:
            ids_LHW: int16, see `raydet.ops.class_tree.decode`.
        """
        for level, (directory, ids_HW) in enumerate(zip(self.directories, ids_LHW, strict=True)):
            path = directory / self.names[image_id]
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(ids_HW.numpy().astype(np.uint8), mode="P")
            colours = self.colours if level == 0 else class_colours(IGNORE)
            image.putpalette([value for colour in colours for value in colour])
            image.save(path)


def overlay(sample: Sample, ids_HW: Tensor, colours: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Every modality of an image, half covered by the predicted mask's colours, side by side."""
    mask_HW3 = painted(ids_HW, colours).astype(np.uint16)
    parts = [(as_colours(x_CHW).astype(np.uint16) + mask_HW3) // 2 for x_CHW in sample.modalities.values()]
    return Image.fromarray(np.concatenate(parts, axis=1).astype(np.uint8))


def _file_name(image_id: str) -> str:
    """A path below a directory: its parts have letters, digits, `_`, `-` and dots, and do not begin with a dot.

    >>> _file_name("set/../a b.jpg")
    'set/_./a_b.jpg.png'
    """
    parts = [re.sub(r"^\.|[^\w.-]", "_", part) or "_" for part in image_id.split("/")]
    return "/".join(parts) + ".png"
