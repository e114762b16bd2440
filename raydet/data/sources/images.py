"""Read image files: the size from the header, then pixels as uint8 or, for thermal of more than 8 bits, float32.

The format is taken from a file's bytes, not its name. Pillow decodes, because it refuses a truncated JPEG; only formats
that hold nothing but pixels are opened (its PostScript reader starts a program).

**Orientation.** An image is read as viewers and labelling tools show it: turned and mirrored as its metadata say (the
orientation tag of EXIF, or of XMP).

**Bit depth** is that of the file. Pillow's modes do not tell: it reads 16-bit RGB as 8-bit RGB without a warning.

**Thermal images of more than 8 bits** hold raw counts (or degrees). They become float32 in 0..1 by one fixed rule for
the whole set, `(value - low) / (high - low)`, clipped, with `thermal_range = (low, high)` from the config. There is no
default: a range taken from each image, as viewers do, would give the same temperature another grey in the next frame.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile
from torch import Tensor

from raydet.errors import ConfigError, DataError
from raydet.files.text import one_line, open_regular

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
LOSSLESS = ("PNG", "TIFF", "BMP")
"""Formats of masks: in the others, ids change on compression."""
MAX_PIXELS = 8192 * 8192
"""A header may claim any size; larger ones are refused before memory is allocated."""
GREY_SPREAD = 16
"""Largest difference between the channels of a grey image that was stored as a colour JPEG."""
MODALITY_NAMES = ("rgb", "thermal", "event")
ORIENTATION = ExifTags.Base.Orientation
QUARTER_TURNS = (5, 6, 7, 8)
"""Orientations of an image that lies on its side."""
WHITE_IS_ZERO = 0
"""Photometric interpretation of a TIFF."""
PNG_FIRST_CHUNK = 8
"""Offset of the first chunk of a PNG."""
PNG_HEAD = 26
"""Bytes of a PNG up to the bits per channel and the colour type, which are the last two of these."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Number of channels by the colour type of a PNG."""

ThermalRange = tuple[float, float]
"""The raw values that become 0 and 1."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its pixels before they are decoded."""

    size_hw: tuple[int, int]
    """Height and width of the upright image."""
    bits: int
    """Bits per channel."""
    channels: int
    is_turned: bool
    """Whether the image lies on its side in the file."""
    is_moved: bool = False
    """Whether it is turned or mirrored in any way."""

    @property
    def is_deep(self) -> bool:
        """More than 8 bits per channel."""
        return self.bits > 8


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
    sizes, turned = {}, []
    for modality, path in files.items():
        header = read_header(path, where)
        _check_depth(path, modality, header, thermal_range)
        sizes[modality] = header.size_hw
        turned += [modality] if header.is_turned else []
    if declared_hw is not None:
        sizes["the annotation"] = declared_hw
    if len(set(sizes.values())) != 1:
        shown = ", ".join(f"{name} {width} x {height}" for name, (height, width) in sizes.items())
        upright = f" ({' and '.join(turned)} turned upright as the metadata say)" if turned else ""
        raise DataError(
            f"{where}: expected one size (width x height) in all modalities, got {shown}{upright}; align the images"
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
    """Size and bit depth of an image; pixels are decoded only where a PNG has metadata behind them.

    Raises:
        DataError: the file does not exist, is not one image, or claims too many pixels.
    """
    with _opened(path, where) as image:
        return _header_of(image, path)


def decode(path: Path, modality: str, *, thermal_range: ThermalRange | None = None) -> Tensor:
    """The pixels, [C, H, W], 3 channels for rgb, else 1: uint8, or float32 in 0..1 for thermal of more than 8 bits.

    Raises:
        DataError: the file is damaged or truncated, or its channels or bit depth do not fit the modality.
    """
    with _opened(path, str(path)) as image:
        header = _header_of(image, path)
        _check_depth(path, modality, header, thermal_range)
        _load(image, path)
        upright = ImageOps.exif_transpose(image)
        if header.is_deep:
            assert thermal_range is not None
            return _scaled(upright, path, thermal_range)
        if modality == "rgb":
            rgb_CHW = np.array(upright.convert("RGB")).transpose(2, 0, 1)
            return torch.from_numpy(np.ascontiguousarray(rgb_CHW))
        return torch.from_numpy(_grey(upright, path))


def decode_rgbt(path: Path) -> tuple[Tensor, Tensor]:
    """RGB [3, H, W] and thermal [1, H, W], uint8, from an image of four channels of 8 bits.

    Raises:
        DataError: the file is damaged or truncated, or has other channels.
    """
    with _opened(path, str(path)) as image:
        header = _header_of(image, path)
        if image.mode != "RGBA" or header.bits != 8:
            raise DataError(
                f"{path}: expected 4 channels of 8 bits (red, green, blue, thermal), got {header.channels} of "
                f"{header.bits}; correct the file, or name it as rgb in data.source"
            )
        _load(image, path)
        pixels = torch.from_numpy(np.array(ImageOps.exif_transpose(image)).transpose(2, 0, 1).copy())
        return pixels[:3], pixels[3:]


def read_mask_header(path: Path, where: str) -> Header:
    """Like `read_header`, of an image that can be a mask.

    Raises:
        DataError: it cannot: its format loses values, or it has other channels or bits than `decode_values` reads.
    """
    with _opened(path, where) as image:
        header = _header_of(image, path)
        _check_mask(image, header, path)
        return header


def decode_values(path: Path) -> NDArray[np.integer]:
    """The values of a mask as the file has them: ids [H, W], of a palette the indices; or colours [H, W, 3].

    Raises:
        DataError: as in `read_mask_header`, or the file is damaged or truncated.
    """
    with _opened(path, str(path)) as image:
        header = _header_of(image, path)
        _check_mask(image, header, path)
        _load(image, path)
        values = np.asarray(ImageOps.exif_transpose(image))
        if image.mode == "RGBA":
            if not (values[..., 3] == 255).all():
                raise DataError(
                    f"{path}: expected a mask of colours without transparency, got some; save it as RGB"
                )
            return values[..., :3]
        if image.mode == "L" and header.bits < 8:
            return values // (255 // (2**header.bits - 1))  # Pillow stretches these to 0..255
        return values.astype(np.uint8) if image.mode == "1" else values


def _check_mask(image: ImageFile, header: Header, path: Path) -> None:
    if image.format not in LOSSLESS:
        raise DataError(
            f"{path}: expected a mask as {', '.join(LOSSLESS)}, got {image.format}, which changes ids; export the "
            "masks again"
        )
    is_colour = image.mode in ("RGB", "RGBA") and header.bits == 8
    is_ids = image.mode in ("1", "L", "P") or image.mode.startswith("I;16") or image.mode == "I"
    if not is_colour and not (is_ids and header.bits <= 16):
        raise DataError(
            f"{path}: expected a mask of one channel of at most 16 bits, or of colours of 8, got {header.channels} "
            f"channels of {header.bits} bits ({image.mode}); export the masks again"
        )


@contextmanager
def _opened(path: Path, where: str) -> Iterator[ImageFile]:
    try:
        file = open_regular(path)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if is_missing else f"cannot be read ({error.strerror or error})"
        raise DataError(f"{where}: {path} {reason}; add the file or leave the image out") from error
    with file, warnings.catch_warnings():
        # Pillow warns about large images, for which we have our own limit, and about odd metadata.
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


def _header_of(image: ImageFile, path: Path) -> Header:
    """The header of an image that is open, and not decoded yet."""
    bits, channels = _bits_and_channels(image, path)
    if image.format == "PNG" and _has_late_metadata(image):
        _load(image, path)
    try:
        num_images = (
            1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        )  # MPO: a photo and its previews
        # Not the method of PNG files, which decodes. Pillow itself turns a TIFF by its own tag, size included, and its
        # pixels also by XMP.
        has_own_tag = isinstance(image, TiffImagePlugin.TiffImageFile) and ORIENTATION in image.tag_v2
        orientation = 1 if has_own_tag else Image.Image.getexif(image).get(ORIENTATION, 1)
    except Exception as error:  # EXIF is a file format of its own, and is read in many ways
        raise DataError(
            f"{path}: the metadata are damaged ({one_line(error)}), so it cannot be told which side is up; delete "
            "them, or copy the image again"
        ) from error
    if num_images > 1:
        raise DataError(
            f"{path}: expected one image, got a file of {num_images}; store each in a file of its own"
        )
    is_turned = orientation in QUARTER_TURNS
    size_hw = image.size if is_turned else (image.height, image.width)
    return Header(
        size_hw, bits=bits, channels=channels, is_turned=is_turned, is_moved=orientation not in (0, 1)
    )


def _bits_and_channels(image: ImageFile, path: Path) -> tuple[int, int]:
    """Bits per channel and number of channels, of the file."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        # Pillow inverts these images only if they have 8 bits.
        if bits > 8 and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
            raise DataError(
                f"{path}: expected values that grow with brightness, got a TIFF of {bits} bits in which 0 is white; "
                "invert the image and store it as BlackIsZero"
            )
        return bits, image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    if isinstance(image, PngImagePlugin.PngImageFile):
        head = os.pread(_descriptor(image), PNG_HEAD, 0)
        if head[12:16] != b"IHDR":
            raise DataError(
                f"{path}: expected a PNG that begins with its header, got another chunk; save it again"
            )
        return head[24], PNG_CHANNELS[head[25]]
    return 8, len(image.getbands())


def _has_late_metadata(image: ImageFile) -> bool:
    """Whether a PNG has a chunk of metadata behind its first pixels, where opening it does not read."""
    at, is_late = PNG_FIRST_CHUNK, False
    while True:
        head = os.pread(_descriptor(image), 8, at)
        kind = head[4:]
        if len(head) < 8 or kind == b"IEND":
            return False
        is_late |= kind == b"IDAT"
        if is_late and kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
            return True
        at += 12 + int.from_bytes(head[:4], "big")  # length, kind, content, checksum


def _descriptor(image: ImageFile) -> int:
    assert image.fp is not None, "the image is open"
    return image.fp.fileno()


def _check_depth(path: Path, modality: str, header: Header, thermal_range: ThermalRange | None) -> None:
    if modality != "thermal":
        if header.is_deep:
            raise DataError(
                f"{path}: expected 8 bits per channel for {modality}, got {header.bits}; convert the image to 8 bits"
            )
    elif header.is_deep and header.channels > 1:
        raise DataError(
            f"{path}: expected one channel of more than 8 bits, got {header.channels} channels of {header.bits} bits; "
            "store the thermal channel alone"
        )
    elif header.is_deep and thermal_range is None:
        with _opened(path, str(path)) as image:
            _load(image, path)
            values_HW = np.asarray(image)
        raise DataError(
            f"{path}: expected 8 bits per channel or data.source.thermal_range, got more bits, with values "
            f"{values_HW.min():g}..{values_HW.max():g}; set thermal_range=[low, high], the values of the whole set "
            "that become 0 and 1"
        )
    elif not header.is_deep and thermal_range is not None:
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
