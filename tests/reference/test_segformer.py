"""One MiT stream and the head against another implementation of both: Transformers' SegFormer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raydet.models.backbones.mit import MIT_VARIANTS, Block, MiTStage, mit_stages
from raydet.models.heads.masks.segformer import SegFormer

segformer = pytest.importorskip(
    "transformers.models.segformer",
    reason="the reference is a development dependency (pip install -e .[dev])",
)


def take(target: nn.Module, *sources: nn.Module) -> None:
    """Copy weights and biases, and the eps of a norm; several sources are stacked."""
    with torch.no_grad():
        target.weight.copy_(torch.cat([source.weight for source in sources]))
        target.bias.copy_(torch.cat([source.bias for source in sources]))
    if isinstance(target, nn.LayerNorm):
        # Transformers uses 1e-5 everywhere; what is compared here is the rest of the mathematics.
        target.eps = sources[0].eps


def take_block(block: Block, source: nn.Module) -> None:
    take(block.norm1, source.layernorm_before)
    take(block.norm2, source.layernorm_after)
    take(block.attention.query, source.attention.q_proj)
    take(block.attention.key_value, source.attention.k_proj, source.attention.v_proj)
    take(block.attention.proj, source.attention.o_proj)
    if block.attention.reduce is not None:
        take(block.attention.reduce, source.attention.sequence_reduction.sequence_reduction)
        take(block.attention.reduce_norm, source.attention.sequence_reduction.layer_norm)
    take(block.ffn.expand, source.mlp.fc1)
    take(block.ffn.depthwise, source.mlp.dwconv.dwconv)
    take(block.ffn.contract, source.mlp.fc2)


def take_stage(stage: MiTStage, source: nn.Module) -> None:
    take(stage.patch_embed.proj, source.patch_embeddings.proj)
    take(stage.patch_embed.norm, source.patch_embeddings.layer_norm)
    for block, source_block in zip(stage.blocks, source.blocks, strict=True):
        take_block(block, source_block)
    take(stage.norm, source.layer_norm)


def randomise(module: nn.Module) -> None:
    """Weights large enough that every branch counts (the reference starts with tiny ones and zero biases)."""
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn_like(parameter) * scale)


@pytest.mark.parametrize(("name", "hw"), [("nano", (64, 96)), ("b0", (72, 104)), ("b0", (160, 128))])
def test_features_are_equal(name: str, hw: tuple[int, int]) -> None:
    variant = MIT_VARIANTS[name]
    config = segformer.SegformerConfig(
        hidden_sizes=list(variant.channels),
        depths=list(variant.depths),
        num_attention_heads=list(variant.num_heads),
        sr_ratios=list(variant.sr_ratios),
    )
    reference = segformer.SegformerModel(config).double().eval()
    randomise(reference)
    stages = mit_stages(variant=variant, in_channels=3, drop_path_rate=0.1).double().eval()
    for stage, source in zip(stages, reference.stages, strict=True):
        take_stage(stage, source)

    x = theirs = torch.rand(2, 3, *hw, dtype=torch.float64)
    for stage, source in zip(stages, reference.stages, strict=True):
        x, theirs = stage(x), source(theirs)
        assert x.shape == theirs.shape
        torch.testing.assert_close(x, theirs, atol=1e-10, rtol=0)


def test_the_head() -> None:
    """Theirs concatenates the maps, the coarsest first."""
    channels = MIT_VARIANTS["b0"].channels
    config = segformer.SegformerConfig(hidden_sizes=list(channels), decoder_hidden_size=24, num_labels=5)
    theirs = segformer.modeling_segformer.SegformerDecodeHead(config).eval()
    ours = SegFormer(in_channels=channels, num_outputs=5, channels=24).eval()
    with torch.no_grad():
        for linear, source in zip(ours.linears, theirs.linear_projections, strict=True):
            linear.weight.copy_(source.proj.weight[..., None, None])
            linear.bias.copy_(source.proj.bias.normal_())
        ours.fuse.weight.copy_(torch.cat(theirs.linear_fuse.weight.chunk(4, dim=1)[::-1], dim=1))
        theirs.batch_norm.running_mean.normal_()
        ours.norm[0].load_state_dict(theirs.batch_norm.state_dict())
        ours.classify[1].load_state_dict(theirs.classifier.state_dict())
        sizes = zip(channels, ((25, 41), (13, 21), (7, 11), (4, 6)), strict=True)
        maps = [torch.randn(2, count, *hw) for count, hw in sizes]
        torch.testing.assert_close(ours(maps), theirs(maps), rtol=1e-4, atol=1e-5)
