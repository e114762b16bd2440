"""The embedded set whose objects stop holds what it says."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from raydet.data.build import adopt_source, detect_source, open_source
from raydet.data.clips import sequences_of
from raydet.data.silent import NUM_WINDOWS, SIZE_HW, STOPS, SilentSet
from raydet.metrics.coco import GroundTruth, evaluate_coco
from raydet.metrics.names import METRIC_NAMES
from raydet.recipes.demo import demo
from raydet.structures import Sample, boxes_of

NUM_SEQUENCES = 80


@pytest.fixture(scope="module")
def silent() -> SilentSet:
    return SilentSet(num_sequences=NUM_SEQUENCES, seed=0)


def counts_of(sample: Sample) -> np.ndarray:
    return sample.modalities["event"].numpy()


def test_the_bytes_are_the_same_everywhere(silent: SilentSet) -> None:
    found = hashlib.sha256()
    for index in (0, 1, 39, 200, len(silent) - 1):
        sample = silent.read(index)
        found.update(counts_of(sample).tobytes())
        found.update(sample.boxes_xyxy.numpy().tobytes() + sample.labels.numpy().tobytes())
        found.update(bytes(silent.silent_ages(index)))
    assert found.hexdigest()[:16] == "779f1929c2788d0e"


def test_samples_are_well_formed(silent: SilentSet) -> None:
    assert (silent.classes, silent.modalities) == (("bright", "dark"), ("event",))
    assert sequences_of(silent.group_ids) == [
        list(range(32 * number, 32 * number + 32)) for number in range(NUM_SEQUENCES)
    ]
    assert len(set(silent.image_ids)) == len(silent)
    copied = pickle.loads(pickle.dumps(silent))
    for index in range(0, len(silent), 7):
        sample = silent.read(index)
        assert torch.equal(copied.read(index).modalities["event"], sample.modalities["event"])
        assert counts_of(sample).dtype == np.uint8
        assert counts_of(sample).shape == (20, *SIZE_HW)
        assert counts_of(sample).max() <= 10
        boxes = sample.boxes_xyxy
        assert len(boxes) == len(sample.labels) == len(silent.silent_ages(index))
        assert (boxes >= 0).all()
        assert (boxes <= 128).all()
        assert set((boxes[:, 2] - boxes[:, 0]).tolist()) <= set(range(10, 15))


def test_what_stands_fires_nothing_and_what_moves_does(silent: SilentSet) -> None:
    """An object's own quarter of the image tells, since it never leaves it but to leave the image."""
    ages = set()
    for index in range(len(silent)):
        sample = silent.read(index)
        fired = counts_of(sample).any(axis=0)
        assert silent.is_empty(index) == (not fired.any())
        for box, age in zip(sample.boxes_xyxy.int().tolist(), silent.silent_ages(index), strict=True):
            top, left = box[1] // 64 * 64, box[0] // 64 * 64
            assert fired[top : top + 64, left : left + 64].any() == (age == 0)
            ages.add(age)
    assert ages == set(range(25))


def test_stops_have_their_lengths_and_a_quarter_never_stops(silent: SilentSet) -> None:
    lengths: list[int] = []
    num_leavers = num_tracks = 0
    for sequence in range(NUM_SEQUENCES):
        for track in silent.tracks(sequence):
            stands = [len(positions) == 1 for positions in track.windows]
            leaves = () in track.windows
            num_tracks += 1
            num_leavers += leaves or len(track.windows[-1]) > 15
            lengths.append(sum(stands))
            assert not any(stands[:2])  # whoever stands has been seen
    assert set(lengths) == {0, *STOPS}
    assert 0.15 < lengths.count(0) / num_tracks < 0.35
    assert 0.25 < num_leavers / num_tracks < 0.5


def test_who_leaves_fires_and_loses_its_label(silent: SilentSet) -> None:
    num_seen = 0
    for sequence in range(NUM_SEQUENCES):
        for track in silent.tracks(sequence):
            (window,) = [w for w, positions in enumerate(track.windows) if len(positions) > 5] or [None]
            if window is None:
                continue
            num_seen += 1
            index = sequence * NUM_WINDOWS + window
            assert len(silent.read(index).labels) < len(silent.read(index - 1).labels)
            box = silent.read(index - 1).boxes_xyxy.int().tolist()
            top, left = track.windows[window][0]
            assert [left, top, left + track.side, top + track.side] in box
            streak = counts_of(silent.read(index)).any(axis=0)[top : top + track.side]
            edge = streak[:, 0] if left < 64 else streak[:, -1]
            assert edge.all()  # it is seen up to the edge of the image
            assert all(not positions for positions in track.windows[window + 1 :])
    assert num_seen > 20


def test_empty_windows_are_many_and_look_alike(silent: SilentSet) -> None:
    empty = [index for index in range(len(silent)) if silent.is_empty(index)]
    labelled = [index for index in empty if len(silent.targets(index)[0].labels)]
    assert len(labelled) > 0.1 * len(silent)
    assert len(empty) > len(labelled)  # and in some of them there is nothing
    assert not any(counts_of(silent.read(index)).any() for index in empty)


def test_classes_are_told_by_the_edge_in_front(silent: SilentSet) -> None:
    """Of bright squares the pixels that the box newly covers become brighter, of dark ones darker."""
    num_told = [0, 0]
    for sequence in range(NUM_SEQUENCES):
        tracks = silent.tracks(sequence)
        if len(tracks) > 1:
            continue
        (track,) = tracks
        counts = counts_of(silent.read(sequence * NUM_WINDOWS))
        (top, left), (down, right) = track.windows[0][0], track.windows[0][-1]
        before, after = np.zeros((2, 128, 128), bool)
        before[top : top + track.side, left : left + track.side] = True
        after[down : down + track.side, right : right + track.side] = True
        front = after & ~before
        darker, brighter = counts[:10, front].sum(), counts[10:, front].sum()
        if len({tuple(step) for step in np.diff(track.windows[0], axis=0).tolist()}) == 1:  # it did not turn
            assert (brighter, darker) == ((front.sum(), 0) if track.label == 0 else (0, front.sum()))
            num_told[track.label] += 1
    assert min(num_told) > 5


def test_the_way_from_the_command_line() -> None:
    experiment = adopt_source(demo(), detect_source("silent?num_sequences=3&seed=5"))
    assert experiment.data.classes == ("bright", "dark")
    assert set(experiment.data.missing) == {"rgb", "thermal"}
    source = open_source(experiment.data)
    assert len(source) == 96
    assert not torch.equal(
        source.read(0).modalities["event"], SilentSet(num_sequences=3, seed=0).read(0).modalities["event"]
    )


def ap50_on_empty_windows(silent: SilentSet, answers: Callable[[int], list[list[float]]]) -> float:
    """Of answers x, y, width, height, score, label, which get the index of a window."""
    empty = [index for index in range(len(silent)) if silent.is_empty(index)]
    boxes, labels, images, rows = [], [], [], []
    for image, index in enumerate(empty):
        target = boxes_of(silent.targets(index)[0], "")
        boxes += [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in target.boxes_xyxy.tolist()]
        labels += target.labels.tolist()
        images += [image] * len(target.labels)
        rows += [[image, *answer] for answer in answers(index)]
    truth = GroundTruth(
        num_images=len(empty),
        image_index=np.array(images),
        boxes_xywh=np.array(boxes),
        labels=np.array(labels),
    )
    score = evaluate_coco(truth, np.array(rows), silent.classes)[0].metrics[METRIC_NAMES[1]]
    assert score is not None
    return score


def test_without_memory_the_best_answer_is_nearly_worthless(silent: SilentSet) -> None:
    """The same boxes for all empty windows: of the usual size, spread over the image."""
    places = [12.0 + 11.5 * step for step in range(7)]
    spread = [[x + 1.0, y + 1.0, 12.0, 12.0, 0.5, label] for x in places for y in places for label in (0, 1)]
    score = ap50_on_empty_windows(silent, lambda index: spread)
    assert 0 < score < 0.02


def test_what_kinds_of_memory_reach(silent: SilentSet) -> None:
    """One that ends with a clip of 5 windows, one that never forgets, and one that does both right."""

    def remembered(index: int, *, since: int, forgets: bool) -> list[list[float]]:
        sequence, window = divmod(index, NUM_WINDOWS)
        found = []
        for track in silent.tracks(sequence):
            seen = [w for w in range(since, window + 1) if len(track.windows[w]) > 1]
            has_left = () in track.windows[: window + 1] or len(track.windows[window]) > 5
            if seen and not (has_left and forgets):
                kept = [w for w in seen if len(track.windows[w]) <= 5]  # where it was before it left
                if kept:
                    top, left = track.windows[kept[-1]][-1]
                    found.append([left, top, track.side, track.side, 0.9, track.label])
        return found

    right = ap50_on_empty_windows(silent, lambda index: remembered(index, since=0, forgets=True))
    never_forgets = ap50_on_empty_windows(silent, lambda index: remembered(index, since=0, forgets=False))
    of_a_clip = ap50_on_empty_windows(
        silent, lambda index: remembered(index, since=index % NUM_WINDOWS // 5 * 5, forgets=True)
    )
    assert right == pytest.approx(1)
    assert never_forgets == pytest.approx(0.73, abs=0.01)
    assert of_a_clip == pytest.approx(0.16, abs=0.01)
