"""Boxes are drawn at the right position, in the right colour, on every panel, for any names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from raydet.metrics.coco import evaluate_coco
from raydet.report.drawings.detections import NO_MATCH, RIGHT, WRONG, draw_detections, matched_truths
from raydet.report.drawings.marks import DASHES
from raydet.report.drawings.panels import INK, LINE_PX, MARGIN_PX
from raydet.structures import Boxes, Detections, Sample
from raydet.tasks.detection import ground_truth

FACTOR, PANEL_W, PANEL_H = 3, 384, 288
"""For an image of 96 x 128."""
TOP_PX = 2 * MARGIN_PX + 3 * LINE_PX
CLASSES = ("circle", "square")
CHANNELS = {"rgb": 3, "thermal": 1, "event": 1}


def sample(
    boxes: list[list[float]],
    labels: list[int],
    *,
    channels: dict[str, int] = CHANNELS,
    size_hw: tuple[int, int] = (96, 128),
) -> Sample:
    modalities = {name: torch.full((count, *size_hw), 0.3) for name, count in channels.items()}
    return Sample(
        image_id="one",
        group_id="",
        modalities=modalities,
        target=Boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64)),
        source_hw=size_hw,
        valid_hw=size_hw,
    )


def detections(rows: list[tuple[list[float], float, int]]) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        scores=torch.tensor([score for _, score, _ in rows]),
        labels=torch.tensor([label for _, _, label in rows], dtype=torch.int64),
    )


def pixel(drawn: Image.Image, panel: int, x: float, y: float) -> tuple[int, int, int]:
    """The colour of a panel at image coordinates."""
    at = MARGIN_PX + panel * (PANEL_W + MARGIN_PX) + round(x * FACTOR), TOP_PX + round(y * FACTOR)
    red, green, blue = drawn.getpixel(at)
    return red, green, blue


def test_boxes_are_drawn_at_their_edges_in_every_panel() -> None:
    one = sample([[20, 30, 50, 60], [80, 10, 110, 40]], [0, 1])
    # Right, a pixel larger than the true box on each side; of the wrong class; too weak to be drawn.
    found = detections([([19, 29, 51, 61], 0.9, 0), ([79, 9, 111, 41], 0.8, 0), ([20, 70, 40, 90], 0.3, 0)])
    drawn = draw_detections(one, found, classes=CLASSES, score_threshold=0.5)
    assert drawn.size == (3 * PANEL_W + 4 * MARGIN_PX, TOP_PX + PANEL_H + MARGIN_PX)
    for panel in range(3):
        for x, y in ((19, 45), (35, 29), (50.6, 45), (35, 60.6)):
            assert pixel(drawn, panel, x, y) == RIGHT
        for x, y in ((79, 25), (95, 9), (110.6, 25), (95, 40.6)):
            assert pixel(drawn, panel, x, y) == WRONG
        for x in (20, 49.7, 80, 109.7):
            column = {pixel(drawn, panel, x, y + 34) for y in np.arange(0, 4, 1 / FACTOR)}
            assert column <= {DASHES, INK, RIGHT, WRONG}
            assert {DASHES, INK} <= column
        ground = {pixel(drawn, panel, x, y) for x, y in ((10, 10), (20, 80), (35, 45), (95, 25))}
        assert len(ground) == 1


def test_a_second_box_on_one_object_is_wrong() -> None:
    one = sample([[20, 30, 50, 60]], [0])
    found = detections([([20, 30, 50, 58], 0.6, 0), ([20, 30, 50, 60], 0.9, 0)])
    assert matched_truths(one, found).tolist() == [NO_MATCH, 0]


def right_by_pycocotools(one: Sample, found: Detections) -> list[bool]:
    """Whether each detection is right; scores must differ."""
    xyxy = found.boxes_xyxy.double().numpy()
    wh = xyxy[:, 2:] - xyxy[:, :2]
    rows = np.column_stack([np.zeros(len(wh)), xyxy[:, :2], wh, found.scores.double(), found.labels])
    _, records = evaluate_coco(
        ground_truth([(Boxes(one.boxes_xyxy, one.labels), one.source_hw)], num_classes=len(CLASSES)),
        rows,
        CLASSES,
    )
    is_right = dict(zip(records.scores_N.tolist(), records.is_right_NT[:, 0].tolist(), strict=True))
    return [is_right[score] for score in found.scores.tolist()]


@pytest.mark.parametrize("seed", range(20))
def test_right_detections_match_pycocotools(seed: int) -> None:
    draw = np.random.default_rng(seed)

    def boxes(
        count: int,
    ) -> list[list[float]]:  # on a coarse grid: overlaps are often equal, or exactly one half
        corners = draw.integers(0, 6, (count, 2)) * 4.0
        result: list[list[float]] = np.hstack(
            [corners, corners + draw.integers(2, 5, (count, 2)) * 4]
        ).tolist()
        return result

    one = sample(boxes(8), draw.integers(0, 2, 8).tolist())
    scores = np.linspace(0.1, 0.9, 12)[draw.permutation(12)].tolist()
    found = detections(list(zip(boxes(12), scores, draw.integers(0, 2, 12).tolist(), strict=True)))
    assert right_by_pycocotools(one, found) == (matched_truths(one, found) != NO_MATCH).tolist()


def test_of_two_objects_with_equal_overlap_the_last_is_matched() -> None:
    one = sample([[0, 0, 20, 20], [10, 0, 30, 20]], [0, 0])
    found = detections([([5, 0, 25, 20], 0.9, 0), ([0, 0, 20, 20], 0.8, 0)])
    assert matched_truths(one, found).tolist() == [1, 0]
    assert right_by_pycocotools(one, found) == [True, True]


@pytest.mark.parametrize("size_hw", [(96, 128), (32, 512), (512, 32), (20, 3000), (700, 900)])
@pytest.mark.parametrize("num_channels", [1, 3, 4, 20])
def test_any_channels_and_any_shape(num_channels: int, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    whole = [0.0, 0.0, float(width), float(height)]
    one = sample([whole], [0], channels={"rgb": 3, "event": num_channels}, size_hw=size_hw)
    found = detections([(whole, 0.9, 0), (whole, 0.8, 1), ([0, 0, 3, 3], 0.7, 1)])
    drawn = draw_detections(one, found, classes=CLASSES, score_threshold=0.5, unused={"event"})
    assert max(drawn.size) <= 1400
    colours = {colour for _, colour in drawn.getcolors(1 << 24) or ()}
    assert {RIGHT, WRONG} <= colours


def test_display_names_appear_in_the_headings() -> None:
    settings = {"classes": CLASSES, "score_threshold": 0.5}
    plain, *renamed = (
        np.asarray(draw_detections(sample([], []), detections([]), display_name=name, **settings))
        for name in (str, lambda name: "event (simulated)" if name == "event" else name, lambda name: "x")
    )
    headings = slice(TOP_PX - LINE_PX, TOP_PX)
    third = 2 * (PANEL_W + MARGIN_PX)
    assert not np.array_equal(plain[headings, third:], renamed[0][headings, third:])
    assert np.array_equal(plain[headings, :third], renamed[0][headings, :third])
    assert not np.array_equal(plain[headings, :PANEL_W], renamed[1][headings, :PANEL_W])


def test_no_objects_and_no_detections() -> None:
    drawn = draw_detections(sample([], []), detections([]), classes=CLASSES, score_threshold=0.5)
    panel = np.asarray(drawn)[TOP_PX : TOP_PX + PANEL_H, MARGIN_PX : MARGIN_PX + PANEL_W]
    assert panel.shape == (PANEL_H, PANEL_W, 3)
    assert len(np.unique(panel)) == 1


HOSTILE = [
    "<script>alert(1)</script>",
    "猫🐈",
    "a\nb\x00\x1b[0m",
    "\u202eright to left",
    "\ud800",
    "$\\frac{1}$",
    "W" * 9999,
    "",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_any_name_can_be_drawn(name: str) -> None:
    one = replace(sample([[20, 30, 50, 60], [80, 10, 110, 40]], [0, 0]), image_id=name)
    found = detections([([20, 30, 50, 60], 0.9, 0)])
    drawn = draw_detections(one, found, classes=(name,), score_threshold=0.5)
    assert drawn.size == (3 * PANEL_W + 4 * MARGIN_PX, TOP_PX + PANEL_H + MARGIN_PX)


def test_labels_do_not_hide_boxes() -> None:
    """Five objects side by side: every label is there, and none hides a box or another label."""
    boxes = [[float(x), 40.0, float(x + 8), 60.0] for x in range(10, 60, 10)]
    found = detections([(box, 0.9 - row / 100, 0) for row, box in enumerate(boxes)])
    drawn = draw_detections(sample(boxes, [0] * 5), found, classes=CLASSES, score_threshold=0.5)
    panel = np.asarray(drawn)[TOP_PX : TOP_PX + PANEL_H, MARGIN_PX : MARGIN_PX + PANEL_W]
    inside = panel[43 * FACTOR : 57 * FACTOR, 11 * FACTOR : 17 * FACTOR]
    assert (inside == panel[0, 0]).all()
    alone = draw_detections(
        sample(boxes[:1], [0]), detections([(boxes[0], 0.9, 0)]), classes=CLASSES, score_threshold=0.5
    )

    def inked(image: Image.Image) -> int:
        pixels = np.asarray(image)[TOP_PX : TOP_PX + 39 * FACTOR, MARGIN_PX : MARGIN_PX + PANEL_W]
        below = np.asarray(image)[TOP_PX + 61 * FACTOR : TOP_PX + PANEL_H, MARGIN_PX : MARGIN_PX + PANEL_W]
        return sum(int((part == RIGHT).all(axis=-1).sum()) for part in (pixels, below))

    assert inked(drawn) >= 4.5 * inked(alone)
