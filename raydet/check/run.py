"""Check a whole source image by image, in this process or in several."""

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
from raydet.config import DataConfig, DetectionTask, Split
from raydet.data.build import ignored_in, left_out_of, notes_on
from raydet.data.sources.base import Source
from raydet.data.split import split_indices
from raydet.errors import DataError, RaydetError

CHUNK = 8
"""Images per task of a process."""
WAITING_PER_PROCESS = 4
"""Chunks submitted ahead: their results wait for those of earlier chunks."""

_opened: tuple[Source, Settings] | None = None


def settings_of(
    data: DataConfig, task: DetectionTask, *, tolerance: float = DEFAULT_TOLERANCE, align: bool = True
) -> Settings:
    """The settings of a check, with the size classes of evaluation."""
    fractions = task.size_bins_fraction
    return Settings(
        classes=data.classes,
        size_edges=task.size_bins_px if fractions is None else fractions,
        edges_are_fractions=fractions is not None,
        min_box_px=data.augmentation.min_box_px,
        tolerance=tolerance,
        align=align,
        simulated=data.simulated,
    )


def check_source(
    source: Source,
    split: Split,
    settings: Settings,
    *,
    workers: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> Gathered:
    """Check every image once. The result does not depend on the number of processes.

    Args:
        workers: number of processes that read and check; 0: this process.
        on_image: called after each image.
    """

    def records() -> Iterator[ImageRecord]:
        for record in _records(source, settings, workers):
            on_image()
            yield record

    return gather(
        records(),
        settings=settings,
        modalities=source.modalities,
        left_out=left_out_of(source),
        ignored=ignored_in(source),
        notes=notes_on(source),
        sides=_sides(source, split),
    )


def _sides(source: Source, split: Split) -> dict[int, str] | str:
    """The part of each image, or the reason why there is no split."""
    try:
        parts = split_indices(source, split)
    except DataError as error:
        return str(error)
    sides: dict[int, str] = {}
    for name, indices in parts.items():
        sides |= {index: "both" if index in sides else name for index in indices}
    return sides


def _records(source: Source, settings: Settings, workers: int) -> Iterator[ImageRecord]:
    if workers == 0:
        for index in range(len(source)):
            yield examined(source, index, settings)
        return
    # A multiprocessing.Pool would wait forever for the task of a killed process.
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
            f"data check: one of {workers} worker processes was killed; if memory ran out, use fewer --workers, "
            "otherwise find the image with --workers 0"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, count: int, most_waiting: int) -> Iterator[ImageRecord]:
    """Records in the order of the source, because sums of floats depend on it."""
    waiting: deque[Future[list[ImageRecord]]] = deque()
    for start in range(0, count, CHUNK):
        waiting.append(pool.submit(_examined, range(count)[start : start + CHUNK]))
        if len(waiting) == most_waiting:
            yield from waiting.popleft().result()
    for future in waiting:
        yield from future.result()


def _open(source: Source, settings: Settings) -> None:
    global _opened
    # Ctrl-C reaches all processes; the main process stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _opened = source, settings


def _examined(indices: Sequence[int]) -> list[ImageRecord]:
    assert _opened is not None, "the pool's initializer runs first"
    source, settings = _opened
    return [examined(source, index, settings) for index in indices]
