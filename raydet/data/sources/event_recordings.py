"""Recordings of event cameras with boxes: Gen1, 1 Mpx, eTraM and DSEC-Detection, frame by frame.

A recording is `<name>_td.dat`, `.h5`, `.dat.h5`, `.raw` or `.npy`, its boxes lie beside it in `<name>_bbox.npy`. Of
DSEC it is `<name>/events/left/events.h5` with `<name>/object_detections/left/tracks.npy`. A frame is the stacked
histogram of the events of one window, (end - window, end], and the boxes at its end.

Of PEDRo, `events/<name>.npy` with YOLO rows in `labels_yolo/<name>.txt` (or `labels/`) is one window: it ends, and is
labelled, at its last event. The rules below do not concern it, but for the boxes.

**Labels.** Cameras are labelled at their own times. The rule, in this order, for the times of a recording's labels:

1. A time before `first_label_ms` from the recording's start is left out.
2. The first one left is kept, and a window ends there; windows of equal length lie end to end before it.
3. A later one is kept if it lies at least `label_gap_ms` after the last kept one, and if a whole number of windows fits
   between the two within `label_tolerance_ms`. A window ends exactly there; the others end between the two at equal
   steps from the earlier one.
4. Windows end with the last kept label. Those that end at no label are not labelled: `Sample.is_labelled` is False.

**Boxes** are cropped to the sensor; what remains must be at least `min_side_px` wide and high. Those left out are
counted in `ignored`.

Opening reads headers, boxes and the first events of every recording; the others are read with their windows.

Legend: L label times, W windows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.base import Targets
from raydet.data.sources.boxes import box_target, check_count
from raydet.data.sources.files import Root, files_in
from raydet.data.sources.yolo_rows import read_rows
from raydet.errors import DataError
from raydet.files.events.boxes_npy import TimedBoxes, read_timed_boxes
from raydet.files.events.open import open_events
from raydet.files.events.recording import EventRecording, Ints
from raydet.files.text import one_line
from raydet.ops.event_histogram import map_size, stacked_histogram
from raydet.structures import Boxes, Sample

SUFFIXES = (".dat", ".h5", ".hdf5", ".raw", ".npy")
BOXES = "_bbox"
DSEC_EVENTS = "/events/left/events"
DSEC_BOXES = "object_detections/left/tracks.npy"
END_SLACK_US = 10**6
"""How long after the last event there may be windows: nothing may have happened."""
YOLO_ROWS = ("labels_yolo", "labels")
MAX_WINDOWS = 10**7
"""Of a recording: six days of 50 ms."""
OPEN_RECORDINGS = 2
"""Of each loader process: the last ones that it read."""


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """See above, and `raydet.config.EventRecordingsSource`."""

    window_us: int
    bins: int
    clip: int
    halving: bool
    first_label_us: int
    label_gap_us: int
    label_tolerance_us: int
    min_side_px: int


class Windows(NamedTuple):
    """The windows of one recording."""

    ends_us: Ints
    """int64 [W]."""
    is_labelled: NDArray[np.bool_]
    """bool [W]."""


@dataclass(frozen=True, slots=True)
class _Recording:
    name: str
    path: Path
    size_hw: tuple[int, int]
    windows: Windows
    boxes: TimedBoxes
    """Those of kept labels, cropped, in pixels of the histogram."""


class EventRecordings:
    """A directory tree of recordings, sorted by path.

    Args:
        root: see above.
        classes: names of the class ids 0, 1, ...
        size_hw: of the sensor, for files that do not tell it.
        missing: "event" leaves out everything.
        is_labelled, links_into, on_bad: as in `CocoSet`; "skip" leaves out a recording.

    Raises:
        DataError: a file is missing or damaged, a box has an id without a class, or no window is left.
        ConfigError: HDF5 files, whose packages are not installed.
    """

    def __init__(
        self,
        root: str | Path,
        settings: WindowSettings,
        *,
        classes: Sequence[str],
        size_hw: tuple[int, int] | None = None,
        missing: Collection[str] = (),
        is_labelled: bool = True,
        links_into: str | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        self.classes = tuple(classes)
        self.modalities = tuple(name for name in ("event",) if name not in missing)
        self._settings, self._given_hw = settings, size_hw
        self.ignored: Counter[str] = Counter()
        bad_samples = BadSamples(on_bad)
        self.left_out = bad_samples.left_out
        place = Root(Path(root), links_into)
        files = _recordings_in(place, bad_samples, is_labelled=is_labelled)
        self._recordings = bad_samples.read_all(
            (name, partial(self._open, place, name, path, is_labelled)) for name, path in files.items()
        )
        self._frames = [
            (number, window)
            for number, recording in enumerate(self._recordings)
            for window in range(len(recording.windows.ends_us))
        ]
        if not self._frames:
            raise DataError(
                f"{root}: expected recordings (*_td.dat, *_td.h5, *.raw, *.npy) with boxes (*_bbox.npy), found no "
                "window; check data.source.root, and the times of the labels"
            )
        self.group_ids = [self._recordings[number].name for number, _ in self._frames]
        self.image_ids = [
            f"{self._recordings[number].name}/{self._recordings[number].windows.ends_us[window]}"
            for number, window in self._frames
        ]

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, index: int) -> Sample:
        target, size_hw = self.targets(index)
        number, window = self._frames[index]
        recording, settings = self._recordings[number], self._settings
        end_us = int(recording.windows.ends_us[window])
        opened = _opened(recording.path, self._given_hw, os.getpid())
        start_us = end_us - settings.window_us + 1
        if opened.ended_before(start_us - END_SLACK_US):
            raise DataError(
                f"{recording.path}: its last event is at {opened.last_us} us, its boxes go on to "
                f"{recording.windows.ends_us[-1]} us; copy it again, or give it its own boxes"
            )
        events = opened.between(start_us, end_us + 1)
        counts_CHW = stacked_histogram(
            *events,
            size_hw=recording.size_hw,
            bins=settings.bins,
            clip=settings.clip,
            halving=settings.halving,
        )
        return Sample(
            image_id=self.image_ids[index],
            group_id=self.group_ids[index],
            modalities={name: torch.from_numpy(counts_CHW) for name in self.modalities},
            target=target,
            source_hw=size_hw,
            valid_hw=size_hw,
            is_labelled=self.is_labelled(index),
        )

    def targets(self, index: int) -> Targets:
        number, window = self._frames[index]
        recording = self._recordings[number]
        size_hw = map_size(recording.size_hw, halving=self._settings.halving)
        if not self.is_labelled(index):
            return box_target([], []), size_hw
        rows = slice(*np.searchsorted(recording.boxes.t_us, _instant(recording.windows.ends_us[window])))
        boxes_N4 = recording.boxes.boxes_xyxy[rows].astype(np.float32)
        return Boxes(torch.from_numpy(boxes_N4), torch.from_numpy(recording.boxes.class_ids[rows])), size_hw

    def is_labelled(self, index: int) -> bool:
        """Whether a window ends at a label."""
        number, window = self._frames[index]
        return bool(self._recordings[number].windows.is_labelled[window])

    def _open(self, root: Root, name: str, path: Path, is_labelled: bool) -> _Recording:
        events = open_events(path, self._given_hw)
        size_hw = (events.height, events.width)
        start_us = events.first_us
        if not is_labelled:
            windows = _all_windows(start_us, events.last_us, self._settings.window_us)
            none = TimedBoxes(np.empty(0, np.int64), np.empty((0, 4)), np.empty(0, np.int64))
            return _Recording(name, path, size_hw, windows, none)
        rows = _yolo_rows_of(root, path)
        if rows is not None:
            objects = read_rows(rows, num_classes=len(self.classes), size_hw=size_hw)
            windows = Windows(np.array([events.last_us]), np.array([True]))
            found = TimedBoxes(
                np.full(len(objects.labels), events.last_us, np.int64),
                np.array(objects.boxes, np.float64).reshape(-1, 4),
                np.array(objects.labels, np.int64),
            )
        else:
            found = self._timed_boxes(_boxes_of(root, path), start_us)
            windows = windows_of(np.unique(found.t_us), start_us, self._settings)
        is_kept = np.isin(found.t_us, windows.ends_us[windows.is_labelled])
        self._count("at times that end no window", ~is_kept)
        boxes = self._cropped(found.where(is_kept), size_hw, path)
        return _Recording(name, path, size_hw, windows, boxes)

    def _timed_boxes(self, path: Path, start_us: int) -> TimedBoxes:
        """The boxes of a file, whose classes and times are checked."""
        found = read_timed_boxes(path)
        unknown = found.class_ids[found.class_ids >= len(self.classes)]
        if len(unknown):
            raise DataError(
                f"{path}: expected class ids in 0..{len(self.classes) - 1} ({', '.join(self.classes)}), got "
                f"{unknown[0]}; set data.source.classes to those of the set"
            )
        if len(found.t_us) and (found.t_us[-1] - start_us) // self._settings.window_us > MAX_WINDOWS:
            raise DataError(
                f"{path}: expected boxes of the time of the events, which begin at {start_us} us, got one at "
                f"{found.t_us[-1]} us; give the recording its own boxes, or correct their clock"
            )
        return found

    def _count(self, rule: str, is_left_out_N: NDArray[np.bool_]) -> None:
        """Add up what a rule leaves out; a rule that leaves out nothing is not named."""
        self.ignored += Counter({rule: int(is_left_out_N.sum())})

    def _cropped(self, boxes: TimedBoxes, size_hw: tuple[int, int], path: Path) -> TimedBoxes:
        """The boxes that are left by the rule, in pixels of the histogram."""
        height, width = size_hw
        inside_N4 = boxes.boxes_xyxy.clip(0, (width, height, width, height))
        sides_N2 = inside_N4[:, 2:] - inside_N4[:, :2]
        is_large_N = (sides_N2 >= self._settings.min_side_px).all(axis=1)
        self._count(f"smaller than {self._settings.min_side_px} px in the image", ~is_large_N)
        if self._settings.halving:
            mapped_h, mapped_w = map_size(size_hw, halving=True)
            inside_N4 = (inside_N4 / 2).clip(0, (mapped_w, mapped_h, mapped_w, mapped_h))
        cropped = replace(boxes, boxes_xyxy=inside_N4).where(is_large_N)
        _, counts = np.unique(cropped.t_us, return_counts=True)
        check_count(int(counts.max(initial=0)), str(path))
        return cropped


def windows_of(labels_us: Ints, start_us: int, settings: WindowSettings) -> Windows:
    """The windows of a recording, by the rule above.

    Args:
        labels_us: int64 [L], all different, in order.
        start_us: when the recording begins.
    """
    window_us = settings.window_us
    labels = [int(time) for time in labels_us if time >= start_us + settings.first_label_us]
    if not labels:
        return Windows(np.empty(0, np.int64), np.empty(0, bool))
    num_before = max(0, (labels[0] + 1 - start_us) // window_us - 1)
    ends = [labels[0] - step * window_us for step in range(num_before, 0, -1)]
    is_labelled = [False] * num_before + [True]
    ends.append(labels[0])
    for time in labels[1:]:
        num_windows = max(1, round((time - ends[-1]) / window_us))
        is_far = time - ends[-1] >= settings.label_gap_us - settings.label_tolerance_us
        if is_far and abs(time - ends[-1] - num_windows * window_us) <= settings.label_tolerance_us:
            ends += [ends[-1] + step * window_us for step in range(1, num_windows)]
            ends.append(time)
            is_labelled += [False] * (num_windows - 1) + [True]
    return Windows(np.array(ends, np.int64), np.array(is_labelled))


def _all_windows(start_us: int, last_us: int, window_us: int) -> Windows:
    ends_us = np.arange(start_us - 1 + window_us, last_us + window_us, window_us)
    return Windows(ends_us, np.zeros(len(ends_us), bool))


def _instant(time_us: int) -> tuple[int, int]:
    return time_us, time_us + 1


def _recordings_in(root: Root, bad_samples: BadSamples, *, is_labelled: bool) -> dict[str, Path]:
    """Recordings by name: their path below the root, without suffixes."""
    found: dict[str, Path] = {}
    for stem, path in files_in(root, root.path, SUFFIXES, by_path=True).items():
        if isinstance(path, DataError):
            bad_samples.refuse(one_line(stem), path)
            continue
        name = stem.removesuffix(".dat").removesuffix("_td")
        if name.endswith(BOXES) or "/object_detections/" in f"/{name}" or "/events/right/" in f"/{name}":
            continue
        has_boxes = _boxes_of(root, path).exists() or _yolo_rows_of(root, path) is not None
        if path.suffix == ".npy" and is_labelled and not has_boxes:
            continue  # another array
        name = name.removesuffix(DSEC_EVENTS)
        if name in found:
            error = DataError(f"{path}: is recording {name} like {found[name].name}; delete one of them")
            bad_samples.refuse(name, error)
            continue
        found[name] = path
    return found


def _boxes_of(root: Root, path: Path) -> Path:
    if path.with_suffix("").as_posix().endswith(DSEC_EVENTS):
        boxes = path.parents[2] / DSEC_BOXES
    else:
        stem = path.name.removesuffix(path.suffix).removesuffix(".dat").removesuffix("_td")
        boxes = path.with_name(stem + BOXES + ".npy")
    return root.checked(boxes, str(path))


def _yolo_rows_of(root: Root, path: Path) -> Path | None:
    """The YOLO rows of an array of events; None: there are none."""
    if path.suffix != ".npy" or path.parent == root.path:
        return None
    places = [path.parents[1] / name / f"{path.stem}.txt" for name in YOLO_ROWS]
    return next((root.checked(place, str(path)) for place in places if place.is_file()), None)


@lru_cache(maxsize=OPEN_RECORDINGS)
def _opened(path: Path, size_hw: tuple[int, int] | None, process: int) -> EventRecording:
    """The recording, which is kept open; `process` tells a fork from its parent, whose pipes it must not use."""
    return open_events(path, size_hw)
