"""Initial weights of the encoder as in SegFormer (arXiv 2105.15203) and CMX (arXiv 2203.04838)."""

from __future__ import annotations

import math

from torch import nn


class StackedConv2d(nn.Conv2d):
    """Several 1x1 convolutions of one input as one, with the initial distribution of the separate convolutions."""

    def __init__(self, in_channels: int, out_channels: int, *, num_stacked: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)
        self.num_stacked = num_stacked


def init_segformer(module: nn.Module) -> None:
    """Initialise one layer, for `nn.Module.apply`; layers of other types keep PyTorch's defaults.

    Linear: truncated normal, deviation 0.02; convolution: normal, deviation sqrt(2 / fan_out); LayerNorm: 1; biases: 0.
    """
    match module:
        case nn.Linear():
            nn.init.trunc_normal_(module.weight, std=0.02)
        case nn.Conv2d():
            kernel_h, kernel_w = module.kernel_size
            fan_out = kernel_h * kernel_w * module.out_channels // module.groups
            if isinstance(module, StackedConv2d):
                fan_out //= module.num_stacked
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        case nn.LayerNorm():
            nn.init.ones_(module.weight)
        case _:
            return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
