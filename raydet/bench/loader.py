"""Speed and memory of reading images, compared with one float array per image.

The images of any source are resized to one size and five channels; without an event camera, events are simulated from
edges. They are read in random order, from the page cache, by one thread; the methods alternate. Times are processor
times, so that load on the machine has no influence; torch has one thread, because further ones would spin.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import psutil
import torch
from torch import Tensor

from raydet.bench.train_step import bench_train_step
from raydet.config import DataConfig, Experiment, NpyYoloSource, ShardsSource
from raydet.data.build import open_source
from raydet.data.convert import convert
from raydet.data.loader import TrainLoader
from raydet.data.shards.manifest import Encoding
from raydet.data.sources.base import Source
from raydet.data.transforms import resize
from raydet.plan.measure import single_cpu_thread
from raydet.structures import Sample

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
EVENT_EDGE = 48
"""Brightness difference between pixels two columns apart that makes a simulated event."""


@dataclass(frozen=True, slots=True)
class ReadMethod:
    """One method of reading an image; medians over the rounds."""

    name: str
    images_per_s: float
    """Images per second and core."""
    of_seeds: float
    """Speed relative to the published runs' method in the same round."""
    bytes_per_image: int


@dataclass(frozen=True, slots=True)
class BatchSpeed:
    """Speed of the whole loader, with collated, augmented batches."""

    encoding: str
    loader_processes: int
    images_per_s: float
    """Images per second of wall-clock time."""
    step_share: float | None
    """Ratio of a batch's time to that of a train step; below 1 loading is hidden by the step."""


@dataclass(frozen=True, slots=True)
class LoaderReport:
    images: int
    size_hw: tuple[int, int]
    is_event_simulated: bool
    rounds: int
    ways: list[ReadMethod]
    batches: list[BatchSpeed]
    memory_processes: int
    memory_bytes: list[int]
    """Memory of all loader processes after each epoch; shared pages count once."""

    @property
    def memory_growth(self) -> float:
        """Relative growth from the second epoch, when all pages have been touched, to the last."""
        return self.memory_bytes[-1] / self.memory_bytes[min(1, len(self.memory_bytes) - 1)] - 1


def bench_loader(
    experiment: Experiment,
    *,
    num_images: int = 64,
    size_hw: tuple[int, int] = (512, 640),
    rounds: int = 5,
    loader_processes: int = 2,
    memory_processes: int = 4,
    memory_epochs: int = 20,
    with_step: bool = True,
) -> LoaderReport:
    """Measure on the images of an experiment's source.

    Raises:
        DataError: they cannot be read.
    """
    with TemporaryDirectory(prefix="raydet-bench-") as directory:
        root = Path(directory)
        config, is_simulated = write_arrays(experiment.data, root / "npy", num_images, size_hw)
        for encoding in ENCODINGS:
            convert(config, str(root / encoding), encoding=encoding)
        configs = {
            encoding: config.model_copy(update={"source": ShardsSource(path=str(root / encoding))})
            for encoding in ENCODINGS
        }
        sources = {encoding: open_source(shards) for encoding, shards in configs.items()}
        with single_cpu_thread():
            ways = _read_methods(root, open_source(config), sources, rounds)
        step_s = _step_s(experiment, size_hw) if with_step else None
        batches = [
            _batch_speed(experiment, encoding, shards, loader_processes, step_s)
            for encoding, shards in configs.items()
        ]
        memory = _memory(experiment, configs["zstd"], memory_processes, memory_epochs)
    return LoaderReport(num_images, size_hw, is_simulated, rounds, ways, batches, memory_processes, memory)


def write_arrays(
    data: DataConfig, root: Path, count: int, size_hw: tuple[int, int]
) -> tuple[DataConfig, bool]:
    """Write one uint8 array of five channels, and its labels, per image.

    Returns the config that opens them, and whether events are simulated.

    Raises:
        DataError: the images cannot be read.
    """
    source = open_source(data)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    height, width = size_hw
    for number in range(count):
        sample = resize(source.read(number % len(source)), size_hw)
        planes = _five_channels(sample)
        np.save(root / "images" / f"{number:05d}.npy", planes.permute(1, 2, 0).contiguous().numpy())
        rows = [
            f"{label} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} {(x2 - x1) / width:.6f} "
            f"{(y2 - y1) / height:.6f}\n"
            for label, (x1, y1, x2, y2) in zip(
                sample.labels.tolist(), sample.boxes_xyxy.tolist(), strict=True
            )
        ]
        (root / "labels" / f"{number:05d}.txt").write_text("".join(rows))
    update = {
        "source": NpyYoloSource(root=str(root)),
        "missing": (),
        "canvas_hw": size_hw,
        "simulate_events": None,  # the arrays have events
    }
    return data.model_copy(update=update), "event" not in source.modalities or "event" in data.simulated


def _five_channels(sample: Sample) -> Tensor:
    """uint8 [5, H, W]; missing modalities are made from the others."""
    given = {
        name: pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)
        for name, pixels in sample.modalities.items()
    }
    first = next(iter(given.values()))
    rgb = given.get("rgb", first[:1].expand(3, -1, -1))
    thermal = given.get("thermal", rgb[:1])
    event = given.get("event")
    if event is None:
        brightness = rgb.int().sum(dim=0, keepdim=True) // 3
        difference = (brightness - brightness.roll(2, dims=-1)).abs()
        event = torch.where(difference > EVENT_EDGE, difference.clamp(max=255), 0).to(torch.uint8)
    return torch.cat([rgb, thermal, event[:1]])


def _read_methods(
    root: Path, arrays: Source, shards: dict[Encoding, Source], rounds: int
) -> list[ReadMethod]:
    files = sorted((root / "npy" / "images").glob("*.npy"))
    reads: dict[str, Callable[[int], object]] = {
        "npy to float (seeds)": lambda index: torch.from_numpy(np.load(files[index])).float().div_(255),
        "npy, uint8": arrays.read,
        # A raw image is a view of the file; its bytes are copied here, as in a batch.
        "raw shards": lambda index: [x.clone() for x in shards["raw"].read(index).modalities.values()],
        "zstd shards": shards["zstd"].read,
    }
    sizes = {"raw shards": _size(root / "raw"), "zstd shards": _size(root / "zstd")}
    seconds: dict[str, list[float]] = {name: [] for name in reads}
    order = np.random.RandomState(0).permutation(len(files)).tolist()
    for turn in range(rounds + 1):
        for name, read in reads.items():
            started = time.process_time()
            for index in order:
                read(index)
            if turn:  # the first is a warm-up
                seconds[name].append((time.process_time() - started) / len(files))
    reference = seconds["npy to float (seeds)"]
    return [
        ReadMethod(
            name,
            1 / statistics.median(times),
            statistics.median(theirs / own for theirs, own in zip(reference, times, strict=True)),
            sizes.get(name, _size(root / "npy" / "images")) // len(files),
        )
        for name, times in seconds.items()
    ]


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _step_s(experiment: Experiment, size_hw: tuple[int, int]) -> float:
    """Seconds of an fp32 train step with the experiment's global batch."""
    data = experiment.data.model_copy(update={"canvas_hw": size_hw})
    report = bench_train_step(
        experiment.model_copy(update={"data": data}),
        batch_size=experiment.train.global_batch,
        precisions=["fp32"],
        against=[],
        repeats=1,
        num_objects=8,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    return report.runs[0].step_s


def _batch_speed(
    experiment: Experiment, encoding: str, config: DataConfig, processes: int, step_s: float | None
) -> BatchSpeed:
    loader = _loader(experiment, config, processes)
    sum(1 for _ in loader.epoch(0))  # starts the processes
    started = time.perf_counter()
    epochs = 3
    for epoch in range(1, epochs + 1):
        sum(1 for _ in loader.epoch(epoch))
    batch_s = (time.perf_counter() - started) / (epochs * loader.steps_per_epoch)
    share = None if step_s is None else batch_s / step_s
    return BatchSpeed(encoding, processes, loader.share / batch_s, share)


def _loader(experiment: Experiment, config: DataConfig, processes: int) -> TrainLoader:
    source = open_source(config)
    batch = min(experiment.train.global_batch, len(source))
    return TrainLoader(
        source,
        range(len(source)),
        data=config.model_copy(update={"loader_threads": processes}),
        seed=experiment.seed,
        global_batch=batch,
        micro_batch=batch,
        accumulation=1,
        rank=0,
        world_size=1,
    )


def _memory(experiment: Experiment, config: DataConfig, processes: int, epochs: int) -> list[int]:
    """Bytes of all loader processes after each epoch."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    memory_bytes = []
    loader = _loader(experiment, config, processes)
    for epoch in range(epochs):
        sum(1 for _ in loader.epoch(epoch))
        children = psutil.Process().children(recursive=True)
        memory_bytes.append(sum(c.memory_full_info().pss for c in children if c.pid not in before))
    return memory_bytes
