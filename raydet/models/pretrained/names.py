"""Translation of publishers' tensor names to the names inside one of our streams.

Our names begin with the index of the stage: `0.patch_embed.proj.weight`, `2.layers.layer3.0.conv1.weight`.

SegFormer's weights are published by the authors, and converted for Transformers, whose version 5 has renamed its
modules but still writes files with the names of version 4. All three namings are supported.

EfficientNets are published with timm's names and with those of EfficientNet-PyTorch, which the weights of
EfficientNet-Lite have, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SEGFORMER_LICENCE = (
    "NVIDIA Source Code License for SegFormer, if these are the published weights: research or evaluation only, "
    "not for commercial use"
)

Translate = Callable[[str], str | None]
"""Our name, or None if it belongs to no stage; a suffix `#0` or `#1` marks one half of one of our tensors."""


@dataclass(frozen=True, slots=True)
class Naming:
    """A publisher's names and the licence of its weights."""

    publisher: str
    licence: str
    translate: Translate


@dataclass(frozen=True, slots=True)
class RenamedTensors:
    """The tensors of a file by our names."""

    naming: Naming
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """The publisher's name by ours; of two halves the second's."""
    others: tuple[str, ...] = ()
    """Names that belong to no stage, such as a classifier's."""


def rename_tensors(
    tensors: Mapping[str, Tensor], namings: Sequence[Naming], *, first: str
) -> RenamedTensors | None:
    """Translate the names of a file; None if no naming fits.

    A common prefix of all names, such as `backbone.` or `segformer.encoder.`, is detected and removed.

    Args:
        first: our name of the first convolution's weight; a naming fits if it translates a tensor's name to this.
    """
    for naming in namings:
        prefixes = [
            name[:start]
            for name in tensors
            for start in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
            if naming.translate(name[start:]) == first
        ]
        if prefixes:
            return _rename_all(tensors, naming, prefix=min(prefixes, key=len))
    return None


def _rename_all(tensors: Mapping[str, Tensor], naming: Naming, *, prefix: str) -> RenamedTensors:
    names = {name: naming.translate(name.removeprefix(prefix)) for name in tensors if name.startswith(prefix)}
    ours = {new: old for old, new in names.items() if new is not None}
    found = RenamedTensors(naming, others=tuple(name for name in tensors if names.get(name) is None))
    for new, old in ours.items():
        whole, _, half = new.partition("#")
        found.names[whole] = old
        if not half:
            found.tensors[whole] = tensors[old]
        elif half == "1" and f"{whole}#0" in ours:
            found.tensors[whole] = torch.cat((tensors[ours[f"{whole}#0"]], tensors[old]))
    return found


# --- MiT

_MIT_PARTS = {  # by our names: the authors', Transformers 4, Transformers 5
    "proj": ("proj", "proj", "proj"),
    "norm": ("norm", "layer_norm", "layer_norm"),
    "norm1": ("norm1", "layer_norm_1", "layernorm_before"),
    "attention.query": ("attn.q", "attention.self.query", "attention.q_proj"),
    "attention.key_value": ("attn.kv", None, None),
    "attention.key_value#0": (None, "attention.self.key", "attention.k_proj"),
    "attention.key_value#1": (None, "attention.self.value", "attention.v_proj"),
    "attention.proj": ("attn.proj", "attention.output.dense", "attention.o_proj"),
    "attention.reduce": ("attn.sr", "attention.self.sr", "attention.sequence_reduction.sequence_reduction"),
    "attention.reduce_norm": ("attn.norm", "attention.self.layer_norm", "attention.sequence_reduction.layer_norm"),
    "norm2": ("norm2", "layer_norm_2", "layernorm_after"),
    "ffn.expand": ("mlp.fc1", "mlp.dense1", "mlp.fc1"),
    "ffn.depthwise": ("mlp.dwconv.dwconv", "mlp.dwconv.dwconv", "mlp.dwconv.dwconv"),
    "ffn.contract": ("mlp.fc2", "mlp.dense2", "mlp.fc2"),
}  # fmt: skip


def _mit_naming(
    publisher: str, column: int, *, first_stage: int, embed: str, block: str, norm: str
) -> Naming:
    parts = {names[column]: ours for ours, names in _MIT_PARTS.items()}
    templates = {
        embed: "{stage}.patch_embed.{part}.{kind}",
        block: "{stage}.blocks.{block}.{part}.{kind}",
        norm: "{stage}.{part}.{kind}",
    }

    def translate(name: str) -> str | None:
        for pattern, ours in templates.items():
            match = re.fullmatch(pattern + r"\.(?P<kind>weight|bias)", name)
            if match is not None and match["part"] in parts:
                whole, _, half = parts[match["part"]].partition("#")
                fields = {**match.groupdict(), "stage": int(match["stage"]) - first_stage, "part": whole}
                return ours.format(**fields) + (half and f"#{half}")
        return None

    return Naming(publisher, SEGFORMER_LICENCE, translate)


MIT_NAMINGS = (
    _mit_naming(
        "SegFormer",
        0,
        first_stage=1,
        embed=r"patch_embed(?P<stage>\d)\.(?P<part>proj|norm)",
        block=r"block(?P<stage>\d)\.(?P<block>\d+)\.(?P<part>.+)",
        norm=r"(?P<part>norm)(?P<stage>\d)",
    ),
    _mit_naming(
        "Transformers",
        1,
        first_stage=0,
        embed=r"patch_embeddings\.(?P<stage>\d)\.(?P<part>proj|layer_norm)",
        block=r"block\.(?P<stage>\d)\.(?P<block>\d+)\.(?P<part>.+)",
        norm=r"(?P<part>layer_norm)\.(?P<stage>\d)",
    ),
    _mit_naming(
        "Transformers 5",
        2,
        first_stage=0,
        embed=r"stages\.(?P<stage>\d)\.patch_embeddings\.(?P<part>proj|layer_norm)",
        block=r"stages\.(?P<stage>\d)\.blocks\.(?P<block>\d+)\.(?P<part>.+)",
        norm=r"stages\.(?P<stage>\d)\.(?P<part>layer_norm)",
    ),
)


# --- timm


def timm_naming(layers: Sequence[Collection[str]], *, licence: str) -> Naming:
    """timm's names; a feature net joins the first two parts, as in `stages.0.` -> `stages_0.`.

    Positions, which belong to no layer in timm, belong to the first one here.

    >>> naming = timm_naming([["stem_0", "stages_0"], ["stages_1"]], licence="mine")
    >>> naming.translate("stages.1.blocks.0.norm.weight"), naming.translate("head.fc.weight")
    ('1.layers.stages_1.blocks.0.norm.weight', None)

    Args:
        layers: the feature net's names of the layers of every stage.
    """
    stage_of = {layer: stage for stage, names in enumerate(layers) for layer in names}

    def translate(name: str) -> str | None:
        if name in ("pos_embed", "pos_embed_window"):
            return f"0.layers.{next(iter(layers[0]))}.{name}"
        parts = name.split(".")
        for joined in (1, 2):
            layer = "_".join(parts[:joined])
            if layer in stage_of and len(parts) > joined:
                return ".".join((str(stage_of[layer]), "layers", layer, *parts[joined:]))
        return None

    return Naming("timm", licence, translate)


# --- EfficientNet-PyTorch

_WHERE_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_WHERE_NOT_EXPANDED = {  # the first stage's blocks start with the depthwise convolution
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}


def efficientnet_naming(names: Iterable[str]) -> Naming:
    """EfficientNet-PyTorch's names, whose blocks are numbered through all stages.

    >>> ours = ["0.layers.blocks_0.0.conv_dw.weight", "0.layers.blocks_1.0.conv_pwl.weight"]
    >>> naming = efficientnet_naming(ours)
    >>> naming.translate("_conv_stem.weight"), naming.translate("_blocks.1._project_conv.weight")
    ('0.layers.conv_stem.weight', '0.layers.blocks_1.0.conv_pwl.weight')

    Args:
        names: our names of all tensors of a stream, in call order.
    """
    blocks: dict[str, bool] = {}  # by prefix: does it expand the channels?
    for name in names:
        if match := re.match(r"\d\.layers\.blocks_\d+\.\d+\.", name):
            blocks[match[0]] = blocks.get(match[0], False) or name.startswith("conv_pwl.", match.end())
    prefixes = list(blocks)

    def translate(name: str) -> str | None:
        match name.split("."):
            case ["_conv_stem", kind]:
                return f"0.layers.conv_stem.{kind}"
            case ["_bn0", kind]:
                return f"0.layers.bn1.{kind}"
            case ["_blocks", number, part, kind] if number.isdecimal() and int(number) < len(prefixes):
                prefix = prefixes[int(number)]
                parts = _SQUEEZE | (_WHERE_EXPANDED if blocks[prefix] else _WHERE_NOT_EXPANDED)
                return f"{prefix}{parts[part]}.{kind}" if part in parts else None
        return None

    licence = "Apache-2.0, if these are the published weights of EfficientNet; check the source of the file"
    return Naming("EfficientNet-PyTorch", licence, translate)
