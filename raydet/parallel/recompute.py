"""Activation checkpointing: discard the activations of a unit's forward pass, recompute them in the backward pass.

Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174. Each unit's forward method is replaced instead of
wrapping the unit, so the names of parameters, and thereby checkpoints, stay the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

KEPT_BY_SELECTIVE = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Operations that cost more time than their results cost memory."""

_HOOKS_SEE_ALL = (
    {"respect_saved_tensors_hooks": True}  # to count the saved bytes of the selective mode, too
    if "respect_saved_tensors_hooks" in inspect.signature(checkpoint).parameters  # torch 2.15
    else {}
)


def recompute_activations(units: Iterable[nn.Module], mode: Literal["none", "block", "selective"]) -> None:
    """Make each unit save only its inputs (`block`), or those and the results of matrix products (`selective`).

    Random numbers of dropouts are replayed; units must not draw any others. Running statistics of batch norms are
    updated once.
    """
    if mode == "none":
        return
    for unit in units:
        # Set on the instance, where nn.Module's call finds it before the class attribute.
        unit.forward = _recomputed(unit, mode)


def _recomputed(unit: nn.Module, mode: Literal["block", "selective"]) -> Callable[..., Any]:
    # Saving the generator's state costs time, so only if the unit draws.
    draws = any(isinstance(module, _DropoutNd) and module.p > 0 for module in unit.modules())
    norms = [module for module in unit.modules() if isinstance(module, nn.BatchNorm2d)]
    context = partial(_contexts, norms, mode == "selective") if norms or mode == "selective" else None
    return partial(
        checkpoint,
        unit.forward,
        use_reentrant=False,
        preserve_rng_state=draws,
        **({"context_fn": context} if context else {}),
        **_HOOKS_SEE_ALL,
    )


def _contexts(
    norms: Sequence[nn.BatchNorm2d], is_selective: bool
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts for the forward pass and for its recomputation."""
    forward, again = (
        create_selective_checkpoint_contexts(_policy) if is_selective else (nullcontext(), nullcontext())
    )
    return forward, _frozen_statistics(norms, again)


def _policy(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT_BY_SELECTIVE else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _frozen_statistics(norms: Sequence[nn.BatchNorm2d], again: AbstractContextManager[Any]) -> Iterator[None]:
    """`again`, in which batch norms normalize by their batch, but do not update their running statistics."""
    before: list[Any] = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        with again:
            yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
