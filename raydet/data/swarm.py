"""An embedded set of event windows with objects that lie closer than a coarse map tells apart.

Frames and edges are as in `raydet.data.silent`, but nothing stops, and sequences have 16 windows. In every image there
are one or two swarms of 4 x 4 `small` squares (side 4 to 6, pitch 6 or 7) and one or two `large` ones (side 24), each
in a quarter of its own. A cell of a map of stride 8 has one or two small ones, whose predictions compete; a cell of
stride 2 has less than one.

Legend: H W height and width.
"""

from __future__ import annotations

from collections.abc import Collection

from raydet.data.randomness import Draws
from raydet.data.silent import CELLS, SilentSet, Track, walk

CLASSES = ("small", "large")
NUM_WINDOWS = 16
ROWS = 4
SMALL_SIDES = (4, 6)
LARGEST_PITCH = 7
SMALLEST_PITCH = 6
LARGE_SIDE = 24


class SwarmSet(SilentSet):
    """A data set that is rendered window by window on reading."""

    def __init__(self, *, num_sequences: int, seed: int, missing: Collection[str] = ()) -> None:
        super().__init__(num_sequences=num_sequences, seed=seed, missing=missing, num_windows=NUM_WINDOWS)
        self.classes = CLASSES

    def tracks(self, sequence: int) -> list[Track]:
        """Swarms, then large squares."""
        draws = Draws(self._seed, sequence, "swarm")
        cells = list(CELLS)
        tracks = []
        for label in [0] * draws.integer(1, 2) + [1] * draws.integer(1, 2):
            cell = cells.pop(draws.integer(0, len(cells) - 1))
            side, pitch, rows = LARGE_SIDE, 0, 1
            if label == 0:
                side = draws.integer(*SMALL_SIDES)
                pitch, rows = draws.integer(max(SMALLEST_PITCH, side + 1), LARGEST_PITCH), ROWS
            offsets = tuple((row * pitch, column * pitch) for row in range(rows) for column in range(rows))
            polarity = draws.integer(0, 1)
            windows = tuple(walk(draws, cell, side + (rows - 1) * pitch, self.num_windows))
            tracks.append(Track(label, side, polarity, offsets, windows))
        return tracks
