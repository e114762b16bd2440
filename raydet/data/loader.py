"""Batches for training and for evaluation, read in this process or in loader processes.

Loader processes come from a fork server: a plain fork copies the locks of the threads that torch and Ray run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from raydet.config import DataConfig
from raydet.data.placement import partner_positions
from raydet.data.sampler import ElasticSampler
from raydet.data.sources.base import Source
from raydet.data.transforms import eval_transform, train_transform
from raydet.errors import DataError
from raydet.structures import Batch, Sample, collate


@dataclass(frozen=True, slots=True)
class _Order:
    """What a loader process is asked for: the images of one batch."""

    indices: tuple[int, ...]
    epoch: int | None
    """The epoch to augment for; None does not augment."""


class TrainLoader:
    """The micro-batches of one worker.

    Args:
        source: all images.
        indices: those that train.
        data: canvas, augmentation and number of loader processes.
        micro_batch, accumulation: see `batch_plan`.
        rank, world_size: of this worker.
        reads: the modalities that the model reads, see `train_transform`.

    Raises:
        ConfigError: there are fewer images than a global batch wants.
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
        reads: Collection[str] | None = None,
    ) -> None:
        assert world_size * accumulation * micro_batch == global_batch, "see batch_plan"
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self._rank = rank
        self._indices = list(indices)
        self._sampler = ElasticSampler(num_samples=len(self._indices), global_batch=global_batch, seed=seed)
        # An array: loader processes get a copy.
        partners = np.asarray(self._indices) if data.augmentation.mosaic > 0 else np.empty(0, np.int64)
        self._stream = _BatchStream(_Batches(source, data, seed, partners, reads))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch, the same on every worker."""
        return self._sampler.steps_per_epoch

    @property
    def share(self) -> int:
        """Images of this worker per optimiser step."""
        return self.accumulation * self.micro_batch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """One list of micro-batches per optimiser step.

        Args:
            first_step: where to begin, to resume within an epoch.

        Raises:
            DataError: an image cannot be read.
        """
        steps = self._sampler.of_rank(
            epoch,
            rank=self._rank,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation,
            first_step=first_step,
        )
        orders = [
            _Order(tuple(self._indices[position] for position in positions), epoch)
            for micro_batches in steps
            for positions in micro_batches
        ]
        batches = self._stream.read(orders)
        for _ in range(first_step, self.steps_per_epoch):
            yield [next(batches) for _ in range(self.accumulation)]


class EvalLoader:
    """One worker's share of the evaluation images, each exactly once; shares may differ by one batch.

    With `in_step` every worker gets equally many batches, as a sharded model wants: a worker that has run out is given
    the first batch again, with no positions.

    Whole batches are dealt out: an image has the same neighbours at any number of workers, and so the same detections
    to the last bit. Iterating yields batches with the position of each image in `indices`.
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
        batches = [
            list(range(len(indices))[start : start + batch_size])
            for start in range(0, len(indices), batch_size)
        ]
        orders = [_Order(tuple(indices[position] for position in positions), None) for positions in batches]
        self._positions, self._orders = batches[rank::world_size], orders[rank::world_size]
        if in_step and len(self._orders) < len(orders[::world_size]):
            self._positions.append([])
            self._orders.append(orders[0])
        self._stream = _BatchStream(_Batches(source, data))

    def __len__(self) -> int:
        return len(self._orders)

    def __iter__(self) -> Iterator[tuple[Batch, list[int]]]:
        return zip(self._stream.read(self._orders), self._positions, strict=True)


class _BatchStream:
    """Batches in the order in which they are asked for."""

    def __init__(self, batches: _Batches) -> None:
        self._orders: list[_Order] = []
        threads = batches.data.loader_threads
        self._loader: DataLoader[Batch | DataError] = DataLoader(
            batches,
            batch_size=None,  # an order is a batch already
            sampler=_Mailbox(self._orders),
            num_workers=threads,
            multiprocessing_context="forkserver" if threads else None,
            persistent_workers=threads > 0,  # starting them takes seconds
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else every epoch draws from the global one
        )

    def read(self, orders: Sequence[_Order]) -> Iterator[Batch]:
        self._orders[:] = orders
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


class _Mailbox:
    """The orders that `_BatchStream.read` has put down; the DataLoader looks here at the start of a pass."""

    def __init__(self, orders: list[_Order]) -> None:
        self._orders = orders

    def __iter__(self) -> Iterator[_Order]:
        return iter(list(self._orders))

    def __len__(self) -> int:
        return len(self._orders)


@dataclass(frozen=True, slots=True)
class _Batches(Dataset[Batch | DataError]):
    """Reads, transforms and stacks; lives in the loader processes."""

    source: Source
    data: DataConfig
    seed: int = 0
    partners: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Indices of the images that may join a mosaic."""
    reads: Collection[str] | None = None

    def __getitem__(self, order: _Order) -> Batch | DataError:
        # Returned, not raised: the DataLoader would wrap the message in a traceback.
        try:
            return collate([self._sample(index, order.epoch) for index in order.indices])
        except DataError as error:
            return error

    def _sample(self, index: int, epoch: int | None) -> Sample:
        sample = self.source.read(index)
        if epoch is None:
            return eval_transform(sample, canvas_hw=self.data.canvas_hw)
        return train_transform(
            sample,
            augmentation=self.data.augmentation,
            canvas_hw=self.data.canvas_hw,
            seed=self.seed,
            epoch=epoch,
            partners=self._partners(sample.image_id, epoch),
            reads=self.reads,
        )

    def _partners(self, image_id: str, epoch: int) -> list[Sample]:
        positions = partner_positions(
            image_id,
            probability=self.data.augmentation.mosaic,
            num_samples=len(self.partners),
            seed=self.seed,
            epoch=epoch,
        )
        return [self._partner(int(self.partners[position]), image_id) for position in positions]

    def _partner(self, index: int, image_id: str) -> Sample:
        try:
            return self.source.read(index)
        except DataError as error:
            partner = self.source.image_ids[index]
            raise DataError(f"{error} (image {partner}, read for the mosaic of {image_id})") from error
