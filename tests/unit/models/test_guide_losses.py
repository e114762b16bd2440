"""The losses of guided attention against values computed by hand, on maps of four cells."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raydet.models.fusion.base import Guides
from raydet.models.fusion.guided import guide_losses
from raydet.models.heads.targets import Targets
from raydet.ops.box_mask import box_mask

CANVAS_HW = (16, 16)
# One box over the top-left cell, one that contains no cell's centre, one that is padding.
BOXES = torch.tensor([[1.0, 1.0, 7.0, 7.0], [6.0, 6.0, 11.0, 11.0], [0.0, 0.0, 16.0, 16.0]])
ONE_OBJECT = Targets(BOXES[None], torch.ones(1, 3, dtype=torch.int64), torch.tensor([[True, True, False]]))
NO_OBJECT = replace(ONE_OBJECT, is_real_BG=torch.zeros(1, 3, dtype=torch.bool))
WHOLE = torch.tensor([[16, 16]])

RGB = [0.5, 0.5, 0.5, 0.5]
AUX = [0.8, 0.3, 0.2, 0.55]
CHOICE = [[0.0] * 4, [math.log(3.0)] * 4]
"""The other modality is chosen with probability 3/4."""


def guides_of(rgb: list[float] = RGB, aux: list[float] = AUX) -> Guides:
    masks = torch.tensor([rgb, aux], dtype=torch.float64).view(1, 2, 2, 2)
    choice = torch.tensor(CHOICE, dtype=torch.float64).view(1, 2, 2, 2)
    return Guides(masks.logit().requires_grad_(), choice.requires_grad_())


def losses_of(*guides: Guides, targets: Targets = ONE_OBJECT, valid_hw: Tensor = WHOLE) -> list[float]:
    losses = guide_losses(guides, targets, canvas_hw=CANVAS_HW, valid_hw_B2=valid_hw)
    assert list(losses) == ["loss_guide_intra", "loss_guide_inter"]
    return [loss.item() for loss in losses.values()]


def test_one_object() -> None:
    intra, inter = losses_of(guides_of())
    rgb = 1 - (2 * 0.5 + 1) / (4 * 0.25 + 1 + 1)
    aux = 1 - (2 * 0.8 + 1) / (0.64 + 0.09 + 0.04 + 0.3025 + 1 + 1)
    assert intra == pytest.approx((rgb + aux) / 2, abs=1e-12)
    # The other modality errs less in three cells; in the fourth it errs more, by 0.05, which does not count.
    assert inter == pytest.approx(-math.log(3 / 4), abs=1e-12)


def test_the_better_modality_is_picked_cell_by_cell() -> None:
    guides = guides_of(rgb=[0.9, 0.5, 0.5, 0.5], aux=[0.2, 0.2, 0.5, 0.5])
    assert losses_of(guides)[1] == pytest.approx((-math.log(1 / 4) - math.log(3 / 4)) / 2, abs=1e-12)


def test_masks_should_be_empty_without_objects() -> None:
    intra, _ = losses_of(guides_of(), targets=NO_OBJECT)
    assert intra == pytest.approx((1 - 1 / 2 + 1 - 1 / (0.64 + 0.09 + 0.04 + 0.3025 + 1)) / 2, abs=1e-12)
    assert losses_of(guides_of(rgb=[1e-9] * 4, aux=[1e-9] * 4), targets=NO_OBJECT)[0] < 1e-8


def test_ties_do_not_count_in_the_choice() -> None:
    assert losses_of(guides_of(aux=RGB))[1] == 0.0


def test_padding_does_not_count() -> None:
    left_half = torch.tensor([[16, 8]])
    intra, inter = losses_of(guides_of(), valid_hw=left_half)
    rgb = 1 - (2 * 0.5 + 1) / (2 * 0.25 + 1 + 1)
    aux = 1 - (2 * 0.8 + 1) / (0.64 + 0.04 + 1 + 1)
    assert intra == pytest.approx((rgb + aux) / 2, abs=1e-12)
    assert inter == pytest.approx(-math.log(3 / 4), abs=1e-12)


def test_losses_are_means_over_images_and_stages() -> None:
    one, other = guides_of(), guides_of(rgb=[0.9, 0.1, 0.3, 0.6])
    together = Guides(*(torch.cat(pair) for pair in zip(one, other, strict=True)))
    targets = Targets(
        *(torch.cat((getattr(ONE_OBJECT, x), getattr(NO_OBJECT, x))) for x in Targets.__slots__)
    )
    alone = torch.tensor([losses_of(one), losses_of(other, targets=NO_OBJECT)])
    batch = losses_of(together, targets=targets, valid_hw=WHOLE.expand(2, 2))
    assert batch == pytest.approx(alone.mean(dim=0).tolist())
    stages = torch.tensor([losses_of(one), losses_of(other)])
    assert losses_of(one, other) == pytest.approx(stages.mean(dim=0).tolist())


def test_each_loss_trains_its_own_layers() -> None:
    guides = guides_of()
    losses = guide_losses([guides], ONE_OBJECT, canvas_hw=CANVAS_HW, valid_hw_B2=WHOLE)
    losses["loss_guide_inter"].backward(retain_graph=True)
    assert guides.masks_B2HW.grad is None
    assert guides.choice_B2HW is not None
    assert guides.choice_B2HW.grad is not None
    losses["loss_guide_intra"].backward()
    # Towards the object, and away from the rest.
    assert guides.masks_B2HW.grad is not None
    assert (guides.masks_B2HW.grad[0, 0] < 0).flatten().tolist() == [True, False, False, False]


def test_bf16_logits_have_fp32_losses() -> None:
    guides = guides_of()
    low = Guides(guides.masks_B2HW.bfloat16(), None)
    losses = guide_losses([low], ONE_OBJECT, canvas_hw=CANVAS_HW, valid_hw_B2=WHOLE)
    assert list(losses) == ["loss_guide_intra"]
    assert losses["loss_guide_intra"].dtype == torch.float32
    assert losses["loss_guide_intra"].item() == pytest.approx(losses_of(guides)[0], rel=1e-2)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_boxes_are_filled(precision: torch.dtype) -> None:
    """Against a pixel mask drawn box by box and sampled at the centres of the cells."""
    torch.manual_seed(0)
    corners = torch.randint(0, 64, (3, 40, 2)).float()
    boxes = torch.cat((corners, corners + torch.randint(1, 40, (3, 40, 2))), dim=2)
    is_real = torch.rand(3, 40) < 0.2
    drawn = torch.zeros(3, 64, 96, dtype=torch.bool)
    for image, box in is_real.nonzero().tolist():
        x1, y1, x2, y2 = boxes[image, box].int().tolist()
        drawn[image, y1:y2, x1:x2] = True
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        found = box_mask(boxes, is_real, map_hw=(16, 24), canvas_hw=(64, 96))
    assert torch.equal(found[:, 0], drawn[:, 2::4, 2::4])
    assert not box_mask(boxes[:, :0], is_real[:, :0], map_hw=(16, 24), canvas_hw=(64, 96)).any()
