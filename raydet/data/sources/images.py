"""From the file of an image to a tensor: its size before any pixel, then uint8 or, for deep thermal, float32.

What a file is, its bytes say, not its name. Pillow decodes, because it refuses a truncated JPEG; only formats that
hold nothing but pixels are opened (its reader of PostScript starts a program).

**Thermal images of more than 8 bits** hold raw counts (or degrees). They become float32 in 0..1 by one fixed rule for
the whole set, `(value - low) / (high - low)`, clipped, with `thermal_range = (low, high)` from the config. There is no
default: a range taken from each image, as viewers take it, would give the same temperature another grey in the next
frame.
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
"""A header may claim any size; what is larger than this is refused before memory is asked for."""
GREY_SPREAD = 16
"""Largest difference between the channels of a grey image that was stored as colour: JPEG's doing."""
MODALITY_NAMES = ("rgb", "thermal", "event")

ThermalRange = tuple[float, float]
"""The raw values that become 0 and 1."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's file says before its pixels."""

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
        declared_hw: what its annotation says.

    Raises:
        DataError: a file is no image, they differ in size, or one has a depth that cannot be read.
        ConfigError: there are no files.
    """
    if not files:
        raise ConfigError("data.missing names every modality of the set; take one out")
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
            f"{where}: wanted one size (width x height) in all modalities, got {shown}; align the images"
        )
    return next(iter(sizes.values()))


def check_pixels(height: int, width: int, path: Path) -> None:
    """Refuse a size that no camera has.

    Raises:
        DataError: it is too large, or nothing.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"{path}: wanted an image of 1 to {MAX_PIXELS} pixels, its header says {width} x {height}; scale it "
            "down, or leave it out"
        )


def read_header(path: Path, where: str) -> Header:
    """Size and depth; no pixel is decoded.

    Raises:
        DataError: the file is not there, is no image, or claims too many pixels.
    """
    with _opened(path, where) as image:
        return Header((image.height, image.width), is_deep=_is_deep(image))


def decode(path: Path, modality: str, *, thermal_range: ThermalRange | None = None) -> Tensor:
    """The pixels, [C, H, W], 3 channels of rgb, 1 of everything else: uint8, or float32 in 0..1 for deep thermal.

    Raises:
        DataError: the file is damaged or truncated, or not of the modality's kind.
    """
    with _opened(path, str(path)) as image:
        try:
            image.load()
        except Exception as error:  # a decoder fed with anyone's bytes fails in any way; all mean one thing
            raise DataError(
                f"{path}: the image is truncated or damaged ({one_line(error)}); copy it again"
            ) from error
        _check_depth(path, modality, _is_deep(image), thermal_range)
        if _is_deep(image):
            assert thermal_range is not None
            return _scaled(_raw(image, path), thermal_range)
        pixels_CHW = _colour(image) if modality == "rgb" else _grey(image, path)
    return torch.from_numpy(np.ascontiguousarray(pixels_CHW))


@contextmanager
def _opened(path: Path, where: str) -> Iterator[Image.Image]:
    try:
        file = open_regular(path)
    except OSError as error:
        is_absent = isinstance(error, FileNotFoundError)
        reason = "the file is not there" if is_absent else f"it cannot be read ({error.strerror or error})"
        raise DataError(f"{where}: wanted {path}, {reason}; add the file or leave the image out") from error
    with file, warnings.catch_warnings():
        # Pillow warns of large images and of odd metadata: the one is our own limit, the other changes no pixel.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=FORMATS)
        except Exception as error:  # as in `decode`
            raise DataError(
                f"{where}: wanted {path}, it is no image ({_open_reason(error)}); put a "
                f"{', '.join(FORMATS)} there or leave the image out"
            ) from error
        with image:
            check_pixels(image.height, image.width, path)
            yield image


def _open_reason(error: Exception) -> str:
    # Pillow's own sentence names a Python object.
    return "unknown or damaged header" if isinstance(error, Image.UnidentifiedImageError) else one_line(error)


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _check_depth(path: Path, modality: str, is_deep: bool, thermal_range: ThermalRange | None) -> None:
    if modality != "thermal":
        if is_deep:
            raise DataError(
                f"{path}: wanted 8 bits per channel for {modality}, got more; convert the image to 8 bits"
            )
    elif is_deep and thermal_range is None:
        low, high = _extremes(path)
        raise DataError(
            f"{path}: wanted 8 bits per channel or data.source.thermal_range, got more bits, with values {low:g}.."
            f"{high:g}; set thermal_range=[low, high], the values of the whole set that become 0 and 1"
        )
    elif not is_deep and thermal_range is not None:
        raise DataError(
            f"{path}: wanted more than 8 bits, as data.source.thermal_range is set, got 8; leave out the image, or "
            "the setting if all images have 8"
        )


def _extremes(path: Path) -> tuple[float, float]:
    with _opened(path, str(path)) as image:
        try:
            values_HW = np.asarray(image)
        except Exception as error:  # as in `decode`
            raise DataError(
                f"{path}: the image is truncated or damaged ({one_line(error)}); copy it again"
            ) from error
    return float(values_HW.min()), float(values_HW.max())


def _raw(image: Image.Image, path: Path) -> NDArray[np.float64]:
    values_HW = np.asarray(image).astype(np.float64)
    if not np.isfinite(values_HW).all():
        raise DataError(f"{path}: wanted finite values, got NaN or infinity; repair or leave out the image")
    return values_HW


def _scaled(values_HW: NDArray[np.float64], thermal_range: ThermalRange) -> Tensor:
    low, high = thermal_range
    unit_HW = np.clip((values_HW - low) / (high - low), 0, 1)
    return torch.from_numpy(unit_HW.astype(np.float32)[None])


def _colour(image: Image.Image) -> NDArray[np.uint8]:
    """[3, H, W]."""
    return np.array(image.convert("RGB")).transpose(2, 0, 1)


def _grey(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """[1, H, W]; three equal channels are one."""
    if image.mode != "L":
        colour_HWC = np.array(image.convert("RGB")).astype(np.int16)
        spread = int(np.ptp(colour_HWC, axis=2).max())
        if spread > GREY_SPREAD:
            raise DataError(
                f"{path}: wanted one channel or three equal ones, got colours (channels differ by up to {spread}); "
                "store the values themselves, not a colour map of them"
            )
    return np.array(image.convert("L"))[None]
