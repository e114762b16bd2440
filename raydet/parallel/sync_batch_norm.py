"""Batch normalization over the micro-batches of all workers.

torch.nn.SyncBatchNorm does the same on GPUs only; this one also runs on CPUs with gloo, where it is tested.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from raydet.errors import ConfigError
from raydet.parallel.collectives import World


class _MeanOverRanks(torch.autograd.Function):
    """The mean of all ranks' tensors, with the gradients of all ranks' losses."""

    @staticmethod
    def forward(_: FunctionCtx, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(_: FunctionCtx, gradient: Tensor) -> Tensor:
        return _mean(gradient)


def _mean(x: Tensor) -> Tensor:
    total = x.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` over the batches of all ranks; every rank must call it equally often, with equal shapes."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        with torch.autocast(x_BCHW.device.type, enabled=False):
            return self._normalized(x_BCHW.float()).to(x_BCHW.dtype)

    def _normalized(self, x_BCHW: Tensor) -> Tensor:
        mean_C = _MeanOverRanks.apply(x_BCHW.mean(dim=(0, 2, 3)))
        # Around the common mean, not as E[x^2] - mean^2, which cancels.
        centered_BCHW = x_BCHW - mean_C[:, None, None]
        variance_C = _MeanOverRanks.apply(centered_BCHW.square().mean(dim=(0, 2, 3)))
        self._update_statistics(
            mean_C.detach(), variance_C.detach(), count=dist.get_world_size() * x_BCHW[:, 0].numel()
        )
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        return centered_BCHW * scale_C[:, None, None] + self.bias[:, None, None]

    def _update_statistics(self, mean_C: Tensor, variance_C: Tensor, *, count: int) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C * (count / max(1, count - 1)), self.momentum)


def synchronize_batch_norms(model: nn.Module, world: World) -> None:
    """Turn every `BatchNorm2d` of the model into `SyncBatchNorm2d`, in place; with one worker nothing changes.

    Raises:
        ConfigError: the model has batch norms of another class.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and type(module) not in (nn.BatchNorm2d, SyncBatchNorm2d):
            raise ConfigError(
                f"train.sync_batch_norm requires plain batch norms, {name} is a {type(module).__name__}; set it to "
                "false, or take a backbone that has plain ones, such as resnet50, or none, such as convnext_tiny"
            )
        if type(module) is nn.BatchNorm2d and world.world_size > 1:
            module.__class__ = SyncBatchNorm2d
