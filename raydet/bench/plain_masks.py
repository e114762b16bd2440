"""A plain implementation of the same model for masks: the reference for the numbers, the baseline for the speed.

The encoder is that of `plain`. The decoders are written down from the papers: contiguous maps are resized to the size
of the first, and concatenated or summed there. The losses are those of `plain_losses`, on logits of the canvas's size;
as in `raydet`, ignored pixels count nowhere. It uses the layers of a model (same weights and names), but none of its
forward functions.

Dropout of whole channels draws what the model draws. Dropout of single values, which torchvision's layers have (the
auxiliary head, DeepLabv3's pooling), draws them by their place in memory, and the model's maps may be channels-last: it
drops other values.

Legend: B batch, C channels, H W map or canvas, h w the decoder's map, N outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raydet.bench import plain_losses
from raydet.bench.plain import encode, normalised, padded
from raydet.config import CrossEntropyLoss, Experiment, MaskHead, SegmentationTask
from raydet.config.task import Level
from raydet.errors import ConfigError
from raydet.models.heads.masks.aspp import ASPP
from raydet.models.heads.masks.base import LAST, THIRD, Decoder, SegmentationHead
from raydet.models.heads.masks.deeplabv3 import DeepLabV3
from raydet.models.heads.masks.deeplabv3_plus import DeepLabV3Plus
from raydet.models.heads.masks.extremely_fast_segformer import ExtremelyFastSegFormer
from raydet.models.heads.masks.fcn import FCN
from raydet.models.heads.masks.segformer import SegFormer
from raydet.models.heads.masks.ultrafast_segformer import UltraFastSegFormer
from raydet.models.losses.hierarchical import Hierarchical
from raydet.models.model import Model
from raydet.structures import Batch, Carry, Output, Want


class PlainSegmenter(nn.Module):
    """Losses of a batch; training only.

    Args:
        model: its layers are copied to `parts`, with the same state-dict keys.
        experiment: settings of the loss.
    """

    def __init__(self, model: Model, experiment: Experiment) -> None:
        super().__init__()
        self.parts = copy.deepcopy(model)
        config = experiment.model.head
        assert isinstance(config, MaskHead)
        self.config = config.loss
        task = experiment.task
        self.levels: Sequence[Level] = task.levels if isinstance(task, SegmentationTask) else ()

    @property
    def loss_names(self) -> tuple[str, ...]:
        """As the model's."""
        return self.parts.loss_names

    def forward(self, batch: Batch, carry: Carry | None = None, *, want: Want = "losses") -> Output:
        """The losses; called as the model itself.

        Raises:
            ConfigError: the head has no plain form.
        """
        head = self.parts.head
        assert isinstance(head, SegmentationHead)
        images_BCHW = padded(normalised(self.parts, batch), batch.canvas_hw)
        maps_BCHW = [x.contiguous() for x in encode(self.parts, images_BCHW)[0]]
        ids_BHW = batch.ids_BHW
        logits_BNHW = plain_losses.upsampled(_decoded(head.decoder, maps_BCHW), ids_BHW)
        losses = self._pixel_losses(logits_BNHW, ids_BHW)
        settings = head.loss.triplet if isinstance(head.loss, Hierarchical) else None
        if settings is not None and head.projection is not None:
            x_BCHW = maps_BCHW[LAST]
            for layer in head.projection:
                x_BCHW = layer(x_BCHW)
            triplet = plain_losses.triplet(
                F.normalize(x_BCHW, dim=1),
                ids_BHW,
                self.levels[0].parents,
                ignored_are_negatives=False,
                most=settings.most,
                margin=settings.margin,
            )
            losses.append(settings.current_weight * triplet)
        if head.auxiliary is not None:
            wide_BNHW = plain_losses.upsampled(head.auxiliary.layers(maps_BCHW[THIRD]), ids_BHW)
            (entropy,) = plain_losses.cross_entropies(wide_BNHW, ids_BHW, (), over_all=False)
            losses.append(head.auxiliary.weight * entropy)
        return Output(dict(zip(self.loss_names, losses, strict=True)), None, {})

    def _pixel_losses(self, logits_BNHW: Tensor, ids_BHW: Tensor) -> list[Tensor]:
        if isinstance(self.config, CrossEntropyLoss):
            gamma = self.config.focal_gamma
            return plain_losses.cross_entropies(logits_BNHW, ids_BHW, (), over_all=False, focal_gamma=gamma)
        config, levels = self.config, self.levels[: self.config.depth]
        losses = plain_losses.cross_entropies(logits_BNHW, ids_BHW, levels, over_all=False)
        if config.weight:
            on_tree = plain_losses.binary_losses(
                logits_BNHW, ids_BHW, levels, form=config.form, focal_gamma=config.focal_gamma
            )
            losses.insert(0, config.weight * on_tree)
        if config.rmi is not None and config.rmi.weight:
            pools = config.rmi.form == "hieraseg"
            rmi = plain_losses.rmi(
                logits_BNHW, ids_BHW, levels, pool=pools, center=pools, ignored_count=False
            )
            losses.append(config.rmi.weight * rmi)
        return losses


def _decoded(decoder: Decoder, maps_BCHW: list[Tensor]) -> Tensor:
    """Logits [B, N, h, w]."""
    first_BCHW, *_, last_BCHW = maps_BCHW
    match decoder:
        case ASPP():
            pooled_BCHW = _resized(decoder.pool(F.adaptive_avg_pool2d(last_BCHW, 1)), last_BCHW)
            branches = [pooled_BCHW, *(branch(last_BCHW) for branch in decoder.branches)]
            x_BCHW = _resized(decoder.bottleneck(torch.cat(branches, dim=1)), first_BCHW)
            x_BCHW = decoder.join(torch.cat([x_BCHW, decoder.low(first_BCHW)], dim=1))
        case SegFormer():
            wide = [_resized(f(x), first_BCHW) for f, x in zip(decoder.linears, maps_BCHW, strict=True)]
            x_BCHW = decoder.norm(decoder.fuse(torch.cat(wide, dim=1)))
        case UltraFastSegFormer():
            wide = [_resized(f(x), first_BCHW) for f, x in zip(decoder.linears, maps_BCHW, strict=True)]
            x_BCHW = decoder.fuse(sum(wide[1:], start=wide[0]))
        case ExtremelyFastSegFormer():
            maps_BCHW = maps_BCHW[1:]
            wide = [_resized(f(x), maps_BCHW[0]) for f, x in zip(decoder.linears, maps_BCHW, strict=True)]
            x_BCHW = decoder.fuse(sum(wide[1:], start=wide[0]))
        case DeepLabV3():  # its pooling is torchvision's, and plain already
            x_BCHW = decoder.refine(decoder.aspp(last_BCHW))
        case DeepLabV3Plus():
            x_BCHW = _resized(decoder.aspp(last_BCHW), first_BCHW)
            x_BCHW = decoder.join(torch.cat([x_BCHW, decoder.low(first_BCHW)], dim=1))
        case FCN():
            return decoder.layers(last_BCHW)
        case _:
            raise ConfigError(
                f"expected a head that has a plain form, got {type(decoder).__name__}; write it in "
                "raydet/bench/plain_masks.py"
            )
    return decoder.classify(x_BCHW)


def _resized(x_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    resized_BCHW = F.interpolate(x_BCHW, size=like_BCHW.shape[2:], mode="bilinear", align_corners=False)
    return resized_BCHW.contiguous()
