"""What `test_checkpoint_ranks.py` runs as three processes, in which groups of one, two and three ranks form in turn.

usage: python -m tests.numerics.checkpoint_ranks DIRECTORY
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from raydet.checkpoint.load import load_checkpoint
from raydet.checkpoint.writer import CheckpointWriter, agreed_checkpoint
from raydet.config import AdamWConfig, SGDConfig, apply_overrides
from raydet.data.build import open_source
from raydet.data.loader import TrainLoader
from raydet.engine.optim import build_optimizer
from raydet.engine.step import train_step
from raydet.errors import CheckpointError, WorkerLostError
from raydet.models.build import build_model
from raydet.parallel.collectives import World
from raydet.parallel.parallelize import parallelize, unwrapped
from raydet.recipes import recipe

RANK = int(os.environ["RANK"])
GLOBAL_BATCH = 6
STEPS = 5
_numbers = count()

Step = Callable[[int], float]
Built = tuple[nn.Module, torch.optim.Optimizer, Step]


@contextmanager
def group(size: int, directory: Path) -> Iterator[World | None]:
    """A process group of the first `size` ranks; None on the others."""
    number = next(_numbers)
    if size <= RANK:
        yield None
        return
    if size > 1:
        store = dist.FileStore(str(directory / f"store-{number}"), size)
        dist.init_process_group("gloo", store=store, rank=RANK, world_size=size)
    yield World(rank=RANK, world_size=size, ranks_per_node=size)
    if size > 1:
        dist.destroy_process_group()


# --- models -----------------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """Shapes that two and three ranks cannot share evenly, and a buffer that differs between the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(7, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 1))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.seen += images[:, 0].sum()
        values: Tensor = self.layers(images)
        return values


def toy(world: World, strategy: str, *, seed: int, kind: str) -> Built:
    """The small model, spread out by torch alone."""
    torch.manual_seed(seed)
    model: nn.Module = Toy()
    if strategy in ("fsdp", "hsdp"):
        shape = (world.world_size,) if strategy == "fsdp" else (world.world_size, 1)
        names = ("replicate", "shard")[-len(shape) :]
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        fully_shard(model.layers[0], mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    elif strategy == "ddp":
        model = DistributedDataParallel(model)
    config = SGDConfig(lr=0.05) if kind == "sgd" else AdamWConfig(lr=0.01)
    optimizer = build_optimizer(config, model.parameters())

    def step(number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(GLOBAL_BATCH, 7, generator=generator).chunk(world.world_size)[world.rank]
        loss = (model(images) - images.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return mean(loss.detach(), world)

    return model, optimizer, step


def detector(world: World, strategy: str, *, seed: int, kind: str) -> Built:
    """The real thing at its smallest, as a run makes it."""
    experiment = apply_overrides(
        recipe("demo"),
        {
            "data.source.num_sequences": 10,
            "data.source.frames_per_sequence": 2,
            "model.backbone.drop_path_rate": 0.1,
            "optim": {"kind": kind, "lr": 1e-3},
            "train.strategy": strategy,
        },
    )
    torch.manual_seed(seed)
    bare = build_model(experiment)
    model = parallelize(bare, world, units=bare.units(), train=experiment.train)
    optimizer = build_optimizer(experiment.optim, bare.parameters())
    model.train()
    source = open_source(experiment.data)
    loader = TrainLoader(
        source,
        range(20),
        data=experiment.data,
        seed=0,
        global_batch=GLOBAL_BATCH,
        micro_batch=1,
        accumulation=GLOBAL_BATCH // world.world_size,
        rank=world.rank,
        world_size=world.world_size,
    )

    def step(number: int) -> float:
        epoch, first = divmod(number, loader.steps_per_epoch)
        (micro_batches,) = islice(loader.epoch(epoch, first), 1)
        losses, *_ = train_step(
            model,
            micro_batches,
            optimizer,
            lr=1e-3,
            clip_norm=1.0,
            seed=0,
            step=number,
            world=world,
            precision="fp32",
        )
        return mean(torch.stack(list(losses.values())).sum(), world)

    return model, optimizer, step


def mean(value: Tensor, world: World) -> float:
    if world.world_size > 1:
        dist.all_reduce(value)
    return float(value / world.world_size)


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Every whole tensor's content, not by way of the code under test."""
    bare = unwrapped(model)
    tensors = dict(bare.state_dict())
    for name, parameter in bare.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}/{key}"] = value
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        content = whole.detach().contiguous().numpy().tobytes()
        found[name] = f"{whole.dtype} {list(whole.shape)} {hashlib.sha256(content).hexdigest()}"
    return found


# --- what is done with them -------------------------------------------------------------------------------------------

Layout = tuple[int, str]
"""Number of ranks and strategy."""

PLANS: dict[str, tuple[tuple[Callable[..., Built], str, Layout, tuple[Layout, ...]], ...]] = {
    "toy": tuple(
        (
            toy,
            kind,
            saver,
            ((1, "single"), (2, "ddp"), (2, "fsdp"), (2, "hsdp"), (3, "ddp"), (3, "fsdp")),
        )
        for kind, saver in (
            ("sgd", (1, "single")),
            ("sgd", (2, "ddp")),
            ("sgd", (2, "fsdp")),
            ("sgd", (2, "hsdp")),
            ("sgd", (3, "fsdp")),
            ("adamw", (2, "fsdp")),
        )
    ),
    "detector": ((detector, "sgd", (2, "fsdp"), ((1, "single"), (2, "ddp"), (3, "fsdp"))),),
}
"""Model, optimizer, who saves, who loads."""


def resharded(directory: Path, what: str) -> Iterator[dict[str, Any]]:
    """Save, train on, load elsewhere, train on; what was there and what came of it."""
    for build, kind, saver, loaders in PLANS[what]:
        run_dir = directory / f"{what}-{kind}-{saver}"
        for layout in (None, *loaders):
            size, strategy = layout or saver
            with group(size, directory) as world:
                if world is None:
                    continue
                row = (loaded if layout else saved)(run_dir, build, world, strategy, kind)
                yield {"kind": kind, "saver": saver, "loader": layout, **row}


def saved(
    run_dir: Path, build: Callable[..., Built], world: World, strategy: str, kind: str
) -> dict[str, Any]:
    model, optimizer, step = build(world, strategy, seed=1, kind=kind)
    for number in range(3):
        step(number)
    tensors = fingerprint(model, optimizer)
    writer = CheckpointWriter(run_dir / "checkpoints", keep=1, world=world)
    writer.save(1, model=model, optimizer=optimizer, state={"step": 3}, score=0.5)
    # While it is written.
    losses = [step(number) for number in range(3, 3 + STEPS)]
    writer.wait()
    return {"tensors": tensors, "losses": losses}


def loaded(
    run_dir: Path, build: Callable[..., Built], world: World, strategy: str, kind: str
) -> dict[str, Any]:
    model, optimizer, step = build(world, strategy, seed=2, kind=kind)
    checkpoint = agreed_checkpoint(run_dir, world)
    assert checkpoint is not None
    state = load_checkpoint(checkpoint, model=unwrapped(model), optimizer=optimizer, world=world)
    tensors = fingerprint(model, optimizer)
    losses = [step(number) for number in range(state["step"], state["step"] + STEPS)]
    return {"tensors": tensors, "losses": losses}


def trouble(directory: Path) -> dict[str, Any]:
    """What each rank is told when one of them fails."""
    told: dict[str, Any] = {}
    with group(3, directory) as world:
        assert world is not None
        assert agreed_checkpoint(directory, world) is None
        model, optimizer, step = toy(world, "fsdp", seed=1, kind="sgd")
        step(0)
        writer = CheckpointWriter(directory / "checkpoints", keep=9, world=world)

        def save(epoch: int) -> None:
            writer.save(epoch, model=model, optimizer=optimizer, state={}, score=None)

        save(1)
        writer.wait()
        with full_disk(of_rank=1):
            save(2)
            told["full disk"] = error_of(lambda: save(3))
        told["once only"] = error_of(writer.wait)
        told["left behind"] = sorted(path.name for path in (directory / "checkpoints").iterdir())
        dist.barrier()  # all have looked
        save(4)
        writer.wait()
        with full_disk(of_rank=0):
            save(5)
            told["full disk at the end"] = error_of(writer.wait)
        told["room again"] = sorted(path.name for path in (directory / "checkpoints").iterdir())
        first, last = directory / "checkpoints" / "epoch_0001", directory / "checkpoints" / "epoch_0004"
        here = first if RANK != 2 else directory / "nowhere"
        told["one cannot read"] = error_of(lambda: load_checkpoint(here, model=model, world=world))
        dist.barrier()
        if RANK == 0:
            shard = first / "shard-00003-of-00003.safetensors"
            content = bytearray(shard.read_bytes())
            content[-1] ^= 1
            shard.write_bytes(content)
        told["damaged"] = error_of(lambda: load_checkpoint(first, model=model, world=world))
        other = nn.Linear(3, 3)
        told["another model"] = error_of(lambda: load_checkpoint(last, model=other, world=world))
        load_checkpoint(last, model=model, optimizer=optimizer, world=world)
    return told


@contextmanager
def full_disk(*, of_rank: int) -> Iterator[None]:
    """No file can grow beyond 100 bytes on one rank."""
    dist.barrier()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if of_rank == RANK:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def error_of(action: Callable[[], object]) -> str | None:
    try:
        action()
    except (CheckpointError, WorkerLostError) as error:
        return str(error)
    return None


def death(directory: Path) -> str | None:
    """What the others are told when rank 1 dies while it writes."""
    with group(3, directory) as world:
        assert world is not None
        model, optimizer, step = toy(world, "fsdp", seed=1, kind="sgd")
        step(0)
        writer = CheckpointWriter(directory / "checkpoints", keep=9, world=world)
        writer.save(1, model=model, optimizer=optimizer, state={}, score=None)
        writer.wait()
        if RANK == 1:
            os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        writer.save(2, model=model, optimizer=optimizer, state={}, score=None)
        return error_of(writer.wait)


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    for name, run in {
        "toy": lambda inside: list(resharded(inside, "toy")),
        "detector": lambda inside: list(resharded(inside, "detector")),
        "trouble": trouble,
        "death": death,  # the last, as one of us does not come back
    }.items():
        inside = directory / name
        inside.mkdir(exist_ok=True)
        (directory / f"{name}-{RANK}.json").write_text(json.dumps(run(inside)))
    os._exit(3)  # the group is broken, do not wait for it


if __name__ == "__main__":
    main(Path(sys.argv[1]))
