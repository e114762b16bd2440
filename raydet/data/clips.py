"""Clips of recorded sequences in lanes: which window every slot of a batch reads, as a pure function of the step.

A lane is a slot of the global batch. Streaming lanes read windows in the order of time, so that a model with memory
sees sequences from their beginning; the others read windows anywhere, without memory. The mixture, and its use for
recurrent event detection, are those of RVT (Gehrig and Scaramuzza 2023, arXiv 2212.05598).

In each pass the sequences are shuffled and laid end to end, and the line of windows is cut into one piece per streaming
lane, all of the same length: no lane waits for another, and no window is read twice. A sequence that is cut costs one
more reset of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raydet.data.randomness import random_stream
from raydet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive frames of one sequence."""

    sequence: int
    first_frame: int
    is_first: bool
    """What the lane remembers does not belong to it: the memory starts from zero."""


@dataclass(frozen=True)
class ClipSampler:
    """The windows of every step.

    Args:
        num_frames: of each sequence, which holds `num_frames // clip_frames` windows; the rest at its end is not read.
        clip_frames: frames per window.
        global_batch: lanes.
        random_share: part of the lanes, 0..1, that read windows anywhere; rounded to whole lanes.

    Raises:
        ConfigError: there are fewer windows than lanes.
    """

    num_frames: tuple[int, ...]
    clip_frames: int
    global_batch: int
    seed: int
    random_share: float = 0.5

    def __post_init__(self) -> None:
        if self.num_windows < self.global_batch:
            raise ConfigError(
                f"train.global_batch must be at most the number of windows of {self.clip_frames} frames, which is "
                f"{self.num_windows} in {len(self.num_frames)} sequences, got {self.global_batch}; lower it, or "
                "data.sampling.frames"
            )

    @property
    def num_windows(self) -> int:
        return sum(frames // self.clip_frames for frames in self.num_frames)

    @property
    def num_streaming(self) -> int:
        """Streaming lanes: lanes 0, ..., num_streaming - 1."""
        return self.global_batch - round(self.global_batch * self.random_share)

    @property
    def steps_per_pass(self) -> int:
        """Steps in which the streaming lanes go once through the data; without any, the random lanes."""
        return self.num_windows // (self.num_streaming or self.global_batch)

    def position(self, step: int) -> tuple[int, int]:
        """The pass that a step of the run belongs to, and the number of its first lane, counted over all steps."""
        return step // self.steps_per_pass, step * self.global_batch

    def window(self, step: int, lane: int) -> Window:
        """What a lane reads in a step of the run, counted from 0."""
        if lane < self.num_streaming:
            pass_, step_of_pass = divmod(step, self.steps_per_pass)
            line = _line(self, pass_)
            position = lane * self.steps_per_pass + step_of_pass
            sequence, first_frame = line[position]
            return Window(int(sequence), int(first_frame), is_first=step_of_pass == 0 or first_frame == 0)
        num_random = self.global_batch - self.num_streaming
        pass_, position = divmod(step * num_random + lane - self.num_streaming, self.num_windows)
        sequence, first_frame = _shuffled_windows(self, pass_)[position]
        return Window(int(sequence), int(first_frame), is_first=True)


def sequences_of(group_ids: Sequence[str]) -> list[list[int]]:
    """Positions of the frames of every sequence, in the order in which both first appear.

    >>> sequences_of(["a", "b", "a"])
    [[0, 2], [1]]
    """
    members: dict[str, list[int]] = {}
    for position, group in enumerate(group_ids):
        members.setdefault(group, []).append(position)
    return list(members.values())


def windows_of(num_frames: Sequence[int], clip_frames: int, order: Sequence[int]) -> NDArray[np.int64]:
    """Sequence and first frame of every window, sequence after sequence in this order: [W, 2]."""
    windows = [
        (sequence, window * clip_frames)
        for sequence in order
        for window in range(num_frames[sequence] // clip_frames)
    ]
    return np.array(windows, dtype=np.int64).reshape(-1, 2)


@lru_cache(maxsize=4)
def _line(sampler: ClipSampler, pass_: int) -> NDArray[np.int64]:
    order = random_stream(sampler.seed, pass_, "sequences").permutation(len(sampler.num_frames))
    return windows_of(sampler.num_frames, sampler.clip_frames, order.tolist())


@lru_cache(maxsize=4)
def _shuffled_windows(sampler: ClipSampler, pass_: int) -> NDArray[np.int64]:
    windows = windows_of(sampler.num_frames, sampler.clip_frames, range(len(sampler.num_frames)))
    shuffled: NDArray[np.int64] = windows[
        random_stream(sampler.seed, pass_, "windows").permutation(len(windows))
    ]
    return shuffled
