"""The check of a whole source, image by image, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from raydet.check.examine import ImageRecord, Settings, examined
from raydet.check.findings import DEFAULT_TOLERANCE
from raydet.check.gather import Gathered, gather
from raydet.config import DataConfig, EvaluateConfig, FirstSplit, FrameSplit, GroupSplit
from raydet.data.build import left_out_of
from raydet.data.sources.base import Source
from raydet.data.split import split_indices
from raydet.errors import DataError, RaydetError

CHUNK = 8
"""Images that a process takes at a time."""
WAITING_PER_PROCESS = 4
"""Chunks that are handed out ahead: their results wait until those before them are there."""

_opened: tuple[Source, Settings] | None = None


def settings_of(
    data: DataConfig, evaluate: EvaluateConfig, *, tolerance: float = DEFAULT_TOLERANCE, align: bool = True
) -> Settings:
    """What a check of these images goes by: sizes as they are measured in evaluation."""
    fractions = evaluate.size_bins_fraction
    return Settings(
        classes=data.classes,
        size_edges=evaluate.size_bins_px if fractions is None else fractions,
        edges_are_fractions=fractions is not None,
        min_box_px=data.augmentation.min_box_px,
        tolerance=tolerance,
        align=align,
        simulated=data.simulated,
    )


def check_source(
    source: Source,
    split: GroupSplit | FrameSplit | FirstSplit,
    settings: Settings,
    *,
    workers: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> Gathered:
    """Look at every image once. The result does not depend on the number of processes.

    Args:
        workers: processes that read and look; 0 does it here.
        on_image: called after each image.
    """
    return gather(
        _told(_records(source, settings, workers), on_image),
        settings=settings,
        modalities=source.modalities,
        left_out=left_out_of(source),
        sides=_sides(source, split),
    )


def _told(records: Iterator[ImageRecord], on_image: Callable[[], None]) -> Iterator[ImageRecord]:
    for record in records:
        on_image()
        yield record


def _sides(source: Source, split: GroupSplit | FrameSplit | FirstSplit) -> dict[int, str] | str:
    """The side of each image, or why there are none."""
    try:
        train, val = split_indices(source, split)
    except DataError as error:
        return str(error)
    sides = dict.fromkeys(train, "train")
    for index in val:
        sides[index] = "both" if index in sides else "val"
    return sides


def _records(source: Source, settings: Settings, workers: int) -> Iterator[ImageRecord]:
    if workers == 0:
        for index in range(len(source)):
            yield examined(source, index, settings)
        return
    # A Pool would wait for ever for what a killed process had in hand.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=_open,
        initargs=(source, settings),
    )
    try:
        yield from _in_order(pool, len(source), WAITING_PER_PROCESS * workers)
    except BrokenProcessPool as error:
        raise RaydetError(
            f"data check: wanted {workers} processes that read images, one of them was killed; if memory ran out, "
            "give fewer --workers, else find the image with --workers 0"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, count: int, most_waiting: int) -> Iterator[ImageRecord]:
    """In the order of the source, because sums of floats depend on it."""
    waiting: deque[Future[list[ImageRecord]]] = deque()
    for start in range(0, count, CHUNK):
        waiting.append(pool.submit(_examined, range(count)[start : start + CHUNK]))
        if len(waiting) == most_waiting:
            yield from waiting.popleft().result()
    for future in waiting:
        yield from future.result()


def _open(source: Source, settings: Settings) -> None:
    global _opened
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first one ends the others
    torch.set_num_threads(1)
    _opened = source, settings


def _examined(indices: Sequence[int]) -> list[ImageRecord]:
    assert _opened is not None, "the pool's initializer comes first"
    source, settings = _opened
    return [examined(source, index, settings) for index in indices]
