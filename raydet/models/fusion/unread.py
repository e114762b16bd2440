"""Fusions whose fused map no head reads.

Heads for boxes read all four maps, some heads for masks only the last, or the first and the last. At the other stages,
under the rectified flow, a fusion works through what it passes on to the next stage. What it has for its fused map
alone gets no gradient then, which data-parallel training refuses.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from raydet.errors import ConfigError
from raydet.models.backbones.dual import DualStreamEncoder
from raydet.models.fusion.base import Fusion


def freeze_unread(encoder: DualStreamEncoder, levels: Collection[int]) -> None:
    """Stop training what no gradient will reach in an encoder of whose maps only some are read.

    Args:
        levels: indices of the maps that are read.

    Raises:
        ConfigError: nothing of the second stream reaches a map that is read.
    """
    last_aux = len(encoder.aux_stages) - 1
    for index, (stage, fusion) in enumerate(zip(encoder.rgb_stages, encoder.fusions, strict=True)):
        if index in levels:
            continue
        assert isinstance(fusion, Fusion)
        channels = stage.channels
        assert isinstance(channels, int)
        passes_aux_on = _freeze_fused_map(fusion, channels)
        if index == last_aux and not passes_aux_on:
            raise ConfigError(
                f"the head reads the maps of stages {', '.join(str(level + 1) for level in sorted(levels))} only, and "
                f"the fusion at stage {index + 1}, the last one, passes nothing of the second stream on to them; "
                "set model.flow=fused, or add a stage that is read to model.fusion_stages"
            )


@torch.enable_grad()
def _freeze_fused_map(fusion: Fusion, channels: int) -> bool:
    """Freeze the parameters that only the fused map depends on; whether the RGB stream's next map depends on the other
    stream's."""
    parameters = [parameter for parameter in fusion.parameters() if parameter.requires_grad]
    device = parameters[0].device if parameters else None
    rgb_BCHW, aux_BCHW = (torch.ones(1, channels, 2, 2, device=device, requires_grad=True) for _ in range(2))
    was_training = fusion.training
    output = fusion.eval()(rgb_BCHW, aux_BCHW)  # leaves running statistics alone
    fusion.train(was_training)
    (into_rgb,) = torch.autograd.grad(output.rgb_next.sum(), aux_BCHW, allow_unused=True, retain_graph=True)
    passed_on = output.rgb_next.sum() + output.aux_next.sum()
    gradients = torch.autograd.grad(passed_on, parameters, allow_unused=True) if parameters else ()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return into_rgb is not None
