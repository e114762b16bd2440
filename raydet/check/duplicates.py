"""Find exact and near duplicates of images, in particular across the split.

Exact: a hash of the pixels of each modality. Near: a 64-bit difference hash of each modality: the image is averaged to
8 rows of 9 cells, and each bit tells whether the right one of two neighbours is brighter. It is robust to
recompression, resizing and small motion. A flat image has no hash, because its cells contain only noise.

Two images are near duplicates if the same modalities have a hash in both, and each differs in at most `NEAR_BITS`
of its 64 bits. The lookup is exact: 64 bits are divided into `NEAR_BITS` + 1 bands, of which at least one is then equal
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
"""Largest number of differing bits of 64, per modality."""
HASH_ROWS, HASH_COLUMNS = 8, 9
MIN_CONTRAST = 4.0
"""Smallest standard deviation of the cells of an image with a hash, in grey levels."""
BAND_BITS = (13, 13, 13, 13, 12)

Words = NDArray[np.uint64]


def pixel_hash(x_CHW: Tensor) -> bytes:
    """A 16-byte hash of pixels, shape and type."""
    array = np.ascontiguousarray(x_CHW.numpy())
    head = f"{array.dtype}{array.shape}".encode()
    return hashlib.blake2b(head + array.tobytes(), digest_size=16).digest()


def difference_hash(x_CHW: Tensor) -> int | None:
    """The 64-bit difference hash; None: the image is flat.

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
    """Indices of two similar images."""

    first: int
    second: int
    bits: int
    """Number of differing bits, summed over the modalities."""


def near_pairs(
    hashes: Sequence[Mapping[str, int]], first_side: Sequence[int], second_side: Sequence[int]
) -> list[NearPair]:
    """For each image of the second side, its nearest near duplicate on the first, in the order of the second side.

    Args:
        hashes: difference hashes by modality, for each image.
        first_side, second_side: indices of images.
    """
    names = sorted({name for found in hashes for name in found})
    best: dict[int, NearPair] = {}
    for name in names:
        # A later modality finds pairs for which this one has no hash.
        for query, candidates in _candidates(hashes, name, first_side, second_side):
            pair = _nearest(hashes, query, candidates)
            if pair is not None and (query not in best or pair.bits < best[query].bits):
                best[query] = pair
    return [best[index] for index in second_side if index in best]


def _candidates(
    hashes: Sequence[Mapping[str, int]], name: str, first_side: Sequence[int], second_side: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each image of the second side, with those of the first that differ in at most `NEAR_BITS` in this modality."""
    known = np.array([i for i in first_side if name in hashes[i]], dtype=np.int64)
    queries = [i for i in second_side if name in hashes[i]]
    if not len(known) or not queries:
        return
    words = np.array([hashes[i][name] for i in known.tolist()], dtype=np.uint64)
    query_words = np.array([hashes[i][name] for i in queries], dtype=np.uint64)
    bands = [(np.argsort(part, kind="stable"), part) for part in _bands(words)]
    ordered = [(order, part[order]) for order, part in bands]
    ranges = [
        (np.searchsorted(keys, part, "left"), np.searchsorted(keys, part, "right"))
        for (_, keys), part in zip(ordered, _bands(query_words), strict=True)
    ]
    for position, query in enumerate(queries):
        found = np.concatenate(
            [
                order[left[position] : right[position]]
                for (order, _), (left, right) in zip(ordered, ranges, strict=True)
            ]
        )
        near = found[np.bitwise_count(words[found] ^ query_words[position]) <= NEAR_BITS]
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
) -> NearPair | None:
    """The nearest of the candidates that are near in every modality; the first of equals."""
    best: NearPair | None = None
    hash_of = hashes[query]
    for index in candidates.tolist():
        other = hashes[index]
        if hash_of.keys() != other.keys():  # they differ if only one of them is flat in a modality
            continue
        bits = [(hash_of[name] ^ other[name]).bit_count() for name in hash_of]
        if max(bits) <= NEAR_BITS and (best is None or sum(bits) < best.bits):
            best = NearPair(index, query, sum(bits))
    return best


def duplicate_findings(
    pixel_hashes: Sequence[Mapping[str, bytes]],
    image_ids: Sequence[str],
    side_of: Mapping[int, str],
    constant: Sequence[frozenset[str]],
) -> Iterator[Finding]:
    """Images with the same pixels as an earlier image, in all modalities or in one.

    Args:
        side_of: `train` or `val` by index; equal images on different sides are a leak.
        constant: for each image, the modalities with one value: two blank images are not duplicates.
    """

    def finding(kind: str, detail: str, index: int, other: int) -> Finding:
        if side_of.get(other) != side_of.get(index):
            kind = "leak" if kind == "duplicate" else kind
            detail += f" ({side_of[index]} and {side_of[other]})"
        return Finding(kind, image_ids[index], detail, index, other)

    seen: dict[tuple[tuple[str, bytes], ...], int] = {}
    seen_modality: dict[tuple[str, bytes], int] = {}
    for index, hashes in enumerate(pixel_hashes):
        informative = {name: value for name, value in hashes.items() if name not in constant[index]}
        if not informative:
            continue
        original = seen.setdefault(tuple(sorted(hashes.items())), index)
        if original != index:
            yield finding("duplicate", f"equals {image_ids[original]}", index, original)
            continue
        for name, value in informative.items():
            other = seen_modality.setdefault((name, value), index)
            if other != index:
                yield finding("shared_file", f"{name} is that of {image_ids[other]}", index, other)
