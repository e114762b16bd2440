from __future__ import annotations

from raydet.data.randomness import random_stream


def test_keys_name_streams() -> None:
    assert random_stream(1, "a").randint(1 << 30) == random_stream(1, "a").randint(1 << 30)
    draws = {
        random_stream(*key).randint(1 << 30)
        for key in ((1, "a"), (1, "b"), (2, "a"), (1, 1), (1, "1"), (11,))
    }
    assert len(draws) == 6


def test_streams_are_frozen() -> None:
    assert random_stream(42, 0, "image_7").randint(0, 1000, 4).tolist() == [602, 469, 211, 111]
