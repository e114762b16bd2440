from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raydet.structures import collate
from tests.unit.data.scenes import scene


def test_types_are_stacked_as_they_are() -> None:
    samples = [scene((8, 16), [[0, 0, 4, 4]], "a"), scene((8, 16), [], "b")]
    types = {name: x.dtype for name, x in collate(samples).modalities.items()}
    assert types == {"rgb": torch.uint8, "thermal": torch.uint8, "event": torch.float32}


def test_mixed_types_are_refused() -> None:
    """Stacking would convert bytes to floats in 0..255, which nobody divides any more."""
    whole, floats = (scene((8, 16), [], name, floats=f) for name, f in (("a", ()), ("b", ("thermal",))))
    with pytest.raises(ValueError, match=r"must have the same types, got .*torch\.uint8.*torch\.float32"):
        collate([whole, floats])


def test_other_modalities_are_refused() -> None:
    sample = scene((8, 16), [])
    only = replace(sample, modalities={"rgb": sample.modalities["rgb"]})
    with pytest.raises(ValueError, match="must have the same modalities and canvas"):
        collate([sample, only])
