"""Images that are there twice, exactly or nearly, and above all on both sides of the split.

Exactly: a hash of the pixels of each modality. Nearly: a difference hash of 64 bits per modality: the image averaged
to 8 rows of 9 cells, and for each pair of neighbours whether the right one is brighter. It survives recompression,
resizing and small motion. A flat image, whose cells tell noise, has none.

Two images are near duplicates when the same modalities have a hash in both, and each differs in at most `NEAR_BITS`
of its 64 bits. The lookup is exact: 64 bits are cut into `NEAR_BITS` + 1 bands, of which at least one is then equal
(pigeonhole), so only images that share a band are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from raydet.check.findings import Finding
from raydet.check.grey import grey_levels

NEAR_BITS = 4
"""Of 64, per modality."""
HASH_ROWS, HASH_COLUMNS = 8, 9
MIN_CONTRAST = 4.0
"""Deviation of the cells, grey levels, below which an image has no hash."""
BAND_BITS = (13, 13, 13, 13, 12)

Words = NDArray[np.uint64]


def pixel_hash(x_CHW: Tensor) -> bytes:
    """16 bytes that differ where a pixel, the shape or the type differs."""
    array = np.ascontiguousarray(x_CHW.numpy())
    head = f"{array.dtype}{array.shape}".encode()
    return hashlib.blake2b(head + array.tobytes(), digest_size=16).digest()


def difference_hash(x_CHW: Tensor) -> int | None:
    """64 bits, or None where the image is flat.

    Args:
        x_CHW: see `grey_levels`.
    """
    cells = np.asarray(
        Image.fromarray(grey_levels(x_CHW)).resize((HASH_COLUMNS, HASH_ROWS), Image.Resampling.BOX),
        dtype=float,
    )
    if cells.std() < MIN_CONTRAST:
        return None
    bits = (cells[:, 1:] > cells[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two images that resemble one another."""

    first: int
    second: int
    bits: int
    """How many bits differ, all modalities together."""


def near_pairs(
    hashes: Sequence[Mapping[str, int]], first_side: Sequence[int], second_side: Sequence[int]
) -> list[NearPair]:
    """For each image of the second side, the nearest near duplicate on the first, in the order of the second side.

    Args:
        hashes: difference hashes by modality, for each image.
        first_side, second_side: indices of images.
    """
    names = sorted({name for found in hashes for name in found})
    best: dict[int, NearPair] = {}
    for name in names:
        # Where the first modality has no hash in either image, a later one is what they are found by.
        for query, candidates in _candidates(hashes, name, first_side, second_side):
            for pair in _nearest(hashes, query, candidates):
                if query not in best or pair.bits < best[query].bits:
                    best[query] = pair
    return [best[index] for index in second_side if index in best]


def _candidates(
    hashes: Sequence[Mapping[str, int]], name: str, first_side: Sequence[int], second_side: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each image of the second side with those of the first that differ in at most `NEAR_BITS` in this modality."""
    known = np.array([i for i in first_side if name in hashes[i]], dtype=np.int64)
    queries = [i for i in second_side if name in hashes[i]]
    if not len(known) or not queries:
        return
    words = np.array([hashes[i][name] for i in known.tolist()], dtype=np.uint64)
    asked = np.array([hashes[i][name] for i in queries], dtype=np.uint64)
    bands = [(np.argsort(part, kind="stable"), part) for part in _bands(words)]
    ordered = [(order, part[order]) for order, part in bands]
    ranges = [
        (np.searchsorted(keys, part, "left"), np.searchsorted(keys, part, "right"))
        for (_, keys), part in zip(ordered, _bands(asked), strict=True)
    ]
    for position, query in enumerate(queries):
        found = np.concatenate(
            [
                order[left[position] : right[position]]
                for (order, _), (left, right) in zip(ordered, ranges, strict=True)
            ]
        )
        near = found[np.bitwise_count(words[found] ^ asked[position]) <= NEAR_BITS]
        if len(near):
            yield query, known[np.unique(near)]


def _bands(words: Words) -> list[Words]:
    parts, offset = [], 0
    for bits in BAND_BITS:
        parts.append((words >> np.uint64(offset)) & np.uint64(2**bits - 1))
        offset += bits
    return parts


def _nearest(
    hashes: Sequence[Mapping[str, int]], query: int, candidates: NDArray[np.int64]
) -> Iterator[NearPair]:
    """The nearest of the candidates that are near in every modality; the earliest of equals."""
    best: NearPair | None = None
    asked = hashes[query]
    for index in candidates.tolist():
        other = hashes[index]
        if asked.keys() != other.keys():  # a modality in which only one of them is flat tells them apart
            continue
        bits = [(asked[name] ^ other[name]).bit_count() for name in asked]
        if max(bits) <= NEAR_BITS and (best is None or sum(bits) < best.bits):
            best = NearPair(index, query, sum(bits))
    if best is not None:
        yield best


def twin_findings(
    pixel_hashes: Sequence[Mapping[str, bytes]],
    image_ids: Sequence[str],
    side_of: Mapping[int, str],
    constant: Sequence[frozenset[str]],
) -> Iterator[Finding]:
    """Images whose pixels were there before.

    Args:
        side_of: `train` or `val` by index; images on different sides are a leak.
        constant: modalities that hold one value in the image: two blank images are no duplicates.
    """
    whole: dict[tuple[tuple[str, bytes], ...], int] = {}
    single: dict[tuple[str, bytes], int] = {}
    for index, hashes in enumerate(pixel_hashes):
        telling = {name: value for name, value in hashes.items() if name not in constant[index]}
        if not telling:
            continue
        twin = whole.setdefault(tuple(sorted(hashes.items())), index)
        if twin != index:
            is_leak = side_of.get(twin) != side_of.get(index)
            detail = f"equals {image_ids[twin]}"
            if is_leak:
                detail += f" ({side_of[index]} and {side_of[twin]})"
            yield Finding("leak" if is_leak else "duplicate", image_ids[index], detail, index, twin)
            continue
        for name, value in telling.items():
            other = single.setdefault((name, value), index)
            if other != index:
                detail = f"{name} is that of {image_ids[other]}"
                if side_of.get(other) != side_of.get(index):
                    detail += f" ({side_of[index]} and {side_of[other]})"
                yield Finding("shared_file", image_ids[index], detail, index, other)
