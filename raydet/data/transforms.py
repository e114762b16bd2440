"""From source pixels to the fixed canvas: letterboxed for evaluation, augmented for training.

Every image is resampled at most once, each of a mosaic's four as well, but for a rotation and for the published form of
`native_crop`, which resample it again. What is random depends on (seed, epoch, image
id) alone, so an image is augmented alike on every number of workers; each change has a stream of its own, so
switching one on leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from raydet.config import Augmentation, ModalityDropout
from raydet.data.geometry import drop_small_boxes, letterboxed_hw, pad, resize
from raydet.data.placement import Room, mosaic, placed
from raydet.data.randomness import Key, random_stream
from raydet.structures import Sample


def train_transform(
    sample: Sample,
    *,
    augmentation: Augmentation,
    canvas_hw: tuple[int, int],
    key: tuple[Key, ...],
    partners: Sequence[Sample] = (),
    reads: Collection[str] | None = None,
) -> Sample:
    """The sample on the canvas, augmented; boxes that became too small are dropped.

    Args:
        sample: in source pixels.
        key: names what is random: seed, pass, and the image's id, or that of the first frame of its clip.
        partners: the three images of a mosaic, see `placement.partner_positions`; none: the image by itself.
        reads: the modalities that the model reads, of which dropout leaves one; default: all that the sample has.
    """
    if partners:
        changed = mosaic([sample, *partners], augmentation, canvas_hw, (*key, "mosaic"))
    else:
        changed = placed(sample, augmentation, Room(canvas_hw, canvas_hw), key)
    changed = without_modalities(changed, augmentation.modality_dropout, reads, key)
    return pad(drop_small_boxes(changed, augmentation.min_box_px), canvas_hw)


def eval_transform(sample: Sample, *, canvas_hw: tuple[int, int]) -> Sample:
    """The sample on the canvas, as large as it fits, at the top left."""
    return pad(resize(sample, letterboxed_hw(sample.source_hw, canvas_hw)), canvas_hw)


def without_modalities(
    sample: Sample, dropout: ModalityDropout, reads: Collection[str] | None, key: tuple[Key, ...]
) -> Sample:
    """The sample with modalities marked as dropped, and their pixels at 0; one of those that are read is left."""
    chances = {name: chance for name, chance in dropout.model_dump().items() if chance > 0}
    draws = {name: random_stream(*key, "dropout", name).random_sample() for name in chances}
    dropped = {name for name in sample.modalities if name in chances and draws[name] < chances[name]}
    read = [name for name in sample.modalities if reads is None or name in reads]
    if dropped.issuperset(read) and read:
        dropped.remove(read[int(random_stream(*key, "dropout").random_sample() * len(read))])
    if not dropped:
        return sample
    modalities = {
        name: torch.zeros_like(x_CHW) if name in dropped else x_CHW
        for name, x_CHW in sample.modalities.items()
    }
    return replace(sample, modalities=modalities, dropped=frozenset(dropped))
