"""What a model remembers from one step to the next, lane by lane.

A lane is a slot of the global batch (`raydet.data.clips`), whatever worker it is on: worker r of W holds the lanes from
r * global_batch / W on. A model without memory has an empty carry.

Legend: L lanes of this worker.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raydet.structures import Batch, Carry, Output, Want


def carry_of(carry: Carry, micro: int, is_first: Tensor | None) -> Carry:
    """The rows of one micro-batch, zero where its window begins its lane's sequence.

    Args:
        micro: number of the micro-batch among this worker's.
        is_first: bool [b], one per lane of the micro-batch; None: no clips.
    """
    if is_first is None:
        return {}
    size = len(is_first)
    rows = {name: x[micro * size : (micro + 1) * size] for name, x in carry.items()}
    return {
        name: torch.where(is_first.to(x.device).view(-1, *[1] * (x.ndim - 1)), torch.zeros_like(x), x)
        for name, x in rows.items()
    }


def joined(parts: Sequence[Carry]) -> Carry:
    """The rows of all micro-batches, cut from the graph."""
    return {name: torch.cat([part[name].detach() for part in parts]) for name in parts[0]}


class Streamed:
    """A model that is fed batches in the order of time; what it remembers goes from each to the next.

    Args:
        model: wrapped or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._carry: Carry = {}

    def __call__(self, batch: Batch, *, want: Want) -> Output:
        """The output of a batch on the model's device; its clips may begin their sequences, see `Batch.is_first`."""
        output: Output = self._model(batch, carry_of(self._carry, 0, batch.is_first), want=want)
        self._carry = output.carry
        return output
