"""Weights of Transformers' SegFormer as files in every published naming: our encoder computes the same features."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raydet.config import apply_overrides
from raydet.models.backbones.mit import MIT_VARIANTS
from raydet.models.build import build_model, load_pretrained
from raydet.recipes import recipe

transformers = pytest.importorskip(
    "transformers", reason="the reference is a development dependency (pip install -e .[dev])"
)


def reference(name: str) -> nn.Module:
    variant = MIT_VARIANTS[name]
    config = transformers.SegformerConfig(
        hidden_sizes=list(variant.channels),
        depths=list(variant.depths),
        num_attention_heads=list(variant.num_heads),
        sr_ratios=list(variant.sr_ratios),
    )
    model = transformers.SegformerForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # every branch shall count
            scale = 0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn_like(parameter) * scale)
    for module_name, module in model.named_modules():
        # As the weights were trained, and as our norms are; Transformers has 1e-5 everywhere.
        if re.search(r"layernorm_(before|after)$|stages\.\d\.layer_norm$", module_name):
            module.eps = 1e-6
    return model


def as_transformers_writes(model: nn.Module, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory / "model.safetensors"


def as_transformers_calls_them(model: nn.Module, directory: Path) -> Path:
    return written(dict(model.state_dict()), directory)


def as_the_authors_do(model: nn.Module, directory: Path) -> Path:
    """Module by module, without a table of names."""
    tensors: dict[str, Tensor] = {}

    def put(name: str, *modules: nn.Module) -> None:
        for kind in ("weight", "bias"):
            tensors[f"{name}.{kind}"] = torch.cat([getattr(module, kind).detach() for module in modules])

    for number, stage in enumerate(model.segformer.stages, 1):
        put(f"patch_embed{number}.proj", stage.patch_embeddings.proj)
        put(f"patch_embed{number}.norm", stage.patch_embeddings.layer_norm)
        put(f"norm{number}", stage.layer_norm)
        for index, block in enumerate(stage.blocks):
            prefix, attention = f"block{number}.{index}", block.attention
            put(f"{prefix}.norm1", block.layernorm_before)
            put(f"{prefix}.norm2", block.layernorm_after)
            put(f"{prefix}.attn.q", attention.q_proj)
            put(f"{prefix}.attn.kv", attention.k_proj, attention.v_proj)
            put(f"{prefix}.attn.proj", attention.o_proj)
            if number < 4:
                put(f"{prefix}.attn.sr", attention.sequence_reduction.sequence_reduction)
                put(f"{prefix}.attn.norm", attention.sequence_reduction.layer_norm)
            put(f"{prefix}.mlp.fc1", block.mlp.fc1)
            put(f"{prefix}.mlp.dwconv.dwconv", block.mlp.dwconv.dwconv)
            put(f"{prefix}.mlp.fc2", block.mlp.fc2)
    put("head", model.classifier)
    return written(tensors, directory)


def as_in_a_segmentation_checkpoint(model: nn.Module, directory: Path) -> Path:
    from safetensors.torch import load_file

    tensors = load_file(as_the_authors_do(model, directory))
    backbone = {f"backbone.{name}": tensor for name, tensor in tensors.items() if "head" not in name}
    return written({**backbone, "decode_head.linear_c1.proj.weight": torch.zeros(2)}, directory)


def written(tensors: dict[str, Tensor], directory: Path) -> Path:
    path = directory / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.filterwarnings("ignore")  # of Transformers, about itself
@pytest.mark.parametrize("variant", ["nano", "b0"])
@pytest.mark.parametrize(
    ("write", "naming", "unused"),
    [
        (as_the_authors_do, "SegFormer", {"head.weight", "head.bias"}),
        (as_in_a_segmentation_checkpoint, "SegFormer", {"decode_head.linear_c1.proj.weight"}),
        (as_transformers_writes, "Transformers", {"classifier.weight", "classifier.bias"}),
        (as_transformers_calls_them, "Transformers 5", {"classifier.weight", "classifier.bias"}),
    ],
)
def test_both_streams_compute_the_references_features(
    write: Callable[[nn.Module, Path], Path], naming: str, unused: set[str], variant: str, tmp_path: Path
) -> None:
    theirs = reference(variant)
    path = write(theirs, tmp_path)
    experiment = apply_overrides(
        recipe("demo"),
        {"model.backbone.variant": variant, "model.backbone.pretrained.path": str(path)},
    )
    detector = build_model(experiment)
    found = load_pretrained(detector, experiment)
    assert found is not None
    assert (found.naming, set(found.unused)) == (naming, unused)
    assert found.missing == found.wrong_shape == ()
    assert found.adapted == ("aux_stages.0.patch_embed.proj.weight: 3 -> 2 channels",)
    assert found.loaded == len(detector.encoder.rgb_stages.state_dict()) * 2
    assert "research or evaluation only" in found.licence

    theirs, detector = theirs.double(), detector.double().eval()
    x = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    # Equal channels: the sum over two adapted filters is that over the three of the file.
    grey = torch.rand(2, 1, 64, 96, dtype=torch.float64)
    streams = [(detector.encoder.rgb_stages, x, x), (detector.encoder.aux_stages, grey, grey)]
    for stages, ours, wanted in streams:
        if ours.shape[1] == 1:
            ours, wanted = ours.repeat(1, 2, 1, 1), wanted.repeat(1, 3, 1, 1)
        for stage, source in zip(stages, theirs.segformer.stages, strict=True):
            ours, wanted = stage(ours), source(wanted)
            # The adapted filters are rounded to fp32.
            tolerance = 1e-10 if stages is detector.encoder.rgb_stages else 1e-4
            torch.testing.assert_close(ours, wanted, atol=tolerance, rtol=0)
