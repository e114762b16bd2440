"""Loading checkpoints into a model and an optimizer, and exporting weights. `raydet.checkpoint` has the format."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from raydet.checkpoint.blocks import SUFFIX, ShardReader, StoredTensor, describe, read_index
from raydet.checkpoint.manifest import read_manifest, read_state, sync_directory, verify_checkpoint
from raydet.errors import CheckpointError
from raydet.parallel.collectives import World, broadcast_text, gather_rows
from raydet.parallel.parallelize import unwrapped
from raydet.structures import Carry

MODEL, OPTIMIZER, CARRY = "model.", "optimizer.", "carry."
AVERAGE = "average"
"""Optimizer state with the average of a parameter, see `raydet.engine.averaging`."""

T = TypeVar("T")


# --- writing ----------------------------------------------------------------------------------------------------------


def checkpoint_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a checkpoint by name: parameters with their optimizer state, and buffers."""
    parameters = dict(model.named_parameters())
    weights = model.state_dict()
    tensors = {f"{MODEL}{name}": weights[name] for name in weights if name in parameters}
    buffers = {f"{MODEL}{name}": weights[name] for name in weights if name not in parameters}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:  # None for SGD without momentum
                tensors[f"{OPTIMIZER}{name}.{key}"] = value
    return tensors, buffers


def shard_name(rank: int, world_size: int) -> str:
    """Name of the file that a rank writes."""
    return f"shard-{rank + 1:05d}-of-{world_size:05d}{SUFFIX}"


# --- reading ----------------------------------------------------------------------------------------------------------


def load_checkpoint(
    directory: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    world: World | None = None,
    is_verified: bool = False,
) -> Mapping[str, Any]:
    """Load a verified checkpoint into the model and, if given, the optimizer; called on every rank.

    Args:
        model: sharded or not, over any number of ranks; on its device.
        optimizer: of this model's parameters; its state is replaced. Its hyper-parameters are not in the checkpoint:
            they follow from the config and the step.
        world: if one rank fails, all of these ranks raise its error. None: this process alone.
        is_verified: the files have just been compared with the manifest.

    Returns:
        The saved `state`.

    Raises:
        CheckpointError: a file is missing or differs from the manifest, or model or optimizer do not match.
    """
    world = world or World()
    if not is_verified:
        _on_all_ranks(lambda: verify_checkpoint(directory) if world.is_main else None, world)
    return _on_all_ranks(lambda: _load(directory, unwrapped(model), optimizer), world)


def load_carry(directory: Path, world: World) -> Carry:
    """`read_carry`, called on every rank: where one rank fails, all of them raise its error."""
    return _on_all_ranks(lambda: read_carry(directory, world), world)


def read_carry(directory: Path, world: World) -> Carry:
    """What a model remembers of a rank's lanes, on its device; empty if it has no memory.

    Raises:
        CheckpointError: a shard cannot be read, or the lanes do not divide among the ranks.
    """
    carry = {}
    with ShardReader() as reader:
        for name, stored in stored_tensors(directory).items():
            if not name.startswith(CARRY):
                continue
            share, rest = divmod(stored.shape[0], world.world_size)
            if rest:
                raise CheckpointError(
                    f"{directory}: {stored.shape[0]} lanes do not divide among {world.world_size} workers"
                )
            rows = torch.empty((share, *stored.shape[1:]), dtype=stored.dtype, device=world.device)
            reader.fill(name, rows, stored, (world.rank * share, *[0] * (rows.ndim - 1)))
            carry[name.removeprefix(CARRY)] = rows
    return carry


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by name, unread.

    Raises:
        CheckpointError: the manifest or a shard cannot be read.
    """
    return read_index(directory / name for name in read_manifest(directory).files if name.endswith(SUFFIX))


def export_weights(
    directory: Path,
    destination: Path,
    *,
    is_averaged: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the model's weights as one safetensors file for `model.load_state_dict`.

    Args:
        destination: replaced atomically if it exists.
        is_averaged: write the averaged weights, if there are any.
        metadata: stored in the file beside the tensors.

    Raises:
        CheckpointError: the checkpoint is damaged, or the file cannot be written.
    """
    verify_checkpoint(directory)
    index = stored_tensors(directory)
    with ShardReader() as reader:
        weights = {}
        for name in (name.removeprefix(MODEL) for name in index if name.startswith(MODEL)):
            average = f"{OPTIMIZER}{name}.{AVERAGE}"
            source = average if is_averaged and average in index else f"{MODEL}{name}"
            weights[name] = reader.whole(source, index[source])
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as drafts:
            draft = Path(drafts) / destination.name
            save_file(weights, draft, metadata={"format": "pt", **(metadata or {})})
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(destination)
        sync_directory(destination.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {destination}: {error}") from error


def _load(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Mapping[str, Any]:
    index = stored_tensors(directory)
    weights = {f"{MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    _check_model(directory, weights, index)
    with ShardReader() as reader:
        if optimizer is not None:
            _load_optimizer(directory, reader, index, optimizer, dict(model.named_parameters()))
        for name, tensor in weights.items():
            reader.fill(name, tensor, index[name])
    return read_state(directory)


def _check_model(directory: Path, weights: Mapping[str, Tensor], index: Mapping[str, StoredTensor]) -> None:
    expected = {name: describe(tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    found = {name: str(stored) for name, stored in index.items() if name.startswith(MODEL)}
    differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if differing:
        first = differing[0]
        raise CheckpointError(
            f"{directory} belongs to another model: {len(differing)} tensors differ in name, shape or type, "
            f"first {first.removeprefix(MODEL)}: expected {expected.get(first, 'nothing')}, got "
            f"{found.get(first, 'nothing')}; use the config.json of its own run"
        )


def _load_optimizer(
    directory: Path,
    reader: ShardReader,
    index: Mapping[str, StoredTensor],
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
) -> None:
    saved_with, kind = read_manifest(directory).optimizer, type(optimizer).__name__
    if saved_with != kind:
        raise CheckpointError(
            f"{directory} holds the state of {saved_with}, expected that of {kind}; use the config.json of its own run"
        )
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for name, stored in index.items():
        if not name.startswith(OPTIMIZER):
            continue
        parameter_name, key = name.removeprefix(OPTIMIZER).rsplit(".", 1)
        parameter = parameters.get(parameter_name)
        if parameter is None or parameter not in groups:
            raise CheckpointError(f"{directory} holds state of {parameter_name}, which is not optimized here")
        value = _state_like(parameter, groups[parameter], stored)
        reader.fill(name, value, stored)
        optimizer.state[parameter][key] = value


def _state_like(parameter: nn.Parameter, group: Mapping[str, Any], stored: StoredTensor) -> Tensor:
    """An empty tensor for state, as the optimizer itself would create it: sharded if the parameter is."""
    if stored.shape == tuple(parameter.shape):
        return torch.zeros_like(parameter.detach(), dtype=stored.dtype)
    on_device = group.get("fused") or group.get("capturable")  # otherwise step counts are on the host
    return torch.zeros(stored.shape, dtype=stored.dtype, device=parameter.device if on_device else "cpu")


def _on_all_ranks(action: Callable[[], T], world: World) -> T:
    """The result of this rank, or on every rank the error of the first that failed."""
    result, error = None, ""
    try:
        result = action()
    except CheckpointError as caught:
        error = str(caught)
    failed = gather_rows(np.array([[float(bool(error))]]), world)[:, 0]
    if failed.any():
        raise CheckpointError(broadcast_text(error, world, source=int(failed.argmax())))
    return result  # type: ignore[return-value]
