"""Protocol cards and the records that carry them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from raydet.config import DetectionTask, EventProtocol
from raydet.errors import DataError
from raydet.metrics.coco import GroundTruth, evaluate_coco
from raydet.metrics.event_evaluation import measure_events
from raydet.metrics.event_filter import FrameTimes
from raydet.metrics.event_records import EventRecords, protocol_differences
from raydet.metrics.protocol_card import ProtocolCard
from raydet.metrics.records import RECORDS, read_records, score, write_records

CARD = ProtocolCard(
    500.0, 30.0, 10.0, 50.0, ("car", "tram"), "mean over classes", "class probability", 0.1, 0.45, (360, 640)
)
OTHERS = {
    "skip_ms": 0.0,
    "min_diagonal_px": 60.0,
    "min_side_px": 20.0,
    "tolerance_ms": 25.0,
    "classes": ("tram", "car"),
    "average": "class-agnostic",
    "score": "objectness x class probability",
    "confidence_threshold": 0.001,
    "nms_threshold": 0.65,
    "image_hw": None,
}


def event_records(card: ProtocolCard = CARD, *, chosen: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> EventRecords:
    """Records of some of six frames in two sequences, with the silent age of every truth."""
    generator = np.random.default_rng(0)
    images, labels = np.repeat(np.arange(6), 5), np.arange(30) % 2
    xywh = np.concatenate([generator.uniform(0, 300, (30, 2)), generator.uniform(40, 90, (30, 2))], axis=1)
    found = xywh + generator.normal(0, 8, (30, 4))
    rows = np.column_stack([images, found, generator.random(30), generator.permutation(labels)])
    mine, index = np.isin(images, chosen), np.array(chosen)
    position = np.searchsorted(index, images[mine])
    truth = GroundTruth(len(chosen), position, xywh[mine], labels[mine])
    rows = rows[mine]
    rows[:, 0] = position
    return measure_events(
        DetectionTask(),
        EventProtocol(is_halved=True, tolerance_ms=0, skip_ms=0),
        truth,
        rows,
        CARD.classes,
        frames=FrameTimes(index // 3, index % 3 * 50_000 + 50_000),
        card=card,
        ages_M=(np.arange(30) % 7)[mine],
        image_ids=[f"frame_{number}" for number in chosen],
        group_ids=["a" if number < 3 else "b" for number in chosen],
    )[1]


def test_the_hash_is_stable_and_tells_every_field() -> None:
    assert set(OTHERS) == {field.name for field in fields(ProtocolCard)}
    assert CARD.hash == "5308a475"
    assert replace(CARD, skip_ms=500).hash == CARD.hash  # a whole number is the same setting
    others = [replace(CARD, **{name: value}) for name, value in OTHERS.items()]
    assert len({card.hash for card in (CARD, *others)}) == len(OTHERS) + 1


def test_a_card_round_trips_and_other_text_is_refused() -> None:
    for card in (CARD, replace(CARD, image_hw=None)):
        assert ProtocolCard.from_json(card.to_json()) == card
    for text in ("[]", "{}", "nothing", json.dumps({**json.loads(CARD.to_json()), "more": 1})):
        with pytest.raises(ValueError, match=r"protocol card|Expecting value"):
            ProtocolCard.from_json(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tolerance_ms", "tolerance_ms is 50 against 25"),
        ("classes", "classes is (car, tram) against (tram, car)"),
        ("average", "average is mean over classes against class-agnostic"),
        ("image_hw", "image_hw is (360, 640) against of several sizes"),
    ],
)
def test_differences_name_the_fields(name: str, text: str) -> None:
    other = replace(CARD, **{name: OTHERS[name]})
    assert CARD.differences(other) == [text]
    assert protocol_differences(event_records(), event_records(other)) == [text]
    assert not event_records().is_comparable(event_records(other))


def test_records_of_one_card_are_comparable_and_those_without_one_only_among_themselves() -> None:
    records, other = event_records(), event_records()
    assert records.is_comparable(other)
    assert protocol_differences(records, other) == []
    without = records.by_class
    assert not records.is_comparable(without)
    assert not without.is_comparable(records)
    assert protocol_differences(without, without) == []
    assert "the second was measured without any" in protocol_differences(records, without)[0]
    assert "the first was measured without any" in protocol_differences(without, records)[0]


def test_records_round_trip_through_a_file(tmp_path: Path) -> None:
    records = event_records()
    write_records(tmp_path / RECORDS, records)
    again = read_records(tmp_path)
    assert isinstance(again, EventRecords)
    assert again.card == CARD
    assert again.is_comparable(records)
    for metric in ("mAP", "mAP_75", "agnostic_mAP", "agnostic_mAP_50", "mAP_50_silent_0", "mAP_50_silent_3"):
        assert score(again, metric) == score(records, metric)
        assert 0 < score(again, metric) < 1
    for metric in ("AR_1", "agnostic_mAP_small", "mAP_50_silent_2"):
        with pytest.raises(ValueError, match="records contain"):
            score(again, metric)
    arrays = dict(np.load(tmp_path / RECORDS))
    del arrays["card"]
    np.savez(tmp_path / RECORDS, **arrays)
    with pytest.raises(DataError, match="is not a file of records"):
        read_records(tmp_path)


@pytest.mark.parametrize("metric", ["mAP", "agnostic_mAP", "agnostic_mAP_75", "mAP_50_silent_1"])
def test_scores_of_some_sequences_are_those_of_an_evaluation_of_them_alone(metric: str) -> None:
    weights_BI = np.array([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    parts = [event_records(chosen=chosen) for chosen in ((0, 1, 2), (3, 4, 5), (0, 1, 2, 3, 4, 5))]
    alone = [score(records, metric) for records in parts]
    assert event_records().scores(metric, weights_BI).tolist() == pytest.approx(alone, abs=1e-12)
    assert len(set(alone)) == 3


def test_records_without_a_card_are_read_as_before(tmp_path: Path) -> None:
    _, records = evaluate_coco(
        GroundTruth(1, np.zeros(1, np.int64), np.array([[0.0, 0, 9, 9]]), np.zeros(1, np.int64)),
        np.array([[0, 0, 0, 9, 9, 0.5, 0]]),
        ("car",),
    )
    np.savez(tmp_path / "match_records.npz", **records.arrays())  # as an older raydet wrote it
    again = read_records(tmp_path)
    assert again.is_comparable(records)
    assert score(again, "mAP") == pytest.approx(1.0)
