"""The memory of a recurrent model survives kills and other numbers of workers, lane by lane."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydet.checkpoint.blocks import HostCopy, lane_blocks
from raydet.checkpoint.load import CARRY, read_carry, shard_name
from raydet.checkpoint.manifest import Manifest
from raydet.config import Augmentation, Clips, DataConfig, SGDConfig, SyntheticSource
from raydet.data.build import open_source
from raydet.data.clips import ClipSampler
from raydet.data.digest import EMPTY, as_lanes, as_text, digest_of, expected_digest, sample_names
from raydet.data.loader import EvalLoader, TrainLoader, make_sampler
from raydet.engine.optim import build_optimizer
from raydet.engine.step import train_step
from raydet.models.carry import Streamed
from raydet.parallel.collectives import World
from raydet.structures import Batch, Carry
from tests.numerics.hash_chain import HashChain, as_tensor, chained

LANES, FRAMES, TOTAL_STEPS = 12, 2, 18
SIZES = (1, 2, 3, 4, 6)
DATA = DataConfig(
    source=SyntheticSource(num_sequences=5, frames_per_sequence=31, size_hw=(32, 32)),
    canvas_hw=(32, 32),
    sampling=Clips(frames=FRAMES, random_share=0.25),
)


def loader(world: World, accumulation: int = 1) -> TrainLoader:
    source = open_source(DATA)
    return TrainLoader(
        source,
        range(len(source)),
        data=DATA,
        seed=5,
        global_batch=LANES,
        micro_batch=LANES // world.world_size // accumulation,
        accumulation=accumulation,
        rank=world.rank,
        world_size=world.world_size,
        steps_per_epoch=TOTAL_STEPS,
    )


@lru_cache
def batches(rank: int, world_size: int, accumulation: int) -> list[list[Batch]]:
    """What a rank is fed in each step."""
    return list(loader(World(rank, world_size), accumulation).epoch(0))


def steps(carry: Carry, rank: int, world_size: int, accumulation: int, first: int, last: int) -> Carry:
    """A rank's memory after some steps."""
    model = HashChain()
    optimizer = build_optimizer(SGDConfig(), model.parameters())
    for step in range(first, last):
        _, _, carry = train_step(
            model,
            batches(rank, world_size, accumulation)[step],
            optimizer,
            lr=0.0,
            clip_norm=None,
            seed=0,
            step=step,
            world=World(rank, world_size),
            precision="fp32",
            carry=carry,
        )
    return carry


def save(directory: Path, carries: list[Carry]) -> None:
    """As every rank does, the manifest last."""
    directory.mkdir()
    files = {}
    for rank, carry in enumerate(carries):
        copy, name = HostCopy(pinned=False), shard_name(rank, len(carries))
        copy.take(lane_blocks({f"{CARRY}{key}": x for key, x in carry.items()}, World(rank, len(carries))))
        files[name] = copy.write(directory / name)
    manifest = Manifest(world_size=len(carries), optimizer="SGD", score=None, files=files)
    (directory / "manifest.json").write_text(manifest.as_text())


def expected() -> list[bytes]:
    """Every lane's memory after the run, from the sampler alone."""
    source = open_source(DATA)
    names = sorted(set(source.group_ids))
    frames = {
        name: [i for i, group in zip(source.image_ids, source.group_ids, strict=True) if group == name]
        for name in names
    }
    sampler = ClipSampler(tuple(len(frames[name]) for name in names), FRAMES, LANES, 5, 0.25)
    memory = [bytes(32)] * LANES
    for step in range(TOTAL_STEPS):
        for lane in range(LANES):
            window = sampler.window(step, lane)
            before = bytes(32) if window.is_first else memory[lane]
            ids = frames[names[window.sequence]][window.first_frame : window.first_frame + FRAMES]
            memory[lane] = chained(before, ids)
    return memory


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    attempts=st.lists(
        st.tuples(st.sampled_from(SIZES), st.sampled_from((1, 2)), st.integers(1, 6), st.integers(0, 3)),
        max_size=5,
    )
)
def test_every_lane_ends_as_in_an_unbroken_run(
    attempts: list[tuple[int, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An attempt: workers, accumulation, steps until its last checkpoint, steps that are lost with it."""
    directory, saved_step = tmp_path_factory.mktemp("carry"), 0
    checkpoint: Path | None = None
    for number, (size, accumulation, num_steps, lost) in enumerate([*attempts, (1, 1, TOTAL_STEPS, 0)]):
        world = [World(rank, size) for rank in range(size)]
        accumulation = accumulation if LANES // size % accumulation == 0 else 1
        carries = [{} if checkpoint is None else read_carry(checkpoint, each) for each in world]
        last = min(TOTAL_STEPS, saved_step + num_steps)
        carries = [
            steps(carry, rank, size, accumulation, saved_step, last) for rank, carry in enumerate(carries)
        ]
        checkpoint = directory / str(number)
        save(checkpoint, carries)
        for rank, carry in enumerate(carries):  # what comes after the checkpoint is forgotten
            steps(carry, rank, size, accumulation, last, min(TOTAL_STEPS, last + lost))
        saved_step = last
    assert saved_step == TOTAL_STEPS
    assert checkpoint is not None
    assert torch.equal(read_carry(checkpoint, World())["hash"], as_tensor(expected()))


def test_no_window_is_read_twice_or_skipped_at_any_number_of_workers() -> None:
    def read(size: int) -> list[list[str]]:
        """In the order of lanes, for each step."""
        ranks = [batches(rank, size, 1) for rank in range(size)]
        return [
            [i for rank in ranks for batch in rank[step] for i in batch.image_ids[: batch.size // FRAMES]]
            for step in range(TOTAL_STEPS)
        ]

    assert all(read(size) == read(1) for size in SIZES)


def test_a_first_window_resets_its_own_lane_only() -> None:
    (batch,) = batches(0, 1, 1)[3]
    assert batch.is_first is not None
    assert 0 < int(batch.is_first.sum()) < LANES
    before = {"hash": torch.full((LANES, 32), 7, dtype=torch.uint8)}
    after = steps(before, 0, 1, 1, 3, 4)["hash"]
    for lane, is_first in enumerate(batch.is_first.tolist()):
        memory = bytes(32) if is_first else bytes([7] * 32)
        assert bytes(after[lane].tolist()) == chained(memory, batch.image_ids[lane::LANES])


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_evaluation_remembers_every_sequence_from_its_beginning(world_size: int, in_step: bool) -> None:
    source = open_source(DATA)
    indices = [index for index in range(len(source)) if index % 7]  # sequences of different lengths
    found, lengths = {}, []
    for rank in range(world_size):
        streamed = Streamed(HashChain())
        own = EvalLoader(
            source, indices, data=DATA, batch_size=4, rank=rank, world_size=world_size, in_step=in_step
        )
        lengths.append(len(own))
        for batch, positions in own:
            carry = streamed(batch, want="losses").carry
            assert not positions or [source.image_ids[indices[p]] for p in positions] == list(batch.image_ids)
            if positions:
                found[source.group_ids[indices[positions[-1]]]] = bytes(carry["hash"][0].tolist())
    assert len(set(lengths)) == 1 or not in_step
    for group in sorted(set(source.group_ids)):
        ids = [source.image_ids[index] for index in indices if source.group_ids[index] == group]
        memory = bytes(32)
        for start in range(0, len(ids), 4):
            memory = chained(memory, ids[start : start + 4])
        assert found[group] == memory


def test_gradients_are_cut_by_value_before_the_norm() -> None:
    model = HashChain()  # its gradient is 2
    optimizer = build_optimizer(SGDConfig(momentum=0.0, weight_decay=0.0), model.parameters())
    train_step(
        model,
        batches(0, 1, 1)[0],
        optimizer,
        lr=1.0,
        clip_norm=0.75,
        clip_value=0.5,
        seed=0,
        step=0,
        world=World(),
        precision="fp32",
    )
    assert model.weight.item() == pytest.approx(0.5)


def test_what_a_lane_remembers_was_augmented_alike() -> None:
    data = DATA.model_copy(
        update={"augmentation": Augmentation(flip_probability=0.5, scale_jitter=(1.0, 1.0), min_box_px=0.0)}
    )
    source = open_source(data)
    number_of = {image_id: index for index, image_id in enumerate(source.image_ids)}
    loader = TrainLoader(
        source,
        range(len(source)),
        data=data,
        seed=5,
        global_batch=LANES,
        micro_batch=LANES,
        accumulation=1,
        rank=0,
        world_size=1,
        steps_per_epoch=TOTAL_STEPS,
    )
    num_streaming = LANES * 3 // 4
    flips: dict[int, bool] = {}
    seen = set()
    for [batch] in loader.epoch(0):
        assert batch.is_first is not None
        for row, image_id in enumerate(batch.image_ids):
            lane, frame = row % LANES, row // LANES
            plain = source.read(number_of[image_id]).modalities["rgb"]
            shown = batch.modalities["rgb"][row]
            is_flipped = not torch.equal(shown, plain)
            assert not is_flipped or torch.equal(shown, plain.flip(-1))
            begins = frame == 0 and (bool(batch.is_first[lane]) or lane >= num_streaming)
            assert begins or flips[lane] == is_flipped
            flips[lane] = is_flipped
            seen.add((lane < num_streaming, is_flipped))
    assert len(seen) == 4


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_digest_of_clips_does_not_depend_on_the_workers(world_size: int) -> None:
    source = open_source(DATA)
    found = as_lanes(EMPTY)
    for rank in range(world_size):
        own = loader(World(rank, world_size), accumulation=2)
        for step, micro_batches in enumerate(own.epoch(0)):
            names = [
                name for batch in micro_batches for name in sample_names(batch.image_ids, batch.clip_frames)
            ]
            found = found + digest_of(*own.position(step), names)
    sampler = make_sampler(DATA.sampling, source, range(len(source)), LANES, 5)
    ids = {"image_ids": source.image_ids, "group_ids": source.group_ids}
    assert as_text(found) == expected_digest(sampler, steps=TOTAL_STEPS, **ids)
    assert as_text(found) != expected_digest(sampler, steps=TOTAL_STEPS - 1, **ids)
