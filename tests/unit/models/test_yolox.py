"""The head of YOLOX: golden losses of the published code, SimOTA against a loop over images, weights of small boxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raydet.models.heads.simota import assign_simota, candidates, cells_of, overlaps
from raydet.models.heads.size_aware import SizeAware, size_weight
from raydet.models.heads.yolox import YOLOX, decoded
from raydet.structures import Batch, BoxBatch
from tests.unit.models.golden import sin_filled, sin_input

AREAS = (0, 64, 100, 256, 400, 709, 1024, 4608, 5000, 9216, 20000)
WEIGHTS = {
    ("exponential", 2.0): (2, 1.878826, 1.813921, 1.557602, 1.353268, 1.000765, 1, 1, 1, 1, 1),
    ("exponential", 2.5): (2.5, 2.348533, 2.267402, 1.947002, 1.691585, 1.250956, 1, 1, 1, 1, 1),
    ("step", 2.0): (2, 2, 2, 2, 2, 2, 2, 1.5, 1.5, 1.5, 1),
    ("linear", 2.0): (2, 2, 2, 2, 2, 2, 2, 2, 1.914931, 1, 1),
    ("off", 2.0): (1,) * 11,
}
PARAMETERS = {
    ((128, 256, 512), 2): 1_890_709,
    ((128, 256, 512), 3): 1_891_096,
    ((128, 256, 512), 8): 1_893_031,
    ((64, 128, 256, 512), 3): 2_491_424,
    ((64, 128, 256, 512), 8): 2_494_004,
    ((32, 64), 3): 20_560,
}


def head_of(channels: tuple[int, ...], *, num_classes: int = 3, **settings: object) -> YOLOX:
    defaults: dict[str, object] = {
        "size_aware": "off",
        "size_factor": 2.0,
        "score": "product",
        "score_threshold": 0.1,
        "nms_threshold": 0.45,
        "max_detections": 100,
    }
    return YOLOX(
        channels=channels,
        hidden=channels[-1] // 4,
        num_classes=num_classes,
        **{**defaults, **settings},  # type: ignore[arg-type]
    )


def batch_of(boxes: list[list[list[float]]], labels: list[list[int]], canvas_hw: tuple[int, int]) -> Batch:
    """Boxes are (x1, y1, x2, y2) per image."""
    most = max(1, *map(len, boxes))
    padded = torch.zeros(len(boxes), most, 4)
    classes = torch.full((len(boxes), most), -1)
    for image, rows in enumerate(boxes):
        if rows:
            padded[image, : len(rows)] = torch.tensor(rows)
            classes[image, : len(rows)] = torch.tensor(labels[image])
    size = torch.tensor([canvas_hw] * len(boxes))
    return Batch(
        modalities={"event": torch.zeros(len(boxes), 1, *canvas_hw, dtype=torch.uint8)},
        valid_hw=size,
        source_hw=size,
        target=BoxBatch(padded, classes, torch.tensor([len(rows) for rows in boxes])),
        image_ids=tuple(f"image{i}" for i in range(len(boxes))),
    )


@pytest.mark.parametrize(("channels", "classes"), PARAMETERS)
def test_parameters_are_as_published(channels: tuple[int, ...], classes: int) -> None:
    with torch.device("meta"):
        head = head_of(channels, num_classes=classes)
    assert sum(p.numel() for p in head.parameters()) == PARAMETERS[channels, classes]


@pytest.mark.parametrize(("kind", "factor"), WEIGHTS)
def test_weights_are_as_published(kind: SizeAware, factor: float) -> None:
    weights = size_weight(torch.tensor(AREAS, dtype=torch.float64), kind, factor)
    assert weights.tolist() == pytest.approx(WEIGHTS[kind, factor], abs=1e-6)


def test_a_small_box_weighs_more() -> None:
    truth = torch.tensor([10.0, 10, 10, 10], dtype=torch.float64)
    loss = 1 - overlaps(torch.tensor([11.0, 10, 10, 10], dtype=torch.float64), truth) ** 2
    weight = size_weight(truth[2] * truth[3], "exponential", 2.0)
    assert loss.item() == pytest.approx(0.3305785, abs=1e-7)
    assert weight.item() == pytest.approx(1.8139212, abs=1e-7)
    assert (loss * weight).item() == pytest.approx(0.5996434, abs=1e-7)
    assert size_weight(torch.tensor(60.0 * 40.0), "exponential", 2.0).item() == 1.0


def golden_input() -> tuple[dict[str, Tensor], Batch]:
    pyramid = {"1": sin_input(1, 32, 8, 8).float(), "2": sin_input(1, 64, 4, 4, phase=1.0).float()}
    return pyramid, batch_of([[[12.0, 14, 28, 26], [28.0, 9, 52, 39]]], [[1, 2]], (64, 64))


def test_losses_are_as_published() -> None:
    head = sin_filled(head_of((32, 64))).float()
    losses = head(*golden_input(), want="losses").losses
    assert tuple(losses) == head.loss_names
    assert [x.item() for x in losses.values()] == pytest.approx([4.51536, 27.90767, 2.08448], abs=1e-4)


def test_the_box_loss_alone_is_weighted() -> None:
    plain, weighted = (
        sin_filled(head_of((32, 64), size_aware=kind)).float()(*golden_input(), want="losses").losses
        for kind in ("off", "step")
    )
    assert weighted["loss_iou"] == 2 * plain["loss_iou"]  # both objects are small
    assert weighted["loss_class"] == plain["loss_class"]
    assert weighted["loss_objectness"] == plain["loss_objectness"]


def assigned_by_loop(
    boxes_A4: Tensor,
    logits_AC: Tensor,
    objectness_A: Tensor,
    truth_G4: Tensor,
    labels_G: Tensor,
    cells: Tensor,
) -> dict[int, int]:
    """SimOTA for one image, over all of its cells (column, row, stride): the object of every positive cell."""
    if not len(truth_G4):
        return {}
    centre_A2 = (cells[:, :2] + 0.5) * cells[:, 2:]
    offset_GA = (centre_A2[None] - truth_G4[:, None, :2]).abs().amax(dim=2)
    is_own_GA = offset_GA < 1.5 * cells[:, 2]
    kept = is_own_GA.any(dim=0).nonzero()[:, 0]
    if not len(kept):
        return {}
    iou_GN = overlaps(truth_G4[:, None], boxes_A4[None, kept])
    score_NC = (logits_AC[kept].sigmoid() * objectness_A[kept, None].sigmoid()).sqrt()
    one_hot_GNC = (
        nn.functional.one_hot(labels_G, logits_AC.shape[1])[:, None].expand(-1, len(kept), -1).to(score_NC)
    )
    entropy_GN = nn.functional.binary_cross_entropy(
        score_NC.expand_as(one_hot_GNC), one_hot_GNC, reduction="none"
    ).sum(dim=2)
    cost_GN = entropy_GN - 3 * (iou_GN + 1e-8).log() + 1e6 * ~is_own_GA[:, kept]
    takers: dict[int, list[int]] = {}
    for truth, (iou_N, cost_N) in enumerate(zip(iou_GN, cost_GN, strict=True)):
        most = int(iou_N.sort(descending=True).values[:10].sum())
        for position in cost_N.argsort()[: max(1, most)].tolist():
            takers.setdefault(position, []).append(truth)
    return {
        int(kept[position]): truths[0] if len(truths) == 1 else int(cost_GN[:, position].argmin())
        for position, truths in takers.items()
    }


@pytest.mark.parametrize("seed", range(8))
def test_assignments_are_those_of_a_loop_over_images(seed: int) -> None:
    """Crowded images: several objects take the same cell, some have their centre outside, one image has none."""
    generator = torch.Generator().manual_seed(seed)
    sizes_hw, strides, num_classes = [(24, 40), (12, 20), (6, 10)], [4, 8, 16], 5
    counts = torch.tensor([14, 0, 1, 9])
    centre = torch.rand(4, 14, 2, generator=generator) * torch.tensor([168.0, 104.0]) - 4
    truth_BG4 = torch.cat((centre, 3 + 40 * torch.rand(4, 14, 2, generator=generator) ** 2), dim=2).double()
    truth_BG4[0, 1] = truth_BG4[0, 0] + 0.5  # on one another
    labels_BG = torch.randint(0, num_classes, (4, 14), generator=generator)
    cells = cells_of(sizes_hw, strides, torch.device("cpu"))
    num_cells = len(cells.stride_A)
    rows_BAD = torch.randn(4, num_cells, 5 + num_classes, generator=generator, dtype=torch.float64)
    boxes_BA4 = decoded(rows_BAD[..., :4], cells, torch.arange(num_cells))
    is_real_BG = torch.arange(14) < counts[:, None]
    cell_BK, is_candidate_BK = candidates(truth_BG4[..., :2], is_real_BG, sizes_hw, strides)
    of_image = torch.arange(4)[:, None]
    found = assign_simota(
        cell_BK,
        is_candidate_BK,
        cells=cells,
        boxes_BK4=boxes_BA4[of_image, cell_BK],
        class_logits_BKC=rows_BAD[of_image, cell_BK, 5:],
        objectness_BK=rows_BAD[of_image, cell_BK, 4],
        truth_BG4=truth_BG4,
        labels_BG=labels_BG,
        is_real_BG=is_real_BG,
    )
    num_shared = 0
    for image, count in enumerate(counts.tolist()):
        expected = assigned_by_loop(
            boxes_BA4[image],
            rows_BAD[image, :, 5:],
            rows_BAD[image, :, 4],
            truth_BG4[image, :count],
            labels_BG[image, :count],
            torch.stack(cells, dim=1).double(),
        )
        positive = found.is_positive_BK[image].nonzero()[:, 0]
        assert len(positive) == len(expected)
        for position in positive.tolist():
            cell, truth = int(cell_BK[image, position]), int(found.truth_BK[image, position])
            assert expected[cell] == truth
            iou = overlaps(boxes_BA4[image, cell], truth_BG4[image, truth])
            assert found.iou_BK[image, position].item() == pytest.approx(iou.item())
        num_shared += count - len(set(expected.values()))
    assert len(found.is_positive_BK.nonzero()) > 20
    assert num_shared > 0 or seed  # objects that lost all of their cells to others, at least once


def test_gradients_are_finite_and_everywhere() -> None:
    head = head_of((16, 32), size_aware="exponential")
    maps = {
        str(i): torch.randn(3, c, s, s, requires_grad=True) for i, (c, s) in enumerate(((16, 16), (32, 8)))
    }
    batch = batch_of(
        [[[5.0, 5, 30, 40], [60, 60, 70, 66]], [], [[100.0, 90, 127, 127]]], [[0, 2], [], [1]], (128, 128)
    )
    torch.stack(list(head(maps, batch, want="losses").losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in head.parameters())


def test_a_diverged_cell_does_not_spoil_the_gradient_of_others() -> None:
    """exp() of what an unused cell predicts may be infinite."""
    head = head_of((16, 32))
    rows = torch.zeros(1, 64 + 16, 8)
    rows[0, 77, :4] = 1000.0
    rows.requires_grad_()
    batch = batch_of([[[5.0, 5, 30, 40]]], [[0]], (64, 64))
    sizes_hw, strides = [(8, 8), (4, 4)], [8, 16]
    losses = head._losses(rows, cells_of(sizes_hw, strides, rows.device), sizes_hw, strides, batch)
    torch.stack(list(losses.values())).sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_images_without_objects_have_an_objectness_loss_only() -> None:
    head = head_of((16, 32))
    maps = {str(i): torch.randn(2, c, s, s) for i, (c, s) in enumerate(((16, 16), (32, 8)))}
    losses = head(maps, batch_of([[], []], [[], []], (128, 128)), want="losses").losses
    assert losses["loss_iou"] == losses["loss_class"] == 0
    assert losses["loss_objectness"] > 0


def test_a_box_that_is_not_finite_shows_in_the_loss() -> None:
    head = head_of((16, 32))
    maps = {str(i): torch.randn(1, c, s, s) for i, (c, s) in enumerate(((16, 16), (32, 8)))}
    losses = head(maps, batch_of([[[5.0, 5, float("inf"), 40]]], [[0]], (128, 128)), want="losses").losses
    assert losses["loss_iou"].isnan()


def test_detections_are_decoded_ranked_and_thinned() -> None:
    head = head_of((16, 32), score_threshold=0.2)
    batch = batch_of([[]], [[]], (64, 64))
    cells = cells_of([(8, 8), (4, 4)], [8, 16], torch.device("cpu"))
    rows = torch.full((1, 80, 8), -10.0)
    rows[0, 9] = torch.tensor([0.5, 0.5, 1.0, 1.0, 2.0, -9.0, 3.0, -9.0])  # column 1, row 1
    rows[0, 10] = torch.tensor([-0.5, 0.5, 1.0, 1.0, 1.0, -9.0, 2.0, -9.0])  # the same box, weaker
    rows[0, 70] = torch.tensor(
        [0.5, 0.5, 0.0, 0.0, 0.5, 4.0, -9.0, -9.0]
    )  # column 2, row 1 of the second level
    (found,) = head._detections(rows, cells, [(64, 60)])
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx(
        [torch.tensor(x).sigmoid().prod().item() for x in ([2.0, 3.0], [0.5, 4.0])]
    )
    half = 4 * torch.e
    expected = torch.tensor([[12 - half, 12 - half, 12 + half, 12 + half], [32.0, 16, 48, 32]])
    torch.testing.assert_close(found.boxes_xyxy, expected.clamp(min=0))
    by_class = head_of((16, 32), score_threshold=0.2, score="class")
    (found,) = by_class._detections(rows, cells, [(64, 60)])
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx(torch.tensor([4.0, 3.0]).sigmoid().tolist())
    assert len(head._detections(rows, cells, [(batch.canvas_hw)])[0].labels) == 2
