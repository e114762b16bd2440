"""Byte sizes as text."""

from __future__ import annotations

import re

from raydet.errors import ConfigError

GIB = 2**30
MIB = 2**20

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_memory(text: str, *, where: str) -> int:
    """Bytes of a size with its unit; GiB is 2^30 bytes, GB is 10^9.

    >>> parse_memory("80GiB", where="--gpu-memory"), parse_memory("1.5 GB", where="--gpu-memory")
    (85899345920, 1500000000)

    Raises:
        ConfigError: there is no number, no known unit, or less than one byte; it names `where`.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    factor = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"{where} must be a size with its unit, like 80GiB, 24GB or 16000MiB, got {text!r}")
    size_bytes = int(float(match.group(1)) * factor)
    if size_bytes < 1:
        raise ConfigError(f"{where} must be at least one byte, got {text!r}")
    return size_bytes


def format_bytes(size_bytes: float) -> str:
    """A size as text: in GiB from half a GiB, otherwise in MiB.

    >>> format_bytes(3 * 2**30), format_bytes(-1.5 * 2**20)
    ('3.00 GiB', '-1.5 MiB')
    """
    if abs(size_bytes) >= GIB / 2:
        return f"{size_bytes / GIB:.2f} GiB"
    return f"{size_bytes / MIB:.1f} MiB"
