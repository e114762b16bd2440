"""A memory behind a stage of a backbone: a convolutional LSTM whose convolutions are 1x1.

Convolutional LSTM Network: A Machine Learning Approach for Precipitation Nowcasting, arXiv 1506.04214, in the form of
Recurrent Vision Transformers for Object Detection with Event Cameras (RVT), arXiv 2212.05598: gates from the map and
the hidden state of the same cell only, no peepholes.

Departure from RVT: the gates' products with the map are computed for all frames of a clip at once; only those with the
hidden state wait for the frame before. The sums are the same.

Legend: T frames of a clip, B clips (lanes), M = T * B images in time-major order, C channels, H W map, N = H W tokens,
G = 4 C gates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.backbones.stage import Stage
from raydet.models.layout import as_map, as_tokens, hw_of


class LSTMState(NamedTuple):
    """What is remembered after a frame, cut from the graph."""

    h_BNC: Tensor
    """Hidden state: the newest map."""
    c_BNC: Tensor
    """Cell state."""


class ConvLSTM(nn.Module):
    """A cell of an LSTM per cell of the map."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        # Rows: forget, input and output gate, candidate. Columns: map, hidden state.
        self.gates = nn.Linear(2 * channels, 4 * channels)

    def forward(
        self, x_MNC: Tensor, state: LSTMState | None = None, *, clip_frames: int = 1
    ) -> tuple[Tensor, LSTMState]:
        """The hidden states of all frames, [M, N, C], and the state after the last one.

        Args:
            state: before the first frame; None: zeros.
            clip_frames: T.
        """
        channels = x_MNC.shape[2]
        weight_GC, weight_hidden_GC = self.gates.weight.split(channels, dim=1)
        gates_TBNG = F.linear(x_MNC, weight_GC, self.gates.bias).unflatten(0, (clip_frames, -1))
        if state is None:
            zeros_BNC = x_MNC.new_zeros(len(x_MNC) // clip_frames, *x_MNC.shape[1:])
            state = LSTMState(zeros_BNC, zeros_BNC)
        h_BNC, c_BNC = state
        hidden = []
        for gates_BNG in gates_TBNG.unbind():
            gates_BNG = gates_BNG + F.linear(h_BNC, weight_hidden_GC)
            sigmoid_BNG, candidate_BNC = gates_BNG.split((3 * channels, channels), dim=2)
            forget_BNC, input_BNC, output_BNC = sigmoid_BNG.sigmoid().chunk(3, dim=2)
            # Under autocast the gates are bf16, the states keep the precision of the map.
            c_BNC = forget_BNC * c_BNC + input_BNC * candidate_BNC.tanh()
            h_BNC = output_BNC * c_BNC.tanh()
            hidden.append(h_BNC)
        return torch.cat(hidden), LSTMState(h_BNC.detach(), c_BNC.detach())


class RecurrentStage(Stage):
    """A stage without memory, and a memory whose hidden state is its map."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.channels = stage.channels
        self.stage = stage
        self.memory = ConvLSTM(channels=stage.channels)

    def forward(  # type: ignore[override] # as a stage that remembers takes and returns more
        self, x_MCHW: Tensor, state: LSTMState | None = None, *, clip_frames: int = 1
    ) -> tuple[Tensor, LSTMState]:
        """The map of every frame, [M, channels, H', W'], and the state after the last one; see `ConvLSTM`."""
        x_MCHW = self.stage(x_MCHW)
        h_MNC, state = self.memory(as_tokens(x_MCHW), state, clip_frames=clip_frames)
        return as_map(h_MNC, hw_of(x_MCHW)), state

    def block_groups(self) -> list[list[nn.Module]]:
        """Those of the stage, then the memory."""
        return [*self.stage.block_groups(), [self.memory]]

    def keep_first_blocks(self) -> None:
        self.stage.keep_first_blocks()
