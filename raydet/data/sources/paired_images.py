"""Base of all formats with one image file per modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from raydet.data.sources.bad_samples import BadSamples, LeftOut
from raydet.data.sources.base import Targets
from raydet.data.sources.boxes import Box, Ignored, box_target
from raydet.data.sources.images import ThermalRange, decode
from raydet.errors import DataError
from raydet.structures import Sample


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the set; its pixels stay in the files."""

    image_id: str
    group_id: str
    files: Mapping[str, Path]
    """By modality."""
    size_hw: tuple[int, int]
    boxes: Sequence[Box] = ()
    labels: Sequence[int] = ()
    ignored: Sequence[Ignored] = ()
    mask: Path | None = None


class PairedImages:
    """A `Source` over images that have been checked.

    Args:
        where: the set, for messages.
        modalities: in the order rgb, thermal, event.
        thermal_range: see `raydet.data.sources.images`.
        bad_samples: the images that were left out.
        notes: how the set was understood where that is not plain, as sentences for its user.

    Raises:
        DataError: no image is left.
    """

    def __init__(
        self,
        images: Sequence[Image],
        *,
        where: Path,
        classes: Sequence[str],
        modalities: Sequence[str],
        thermal_range: ThermalRange | None,
        bad_samples: BadSamples,
        notes: Sequence[str] = (),
    ) -> None:
        self.classes = tuple(classes)
        self.modalities = tuple(modalities)
        self.left_out: list[LeftOut] = bad_samples.left_out
        self.ignored = Counter(each.rule for image in images for each in image.ignored)
        """Number of objects that are left out, by rule."""
        self.notes = tuple(notes)
        check_some_left(len(images), where, bad_samples)
        self._images = list(images)
        self._thermal_range = thermal_range
        self.image_ids = [image.image_id for image in images]
        self.group_ids = [image.group_id for image in images]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Sample:
        """One decoded image: uint8; thermal of more than 8 bits is float32 in 0..1.

        Raises:
            DataError: a file is damaged.
        """
        image = self._images[index]
        target, size_hw = self.targets(index)
        pixels = self.pixels(image)
        for name, tensor in pixels.items():
            if tuple(tensor.shape[1:]) != size_hw:
                raise DataError(
                    f"{image.files[name]}: expected {size_hw[1]} x {size_hw[0]} pixels as at the start, got "
                    f"{tensor.shape[2]} x {tensor.shape[1]}; the file has changed, start again"
                )
        return Sample(
            image_id=image.image_id,
            group_id=image.group_id,
            modalities=pixels,
            target=target,
            source_hw=size_hw,
            valid_hw=size_hw,
        )

    def pixels(self, image: Image) -> dict[str, Tensor]:
        """The decoded files of an image, by modality."""
        return {
            name: decode(path, name, thermal_range=self._thermal_range) for name, path in image.files.items()
        }

    def targets(self, index: int) -> Targets:
        image = self._images[index]
        return box_target(image.boxes, image.labels, image.ignored), image.size_hw


def check_some_left(count: int, where: Path, bad_samples: BadSamples) -> None:
    """Refuse a set without good images.

    Raises:
        DataError: `count` is 0.
    """
    if count:
        return
    if bad_samples.left_out:
        raise DataError(
            f"{where}: no good image, all {len(bad_samples.left_out)} were left out, the first because: "
            f"{bad_samples.left_out[0].reason}"
        )
    raise DataError(f"{where}: expected images, found none; check the path")
