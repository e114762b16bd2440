"""Checkpoints: what was saved comes back, what is damaged is refused, and torch's own reader agrees."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from raydet.checkpoint.blocks import (
    DTYPE_NAMES,
    Block,
    HostCopy,
    ShardReader,
    blocks_to_write,
    read_index,
)
from raydet.checkpoint.load import (
    MODEL,
    checkpoint_tensors,
    export_weights,
    load_checkpoint,
    stored_tensors,
)
from raydet.checkpoint.manifest import damaged_files, read_manifest, verify_checkpoint
from raydet.checkpoint.writer import CheckpointWriter
from raydet.config import AdamWConfig, Optimizer, SGDConfig
from raydet.engine.optim import build_optimizer
from raydet.errors import CheckpointError
from raydet.parallel.collectives import World

SHARD = "shard-00001-of-00001.safetensors"


def save_checkpoint(
    directory: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write a checkpoint into a directory of that name and wait for it."""
    writer = CheckpointWriter(directory / "all", keep=1, world=World())
    writer.save(1, model=model, optimizer=optimizer, state=state, score=None)
    writer.wait()
    shutil.copytree(directory / "all" / "epoch_0001", directory, dirs_exist_ok=True)
    shutil.rmtree(directory / "all")


def small_model(seed: int, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    generator = torch.Generator().manual_seed(count)
    losses = []
    for _ in range(count):
        loss = model(torch.randn(8, 4, generator=generator)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of `small_model` after one step."""
    directory = tmp_path / "saved"
    directory.mkdir()
    model = small_model(1)
    optimizer = build_optimizer(SGDConfig(), model.parameters())
    steps(model, optimizer, 1)
    save_checkpoint(directory, model=model, optimizer=optimizer, state={"step": 1})
    return directory


def load(directory: Path, **model: int) -> None:
    other = small_model(2, **model)
    load_checkpoint(directory, model=other, optimizer=build_optimizer(SGDConfig(), other.parameters()))


@pytest.mark.parametrize(
    "config", [SGDConfig(lr=0.01), SGDConfig(lr=0.01, momentum=0.0), AdamWConfig(lr=0.01)]
)
@pytest.mark.parametrize("has_state", [False, True])
def test_training_goes_on_as_if_nothing_had_happened(
    config: Optimizer, has_state: bool, tmp_path: Path
) -> None:
    model = small_model(1)
    optimizer = build_optimizer(config, model.parameters())
    steps(model, optimizer, 3)
    save_checkpoint(tmp_path, model=model, optimizer=optimizer, state={"step": 3})
    straight = steps(model, optimizer, 5)

    other = small_model(2)
    other_optimizer = build_optimizer(config, other.parameters())
    if has_state:
        steps(other, other_optimizer, 2)
    assert load_checkpoint(tmp_path, model=other, optimizer=other_optimizer) == {"step": 3}
    assert steps(other, other_optimizer, 5) == straight


def test_a_fresh_optimizer_comes_back_fresh(tmp_path: Path) -> None:
    model = small_model(1)
    optimizer = build_optimizer(AdamWConfig(), model.parameters())
    save_checkpoint(tmp_path, model=model, optimizer=optimizer, state={})
    used = build_optimizer(AdamWConfig(), model.parameters())
    steps(model, used, 1)
    load_checkpoint(tmp_path, model=model, optimizer=used)
    assert not used.state


@pytest.mark.parametrize("name", [SHARD, "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found_before_anything_is_loaded(name: str, damage: str, saved: Path) -> None:
    path = saved / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content) if damage == "flip" else bytes(content[:-1]))
    model = small_model(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(saved, model=model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_every_single_byte_counts(saved: Path) -> None:
    for path in saved.iterdir():
        content = path.read_bytes()
        for position in range(0, len(content), 1 if path.suffix == ".json" else 37):
            damaged = bytearray(content)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                verify_checkpoint(saved)
        path.write_bytes(content)
    verify_checkpoint(saved)


def test_a_wrong_hash_in_the_manifest_is_found(saved: Path) -> None:
    path = saved / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][SHARD]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    with pytest.raises(CheckpointError, match="differs from its own sha256"):
        load(saved)


def test_every_damaged_file_has_its_line(saved: Path) -> None:
    assert damaged_files(saved) == []
    (saved / "state.json").unlink()
    (saved / SHARD).write_bytes(b"short")
    assert [line.split("saved/")[1].split(" ")[0] for line in damaged_files(saved)] == [
        f"{SHARD}:",
        "state.json",
    ]
    with pytest.raises(
        CheckpointError, match=r"00001\.safetensors: expected \d+ bytes, got 5.* \(and 1 more\)"
    ):
        verify_checkpoint(saved)


def test_a_checkpoint_without_manifest_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path, model=small_model(1))


def test_a_checkpoint_of_another_version_is_named(saved: Path) -> None:
    (saved / "manifest.json").write_text('{"sha256": {}}')
    with pytest.raises(CheckpointError, match="expected format 3, got None"):
        load(saved)


def test_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"another model: 7 tensors differ.*first 0\.bias: expected float32"
    ):
        load(saved, width=7)


def test_another_type_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected float64\[6\], got float32\[6\]"):
        load_checkpoint(saved, model=small_model(1).double())


def test_another_optimizer_is_refused(saved: Path) -> None:
    model = small_model(1)
    with pytest.raises(CheckpointError, match="holds the state of SGD, expected that of AdamW"):
        load_checkpoint(saved, model=model, optimizer=build_optimizer(AdamWConfig(), model.parameters()))


def test_exported_weights_need_nothing_of_ours(saved: Path, tmp_path: Path) -> None:
    destination = tmp_path / "new" / "weights.safetensors"
    export_weights(saved, destination, metadata={"fingerprint": "abc"})
    model, other = small_model(2), small_model(3)
    model.load_state_dict(load_file(destination))
    load_checkpoint(saved, model=other)
    assert all(torch.equal(model.state_dict()[name], x) for name, x in other.state_dict().items())
    assert list(destination.parent.iterdir()) == [destination]


def test_an_export_to_nowhere_is_one_error(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        export_weights(saved, tmp_path / "file" / "weights.safetensors")


# --- against torch.distributed.checkpoint -----------------------------------------------------------------------------


def test_torch_reads_what_we_write(saved: Path) -> None:
    (saved / "state.json").unlink()  # torch's reader would not mind, but it must see only the shards
    model, other = small_model(2), small_model(3)
    target = {f"{MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is one process
        dcp.load(target, storage_reader=HuggingFaceStorageReader(str(saved)), no_dist=True)
    with ShardReader() as reader:
        for name, stored in stored_tensors(saved).items():
            if name.startswith(MODEL):
                assert torch.equal(target[name], reader.whole(name, stored))
    assert not torch.equal(target["model.0.weight"], other[0].weight)


def test_we_read_what_torch_writes(tmp_path: Path) -> None:
    model = small_model(1)
    optimizer = build_optimizer(AdamWConfig(), model.parameters())
    steps(model, optimizer, 2)
    tensors, buffers = checkpoint_tensors(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            tensors | buffers,
            storage_writer=HuggingFaceStorageWriter(str(tmp_path), save_distributed=True),
            no_dist=True,
        )
    index = read_index(tmp_path.glob("*.safetensors"))
    assert index.keys() == tensors.keys() | buffers.keys()
    with ShardReader() as reader:
        assert all(torch.equal(x, reader.whole(name, index[name])) for name, x in (tensors | buffers).items())


# --- shards -----------------------------------------------------------------------------------------------------------


def test_all_types_and_shapes_survive(tmp_path: Path) -> None:
    tensors = {
        f"{name} {shape}": torch.randint(0, 2, shape).to(dtype)
        for dtype, name in DTYPE_NAMES.items()
        for shape in ((), (1,), (3, 5))
    }
    tensors["channels last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors["a view"] = torch.randn(6, 6)[1:4, ::2]
    copy = HostCopy(pinned=False)
    copy.take([Block(name, x, (0,) * x.ndim) for name, x in tensors.items()])
    expected = {name: x.clone() for name, x in tensors.items()}
    for tensor in tensors.values():
        tensor.zero_()  # training continues
    copy.write(tmp_path / "shard.safetensors")
    found = load_file(tmp_path / "shard.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in expected.items())
    index = read_index([tmp_path / "shard.safetensors"])
    target = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    with ShardReader() as reader:
        reader.fill("channels last", target, index["channels last"])
    assert torch.equal(target, expected["channels last"])


def test_all_ranks_write_everything_once_and_about_as_much() -> None:
    tensors = {f"tensor {size}": torch.zeros(size) for size in range(1, 100)}
    buffers = {"running_mean": torch.zeros(5)}
    parts = [blocks_to_write(tensors, buffers, World(rank=rank, world_size=3)) for rank in range(3)]
    names = [block.name for part in parts for block in part]
    assert sorted(names) == sorted([*tensors, *buffers])
    assert "running_mean" in {block.name for block in parts[0]}
    sizes = [sum(block.values.nbytes for block in part) for part in parts]
    assert max(sizes) < 1.05 * min(sizes)


def test_the_memory_of_the_first_copy_serves_the_next(tmp_path: Path) -> None:
    copy = HostCopy(pinned=False)
    for number, size in enumerate((10, 4, 20)):
        copy.take([Block("x", torch.full((size,), float(number)), (0,))])
        copy.write(tmp_path / f"{number}.safetensors")
        assert torch.equal(
            load_file(tmp_path / f"{number}.safetensors")["x"], torch.full((size,), float(number))
        )


def test_a_tensor_with_a_hole_is_refused(tmp_path: Path) -> None:
    copy = HostCopy(pinned=False)
    copy.take([Block("x", torch.zeros(2, 3), (2, 0))])
    copy.write(tmp_path / "shard.safetensors")
    with pytest.raises(CheckpointError, match="do not contain all of x"):
        read_index([tmp_path / "shard.safetensors"])


def test_what_is_not_a_shard_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 100, b"\x02" + b"\0" * 7 + b"[]"):
        (tmp_path / "shard.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a shard of a checkpoint"):
            read_index([tmp_path / "shard.safetensors"])


def test_the_size_is_that_on_disk(saved: Path, tmp_path: Path) -> None:
    manifest = read_manifest(saved)
    files = [path for path in saved.iterdir() if path.name != "manifest.json"]
    assert manifest.num_bytes == sum(path.stat().st_size for path in files)
    shutil.copytree(saved, tmp_path / "elsewhere")
    verify_checkpoint(tmp_path / "elsewhere")
