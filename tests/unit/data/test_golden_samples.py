"""The samples of the recipes, to the last bit: their runs stay what they were."""

from __future__ import annotations

import hashlib

import pytest

from raydet.data.build import open_source
from raydet.data.transforms import eval_transform, train_transform
from raydet.recipes import recipe


@pytest.mark.parametrize(
    ("name", "every", "golden"),
    [
        ("demo", 5, "72012cb17fccee35"),
        # All mit_b recipes have the same data. This one resamples, in torch's integer arithmetic.
        ("rgbte_mit_b1", 20, "2514f67262856e75"),
    ],
)
def test_recipes_keep_their_samples(name: str, every: int, golden: str) -> None:
    data = recipe(name).data
    source = open_source(data)
    content = hashlib.sha256()
    for index in range(0, len(source), every):
        read = source.read(index)
        samples = [
            train_transform(
                read, augmentation=data.augmentation, canvas_hw=data.canvas_hw, key=(3, epoch, read.image_id)
            )
            for epoch in (0, 1, 7)
        ]
        for sample in (*samples, eval_transform(read, canvas_hw=data.canvas_hw)):
            for modality, x_CHW in sample.modalities.items():
                content.update(modality.encode() + x_CHW.contiguous().numpy().tobytes())
            content.update(sample.boxes_xyxy.numpy().tobytes() + sample.labels.numpy().tobytes())
            content.update(repr((sample.image_id, sample.source_hw, sample.valid_hw)).encode())
    assert content.hexdigest()[:16] == golden
