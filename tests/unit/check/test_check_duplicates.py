"""Hashes of images, and the lookup of near duplicates against all pairs."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from raydet.check.duplicates import NEAR_BITS, NearPair, difference_hash, near_pairs, pixel_hash
from tests.unit.check.planted import clean_samples


def test_pixels_shape_and_type_all_count() -> None:
    x = torch.arange(24, dtype=torch.uint8).reshape(1, 4, 6)
    other = x.clone()
    other[0, 3, 5] += 1
    assert pixel_hash(x) == pixel_hash(x.clone())
    assert len({pixel_hash(y) for y in (x, other, x.reshape(1, 6, 4), x.float())}) == 4


def recompressed(x: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(x.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def test_a_difference_hash_survives_recompression_and_scaling() -> None:
    for sample in clean_samples(5):
        x = sample.modalities["rgb"]
        before = difference_hash(x)
        smaller = torch.nn.functional.interpolate(x[None].float() / 255, scale_factor=0.5, mode="area")[0]
        assert before is not None
        for changed in (recompressed(x, 50), smaller, (x.float() * 0.8).to(torch.uint8)):
            after = difference_hash(changed)
            assert after is not None
            assert (before ^ after).bit_count() <= NEAR_BITS


def test_different_scenes_are_far_apart_and_flat_ones_have_no_hash() -> None:
    hashes = [difference_hash(sample.modalities["rgb"]) for sample in clean_samples(6, count=8)]
    distances = [(a ^ b).bit_count() for a in hashes for b in hashes if a != b]  # type: ignore[operator]
    assert min(distances) > 3 * NEAR_BITS
    assert difference_hash(torch.full((3, 40, 40), 12, dtype=torch.uint8)) is None


def brute_force(hashes: list[dict[str, int]], train: list[int], val: list[int]) -> list[NearPair]:
    """All pairs."""
    pairs = []
    for query in val:
        near = []
        for index in train:
            bits = [(hashes[query][name] ^ hashes[index][name]).bit_count() for name in ("rgb", "thermal")]
            if max(bits) <= NEAR_BITS:
                near.append(NearPair(index, query, sum(bits)))
        pairs += [min(near, key=lambda pair: (pair.bits, pair.first))] if near else []
    return pairs


@pytest.mark.parametrize("seed", range(3))
def test_the_lookup_finds_what_all_pairs_find(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = []
    for number in range(300):
        parent = hashes[rng.integers(number)] if number > 20 and rng.random() < 0.5 else None
        hash_ = {}
        for name in ("rgb", "thermal"):
            word = parent[name] if parent else int(rng.integers(2**64, dtype=np.uint64))
            for bit in rng.choice(64, rng.integers(0, NEAR_BITS + 2), replace=False).tolist():
                word ^= 1 << bit
            hash_[name] = word
        hashes.append(hash_)
    sides = rng.permutation(300).tolist()
    found = near_pairs(hashes, sorted(sides[:200]), sorted(sides[200:]))
    assert found == brute_force(hashes, sorted(sides[:200]), sorted(sides[200:]))
    assert len(found) > 5


def test_a_modality_without_a_hash() -> None:
    hashes = [{"thermal": 5}, {"rgb": 1, "thermal": 5}, {"thermal": 4}, {}]
    assert near_pairs(hashes, [0, 1], [2, 3]) == [NearPair(0, 2, 1)]


def test_a_hundred_thousand_images() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(2**64, size=(100_000, 2), dtype=np.uint64)
    words[90_000] = words[5] ^ np.uint64(0b11)
    hashes = [{"rgb": a, "thermal": b} for a, b in words.tolist()]
    started = time.process_time()
    assert near_pairs(hashes, range(80_000), range(80_000, 100_000)) == [NearPair(5, 90_000, 4)]
    assert time.process_time() - started < 20
