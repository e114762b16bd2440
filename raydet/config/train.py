"""How the detector is trained: optimizer, schedule, batch, precision, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raydet.config.base import Config


class ConstantSchedule(Config):
    """The learning rate stays as it is, after an optional linear warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class StepSchedule(Config):
    """Times `gamma` every `step_epochs` epochs."""

    kind: Literal["step"] = "step"
    step_epochs: Annotated[int, Field(ge=1)] = 15
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class CosineSchedule(Config):
    """Linear warm-up, then half a cosine down to `final_fraction` of the learning rate."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01


class PlateauSchedule(Config):
    """Times `factor` whenever more than `patience` evaluations in a row have not improved the deciding metric, as
    PyTorch's ReduceLROnPlateau does it (relative threshold 1e-4). The validation images have a say in training then.
    """

    kind: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Annotated[int, Field(ge=0)] = 5
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class OneCycleSchedule(Config):
    """Up in a straight line, then down in another, as PyTorch's OneCycleLR with anneal_strategy="linear"; the defaults
    are RVT's."""

    kind: Literal["one_cycle"] = "one_cycle"
    up_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.005
    """Part of the steps in which it rises."""
    first_fraction: Annotated[float, Field(gt=0, le=1)] = 1 / 20
    """Of the learning rate, at the first step."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 1 / (20 * 10_000)
    """Of the learning rate, at the last step."""


Schedule = Annotated[
    ConstantSchedule | StepSchedule | CosineSchedule | PlateauSchedule | OneCycleSchedule,
    Field(discriminator="kind"),
]


EmaDecay = Annotated[float, Field(gt=0, lt=1)] | None
"""What is evaluated is an exponential average of the weights with this decay, which warms up: (1 + n) / (10 + n)
after n updates, while that is less; null: the weights themselves."""


class SGDConfig(Config):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(ge=0)] = 0.02
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    schedule: Schedule = ConstantSchedule()
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest L2 norm of the whole gradient; null does not clip."""
    clip_value: Annotated[float, Field(gt=0)] | None = None
    """Largest absolute value in a gradient, cut before the norm is taken; null does not clip."""
    ema_decay: EmaDecay = None


class AdamWConfig(Config):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(ge=0)] = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    schedule: Schedule = CosineSchedule()
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest L2 norm of the whole gradient; null does not clip."""
    clip_value: Annotated[float, Field(gt=0)] | None = None
    """Largest absolute value in a gradient, cut before the norm is taken; null does not clip."""
    ema_decay: EmaDecay = None


Optimizer = Annotated[SGDConfig | AdamWConfig, Field(discriminator="kind")]


Precision = Literal["fp32", "bf16"]
Strategy = Literal["auto", "single", "ddp", "fsdp", "hsdp"]
ActivationCheckpointing = Literal["none", "block", "selective"]


NonFinite = Literal["stop", "skip", "rollback"]


class TrainConfig(Config):
    """The loop."""

    epochs: Annotated[int, Field(ge=1)] = 15
    steps_per_epoch: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps of an epoch, which is a reporting period: of evaluations, checkpoints and schedules. null: one
    pass through the training data."""
    global_batch: Annotated[int, Field(ge=1)] = 16
    """Images per optimizer step over all workers: the truth, whatever the number of workers."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Images per worker in one forward pass; the rest is accumulation. null: global_batch / workers; auto: the most
    that fit into the memory of the smallest worker, as `raydet plan` counts it."""
    precision: Precision = "fp32"
    """bf16: autocast; weights, norms, losses and box arithmetic stay fp32."""
    strategy: Strategy = "auto"
    """How several workers share the model: each holds a copy (ddp), each holds a shard (fsdp), or each group of
    workers holds a sharded copy (hsdp). auto: single for one worker, ddp for several."""
    shard_ranks: Annotated[int, Field(ge=1)] | None = None
    """hsdp: workers that share one copy; null: those of one node."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """What the forward pass forgets and the backward pass computes again: nothing, everything inside encoder blocks
    and fusions, or all of it but matrix products (selective)."""
    compile: bool = False
    """Compile the encoder blocks with torch.compile; needs a C++ compiler on CPU, costs minutes at the start."""
    sync_batch_norm: bool = False
    """The fusions' batch norms see the images of all workers instead of their own: for small micro-batches."""
    exact: bool = False
    """Take deterministic kernels on a GPU, so that a resumed run has the same losses to the last bit; may be slower,
    and the log names operations that have no such kernel. A CPU always takes them: on the same number of workers and
    threads, of one machine and PyTorch release, every run has the same losses, whatever else the machine does."""
    non_finite: NonFinite = "stop"
    """What to do about a loss or gradient that is not finite: end the run; pass over the step (looks at every gradient
    before it is used, so a GPU is waited for in every step); or go back to the newest checkpoint and pass over it."""
    eval_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    eval_batch: Annotated[int, Field(ge=1)] = 4
    """Images per worker in one forward pass of the evaluation."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Best checkpoints kept; the newest is kept always."""
