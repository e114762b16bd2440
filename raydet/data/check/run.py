"""The check of a whole source, picture by picture, in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator

import torch

from raydet.config import DataConfig, EvaluateConfig, FirstSplit, FrameSplit, GroupSplit
from raydet.data.build import left_out_of
from raydet.data.check.examine import PictureRecord, Settings, examined
from raydet.data.check.gather import Gathered, gather
from raydet.data.sources.base import Source
from raydet.data.split import split_indices
from raydet.errors import DataError

CHUNK = 8
"""Pictures that a process takes at a time."""
DEFAULT_TOLERANCE = 0.0125
"""5 px of the 400 at which alignment is estimated: the largest displacement of any true pair of MSRS, RoadScene and
LLVIP that was found with certainty is 0.0114 of the longer side."""

_opened: tuple[Source, Settings] | None = None


def settings_of(
    data: DataConfig, evaluate: EvaluateConfig, *, tolerance: float = DEFAULT_TOLERANCE, align: bool = True
) -> Settings:
    """What a check of these pictures goes by: sizes as they are measured in evaluation."""
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
    on_picture: Callable[[], None] = lambda: None,
) -> Gathered:
    """Look at every picture once. The result does not depend on the number of processes.

    Args:
        workers: processes that read and look; 0 does it here.
        on_picture: called after each picture.
    """
    return gather(
        _told(_records(source, settings, workers), on_picture),
        settings=settings,
        modalities=source.modalities,
        left_out=left_out_of(source),
        sides=_sides(source, split),
    )


def _told(records: Iterator[PictureRecord], on_picture: Callable[[], None]) -> Iterator[PictureRecord]:
    for record in records:
        on_picture()
        yield record


def _sides(source: Source, split: GroupSplit | FrameSplit | FirstSplit) -> dict[int, str] | str:
    """The side of each picture, or why there are none."""
    try:
        train, val = split_indices(source, split)
    except DataError as error:
        return str(error)
    sides = dict.fromkeys(train, "train")
    for index in val:
        sides[index] = "both" if index in sides else "val"
    return sides


def _records(source: Source, settings: Settings, workers: int) -> Iterator[PictureRecord]:
    if workers == 0:
        for index in range(len(source)):
            yield examined(source, index, settings)
        return
    context = multiprocessing.get_context("forkserver")
    with context.Pool(workers, initializer=_open, initargs=(source, settings)) as pool:
        # in order: sums of floats depend on it
        yield from pool.imap(_examined, range(len(source)), chunksize=CHUNK)


def _open(source: Source, settings: Settings) -> None:
    global _opened
    torch.set_num_threads(1)
    _opened = source, settings


def _examined(index: int) -> PictureRecord:
    assert _opened is not None, "the pool's initializer comes first"
    source, settings = _opened
    return examined(source, index, settings)
