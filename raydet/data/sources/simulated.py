"""A source without an event camera, and events made from its RGB images as they are read."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from raydet.config import EventSimulation
from raydet.data.events import (
    EventCounts,
    Ints,
    as_image,
    drawn_motion,
    events_between,
    events_of_motion,
    log_intensity,
    thresholds,
    with_noise,
)
from raydet.data.sources.wrapped import WrappedSource
from raydet.structures import Sample


@dataclass(frozen=True, slots=True)
class SimulatedEvents(WrappedSource):
    """The same images and boxes, with one channel of simulated events; see `raydet.data.events`.

    Args:
        source: has rgb and no event.
        settings: of the simulation.
    """

    settings: EventSimulation

    @property
    def modalities(self) -> tuple[str, ...]:
        """What every image has."""
        return (*self.source.modalities, "event")

    def read(self, index: int) -> Sample:
        """One image with its events: the same at every reading, whatever was read before.

        Raises:
            DataError: the image cannot be read, or the one before it that its events begin at.
        """
        sample, settings = self.source.read(index), self.settings
        key = (settings.seed, sample.image_id, "simulated events")
        counts = with_noise(self._events(sample, index), settings.noise, key)
        event = as_image(counts, settings.full_scale)
        if sample.modalities["rgb"].is_floating_point():
            event = event.float() / 255
        return replace(sample, modalities={**sample.modalities, "event": event})

    def _events(self, sample: Sample, index: int) -> EventCounts:
        settings = self.settings
        log_HW = log_intensity(sample.modalities["rgb"])
        thresholds_HW = _thresholds(sample.valid_hw, settings)
        if settings.between == "frames" and self._has_previous(index):
            before_HW = log_intensity(self.source.read(index - 1).modalities["rgb"])
            if before_HW.shape == log_HW.shape:
                return events_between(before_HW, log_HW, thresholds_HW)
        shift_yx = drawn_motion(settings.motion_px, (settings.seed, sample.image_id))
        return events_of_motion(log_HW, shift_yx, thresholds_HW)

    def _has_previous(self, index: int) -> bool:
        groups = self.source.group_ids
        # An empty name: the source cannot tell sequences.
        return index > 0 and groups[index] != "" and groups[index - 1] == groups[index]


@functools.lru_cache(maxsize=2)
def _thresholds(size_hw: tuple[int, int], settings: EventSimulation) -> Ints:
    """One camera for the whole set; computing it takes longer than an image's events."""
    return thresholds(size_hw, mean=settings.threshold, sigma=settings.threshold_sigma, seed=settings.seed)
