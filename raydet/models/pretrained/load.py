"""Loading of published weights into both streams of an encoder, tensor by tensor.

The first convolution is adapted to the number of input channels of a stream: with m in the file (3: RGB) and n here,
each filter's mean over its m channels is repeated n times and scaled by m / n. For images with equal channels the
activations are those of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from raydet.errors import ConfigError
from raydet.models.backbones.dual import DualStreamEncoder
from raydet.models.pretrained.files import SETTING, WeightFile
from raydet.models.pretrained.names import Naming, RenamedTensors, rename_tensors

NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A report of the tensors that were loaded from a file, and of those that were not."""

    path: str
    origin: str | None
    """Repository, commit and file that a name of the hub stood for; None for a path."""
    sha256: str
    """Of the file; runs of earlier versions have its first twelve digits."""
    naming: str
    licence: str
    loaded: int
    """Number of tensors in both streams."""
    adapted: tuple[str, ...]
    """First convolutions that were adapted to another number of channels."""
    missing: tuple[str, ...]
    """Tensors of the backbone that the file lacks; these and those of a wrong shape keep their initial weights."""
    wrong_shape: tuple[str, ...]
    unused: tuple[str, ...]
    """Tensors of the file that the backbone does not have."""

    def as_json(self) -> dict[str, object]:
        """The fields of the report, for model_info.json."""
        return asdict(self)

    def as_text(self) -> str:
        """One line for the log."""
        source = f"{self.path}, which is {self.origin}" if self.origin else self.path
        line = f"{self.loaded} tensors from {source} (sha256 {self.sha256[:12]}, {self.naming}'s names)"
        for field in ("adapted", "missing", "wrong_shape", "unused"):
            if names := getattr(self, field):
                line += f"; {field.replace('_', ' ')}: {_first_few(names)}"
        return line


def load_weights(
    encoder: DualStreamEncoder, file: WeightFile, *, namings: Sequence[Naming], strict: bool, label: str
) -> LoadedWeights:
    """Load a file into every stage of both streams.

    Args:
        namings: known publishers, tried in order.
        strict: refuse a file that lacks a tensor of the backbone, or that has more blocks.
        label: name of the backbone in messages.

    Raises:
        ConfigError: the names are unknown, or the file does not fit and `strict` is set.
    """
    first = next(name for name, _ in encoder.rgb_stages.named_parameters())
    source = rename_tensors(file.tensors, namings, first=first)
    if source is None:
        raise ConfigError(
            f"{SETTING}={file.path}: none of its {len(file.tensors)} tensors ({_first_few(list(file.tensors))}) is the "
            f"first convolution of {label} as named by {' or '.join(naming.publisher for naming in namings)}; "
            "use weights of this backbone"
        )
    assignment = _Assignment(encoder, source, first)
    # Blocks that this backbone does not have: the file is of a deeper model, even if all else fits.
    known = encoder.rgb_stages.state_dict().keys()
    surplus = [theirs for ours, theirs in source.names.items() if ours not in known]
    if strict:
        _refuse_misfits(file.path, label, assignment, surplus)
    with torch.no_grad():
        for target, value in assignment.pairs:
            target.copy_(value)
    return LoadedWeights(
        path=file.path,
        origin=file.origin,
        sha256=file.sha256,
        naming=source.naming.publisher,
        licence=source.naming.licence,
        loaded=len(assignment.pairs),
        adapted=tuple(assignment.adapted),
        missing=tuple(assignment.missing),
        wrong_shape=tuple(assignment.wrong_shape),
        unused=(*source.others, *surplus),
    )


def adapt_first_conv(weight_OIHW: Tensor, channels: int) -> Tensor:
    """Filters of the first convolution for another number of input channels; see the module.

    >>> adapt_first_conv(torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1), 2).flatten().tolist()
    [4.5, 4.5]
    """
    mean_O1HW = weight_OIHW.float().mean(dim=1, keepdim=True)
    return (mean_O1HW * (weight_OIHW.shape[1] / channels)).repeat(1, channels, 1, 1)


class _Assignment:
    """Assignment of the file's tensors to those of the encoder."""

    def __init__(self, encoder: DualStreamEncoder, source: RenamedTensors, first: str) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        """Tensors of the encoder and their new values."""
        self.adapted: list[str] = []
        self.missing: list[str] = []
        self.wrong_shape: list[str] = []
        for stream, stages in (("rgb", encoder.rgb_stages), ("aux", encoder.aux_stages)):
            for name, target in stages.state_dict().items():
                self._assign(f"{stream}_stages.{name}", target, source.tensors.get(name), name == first)

    def _assign(self, name: str, target: Tensor, value: Tensor | None, is_first: bool) -> None:
        if value is None:
            if not name.endswith("num_batches_tracked"):  # without influence, and older files lack it
                self.missing.append(name)
            return
        found, expected = tuple(value.shape), tuple(target.shape)
        if is_first and found != expected and (found[0], *found[2:]) == (expected[0], *expected[2:]):
            value = adapt_first_conv(value, expected[1])
            self.adapted.append(f"{name}: {found[1]} -> {expected[1]} channels")
        elif found != expected:
            self.wrong_shape.append(f"{name}: expected {list(expected)}, got {list(found)}")
            return
        self.pairs.append((target, value))


def _refuse_misfits(path: str, label: str, assignment: _Assignment, surplus: Sequence[str]) -> None:
    findings = {
        "missing": assignment.missing,
        "of the wrong shape": assignment.wrong_shape,
        f"unknown to {label}": surplus,
    }
    misfits = "; ".join(
        f"{len(names)} {what} ({_first_few(names)})" for what, names in findings.items() if names
    )
    if misfits:
        raise ConfigError(
            f"{SETTING}={path} does not fit {label}: {misfits}; use weights of this backbone, or set "
            "model.backbone.pretrained.strict=false to load what fits"
        )


def _first_few(names: Sequence[str]) -> str:
    more = len(names) - NUM_SHOWN
    return ", ".join(names[:NUM_SHOWN]) + (f" and {more} more" if more > 0 else "")
