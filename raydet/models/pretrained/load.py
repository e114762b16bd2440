"""Published weights into both streams of an encoder, checked tensor by tensor.

A stream that reads other than the file's number of channels gets the first convolution adapted: with m input channels
in the file (3: RGB) and n here, each filter's mean over its m channels is repeated n times and scaled by m / n. Where
all channels are equal the activations are the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from raydet.errors import ConfigError
from raydet.models.backbones.dual import DualStreamEncoder
from raydet.models.pretrained.files import SETTING, WeightFile
from raydet.models.pretrained.names import Naming, Renamed, renamed

BATCH_COUNT = "num_batches_tracked"
"""Of a batch norm; without influence, and older files lack it."""
NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What came from a file, and what did not."""

    path: str
    sha256: str
    """Of the file, twelve digits."""
    naming: str
    licence: str
    loaded: int
    """Tensors of both streams."""
    adapted: tuple[str, ...]
    """First convolutions for another number of channels."""
    missing: tuple[str, ...]
    """Of the backbone, but not in the file: they keep the seed's weights."""
    wrong_shape: tuple[str, ...]
    """So do these."""
    unused: tuple[str, ...]
    """In the file, but not of the backbone."""

    def as_json(self) -> dict[str, Any]:
        """For model_info.json."""
        return asdict(self)

    def as_text(self) -> str:
        """For the log."""
        lists = {
            "adapted": self.adapted,
            "missing": self.missing,
            "wrong shape": self.wrong_shape,
            "unused": self.unused,
        }
        parts = [f"{name}: {_some(names)}" for name, names in lists.items() if names]
        return "; ".join(
            [f"{self.loaded} tensors from {self.path} (sha256 {self.sha256}, {self.naming}'s names)", *parts]
        )


def load_weights(
    encoder: DualStreamEncoder, file: WeightFile, *, namings: Sequence[Naming], strict: bool, label: str
) -> LoadedWeights:
    """Set every stage of both streams.

    Args:
        encoder: with its initial weights.
        namings: those that may be meant.
        strict: refuse a file that leaves a tensor of the backbone out, or that has more blocks.
        label: of the backbone, for messages.

    Raises:
        ConfigError: the names are not known, or the file does not fit and `strict` is set.
    """
    first = next(name for name, _ in encoder.rgb_stages.named_parameters())
    source = renamed(file.tensors, namings, first=first)
    if source is None:
        raise ConfigError(
            f"{SETTING}={file.path}: none of its {len(file.tensors)} tensors ({_some(list(file.tensors))}) is the "
            f"first convolution of {label} in the names of {' or '.join(naming.publisher for naming in namings)}; "
            "give weights of this backbone"
        )
    placement = _Placement(encoder, source, first)
    # Blocks that this backbone does not have: the file is another model's, though all else may fit.
    known = encoder.rgb_stages.state_dict().keys()
    surplus = [theirs for ours, theirs in source.names.items() if ours not in known]
    if strict:
        _refuse_misfits(file.path, label, placement, surplus)
    placement.copy()
    return LoadedWeights(
        path=file.path,
        sha256=file.sha256,
        naming=source.naming.publisher,
        licence=source.naming.licence,
        loaded=len(placement.pairs),
        adapted=tuple(placement.adapted),
        missing=tuple(placement.missing),
        wrong_shape=tuple(placement.wrong_shape),
        unused=(*source.others, *surplus),
    )


def adapted_to(weight_OIHW: Tensor, channels: int) -> Tensor:
    """The first convolution's filters for another number of channels, see above.

    >>> adapted_to(torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1), 2).flatten().tolist()
    [4.5, 4.5]
    """
    mean_O1HW = weight_OIHW.float().mean(dim=1, keepdim=True)
    return (mean_O1HW * (weight_OIHW.shape[1] / channels)).repeat(1, channels, 1, 1)


class _Placement:
    """Which tensor of the file goes where."""

    def __init__(self, encoder: DualStreamEncoder, source: Renamed, first: str) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        """Of the encoder, and what it shall hold."""
        self.adapted: list[str] = []
        self.missing: list[str] = []
        self.wrong_shape: list[str] = []
        for stream, stages in (("rgb", encoder.rgb_stages), ("aux", encoder.aux_stages)):
            for name, target in stages.state_dict().items():
                self._place(f"{stream}_stages.{name}", target, source.tensors.get(name), name == first)

    def _place(self, name: str, target: Tensor, value: Tensor | None, is_first: bool) -> None:
        if value is None:
            if not name.endswith(BATCH_COUNT):
                self.missing.append(name)
            return
        came, wanted = tuple(value.shape), tuple(target.shape)
        if is_first and came != wanted and (came[0], *came[2:]) == (wanted[0], *wanted[2:]):
            value = adapted_to(value, wanted[1])
            self.adapted.append(f"{name}: {came[1]} -> {wanted[1]} channels")
        elif came != wanted:
            self.wrong_shape.append(f"{name}: wanted {list(wanted)}, got {list(came)}")
            return
        self.pairs.append((target, value))

    def copy(self) -> None:
        with torch.no_grad():
            for target, value in self.pairs:
                target.copy_(value)


def _refuse_misfits(path: str, label: str, placement: _Placement, surplus: Sequence[str]) -> None:
    findings = {
        "missing": placement.missing,
        "of another shape": placement.wrong_shape,
        f"unknown to {label}": surplus,
    }
    told = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in findings.items() if names)
    if told:
        raise ConfigError(
            f"{SETTING}={path} does not fit {label}: {told}; give weights of this backbone, or set "
            "model.backbone.pretrained.strict=false to take what fits"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - NUM_SHOWN
    return ", ".join(names[:NUM_SHOWN]) + (f" and {more} more" if more > 0 else "")
