"""RVT's backbone against golden values of the published code, and its memory against one pass over all frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raydet.models.backbones.recurrent import ConvLSTM, LSTMState
from raydet.models.backbones.rvt import RVT_VARIANTS, MaxViTBlock, RVTVariant, rvt_sizes, rvt_stages
from raydet.models.layout import as_tokens
from tests.unit.models.golden import sin_filled, sin_input, summary

PARAMETERS = {
    ("base", 4): 12_784_768,
    ("base", 2): 12_733_568,
    ("small", 4): 7_209_312,
    ("tiny", 4): 3_220_032,
}
STAGES_OF_BASE = (195_968, 602_368, 2_400_768, 9_585_664)
MEMORY_OF_BASE = (33_024, 131_584, 525_312, 2_099_200)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def stages_of(variant: RVTVariant, *, memory: str = "lstm", partition_px: int = 64) -> nn.ModuleList:
    return rvt_stages(variant=variant, in_channels=20, partition_px=partition_px, memory=memory)  # type: ignore[arg-type]


def through(
    stages: nn.ModuleList, x_BCHW: Tensor, states: list[LSTMState] | None
) -> tuple[list[Tensor], list[LSTMState]]:
    """The maps and states of all stages after one frame."""
    maps, new = [], []
    for index, stage in enumerate(stages):
        x_BCHW, state = stage(x_BCHW, states[index] if states else None)
        maps.append(x_BCHW)
        new.append(state)
    return maps, new


@pytest.mark.parametrize(("variant", "patch"), PARAMETERS)
def test_parameters_are_as_published(variant: str, patch: int) -> None:
    with torch.device("meta"):
        stages = stages_of(rvt_sizes(variant, patch=patch))
    assert count(stages) == PARAMETERS[variant, patch]
    if (variant, patch) == ("base", 4):
        assert tuple(map(count, stages)) == STAGES_OF_BASE
        assert tuple(count(stage.get_submodule("memory")) for stage in stages) == MEMORY_OF_BASE


@pytest.mark.parametrize("variant", RVT_VARIANTS)
@pytest.mark.parametrize("patch", [2, 4])
def test_sizes_are_those_of_the_maps(variant: str, patch: int) -> None:
    sizes = rvt_sizes(variant, patch=patch)
    with torch.device("meta"):
        maps, _ = through(stages_of(sizes), torch.empty(1, 20, 64, 128), None)
    assert tuple(x.shape[1] for x in maps) == sizes.channels
    assert tuple(64 // x.shape[2] for x in maps) == tuple(128 // x.shape[3] for x in maps) == sizes.strides
    assert all(heads * sizes.head_dim == c for heads, c in zip(sizes.num_heads, sizes.channels, strict=True))


def test_a_block_is_as_published() -> None:
    block = sin_filled(MaxViTBlock(channels=16, head_dim=8, normed=False))
    x_BCHW = sin_input(2, 4, 6, 16).permute(0, 3, 1, 2)
    out_BHWC = block(x_BCHW, (2, 3)).permute(0, 2, 3, 1)
    assert count(block) == 6_592
    assert summary(out_BHWC) == pytest.approx([1.921643373, 0.635869142, 0.000496660, 0.866004343], abs=1e-9)


def test_the_memory_is_as_published() -> None:
    memory = sin_filled(ConvLSTM(channels=8))
    state, sums = None, []
    for phase in (0.0, 1.0):
        _, state = memory(as_tokens(sin_input(2, 8, 4, 5, phase=phase)), state)
        sums += [x.sum().item() for x in state]
    assert sums == pytest.approx([-0.196490708, -0.341093469, -0.288973807, -0.265639470], abs=1e-9)


def test_the_backbone_is_as_published() -> None:
    stages = sin_filled(stages_of(rvt_sizes("tiny", patch=4), partition_px=32))
    x_BCHW = sin_input(1, 20, 64, 64)
    first, states = through(stages, x_BCHW, None)
    assert [x.sum().item() for x in first] == pytest.approx(
        [0.266084707, -0.644302963, -0.180711568, -0.073061466], abs=1e-8
    )
    second, _ = through(stages, x_BCHW.flip(-1), states)
    assert [x.sum().item() for x in second] == pytest.approx(
        [-1.133076206, -4.759193425, -2.318903733, -0.135568620], abs=1e-8
    )
    stages = sin_filled(stages_of(rvt_sizes("tiny", patch=2), partition_px=32))
    maps, _ = through(stages, x_BCHW, None)
    assert [x.sum().item() for x in maps] == pytest.approx(
        [2.760276636, -81.529693246, -7.497546462, -0.422060542], abs=1e-7
    )


def test_windows_and_grids_are_where_they_belong() -> None:
    """A token reaches those of its own tile, then those of its own lattice, and no other."""
    block = MaxViTBlock(channels=16, head_dim=8).double()
    torch.nn.init.constant_(block.window.scale1, 1.0)
    torch.nn.init.constant_(block.grid.scale1, 1.0)
    x_BCHW = torch.randn(1, 16, 4, 6, dtype=torch.float64)
    for part, other, expected in (
        (block.window, block.grid, [(row, column) for row in (0, 1) for column in (3, 4, 5)]),
        (block.grid, block.window, [(row, column) for row in (1, 3) for column in (0, 2, 4)]),
    ):
        for layer in (other.proj, other.contract, part.contract):
            torch.nn.init.zeros_(layer.weight)
        torch.nn.init.normal_(part.proj.weight)
        changed_BCHW = x_BCHW.clone()
        changed_BCHW[..., 1, 4] += torch.randn(16, dtype=torch.float64)
        moved_HW = (block(changed_BCHW, (2, 3)) - block(x_BCHW, (2, 3))).abs().amax(dim=(0, 1)) > 1e-9
        assert [tuple(at) for at in moved_HW.nonzero().tolist()] == expected
