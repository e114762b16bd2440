"""`raydet ckpt` and `raydet bench checkpoint`, on checkpoints that two ranks and one have written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from raydet.checkpoint.blocks import Block, HostCopy, blocks_to_write
from raydet.checkpoint.load import checkpoint_tensors, shard_name
from raydet.checkpoint.manifest import Manifest, write_durably
from raydet.checkpoint.writer import CheckpointWriter
from raydet.cli.bench_checkpoint import checkpoint as bench_checkpoint
from raydet.cli.ckpt import app
from raydet.config import SGDConfig
from raydet.engine.optim import build_optimizer
from raydet.errors import CheckpointError, ConfigError
from raydet.parallel.collectives import World
from raydet.recipes import recipe


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, CheckpointError | ConfigError):
        raise result.exception  # `raydet.cli.main` makes a line and an exit code of it
    assert result.exit_code == code, result.output
    return result.output


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two checkpoints of one rank, `epoch_0002` with one weight more by a half and no momentum."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.json").write_text(recipe("demo").to_json())
    model = Net()
    optimizer = build_optimizer(SGDConfig(), model.parameters())
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    with CheckpointWriter(run_dir / "checkpoints", keep=9, world=World()) as writer:
        writer.save(1, model=model, optimizer=optimizer, state={"epoch": 1, "step": 7}, score=0.25)
        with torch.no_grad():
            model.first.weight[0, 0] += 0.5
        optimizer.state.clear()
        writer.save(2, model=model, optimizer=optimizer, state={"epoch": 2, "step": 14}, score=None)
    return run_dir


def as_two_ranks_write_it(directory: Path) -> Path:
    """The same as `epoch_0001`, each tensor that can be cut in two halves."""
    directory.mkdir(parents=True)
    model = Net()
    optimizer = build_optimizer(SGDConfig(), model.parameters())
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    blocks = blocks_to_write(*checkpoint_tensors(model, optimizer), World())
    files: dict[str, Any] = {}
    for rank in range(2):
        halves = [half(block, rank) for block in blocks if block.values.ndim > 0 or rank == 0]
        copy = HostCopy(pinned=False)
        copy.take(halves)
        files[shard_name(rank, 2)] = copy.write(directory / shard_name(rank, 2))
    files["state.json"] = write_durably(directory / "state.json", "{}")
    manifest = Manifest(world_size=2, optimizer="SGD", score=None, files=files)
    write_durably(directory / "manifest.json", manifest.as_text())
    return directory


def half(block: Block, rank: int) -> Block:
    if block.values.ndim == 0:
        return block
    cut = len(block.values) // 2
    values = block.values[:cut] if rank == 0 else block.values[cut:]
    return Block(block.name, values, (rank * cut, *block.offsets[1:]))


def test_a_list_says_what_there_is(run_dir: Path) -> None:
    lines = call("ls", run_dir).splitlines()
    assert lines[1].split() == ["epoch_0001", "1", "7", "0.2500", "0.0", "1", "yes"]
    assert lines[2].split() == ["epoch_0002", "2", "14", "-", "0.0", "1", "yes"]
    assert call("ls", run_dir / "checkpoints").splitlines() == lines
    shard = next((run_dir / "checkpoints" / "epoch_0001").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (run_dir / "checkpoints" / "epoch_0002" / "manifest.json").unlink()
    rows = json.loads(call("ls", run_dir, "--json"))["checkpoints"]
    assert [row["verified"] for row in rows] == ["damaged", "damaged"]
    assert [row["step"] for row in rows] == [7, None]
    rows = json.loads(call("ls", run_dir, "--json", "--no-verify"))["checkpoints"]
    assert [row["verified"] for row in rows] == ["no", "damaged"]
    with pytest.raises(ConfigError, match="no checkpoints in"):
        call("ls", run_dir / "checkpoints" / "epoch_0001")


def test_every_damaged_file_is_one_line(run_dir: Path) -> None:
    assert call("verify", run_dir) == "2 of 2 checkpoints are intact\n"
    first, second = (run_dir / "checkpoints" / f"epoch_000{epoch}" for epoch in (1, 2))
    (first / "state.json").write_text("{}")
    (second / shard_name(0, 1)).unlink()
    lines = call("verify", first, second, code=3).splitlines()
    assert len(lines) == 2
    assert "state.json: expected" in lines[0]
    assert "safetensors is missing" in lines[1]


def test_exported_weights_name_their_run(run_dir: Path, tmp_path: Path) -> None:
    destination = tmp_path / "weights.safetensors"
    call("export", run_dir / "checkpoints" / "epoch_0001", destination)
    model = Net()
    expected = {name: x.clone() for name, x in model.state_dict().items()}
    nn.init.zeros_(model.first.weight)
    model.load_state_dict(load_file(destination))
    assert all(torch.equal(expected[name], x) for name, x in model.state_dict().items())
    from safetensors import safe_open

    with safe_open(destination, framework="pt") as file:
        assert file.metadata()["fingerprint"] == recipe("demo").fingerprint()


def test_the_same_in_other_pieces_is_equal(run_dir: Path, tmp_path: Path) -> None:
    other = as_two_ranks_write_it(tmp_path / "two")
    output = call("diff", run_dir / "checkpoints" / "epoch_0001", other)
    assert output == "9 tensors equal, 0 different\n"


def test_a_difference_has_its_size(run_dir: Path, tmp_path: Path) -> None:
    first, second = (run_dir / "checkpoints" / f"epoch_000{epoch}" for epoch in (1, 2))
    found = json.loads(call("diff", first, second, "--json", code=1))
    scale = float(Net().first.weight.detach().abs().max())
    assert not found["equal"]
    assert found["num_equal"] == 4
    assert len(found["only_in_first"]) == 4
    assert found["only_in_second"] == []
    (difference,) = found["different"]
    assert difference["name"] == "model.first.weight"
    assert difference["max_abs"] == pytest.approx(0.5)
    assert difference["max_rel"] == pytest.approx(0.5 / scale)
    lines = call("diff", second, first, code=1).splitlines()
    assert lines[0] == f"only in {first}: optimizer.first.bias.momentum_buffer"
    assert lines[-1] == "4 tensors equal, 1 different"


def test_what_is_damaged_is_not_compared(run_dir: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run_dir / "checkpoints" / "epoch_0001", damaged)
    (damaged / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json is missing"):
        call("diff", run_dir / "checkpoints" / "epoch_0001", damaged)


def test_the_stall_is_measured(tmp_path: Path) -> None:
    bench = typer.Typer()
    bench.command()(bench_checkpoint)
    arguments = ["--recipe", "demo", "--cpu", "--repeats", "2", "--directory", str(tmp_path), "--json"]
    found = json.loads(CliRunner().invoke(bench, arguments, catch_exceptions=False).output)
    assert found["bytes"] > 3 * 4 * 1e5  # AdamW
    assert 0 < found["copy_s"] < 5
    assert found["blocked_s"] < found["committed_s"]
    assert list(tmp_path.iterdir()) == []
    assert "x the bare copy" in CliRunner().invoke(bench, arguments[:-1]).output
