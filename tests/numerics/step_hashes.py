"""Train a few steps of named cases and print hashes of everything that came of them, as one JSON object.

    python -m tests.numerics.step_hashes THREADS STEPS CASE [CASE ...]

Several such processes must print the same, however busy the machine is.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from raydet.config import Experiment, apply_overrides
from raydet.data.build import open_source
from raydet.data.loader import TrainLoader
from raydet.data.split import split_indices
from raydet.engine.barriers import yielding_busy_cores
from raydet.engine.optim import build_optimizer
from raydet.engine.step import train_step
from raydet.models.build import build_model, modalities_read
from raydet.parallel.collectives import World
from raydet.parallel.determinism import deterministic_kernels
from raydet.parallel.parallelize import parallelize
from raydet.recipes import RECIPES, recipe
from raydet.structures import Batch, Carry

SMALL_CANVAS: dict[str, Any] = {
    "data.source.size_hw": [64, 96],
    "data.source.num_sequences": 8,
    "data.canvas_hw": [64, 96],
    "train.global_batch": 2,
}
SMALL_MASKS: dict[str, Any] = {
    "data.source.num_images": 16,
    "data.canvas_hw": [64, 96],
    "train.global_batch": 2,
}
SMALL_SEQUENCES: dict[str, Any] = {
    "data.source.num_sequences": 4,
    "data.canvas_hw": [64, 128],  # RVT takes multiples of 64
    "train.global_batch": 2,
}
SMALL_SETS: dict[str, dict[str, Any]] = {
    "synthetic": SMALL_CANVAS,
    "tree": SMALL_MASKS,
    "strange": {
        "data.source.num_train": 16,
        "data.canvas_hw": [64, 96],
        "train.global_batch": 2,
    },
    "silent": SMALL_SEQUENCES,
    "swarm": SMALL_SEQUENCES,
}
RECIPE_CASES = {name: {} if name == "demo" else SMALL_SETS[recipe(name).data.source.kind] for name in RECIPES}
GUIDED = {"kind": "gaff", "gated": True, "guide_intra": True, "guide_inter": True}
FUSION_CASES: dict[str, dict[str, Any]] = {
    "add": {"kind": "add"},
    "concat": {"kind": "concat"},
    "late_concat": {"kind": "late_concat"},
    "cross_attention": {"kind": "cross_attention"},
    "gaff": {"kind": "gaff"},
    "gaff_shared": {"kind": "gaff", "inter_shared": True, "merge_bottleneck": True, "inter_scales": 3},
    "gaff_weights": {"kind": "gaff", "merge_weights": "both", "se_reduction": None},
    "gaff_guided": GUIDED,
    "cssa": {"kind": "cssa"},
    "cssa_conv7": {"kind": "cssa", "straight_through": True, "variant": "conv7", "kernel_size": None},
    "identity": {"kind": "identity"},
}
"""Beside cmx, which the recipes have: every fusion, and every option of one that adds operations."""
SETTING_CASES: dict[str, dict[str, Any]] = {
    "block": {"train.activation_checkpointing": "block"},
    "selective": {"train.activation_checkpointing": "selective"},
    "drop_path": {"model.backbone.drop_path_rate": 0.2},
    "sgd": {"optim": {"kind": "sgd", "lr": 1e-3, "clip_norm": 1.0}},
    "timm": {"model.backbone": {"kind": "timm", "name": "test_convnext"}},
}
CASES = [*RECIPE_CASES, *FUSION_CASES, *SETTING_CASES]


def experiment_of(case: str, *, precision: str) -> Experiment:
    """The experiment of a case."""
    settings: dict[str, Any] = {"train.precision": precision}
    if case in RECIPE_CASES:
        return apply_overrides(recipe(case), settings | RECIPE_CASES[case])
    changes = SETTING_CASES[case] if case in SETTING_CASES else {"model.fusion": FUSION_CASES[case]}
    return apply_overrides(recipe("demo"), settings | SMALL_CANVAS | changes)


def micro_batches(experiment: Experiment) -> Iterator[list[Batch]]:
    """What each step is fed, without end."""
    source = open_source(experiment.data)
    indices = split_indices(source, experiment.data.split)["train"]
    size = experiment.train.global_batch
    loader = TrainLoader(
        source,
        indices,
        data=experiment.data,
        seed=experiment.seed,
        global_batch=size,
        micro_batch=size,
        accumulation=1,
        rank=0,
        world_size=1,
        reads=modalities_read(experiment.model),
    )
    epoch = 0
    while True:
        for batches in loader.epoch(epoch, 0):
            yield list(batches)
        epoch += 1


def hash_of(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hashes_of(experiment: Experiment, steps: int) -> Mapping[str, Any]:
    """Hashes of the losses and the gradients of every step, and of the last weights and buffers."""
    world = World()
    torch.manual_seed(experiment.seed)
    detector = build_model(experiment).train()
    model = parallelize(detector, world, units=detector.units(), train=experiment.train)
    optimizer = build_optimizer(experiment.optim, model.parameters())
    losses: list[str] = []
    gradients: list[str] = []
    carry: Carry = {}
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append(hash_of(p.grad for p in model.parameters() if p.grad is not None))
    )
    for step, batches in zip(range(steps), micro_batches(experiment), strict=False):
        found, _, carry = train_step(
            model,
            batches,
            optimizer,
            lr=experiment.optim.lr,
            clip_norm=experiment.optim.clip_norm,
            seed=experiment.seed,
            step=step,
            world=world,
            precision=experiment.train.precision,
            carry=carry,
        )
        losses.append(hash_of(found.values()))
    return {
        "losses": losses,
        "gradients": gradients,
        "state": hash_of([*model.state_dict().values(), *carry.values()]),
    }


def main() -> None:
    threads, steps, *cases = sys.argv[1:]
    torch.set_num_threads(int(threads))
    cpu = torch.device("cpu")
    with deterministic_kernels(cpu, exact=False), yielding_busy_cores(int(threads), cpu):
        found = {}
        for case in cases:
            name, _, precision = case.partition(":")
            found[case] = hashes_of(experiment_of(name, precision=precision or "fp32"), int(steps))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
