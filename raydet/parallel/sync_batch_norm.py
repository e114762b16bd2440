"""Batch normalisation over the micro-batches of all workers.

torch.nn.SyncBatchNorm does the same on GPUs only; this one also runs where gloo connects CPUs, and is tested there.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from raydet.parallel.collectives import World


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose batch is that of all ranks; every rank must call it equally often, with equal shapes."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        with torch.autocast(x_BCHW.device.type, enabled=False):
            return self._normalized(x_BCHW.float()).to(x_BCHW.dtype)

    def _normalized(self, x_BCHW: Tensor) -> Tensor:
        world_size = dist.get_world_size()
        mean_C = all_reduce(x_BCHW.mean(dim=(0, 2, 3))) / world_size
        # Around the common mean, not as E[x^2] - mean^2, which cancels.
        centered_BCHW = x_BCHW - mean_C[:, None, None]
        variance_C = all_reduce(centered_BCHW.square().mean(dim=(0, 2, 3))) / world_size
        self._remember(mean_C.detach(), variance_C.detach(), count=world_size * x_BCHW[:, 0].numel())
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        return centered_BCHW * scale_C[:, None, None] + self.bias[:, None, None]

    def _remember(self, mean_C: Tensor, variance_C: Tensor, *, count: int) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C * (count / max(1, count - 1)), self.momentum)


def synchronize_batch_norms(model: nn.Module, world: World) -> None:
    """Turn every `BatchNorm2d` of the model into `SyncBatchNorm2d`, in place; with one worker nothing changes."""
    if world.world_size == 1:
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
