"""Batches for training and evaluation, read in this process or in loader processes.

Loader processes are started by a fork server: a plain fork copies the locks of the threads that torch and Ray run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from raydet.config import Clips, DataConfig, Frames, Sampling
from raydet.data.clips import ClipSampler, sequences_of
from raydet.data.placement import partner_positions
from raydet.data.sampler import ElasticSampler
from raydet.data.sources.base import Source
from raydet.data.transforms import eval_transform, train_transform
from raydet.errors import DataError
from raydet.structures import Batch, Sample, collate


@dataclass(frozen=True, slots=True)
class _BatchRequest:
    """The images of one batch, as requested from a loader process."""

    indices: tuple[int, ...]
    """Of clips: the first frame of every clip, then the second one of every clip, and so on."""
    pass_: int | None
    """The pass through the data to augment for, counted from 0; None does not augment."""
    clip_frames: int = 1
    is_first: tuple[bool, ...] | None = None
    """Of each clip: it begins its lane's sequence, see `raydet.data.clips`; None: no clips."""
    leaders: tuple[int, ...] | None = None
    """Of each clip the image by whose id all of its frames are augmented alike; None: each image by its own."""


def make_sampler(
    sampling: Sampling, source: Source, indices: Sequence[int], global_batch: int, seed: int
) -> ElasticSampler | ClipSampler:
    """The sampler of a training set.

    Args:
        indices: the images that train, by their index in the source.

    Raises:
        ConfigError: there are fewer images, or windows, than a global batch has.
    """
    match sampling:
        case Frames():
            return ElasticSampler(len(indices), global_batch, seed)
        case Clips(frames=frames, random_share=share):
            lengths = tuple(map(len, sequences_of([source.group_ids[i] for i in indices])))
            return ClipSampler(lengths, frames, global_batch, seed, share)
        case unreachable:
            assert_never(unreachable)


class TrainLoader:
    """The micro-batches of one worker.

    Args:
        source: all images.
        indices: those that train.
        data: canvas, augmentation and number of loader processes.
        micro_batch, accumulation: see `batch_plan`.
        rank, world_size: of this worker.
        steps_per_epoch: optimizer steps of an epoch; None: those of one pass through the data.
        reads: the modalities that the model reads, see `train_transform`.

    Raises:
        ConfigError: there are fewer images than a global batch needs.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        *,
        data: DataConfig,
        seed: int,
        global_batch: int,
        micro_batch: int,
        accumulation: int,
        rank: int,
        world_size: int,
        steps_per_epoch: int | None = None,
        reads: Collection[str] | None = None,
    ) -> None:
        assert world_size * accumulation * micro_batch == global_batch, "see batch_plan"
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self._rank = rank
        self._indices = list(indices)
        self._sampler = make_sampler(data.sampling, source, self._indices, global_batch, seed)
        if isinstance(self._sampler, ClipSampler):
            self._sequences = sequences_of([source.group_ids[i] for i in self._indices])
        self.steps_per_epoch = steps_per_epoch or self._sampler.steps_per_pass
        # An array, because loader processes get a copy.
        partners = np.asarray(self._indices) if data.augmentation.mosaic > 0 else np.empty(0, np.int64)
        self._stream = _BatchStream(_Batches(source, data, seed, partners, reads))

    @property
    def share(self) -> int:
        """This worker's images per optimizer step."""
        return self.accumulation * self.micro_batch

    def position(self, step: int) -> tuple[int, int]:
        """The pass that a step of the run belongs to, and where this worker's samples begin in its order."""
        pass_, first = self._sampler.position(step)
        return pass_, first + self._rank * self.share

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """One list of micro-batches per optimizer step.

        Args:
            first_step: the step to resume at within an epoch.

        Raises:
            DataError: an image cannot be read.
        """
        start = epoch * self.steps_per_epoch
        steps = range(start + first_step, start + self.steps_per_epoch)
        slots = range(self._rank * self.share, (self._rank + 1) * self.share, self.micro_batch)
        batches = self._stream.read([self._request(step, slot) for step in steps for slot in slots])
        for _ in steps:
            yield [next(batches) for _ in slots]

    def _request(self, step: int, slot: int) -> _BatchRequest:
        """The micro-batch that begins with a slot of the global batch."""
        sampler, (pass_, _) = self._sampler, self._sampler.position(step)
        if isinstance(sampler, ElasticSampler):
            positions = sampler.slots(step, slot, self.micro_batch)
            return _BatchRequest(tuple(self._indices[position] for position in positions), pass_)
        windows = [sampler.window(step, lane) for lane in range(slot, slot + self.micro_batch)]
        indices = tuple(
            self._indices[self._sequences[window.sequence][window.first_frame + frame]]
            for frame in range(sampler.clip_frames)
            for window in windows
        )
        # A streaming lane sees all clips of a sequence augmented alike, because it remembers the ones before.
        leaders = tuple(
            self._indices[
                self._sequences[window.sequence][0 if lane < sampler.num_streaming else window.first_frame]
            ]
            for lane, window in enumerate(windows, start=slot)
        )
        is_first = tuple(window.is_first for window in windows)
        return _BatchRequest(indices, pass_, sampler.clip_frames, is_first, leaders)


class EvalLoader:
    """One worker's share of the evaluation images, each exactly once.

    Workers take turns in whole batches of single frames, or in whole sequences of clips: an image has the same
    neighbours at any number of workers, and so the same detections to the last bit. A sequence comes in the order of
    time, `batch_size` frames of it in each batch, so that a model with memory sees it from its beginning.

    With `in_step` every worker gets the same number of batches, as a sharded model needs: a worker without images left
    gets the first batch again, with no positions. Iterating yields batches with the position of
    each image in `indices`.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        *,
        data: DataConfig,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        in_step: bool = False,
    ) -> None:
        is_clips = isinstance(data.sampling, Clips)
        sequences = (
            sequences_of([source.group_ids[index] for index in indices])
            if is_clips
            else [range(len(indices))]
        )
        batches = [
            [list(sequence[start : start + batch_size]) for start in range(0, len(sequence), batch_size)]
            for sequence in sequences
        ]
        # What one worker takes at a time.
        turns = batches if is_clips else [[positions] for positions in batches[0]]
        shares = [
            [each for turn in turns[worker::world_size] for each in turn] for worker in range(world_size)
        ]
        begins = {sequence[0] for sequence in sequences if sequence}

        def request(positions: list[int]) -> _BatchRequest:
            chosen = tuple(indices[position] for position in positions)
            if not is_clips:
                return _BatchRequest(chosen, None)
            return _BatchRequest(chosen, None, len(chosen), (positions[0] in begins,))

        self._positions = shares[rank]
        self._requests = [request(positions) for positions in self._positions]
        if in_step:
            missing = max(map(len, shares)) - len(self._requests)
            self._requests += [request(turns[0][0])] * missing
            self._positions += [[]] * missing
        self._stream = _BatchStream(_Batches(source, data))

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[tuple[Batch, list[int]]]:
        return zip(self._stream.read(self._requests), self._positions, strict=True)


class _BatchStream:
    """Batches in the order of their requests."""

    def __init__(self, batches: _Batches) -> None:
        self._requests: list[_BatchRequest] = []
        threads = batches.data.loader_threads
        self._loader: DataLoader[Batch | DataError] = DataLoader(
            batches,
            batch_size=None,  # a request is a whole batch already
            sampler=_RequestSampler(self._requests),
            num_workers=threads,
            multiprocessing_context="forkserver" if threads else None,
            persistent_workers=threads > 0,  # starting them takes seconds
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise every epoch draws from the global one
        )

    def read(self, requests: Sequence[_BatchRequest]) -> Iterator[Batch]:
        self._requests[:] = requests
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


@dataclass(frozen=True, slots=True)
class _RequestSampler:
    """Sampler over the latest requests of `_BatchStream.read`; the DataLoader iterates it once per pass."""

    requests: list[_BatchRequest]

    def __iter__(self) -> Iterator[_BatchRequest]:
        return iter(list(self.requests))

    def __len__(self) -> int:
        return len(self.requests)


@dataclass(frozen=True, slots=True)
class _Batches(Dataset[Batch | DataError]):
    """Map-style dataset of whole batches: reads, transforms and stacks in the loader processes."""

    source: Source
    data: DataConfig
    seed: int = 0
    partners: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Indices of the images that may join a mosaic."""
    reads: Collection[str] | None = None

    def __getitem__(self, request: _BatchRequest) -> Batch | DataError:
        # Returned, not raised: the DataLoader would wrap the message in a traceback.
        try:
            leaders = request.leaders or request.indices
            samples = [
                self._sample(index, leaders[row % len(leaders)], request.pass_)
                for row, index in enumerate(request.indices)
            ]
            return collate(samples, clip_frames=request.clip_frames, is_first=request.is_first)
        except DataError as error:
            return error

    def _sample(self, index: int, leader: int, pass_: int | None) -> Sample:
        """A sample on the canvas, augmented by the id of another one, see `_BatchRequest`."""
        sample = self.source.read(index)
        if pass_ is None:
            return eval_transform(sample, canvas_hw=self.data.canvas_hw)
        return train_transform(
            sample,
            augmentation=self.data.augmentation,
            canvas_hw=self.data.canvas_hw,
            key=(self.seed, pass_, self.source.image_ids[leader]),
            partners=self._partners(sample.image_id, pass_),
            reads=self.reads,
        )

    def _partners(self, image_id: str, pass_: int) -> list[Sample]:
        positions = partner_positions(
            image_id,
            probability=self.data.augmentation.mosaic,
            num_samples=len(self.partners),
            seed=self.seed,
            epoch=pass_,
        )
        return [self._partner(int(self.partners[position]), image_id) for position in positions]

    def _partner(self, index: int, image_id: str) -> Sample:
        try:
            return self.source.read(index)
        except DataError as error:
            partner = self.source.image_ids[index]
            raise DataError(f"{error} (image {partner}, read for the mosaic of {image_id})") from error
