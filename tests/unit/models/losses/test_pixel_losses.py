"""Cross-entropy of upsampled logits, and what holds for every loss of masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from raydet.config.losses import CrossEntropyLoss, HierarchicalLoss, MaskLoss, RMIConfig, TripletConfig
from raydet.models.losses import pixelwise
from raydet.models.losses.base import PixelLoss
from raydet.models.losses.build import build_loss
from raydet.models.losses.upsampling import Upsampling
from raydet.plan.live import LiveBytes
from raydet.structures import IGNORE
from tests.unit.models.losses.trees import CLASSES, KINDS, REALMS, random_ids

CONFIGS: dict[str, MaskLoss] = {
    "cross_entropy": CrossEntropyLoss(),
    "focal": CrossEntropyLoss(focal_gamma=2.0),
    "weak focal": CrossEntropyLoss(focal_gamma=0.5),
    "tree": HierarchicalLoss(rmi=RMIConfig(), triplet=TripletConfig(warmup_fraction=0)),
    "focal tree": HierarchicalLoss(weight=1, focal_gamma=2.0, rmi=RMIConfig(form="seghiero")),
    "seghiero": HierarchicalLoss(form="seghiero", rmi=RMIConfig(form="seghiero"), triplet=TripletConfig()),
    "levels only": HierarchicalLoss(weight=0),
}
SIZES = [((5, 6), (20, 23)), ((9, 9), (9, 9)), ((12, 5), (7, 19)), ((1, 2), (8, 8)), ((10, 11), (37, 41))]


@pytest.fixture(params=CONFIGS)
def loss(request: pytest.FixtureRequest) -> PixelLoss:
    return build_loss(CONFIGS[request.param], num_classes=CLASSES, levels=[KINDS, REALMS])


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def inputs(
    loss: PixelLoss, generator: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(2, loss.num_outputs, 6, 5, generator=generator, dtype=torch.float64)
    embedding = torch.randn(2, 7, 6, 5, generator=generator, dtype=torch.float64)
    ids = random_ids((2, 23, 20), CLASSES, generator, ignored=0.02)
    return logits.to(dtype).requires_grad_(), embedding.to(dtype).requires_grad_(), ids


def total(loss: PixelLoss, logits: Tensor, embedding: Tensor, ids: Tensor) -> Tensor:
    return torch.stack([*loss(logits, embedding, ids).values()]).sum()


@pytest.mark.parametrize(("map_hw", "canvas_hw"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("most", [300, 1 << 20])
def test_equals_cross_entropy_of_upsampled_logits(
    map_hw: tuple[int, int],
    canvas_hw: tuple[int, int],
    dtype: torch.dtype,
    most: int,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pixelwise, "elements_per_chunk", lambda _: most)
    loss = build_loss(CrossEntropyLoss(), num_classes=CLASSES, levels=())
    ids = random_ids((3, *canvas_hw), CLASSES, generator).to(torch.int16)
    logits = 3 * torch.randn(3, CLASSES, *map_hw, generator=generator, dtype=dtype)
    (own_gradient,) = torch.autograd.grad(
        (own := loss(x := logits.requires_grad_(), None, ids)["loss_ce"]), x
    )
    upsampled = F.interpolate(x.double(), size=canvas_hw, mode="bilinear", align_corners=False)
    count = (ids != IGNORE).sum()
    expected = F.cross_entropy(upsampled, ids.long(), ignore_index=IGNORE, reduction="sum") / count
    (gradient,) = torch.autograd.grad(expected, x)
    assert own.dtype == own_gradient.dtype == dtype
    bound = 1e-12 if dtype == torch.float64 else 2e-6
    assert own.item() == pytest.approx(expected.item(), rel=bound)
    torch.testing.assert_close(
        own_gradient, gradient, rtol=10 * bound, atol=bound * float(gradient.abs().max())
    )


def test_focal_form(generator: torch.Generator) -> None:
    loss = build_loss(CrossEntropyLoss(focal_gamma=1.5), num_classes=CLASSES, levels=())
    logits, _, ids = inputs(loss, generator, dtype=torch.float64)
    p = F.interpolate(logits, size=ids.shape[1:], mode="bilinear").softmax(dim=1)
    own = p.gather(1, ids.long().clamp(max=CLASSES - 1)[:, None])[:, 0][ids != IGNORE]
    expected = (-((1 - own) ** 1.5) * own.log()).mean()
    assert loss(logits, None, ids)["loss_ce"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_confident_pixels_do_not_break_the_focal_form() -> None:
    loss = build_loss(CrossEntropyLoss(focal_gamma=0.5), num_classes=2, levels=())
    logits = torch.tensor([200.0, 0.0])[None, :, None, None].requires_grad_()
    value = loss(logits, None, torch.zeros(1, 4, 4, dtype=torch.uint8))["loss_ce"]
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_names_and_sum(loss: PixelLoss, generator: torch.Generator) -> None:
    loss.set_progress(0.5)
    losses = loss(*inputs(loss, generator))
    assert tuple(losses) == loss.names
    assert all(x.shape == () and x.dtype == torch.float32 and x.isfinite() for x in losses.values())
    assert not loss.state_dict()


def test_buffers_are_real_where_weights_are_not() -> None:
    """All workers but one build the model on the meta device, and get what is in the state from that one."""
    config = HierarchicalLoss(rmi=RMIConfig(), triplet=TripletConfig())
    with torch.device("meta"):
        built = build_loss(config, num_classes=CLASSES, levels=[KINDS, REALMS])
    assert built.state_dict() == {}
    buffers = {name: buffer.device.type for name, buffer in built.named_buffers()}
    names = ("path_LK", "order_V", "triplet.groups_K", "triplet.current_weight")
    assert buffers == dict.fromkeys(names, "cpu")


def test_names_of_levels() -> None:
    loss = build_loss(CONFIGS["tree"], num_classes=CLASSES, levels=[KINDS, REALMS])
    expected = ("loss_hierarchy", "loss_ce", "loss_ce_kind", "loss_ce_realm", "loss_rmi", "loss_triplet")
    assert loss.names == expected
    bare = build_loss(CONFIGS["levels only"], num_classes=CLASSES, levels=[KINDS])
    assert bare.names == ("loss_ce", "loss_ce_kind")


def test_gradients_are_those_of_the_values(loss: PixelLoss, generator: torch.Generator) -> None:
    """Of every loss for itself, in whatever proportion they are added."""
    loss.set_progress(1.0)
    logits, embedding, ids = inputs(loss, generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, e: (*loss(x, e, ids).values(),), (logits, embedding), atol=1e-6, fast_mode=True
    )


def test_a_batch_without_labels_gives_zero_with_a_graph(loss: PixelLoss, generator: torch.Generator) -> None:
    logits, embedding, ids = inputs(loss, generator)
    value = total(loss, logits, embedding, torch.full_like(ids, IGNORE))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_what_is_predicted_at_ignored_pixels_does_not_count(
    loss: PixelLoss, generator: torch.Generator
) -> None:
    loss.set_progress(1.0)
    ids = random_ids((2, 16, 20), CLASSES, generator, ignored=0)
    ids[:, 10:] = IGNORE
    ids[:, :, :2] = IGNORE
    logits = torch.randn(2, loss.num_outputs, 16, 20, generator=generator)
    embedding = torch.randn(2, 7, 16, 20, generator=generator)
    is_ignored = (ids == IGNORE)[:, None]
    found = []
    for noise in (0.0, 9.0):
        leaves = [
            (x + noise * is_ignored * torch.randn(x.shape, generator=generator)).requires_grad_()
            for x in (logits, embedding)
        ]
        value = total(loss, *leaves, ids)
        value.backward()
        found.append((value.detach(), *(x.grad * ~is_ignored for x in leaves if x.grad is not None)))
        assert all(not (x.grad * is_ignored).any() for x in leaves if x.grad is not None)
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def test_padding_with_ignored_pixels_changes_nothing(loss: PixelLoss, generator: torch.Generator) -> None:
    loss.set_progress(1.0)
    ids = random_ids((2, 16, 20), CLASSES, generator, ignored=0.02)
    logits = torch.randn(2, loss.num_outputs, 16, 20, generator=generator, dtype=torch.float64)
    embedding = torch.randn(2, 7, 16, 20, generator=generator, dtype=torch.float64)
    border = (0, 8, 0, 5)
    plain = loss(logits, embedding, ids)
    padded = loss(F.pad(logits, border), F.pad(embedding, border), F.pad(ids, border, value=IGNORE))
    for name, value in plain.items():
        assert padded[name].item() == pytest.approx(value.item(), rel=1e-9), name


def test_autocast_changes_nothing(loss: PixelLoss, generator: torch.Generator) -> None:
    loss.set_progress(1.0)
    logits, embedding, ids = inputs(loss, generator, dtype=torch.bfloat16)
    expected = total(loss, logits.float(), embedding.float(), ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = total(loss, logits, embedding, ids)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    found.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_two_threads(loss: PixelLoss, generator: torch.Generator) -> None:
    """The same bits every time, and one thread's result but for rounding in matrix products."""
    loss.set_progress(1.0)
    logits, embedding = (x[:1] for x in inputs(loss, generator)[:2])
    ids = random_ids((1, 60, 80), CLASSES, generator)
    found = []
    for num_threads in (1, 2, 2):
        torch.set_num_threads(num_threads)
        try:
            value = total(loss, logits, embedding, ids)
            found.append((value, *torch.autograd.grad(value, logits)))
        finally:
            torch.set_num_threads(1)
    one, two, again = found
    assert all(torch.equal(a, b) for a, b in zip(two, again, strict=True))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_recomputation_changes_nothing(loss: PixelLoss, generator: torch.Generator) -> None:
    loss.set_progress(1.0)
    logits, embedding, ids = inputs(loss, generator)
    (expected,) = torch.autograd.grad(total(loss, 2 * logits, embedding, ids), logits)
    value = checkpoint(lambda x: total(loss, 2 * x, embedding, ids), logits, use_reentrant=False)
    (found,) = torch.autograd.grad(value, logits)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_runs_on_tensors_without_memory(loss: PixelLoss, generator: torch.Generator, kind: str) -> None:
    if kind == "meta":
        loss.to("meta")
        logits, embedding, ids = (x.detach().to("meta") for x in inputs(loss, generator))
        total(loss, logits.requires_grad_(), embedding, ids).backward()
    else:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            logits, embedding, ids = (mode.from_tensor(x.detach()) for x in inputs(loss, generator))
            total(loss, logits.requires_grad_(), embedding, ids).backward()
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape


def measured(loss: PixelLoss, batch: int, generator: torch.Generator) -> tuple[int, int, int]:
    """Bytes saved for the backward pass, and of the peak, of `batch` images; and of their logits."""
    logits = torch.randn(batch, loss.num_outputs, 32, 32, generator=generator).requires_grad_()
    embedding = torch.randn(batch, 4, 4, 4, generator=generator)
    ids = random_ids((batch, 128, 128), CLASSES, generator)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with LiveBytes([logits, embedding, ids], copies_row="") as live, saved_tensors_hooks(keep, lambda x: x):
        total(loss, logits, embedding, ids).backward()
    peak_bytes = max(interval.total_bytes for interval in live.intervals.values())
    return sum(kept.values()), peak_bytes, logits.numel() * logits.element_size()


class PlainCrossEntropy(PixelLoss):
    """As everyone writes it."""

    num_outputs = CLASSES

    def losses(self, logits: Tensor, embedding: Tensor | None, ids: Tensor) -> dict[str, Tensor]:
        upsampled = F.interpolate(logits, size=ids.shape[1:], mode="bilinear", align_corners=False)
        return {"loss_ce": F.cross_entropy(upsampled, ids.long(), ignore_index=IGNORE)}


@pytest.mark.parametrize("name", ["cross_entropy", "tree"])
def test_memory(name: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only gradients at the logits' resolution are kept, and the peak grows with the batch by little more than them."""
    monkeypatch.setattr(pixelwise, "elements_per_chunk", lambda _: 1 << 16)
    loss = build_loss(CONFIGS[name], num_classes=CLASSES, levels=[KINDS, REALMS])
    kept_bytes, few_bytes, logits_bytes = measured(loss, 8, generator)
    gradients = {"cross_entropy": 1, "tree": 3}[name]  # cross-entropies, tree, region mutual information
    assert kept_bytes <= (gradients + 0.2) * logits_bytes
    _, many_bytes, _ = measured(loss, 24, generator)
    # Per image: these gradients, their sum, labels in int64 (RMI) and validity.
    assert (many_bytes - few_bytes) / 2 <= (gradients + 4) * logits_bytes

    plain_kept_bytes, plain_few_bytes, _ = measured(PlainCrossEntropy(), 8, generator)
    _, plain_many_bytes, _ = measured(PlainCrossEntropy(), 24, generator)
    assert plain_kept_bytes >= 16 * 4 * 32 * 32 * 8 * CLASSES
    assert (plain_many_bytes - plain_few_bytes) / 2 >= 32 * 4 * 32 * 32 * 8 * CLASSES


def test_adjoint_of_upsampling(generator: torch.Generator) -> None:
    """<up(x), g> = <x, adjoint(g)>, in parts of rows."""
    for map_hw, canvas_hw in SIZES:
        up = Upsampling(map_hw, canvas_hw, device=torch.device("cpu"), dtype=torch.float64)
        x = torch.randn(2, 3, *map_hw, generator=generator, dtype=torch.float64)
        gradient = torch.randn(2, 3, *canvas_hw, generator=generator, dtype=torch.float64)
        adjoint = torch.zeros_like(x)
        product = torch.zeros(()).double()
        for start in range(0, canvas_hw[0], 3):
            rows = slice(start, min(canvas_hw[0], start + 3))
            up.add_adjoint(gradient[:, :, rows], rows, to_NKhw=adjoint)
            product += (up.rows(x, rows) * gradient[:, :, rows]).sum()
        torch.testing.assert_close((x * adjoint).sum(), product)
