"""What the metadata of an image say of its pixels holds in every format with a file per modality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydet.data.build import left_out_of
from raydet.data.sources.base import Source
from raydet.data.synthetic import SyntheticSet
from raydet.errors import DataError
from tests.contract.formats import FILE_FORMATS, Format
from tests.image_bytes import exif, tiff

CLASSES = ("circle", "square", "triangle")
IMAGE_FORMATS = [format_ for format_ in FILE_FORMATS if format_.name != "npy_yolo"]
STORED = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright image lies in a file whose orientation tag has that value."""

each_format = pytest.mark.parametrize("format_", IMAGE_FORMATS, ids=lambda f: f.name)


def scenes(format_: Format) -> SyntheticSet:
    missing = () if format_.has_event else ("event",)
    return SyntheticSet(
        num_sequences=2, frames_per_sequence=2, size_hw=(60, 80), classes=CLASSES, seed=1, missing=missing
    )


def image_files(path: Path) -> list[Path]:
    root = path if path.is_dir() else path.parent
    return sorted(file for file in root.rglob("*") if file.suffix in (".png", ".jpg", ".jpeg"))


def turn(path: Path, orientation: int, container: str) -> None:
    """Store an image as a camera that was held another way does."""
    with Image.open(path) as image:
        pixels = image.transpose(STORED[orientation])
    pixels.save(path, format=container, exif=exif(orientation))


def assert_same_pixels(found: Source, expected: Source) -> None:
    assert left_out_of(found) == []
    assert len(found) == len(expected)
    for index in range(len(expected)):
        a, b = expected.read(index), found.read(index)
        assert b.source_hw == a.source_hw
        for name in a.modalities:
            assert torch.equal(b.modalities[name], a.modalities[name]), (index, name)


@each_format
@pytest.mark.parametrize(("orientation", "container"), [(6, "PNG"), (8, "TIFF"), (3, "PNG")])
def test_turned_images_are_read_upright(
    format_: Format, orientation: int, container: str, tmp_path: Path
) -> None:
    path = format_.write(scenes(format_), tmp_path)
    for number, file in enumerate(image_files(path)):
        if number % 3:
            turn(file, orientation, container)
    assert_same_pixels(format_.open(path, CLASSES, ()), scenes(format_))


@each_format
@pytest.mark.parametrize("bits", [10, 14, 16])
def test_colours_of_more_than_8_bits_are_refused(format_: Format, bits: int, tmp_path: Path) -> None:
    """In each modality, whatever part of the 16 bits the values use."""
    path = format_.write(scenes(format_), tmp_path)
    for file in image_files(path):
        before = file.read_bytes()
        with Image.open(file) as image:
            shape = (image.height, image.width, 3)
        values = np.arange(np.prod(shape)).reshape(shape) % 2**bits
        file.write_bytes(tiff(values.astype(np.uint16), photometric=2))
        with pytest.raises(DataError, match=rf"{file.name}.*expected (8 bits per channel|one channel)"):
            format_.open(path, CLASSES, ())
        file.write_bytes(before)
