"""The windows of every lane: each once in a pass, in the order of time, the same at every number of workers."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydet.data.clips import ClipSampler
from raydet.errors import ConfigError


@st.composite
def samplers(draw: st.DrawFn) -> ClipSampler:
    num_frames = draw(st.lists(st.integers(0, 40), min_size=1, max_size=8))
    clip_frames = draw(st.integers(1, 5))
    num_windows = sum(frames // clip_frames for frames in num_frames)
    return ClipSampler(
        num_frames=(*num_frames, clip_frames),
        clip_frames=clip_frames,
        global_batch=draw(st.integers(1, num_windows + 1)),
        seed=draw(st.integers(0, 3)),
        random_share=draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    )


@given(samplers(), st.integers(0, 2))
def test_a_pass_reads_no_window_twice_and_leaves_out_less_than_one_per_lane(
    sampler: ClipSampler, pass_: int
) -> None:
    steps = range(pass_ * sampler.steps_per_pass, (pass_ + 1) * sampler.steps_per_pass)
    read = Counter(
        (window.sequence, window.first_frame)
        for step in steps
        for window in (sampler.window(step, lane) for lane in range(sampler.num_streaming))
    )
    assert all(count == 1 for count in read.values())
    if sampler.num_streaming:
        assert sampler.num_windows - len(read) < sampler.num_streaming


@given(samplers())
def test_a_streaming_lane_continues_a_sequence_or_resets(sampler: ClipSampler) -> None:
    for lane in range(sampler.num_streaming):
        before = None
        for step in range(2 * sampler.steps_per_pass):
            window = sampler.window(step, lane)
            if not window.is_first:
                assert before is not None
                assert window.sequence == before.sequence
                assert window.first_frame == before.first_frame + sampler.clip_frames
            before = window


@given(samplers())
def test_random_lanes_read_every_window_once_before_any_is_read_again(sampler: ClipSampler) -> None:
    num_random = sampler.global_batch - sampler.num_streaming
    if not num_random:
        return
    reads = [
        sampler.window(step, lane)
        for step in range(-(-sampler.num_windows // num_random))
        for lane in range(sampler.num_streaming, sampler.global_batch)
    ]
    assert all(window.is_first for window in reads)
    once = {(window.sequence, window.first_frame) for window in reads[: sampler.num_windows]}
    assert len(once) == sampler.num_windows


@given(samplers())
def test_windows_lie_within_their_sequences(sampler: ClipSampler) -> None:
    for step in (0, 1, sampler.steps_per_pass):
        for lane in range(sampler.global_batch):
            window = sampler.window(step, lane)
            assert window.first_frame >= 0
            assert window.first_frame + sampler.clip_frames <= sampler.num_frames[window.sequence]


def test_passes_differ_and_the_seed_decides() -> None:
    def windows(seed: int, first: int) -> list[tuple[int, int]]:
        sampler = ClipSampler((10, 10, 10, 10), clip_frames=2, global_batch=4, seed=seed, random_share=0.5)
        return [
            (window.sequence, window.first_frame)
            for step in range(first, first + sampler.steps_per_pass)
            for window in (sampler.window(step, lane) for lane in range(4))
        ]

    assert windows(0, 0) == windows(0, 0)
    assert windows(0, 0) != windows(1, 0)
    assert windows(0, 0) != windows(0, 10)


def test_too_few_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most the number of windows of 5 frames, which is 2 in 2 seq"):
        ClipSampler((9, 9), clip_frames=5, global_batch=3, seed=0)
