"""A recording of an event camera, window after window, as a camera would deliver it: one at a time, with the memory
that the windows before it have left.

What a model remembers is dropped only where a recording has a gap: no event for longer than `gap_us`. The windows
within a gap are not fed to the model, and the first one after it begins with no memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from raydet.config import EventRecordingsSource
from raydet.data.sources.boxes import box_target
from raydet.data.transforms import eval_transform
from raydet.engine.open_run import TrainedRun
from raydet.errors import ConfigError
from raydet.files.events.recording import EventRecording
from raydet.models.carry import Streamed
from raydet.ops.event_histogram import map_size, stacked_histogram
from raydet.structures import Detections, Sample, collate

EVENT = "event"


@dataclass(frozen=True, slots=True)
class HistogramSettings:
    """How windows become histograms, see `raydet.ops.event_histogram`; the defaults are those of the embedded sets."""

    window_us: int = 50_000
    bins: int = 10
    clip: int = 10
    halving: bool = False


@dataclass(frozen=True, slots=True)
class StreamedWindow:
    """What was found in one window."""

    end_us: int
    """The window's last microsecond."""
    detections: Detections
    """On the CPU, in pixels of the histogram."""
    latency_s: float
    """From its events to the detections: histogram, model and decoding, without reading the file."""
    is_reset: bool
    """The memory was empty before it."""


def histogram_settings(run: TrainedRun) -> HistogramSettings:
    """The settings of the histograms that a run was trained on.

    Raises:
        ConfigError: the run does not read events alone, as a recording has nothing else, or reads other histograms than
            its source tells.
    """
    data, modalities = run.experiment.data, run.model.modalities
    if modalities != (EVENT,):
        raise ConfigError(
            f"expected a run that reads the event modality alone, got {', '.join(modalities)} ({run.run_dir}); a "
            "recording has nothing else"
        )
    source = data.source
    settings = HistogramSettings(bins=data.event_channels // 2)
    if isinstance(source, EventRecordingsSource):
        settings = HistogramSettings(source.window_ms * 1000, source.bins, source.clip, source.halving)
    if data.event_channels != 2 * settings.bins:
        raise ConfigError(
            f"expected a run on histograms of two polarities, got data.event_channels={data.event_channels} "
            f"({run.run_dir})"
        )
    return settings


def stream(
    run: TrainedRun, recording: EventRecording, settings: HistogramSettings, *, gap_us: int
) -> Iterator[StreamedWindow]:
    """Detections of all windows of a recording, in the order of time.

    Args:
        gap_us: without an event for longer than this, what the model remembers is dropped.

    Raises:
        DataError: the recording is damaged.
    """
    streamed = Streamed(run.model)
    sensor_hw = recording.height, recording.width
    size_hw = map_size(sensor_hw, halving=settings.halving)
    last_event_us: int | None = None
    is_fresh = True
    for start_us in range(recording.first_us, recording.last_us + 1, settings.window_us):
        end_us = start_us + settings.window_us - 1
        events = recording.between(start_us, end_us + 1)
        started = time.perf_counter()
        if len(events.t_us):
            is_fresh = is_fresh or (
                last_event_us is not None and int(events.t_us[0]) - last_event_us > gap_us
            )
            last_event_us = int(events.t_us[-1])
        elif last_event_us is not None and end_us - last_event_us > gap_us:
            is_fresh = True
            continue
        counts_CHW = stacked_histogram(
            *events, size_hw=sensor_hw, bins=settings.bins, clip=settings.clip, halving=settings.halving
        )
        sample = Sample(
            image_id=str(end_us),
            group_id="",
            modalities={EVENT: torch.from_numpy(counts_CHW)},
            target=box_target([], []),
            source_hw=size_hw,
            valid_hw=size_hw,
        )
        sample = eval_transform(sample, canvas_hw=run.experiment.data.canvas_hw)
        batch = collate([sample], is_first=[is_fresh]).to(run.device)
        with torch.no_grad():
            [found] = streamed(batch, want="predictions").predictions
        found = found.rescaled(sample.valid_hw, size_hw)
        found = Detections(found.boxes_xyxy.cpu(), found.scores.cpu(), found.labels.cpu())
        yield StreamedWindow(end_us, found, time.perf_counter() - started, is_fresh)
        is_fresh = False


def latency_ms(latencies_s: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds."""
    p50, p99 = np.percentile(latencies_s, (50, 99))
    return 1000 * float(p50), 1000 * float(p99)
