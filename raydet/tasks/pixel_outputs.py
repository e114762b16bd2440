"""What a segmentation model says of the pixels of an image, and what is true of them: the material of anomaly scores.

Legend: K classes, C channels, H W source image, h w map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from raydet.config import Experiment
from raydet.data.loader import EvalLoader
from raydet.data.sources.base import Source
from raydet.models.carry import Streamed
from raydet.models.model import Model
from raydet.ops.upsample import source_stripes
from raydet.structures import Batch, LogitMaps, mask_of

FEATURE_MAP = 2
"""Index of the encoder's map whose features are compared: the third, as published (layer3 of a ResNet)."""


@dataclass(frozen=True, slots=True)
class PixelOutputs:
    """Of one image; logits and features are on the model's device."""

    position: int
    """Among the images of the pass."""
    index: int
    """In the source."""
    pixels_sha256: str
    """Of the image as the model reads it."""
    truth_HW: Tensor
    """See `raydet.structures.Mask`."""
    logits_1KHW: Tensor
    """Of the classes, at the size of the source image."""
    features_1Chw: Tensor
    """The encoder's map, of the whole canvas."""
    cell_ids_hw: Tensor
    """The label of the pixel at the centre of each cell: 0..K-1 or IGNORE."""
    canvas_hw: tuple[int, int]
    valid_hw: tuple[int, int]

    def at_source_size(self, map_hw: Tensor) -> Tensor:
        """A map [h, w] of the whole canvas at the size of the source image: [H, W], bilinear, as the logits are."""
        height, width = self.truth_HW.shape
        stripes = source_stripes(
            map_hw[None], canvas_hw=self.canvas_hw, valid_hw=self.valid_hw, source_hw=(height, width)
        )
        return torch.cat(list(stripes), dim=2)[0, 0]


@torch.no_grad()
def pixel_outputs(
    model: Model,
    source: Source,
    indices: Sequence[int],
    experiment: Experiment,
    *,
    rank: int = 0,
    world_size: int = 1,
    in_step: bool = False,
) -> Iterator[PixelOutputs]:
    """The outputs of a model for masks, batch by batch, for this worker's share of the images.

    Args:
        model: in evaluation mode, wrapped or not.
        in_step: see `EvalLoader`.

    Raises:
        DataError: an image cannot be read.
    """
    loader = EvalLoader(
        source,
        indices,
        data=experiment.data,
        batch_size=experiment.train.eval_batch,
        rank=rank,
        world_size=world_size,
        in_step=in_step,
    )
    seen: list[Tensor] = []
    device = next(model.parameters()).device

    def see(module: nn.Module, arguments: tuple[Sequence[Tensor], ...]) -> None:
        seen[:] = [arguments[0][FEATURE_MAP]]

    # The model is called as a whole, because a sharded one gathers its weights then.
    streamed = Streamed(model)
    hook = model.neck.register_forward_pre_hook(see)
    try:
        for batch, positions in loader:
            predictions = streamed(batch.to(device), want="predictions").predictions
            yield from _outputs(
                batch, positions, predictions, seen[0], source, indices, experiment.num_classes
            )
    finally:
        hook.remove()


def _outputs(
    batch: Batch,
    positions: Sequence[int],
    predictions: LogitMaps,
    features_BChw: Tensor,
    source: Source,
    indices: Sequence[int],
    num_classes: int,
) -> Iterator[PixelOutputs]:
    for row, position in enumerate(positions):
        index = indices[position]
        truth_HW = mask_of(source.targets(index)[0], source.image_ids[index]).ids_HW
        valid_hw = int(batch.valid_hw[row, 0]), int(batch.valid_hw[row, 1])
        stripes = source_stripes(
            predictions.logits_BNHW[row, :num_classes],
            canvas_hw=batch.canvas_hw,
            valid_hw=valid_hw,
            source_hw=(truth_HW.shape[0], truth_HW.shape[1]),
        )
        cells_hw = interpolate(
            batch.ids_BHW[row][None, None].float(), size=features_BChw.shape[2:], mode="nearest-exact"
        )
        yield PixelOutputs(
            position=position,
            index=index,
            pixels_sha256=_pixels_sha256(batch, row),
            truth_HW=truth_HW,
            logits_1KHW=torch.cat(list(stripes), dim=2),
            features_1Chw=features_BChw[row : row + 1].float(),
            cell_ids_hw=cells_hw[0, 0].long(),
            canvas_hw=batch.canvas_hw,
            valid_hw=valid_hw,
        )


def _pixels_sha256(batch: Batch, row: int) -> str:
    digest = hashlib.sha256(str(batch.valid_hw[row].tolist()).encode())
    for name, x_BCHW in batch.modalities.items():
        digest.update(name.encode())
        digest.update(x_BCHW[row].contiguous().numpy().tobytes())
    return digest.hexdigest()
