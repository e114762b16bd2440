"""Matching and sampling against torchvision's, and their memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from raydet.ops.matching import match, overlaps, sample_balanced


def boxes(count: int, *, side: float = 100.0) -> Tensor:
    corner = torch.rand(count, 2) * side
    return torch.cat((corner, corner + 4 + torch.rand(count, 2) * side / 3), dim=1)


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    out = torch.zeros(len(rows), max(1, *map(len, rows)), 4)
    for row, x in enumerate(rows):
        out[row, : len(x)] = x
    return out, torch.arange(out.shape[1]) < torch.tensor([len(x) for x in rows])[:, None]


def test_overlaps_are_torchvisions() -> None:
    a, b = boxes(9), boxes(50)
    assert torch.equal(overlaps(a[None], b[None])[0], box_iou(a, b))


@pytest.mark.parametrize("max_pairs", [2**22, 600, 1])
@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_matches_are_torchvisions(shared: bool, keep_best: bool, max_pairs: int) -> None:
    truths = [boxes(7), boxes(1), torch.empty(0, 4), boxes(3)]
    candidates = boxes(200).expand(4, -1, -1) if shared else torch.stack([boxes(200) for _ in truths])
    truth_BG4, is_truth = padded(truths)
    found = match(
        truth_BG4,
        is_truth,
        candidates[:1] if shared else candidates,
        high=0.5,
        low=0.3,
        keep_best=keep_best,
        max_pairs=max_pairs,
    )
    matcher = Matcher(0.5, 0.3, allow_low_quality_matches=keep_best)
    for row, truth in enumerate(truths):
        expected = matcher(box_iou(truth, candidates[row])) if len(truth) else torch.full((200,), -1)
        assert torch.equal(found[row], expected)


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor."""

    largest_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.largest_bytes = max(self.largest_bytes, tensor.untyped_storage().nbytes())
        return out


def test_memory_is_bounded_with_thousands_of_boxes() -> None:
    # The whole matrix would take 3,000 x 200,000 x 4 bytes = 2.2 GiB. Fake tensors: nothing is computed.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), LargestTensor() as seen:
        match(
            torch.empty(1, 3000, 4),
            torch.empty(1, 3000, dtype=torch.bool),
            torch.empty(1, 200_000, 4),
            high=0.7,
            low=0.3,
            keep_best=True,
        )
    assert 2**20 < seen.largest_bytes <= 32 * 2**20


@pytest.mark.parametrize(("positive", "size"), [(0, 64), (10, 64), (300, 64), (300, 2000), (700, 64)])
def test_draws_are_torchvisions(positive: int, size: int) -> None:
    labels = torch.zeros(3, 700)
    labels[0, :positive] = 2
    labels[1, 100:150] = -1
    labels[2, ::7] = 1
    torch.manual_seed(1)
    sample = sample_balanced(labels, size=size, positive_fraction=0.25)
    torch.manual_seed(1)
    masks = BalancedPositiveNegativeSampler(size, 0.25)(list(labels))
    expected = [{(row, int(i)) for row in range(3) for i in mask[row].nonzero()} for mask in masks]
    drawn = list(zip(sample.image_S.tolist(), sample.box_S.tolist(), strict=True))
    assert set(drawn[: sample.num_positive]) == expected[0]
    assert set(drawn[sample.num_positive :]) == expected[1]
    assert len(set(drawn)) == len(drawn)
