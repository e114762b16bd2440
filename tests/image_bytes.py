"""Image files that Pillow reads and cannot write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = orientation
    return found


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_16(array: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, [H, W] or [H, W, 2 to 4]."""
    height, width = array.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if array.ndim == 2 else array.shape[2]]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(array: np.ndarray, *, photometric: int) -> bytes:
    """An uncompressed TIFF of 8 or 16 bits per channel, [H, W] or [H, W, C].

    Args:
        photometric: 0 white is zero, 1 black is zero, 2 RGB.
    """
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    bits = [8 * array.itemsize] * channels
    num_entries = 9
    behind = 8 + 2 + 12 * num_entries + 4
    entries: Sequence[tuple[int, int, int, int]] = (
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, bits[0] if channels == 1 else behind),
        (259, 3, 1, 1),  # not compressed
        (262, 3, 1, photometric),
        (273, 4, 1, behind + 2 * channels),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, array.nbytes),
    )
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = (
        b"II*\0"
        + struct.pack("<IH", 8, num_entries)
        + fields
        + bytes(4)
        + struct.pack(f"<{channels}H", *bits)
    )
    return head + array.astype(array.dtype.newbyteorder("<")).tobytes()
