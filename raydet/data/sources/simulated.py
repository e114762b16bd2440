"""A source without an event camera, with events simulated from its RGB images as they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raydet.config import EventSimulation
from raydet.data.events import (
    EventCounts,
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
    """The same images and targets, with one channel of simulated events; see `raydet.data.events`.

    The source must have rgb and no event.
    """

    settings: EventSimulation

    @property
    def modalities(self) -> tuple[str, ...]:
        return (*self.source.modalities, "event")

    def read(self, index: int) -> Sample:
        """One image with its events: the same at every read, in any order.

        Raises:
            DataError: the image cannot be read, or the previous frame from which its events start.
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
        mean, sigma = settings.threshold, settings.threshold_sigma
        thresholds_HW = thresholds(sample.valid_hw, mean=mean, sigma=sigma, seed=settings.seed)
        groups = self.source.group_ids
        # An empty group: the source has no sequences.
        has_previous = index > 0 and groups[index] != "" and groups[index - 1] == groups[index]
        if settings.between == "frames" and has_previous:
            before_HW = log_intensity(self.source.read(index - 1).modalities["rgb"])
            if before_HW.shape == log_HW.shape:
                return events_between(before_HW, log_HW, thresholds_HW)
        shift_yx = drawn_motion(settings.motion_px, (settings.seed, sample.image_id))
        return events_of_motion(log_HW, shift_yx, thresholds_HW)
