"""Read image files: the size from the header, then pixels as uint8 or, for thermal of more than 8 bits, float32.

The format is taken from a file's bytes, not its name. Pillow decodes, because it refuses a truncated JPEG; only formats
that hold nothing but pixels are opened (its PostScript reader starts a program).

**Thermal images of more than 8 bits** hold raw counts (or degrees). They become float32 in 0..1 by one fixed rule for
the whole set, `(value - low) / (high - low)`, clipped, with `thermal_range = (low, high)` from the config. There is no
default: a range taken from each image, as viewers do, would give the same temperature another grey in the next frame.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from raydet.data.sources.files import one_line, open_regular
from raydet.errors import ConfigError, DataError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 8192 * 8192
"""A header may claim any size; larger ones are refused before memory is allocated."""
GREY_SPREAD = 16
"""Largest difference between the channels of a grey image that was stored as a colour JPEG."""
MODALITY_NAMES = ("rgb", "thermal", "event")

ThermalRange = tuple[float, float]
"""The raw values that become 0 and 1."""


@dataclass(frozen=True, slots=True)
class Header:
    size_hw: tuple[int, int]
    is_deep: bool
    """More than 8 bits in its one channel."""


def check_sizes(
    files: Mapping[str, Path],
    where: str,
    *,
    thermal_range: ThermalRange | None,
    declared_hw: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Height and width of an image, which all its modalities share.

    Args:
        files: by modality.
        where: names the image in errors.
        declared_hw: size according to the annotation.

    Raises:
        DataError: a file is not an image, sizes differ, or a bit depth is not supported.
        ConfigError: there are no files.
    """
    if not files:
        raise ConfigError("data.missing names every modality of the set; remove one")
    sizes = {}
    for modality, path in files.items():
        header = read_header(path, where)
        _check_depth(path, modality, header.is_deep, thermal_range)
        sizes[modality] = header.size_hw
    if declared_hw is not None:
        sizes["the annotation"] = declared_hw
    if len(set(sizes.values())) != 1:
        shown = ", ".join(f"{name} {width} x {height}" for name, (height, width) in sizes.items())
        raise DataError(
            f"{where}: expected one size (width x height) in all modalities, got {shown}; align the images"
        )
    return next(iter(sizes.values()))


def check_pixels(height: int, width: int, path: Path) -> None:
    """Refuse an empty image, or one of more than `MAX_PIXELS`.

    Raises:
        DataError: the size is out of range.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"{path}: expected an image of 1 to {MAX_PIXELS} pixels, its header says {width} x {height}; scale it "
            "down, or leave it out"
        )


def read_header(path: Path, where: str) -> Header:
    """Size and bit depth of an image; no pixel is decoded.

    Raises:
        DataError: the file does not exist, is not an image, or claims too many pixels.
    """
    with _opened(path, where) as image:
        return Header((image.height, image.width), is_deep=_is_deep(image))


def decode(path: Path, modality: str, *, thermal_range: ThermalRange | None = None) -> Tensor:
    """The pixels, [C, H, W], 3 channels for rgb, else 1: uint8, or float32 in 0..1 for thermal of more than 8 bits.

    Raises:
        DataError: the file is damaged or truncated, or its channels or bit depth do not fit the modality.
    """
    with _opened(path, str(path)) as image:
        _load(image, path)
        _check_depth(path, modality, _is_deep(image), thermal_range)
        if _is_deep(image):
            assert thermal_range is not None
            return _scaled(image, path, thermal_range)
        if modality == "rgb":
            rgb_CHW = np.array(image.convert("RGB")).transpose(2, 0, 1)
            return torch.from_numpy(np.ascontiguousarray(rgb_CHW))
        return torch.from_numpy(_grey(image, path))


@contextmanager
def _opened(path: Path, where: str) -> Iterator[Image.Image]:
    try:
        file = open_regular(path)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if is_missing else f"cannot be read ({error.strerror or error})"
        raise DataError(f"{where}: {path} {reason}; add the file or leave the image out") from error
    with file, warnings.catch_warnings():
        # Pillow warns about large images, for which we have our own limit, and about metadata, which we ignore.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=FORMATS)
        except Exception as error:  # as in `_load`
            # Pillow's own message for this error names a Python object.
            is_unidentified = isinstance(error, Image.UnidentifiedImageError)
            reason = "unknown or damaged header" if is_unidentified else one_line(error)
            raise DataError(
                f"{where}: {path} is not an image ({reason}); replace it by a {', '.join(FORMATS)} file or leave the "
                "image out"
            ) from error
        with image:
            check_pixels(image.height, image.width, path)
            yield image


def _load(image: Image.Image, path: Path) -> None:
    try:
        image.load()
    except Exception as error:  # decoders fail in many ways on damaged bytes
        raise DataError(
            f"{path}: the image is truncated or damaged ({one_line(error)}); copy it again"
        ) from error


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _check_depth(path: Path, modality: str, is_deep: bool, thermal_range: ThermalRange | None) -> None:
    if modality != "thermal":
        if is_deep:
            raise DataError(
                f"{path}: expected 8 bits per channel for {modality}, got more; convert the image to 8 bits"
            )
    elif is_deep and thermal_range is None:
        with _opened(path, str(path)) as image:
            _load(image, path)
            values_HW = np.asarray(image)
        raise DataError(
            f"{path}: expected 8 bits per channel or data.source.thermal_range, got more bits, with values "
            f"{values_HW.min():g}..{values_HW.max():g}; set thermal_range=[low, high], the values of the whole set "
            "that become 0 and 1"
        )
    elif not is_deep and thermal_range is not None:
        raise DataError(
            f"{path}: expected more than 8 bits because data.source.thermal_range is set, got 8; leave out the image, "
            "or the setting if all images have 8"
        )


def _scaled(image: Image.Image, path: Path, thermal_range: ThermalRange) -> Tensor:
    values_HW = np.asarray(image).astype(np.float64)
    if not np.isfinite(values_HW).all():
        raise DataError(f"{path}: expected finite values, got NaN or infinity; repair or leave out the image")
    low, high = thermal_range
    unit_HW = np.clip((values_HW - low) / (high - low), 0, 1)
    return torch.from_numpy(unit_HW.astype(np.float32)[None])


def _grey(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """[1, H, W]; three nearly equal channels are merged."""
    if image.mode != "L":
        colour_HWC = np.array(image.convert("RGB")).astype(np.int16)
        spread = int(np.ptp(colour_HWC, axis=2).max())
        if spread > GREY_SPREAD:
            raise DataError(
                f"{path}: expected one channel or three equal ones, got colours (channels differ by up to {spread}); "
                "store the values themselves, not a colour map of them"
            )
    return np.array(image.convert("L"))[None]
