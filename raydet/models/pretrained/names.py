"""How publishers name the tensors of a trunk, and what they are called inside one of our streams.

Our names begin with the number of the stage: `0.patch_embed.proj.weight`, `2.layers.layer3.0.conv1.weight`.

SegFormer's weights are published in two forms: by the authors, and converted for Transformers, whose version 5 has
renamed its modules but goes on writing files with the names of version 4; all three are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

SEGFORMER_LICENCE = (
    "NVIDIA Source Code License for SegFormer, if these are the published weights: research or evaluation only, "
    "not for commercial use"
)

Translate = Callable[[str], str | None]
"""Our name; None: it belongs to no stage. `#0` and `#1` at its end are the two halves of one of our tensors."""


@dataclass(frozen=True, slots=True)
class Naming:
    """One publisher's names."""

    publisher: str
    licence: str
    translate: Translate


@dataclass(frozen=True, slots=True)
class Renamed:
    """The tensors of a file by our names."""

    naming: Naming
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Theirs, by ours; of two halves the second's."""
    others: tuple[str, ...] = ()
    """Names that belong to no stage, such as a classifier's."""


def renamed(tensors: Mapping[str, Tensor], namings: Sequence[Naming], *, first: str) -> Renamed | None:
    """Understand the names of a file; None where none of the namings fits.

    Whatever stands before all names, such as `backbone.` or `segformer.encoder.`, is found and left away.

    Args:
        first: our name of the first convolution's weight: a naming fits where a tensor is called so.
    """
    for naming in namings:
        prefixes = [
            prefix for name in tensors for prefix, rest in _cuts(name) if naming.translate(rest) == first
        ]
        if prefixes:
            return _all_renamed(tensors, naming, prefix=min(prefixes, key=len))
    return None


def _cuts(name: str) -> list[tuple[str, str]]:
    """
    >>> _cuts("encoder.norm1.weight")
    [('', 'encoder.norm1.weight'), ('encoder.', 'norm1.weight'), ('encoder.norm1.', 'weight')]
    """
    starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
    return [(name[:start], name[start:]) for start in starts]


def _all_renamed(tensors: Mapping[str, Tensor], naming: Naming, *, prefix: str) -> Renamed:
    names = {name: naming.translate(name.removeprefix(prefix)) for name in tensors if name.startswith(prefix)}
    ours = {new: old for old, new in names.items() if new is not None}
    found = Renamed(naming, others=tuple(name for name in tensors if names.get(name) is None))
    for new, old in ours.items():
        whole, _, half = new.partition("#")
        found.names[whole] = old
        if not half:
            found.tensors[whole] = tensors[old]
        elif half == "1" and f"{whole}#0" in ours:
            found.tensors[whole] = torch.cat((tensors[ours[f"{whole}#0"]], tensors[old]))
    return found


# --- MiT


def _mit(
    rows: Sequence[tuple[str, str]], parts: Mapping[str, str], first_stage: int, name: str
) -> str | None:
    for pattern, ours in rows:
        match = re.fullmatch(pattern, name)
        if match is not None and match["part"] in parts:
            whole, _, half = parts[match["part"]].partition("#")
            fields = {**match.groupdict(), "stage": int(match["stage"]) - first_stage, "part": whole}
            return ours.format(**fields) + (half and f"#{half}")
    return None


_KIND = r"(?P<kind>weight|bias)"
_EMBED, _BLOCK, _NORM = (
    "{stage}.patch_embed.{part}.{kind}",
    "{stage}.blocks.{block}.{part}.{kind}",
    "{stage}.{part}.{kind}",
)

_AUTHORS = partial(
    _mit,
    (
        (rf"patch_embed(?P<stage>\d)\.(?P<part>proj|norm)\.{_KIND}", _EMBED),
        (rf"block(?P<stage>\d)\.(?P<block>\d+)\.(?P<part>.+)\.{_KIND}", _BLOCK),
        (rf"(?P<part>norm)(?P<stage>\d)\.{_KIND}", _NORM),
    ),
    {
        "proj": "proj",
        "norm": "norm",
        "norm1": "norm1",
        "attn.q": "attention.query",
        "attn.kv": "attention.key_value",
        "attn.proj": "attention.proj",
        "attn.sr": "attention.reduce",
        "attn.norm": "attention.reduce_norm",
        "norm2": "norm2",
        "mlp.fc1": "ffn.expand",
        "mlp.dwconv.dwconv": "ffn.depthwise",
        "mlp.fc2": "ffn.contract",
    },
    1,
)
_TRANSFORMERS_4 = partial(
    _mit,
    (
        (rf"patch_embeddings\.(?P<stage>\d)\.(?P<part>proj|layer_norm)\.{_KIND}", _EMBED),
        (rf"block\.(?P<stage>\d)\.(?P<block>\d+)\.(?P<part>.+)\.{_KIND}", _BLOCK),
        (rf"(?P<part>layer_norm)\.(?P<stage>\d)\.{_KIND}", _NORM),
    ),
    {
        "proj": "proj",
        "layer_norm": "norm",
        "layer_norm_1": "norm1",
        "attention.self.query": "attention.query",
        "attention.self.key": "attention.key_value#0",
        "attention.self.value": "attention.key_value#1",
        "attention.output.dense": "attention.proj",
        "attention.self.sr": "attention.reduce",
        "attention.self.layer_norm": "attention.reduce_norm",
        "layer_norm_2": "norm2",
        "mlp.dense1": "ffn.expand",
        "mlp.dwconv.dwconv": "ffn.depthwise",
        "mlp.dense2": "ffn.contract",
    },
    0,
)
_TRANSFORMERS_5 = partial(
    _mit,
    (
        (rf"stages\.(?P<stage>\d)\.patch_embeddings\.(?P<part>proj|layer_norm)\.{_KIND}", _EMBED),
        (rf"stages\.(?P<stage>\d)\.blocks\.(?P<block>\d+)\.(?P<part>.+)\.{_KIND}", _BLOCK),
        (rf"stages\.(?P<stage>\d)\.(?P<part>layer_norm)\.{_KIND}", _NORM),
    ),
    {
        "proj": "proj",
        "layer_norm": "norm",
        "layernorm_before": "norm1",
        "attention.q_proj": "attention.query",
        "attention.k_proj": "attention.key_value#0",
        "attention.v_proj": "attention.key_value#1",
        "attention.o_proj": "attention.proj",
        "attention.sequence_reduction.sequence_reduction": "attention.reduce",
        "attention.sequence_reduction.layer_norm": "attention.reduce_norm",
        "layernorm_after": "norm2",
        "mlp.fc1": "ffn.expand",
        "mlp.dwconv.dwconv": "ffn.depthwise",
        "mlp.fc2": "ffn.contract",
    },
    0,
)

MIT_NAMINGS = (
    Naming("SegFormer", SEGFORMER_LICENCE, _AUTHORS),
    Naming("Transformers", SEGFORMER_LICENCE, _TRANSFORMERS_4),
    Naming("Transformers 5", SEGFORMER_LICENCE, _TRANSFORMERS_5),
)


# --- timm


def timm_naming(layers: Sequence[Collection[str]], *, licence: str) -> Naming:
    """timm's names, of which a feature net has joined the first two parts: `stages.0.` became `stages_0.`.

    >>> naming = timm_naming([["stem_0", "stages_0"], ["stages_1"]], licence="mine")
    >>> naming.translate("stages.1.blocks.0.norm.weight"), naming.translate("head.fc.weight")
    ('1.layers.stages_1.blocks.0.norm.weight', None)

    Args:
        layers: of every stage, by the feature net's names.
    """
    stage_of = {layer: stage for stage, names in enumerate(layers) for layer in names}

    def translate(name: str) -> str | None:
        parts = name.split(".")
        for joined in (1, 2):
            layer = "_".join(parts[:joined])
            if layer in stage_of and len(parts) > joined:
                return ".".join((str(stage_of[layer]), "layers", layer, *parts[joined:]))
        return None

    return Naming("timm", licence, translate)
