"""RVT's states survive kills and other numbers of workers, lane by lane: the same bits after a restart, and nearly the
same numbers in another division into micro-batches."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import torch

from raydet.checkpoint.load import read_carry
from raydet.config import Clips, Experiment, SyntheticSource, apply_overrides
from raydet.data.build import open_source
from raydet.data.loader import TrainLoader
from raydet.engine.optim import build_optimizer
from raydet.engine.step import train_step
from raydet.models.build import build_model
from raydet.models.model import Model
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.structures import Carry
from tests.numerics.test_carry import save

LANES, FRAMES = 6, 3


@lru_cache
def experiment() -> Experiment:
    made = apply_overrides(
        recipe("demo"),
        {
            "model.backbone": {"kind": "rvt", "variant": "nano", "partition_px": 32},
            "model.rgb_modalities": ["event"],
            "model.fusion": {"kind": "identity"},
            "model.elsewhere": {"kind": "identity"},
            "model.neck": {"kind": "pafpn", "depth": 0.33},
            "model.head": {"kind": "yolox"},
            "data.canvas_hw": [32, 32],
        },
    )
    data = made.data.model_copy(
        update={
            "source": SyntheticSource(num_sequences=4, frames_per_sequence=20, size_hw=(32, 32)),
            "sampling": Clips(frames=FRAMES, random_share=0.5),
        }
    )
    return made.model_copy(update={"data": data})


def initial() -> Model:
    torch.manual_seed(3)
    return build_model(experiment())


def advance(
    model: Model, carry: Carry, world: World, first: int, last: int, *, accumulation: int = 1, lr: float = 0.0
) -> tuple[list[float], Carry]:
    """The losses of a rank's steps, and its states after them; the model is trained in place."""
    source = open_source(experiment().data)
    loader = TrainLoader(
        source,
        range(len(source)),
        data=experiment().data,
        seed=5,
        global_batch=LANES,
        micro_batch=LANES // world.world_size // accumulation,
        accumulation=accumulation,
        rank=world.rank,
        world_size=world.world_size,
        steps_per_epoch=last,
    )
    optimizer = build_optimizer(experiment().optim, model.parameters())
    losses = []
    for step, micro_batches in enumerate(loader.epoch(0)):
        if step < first:
            continue
        result = train_step(
            model,
            micro_batches,
            optimizer,
            lr=lr,
            clip_norm=None,
            seed=0,
            step=step,
            world=world,
            precision="fp32",
            carry=carry,
        )
        carry = result.carry
        losses.append(sum(float(loss) for loss in result.losses.values()))
    return losses, carry


def test_a_restart_within_a_sequence_gives_the_same_bits(tmp_path: Path) -> None:
    world = World()
    trained = initial()
    losses, carry = advance(trained, {}, world, 0, 3, lr=0.01)
    save(tmp_path / "checkpoint", [carry])
    restarted, forgetful = copy.deepcopy(trained), copy.deepcopy(trained)
    expected, at_end = advance(trained, carry, world, 3, 5)
    found, found_at_end = advance(restarted, read_carry(tmp_path / "checkpoint", world), world, 3, 5)
    assert found == expected
    assert all(torch.equal(found_at_end[name], rows) for name, rows in at_end.items())
    without_memory, _ = advance(forgetful, {}, world, 3, 5)
    assert without_memory != expected
    assert len(losses) == 3


def test_states_move_to_other_numbers_of_workers(tmp_path: Path) -> None:
    model = initial()
    _, expected = advance(model, {}, World(), 0, 5)
    carries: list[Carry] = [{}]
    for number, (size, accumulation, first, last) in enumerate([(3, 1, 0, 2), (2, 3, 2, 4), (1, 2, 4, 5)]):
        worlds = [World(rank, size) for rank in range(size)]
        if number:
            carries = [read_carry(tmp_path / str(number - 1), world) for world in worlds]
        else:
            carries = [{} for _ in worlds]
        carries = [
            advance(model, carry, world, first, last, accumulation=accumulation)[1]
            for carry, world in zip(carries, worlds, strict=True)
        ]
        save(tmp_path / str(number), carries)
    for name, rows in expected.items():
        torch.testing.assert_close(carries[0][name], rows, atol=1e-6, rtol=1e-5)
        assert rows.abs().max() > 1e-3
