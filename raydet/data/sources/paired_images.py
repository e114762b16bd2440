"""Annotated pictures with a file per modality: what all formats of this kind have in common once they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raydet.data.sources.bad_samples import LeftOut, Sieve
from raydet.data.sources.base import Targets
from raydet.data.sources.boxes import Box, target_tensors
from raydet.data.sources.images import ThermalRange, decode
from raydet.errors import DataError
from raydet.structures import Sample


@dataclass(frozen=True, slots=True)
class Picture:
    """One entry of the set; its pixels are in its files."""

    image_id: str
    group_id: str
    files: Mapping[str, Path]
    """By modality."""
    size_hw: tuple[int, int]
    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


class PictureSet:
    """A `Source` over pictures that have been checked.

    Args:
        where: the set, for messages.
        modalities: in the order rgb, thermal, event.
        thermal_range: see `raydet.data.sources.images`.
        sieve: with the pictures that were left out.

    Raises:
        DataError: no picture is left.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        *,
        where: Path,
        classes: Sequence[str],
        modalities: Sequence[str],
        thermal_range: ThermalRange | None,
        sieve: Sieve,
    ) -> None:
        self.classes = tuple(classes)
        self.modalities = tuple(modalities)
        self.left_out: list[LeftOut] = sieve.left_out
        check_some_left(len(pictures), where, sieve)
        self._pictures = list(pictures)
        self._thermal_range = thermal_range
        self.image_ids = [picture.image_id for picture in pictures]
        self.group_ids = [picture.group_id for picture in pictures]

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> Sample:
        """One picture, decoded: uint8; thermal of more than 8 bits is float32 in 0..1.

        Raises:
            DataError: a file is damaged.
        """
        picture = self._pictures[index]
        boxes_xyxy, labels, size_hw = self.targets(index)
        pixels = {
            name: decode(path, name, thermal_range=self._thermal_range)
            for name, path in picture.files.items()
        }
        for name, tensor in pixels.items():
            if tuple(tensor.shape[1:]) != size_hw:
                raise DataError(
                    f"{picture.files[name]}: wanted {size_hw[1]} x {size_hw[0]} pixels, as at the start, got "
                    f"{tensor.shape[2]} x {tensor.shape[1]}; the file has changed, start again"
                )
        return Sample(
            image_id=picture.image_id,
            group_id=picture.group_id,
            modalities=pixels,
            boxes_xyxy=boxes_xyxy,
            labels=labels,
            source_hw=size_hw,
            valid_hw=size_hw,
        )

    def targets(self, index: int) -> Targets:
        """The boxes alone; no pixel is read."""
        picture = self._pictures[index]
        return *target_tensors(picture.boxes, picture.labels), picture.size_hw


def check_some_left(count: int, where: Path, sieve: Sieve) -> None:
    """Refuse a set of which nothing is left.

    Raises:
        DataError: `count` is 0.
    """
    if count:
        return
    if sieve.left_out:
        raise DataError(
            f"{where}: wanted good pictures, all {len(sieve.left_out)} were left out, the first because: "
            f"{sieve.left_out[0].reason}"
        )
    raise DataError(f"{where}: wanted pictures, found none; check the path")
