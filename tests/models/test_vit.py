import dataclasses
import math

import pytest
import torch

from mvl_dist.config import ModelConfig
from mvl_dist.errors import UserError
from mvl_dist.models import MODELS, build_model, check_model_name
from mvl_dist.models.count import donor_parameter_names, parameter_report
from mvl_dist.models.vit import PatchEmbedding, SegmentationHead

SMALL = ModelConfig(name="vit_baseline", patch=(4, 4, 2), depth=2, dropout=0.0)


def small(seed: int = 0, **changes: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(dataclasses.replace(SMALL, **changes), 2, 3, (8, 12, 8)).eval()


def test_the_papers_size_has_1_128_000_parameters() -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name="vit_baseline"), 1, 1, (128, 128, 128))
    assert parameter_report(model)["trainable"] == 1_128_000
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.vit.blocks]
    assert blocks == [49_984] * 16
    assert donor_parameter_names(model) == set()


def test_an_image_becomes_logits_of_every_region_at_its_own_size() -> None:
    assert small()(torch.randn(2, 2, 8, 12, 8)).shape == (2, 3, 8, 12, 8)


def test_the_embedding_is_the_convolution_with_stride_of_a_patch() -> None:
    embedding = PatchEmbedding(2, (4, 3, 2), 16).double()
    image = torch.randn(2, 2, 8, 9, 8, dtype=torch.float64)
    weight = embedding.linear.weight.reshape(16, 2, 4, 3, 2)
    expected = torch.nn.functional.conv3d(image, weight, embedding.linear.bias, stride=(4, 3, 2))
    torch.testing.assert_close(embedding(image), expected.flatten(2).transpose(1, 2))


def test_the_head_puts_every_patch_back_where_it_was_cut() -> None:
    patch, grid = (4, 3, 2), (8, 9, 8)
    embedding = PatchEmbedding(3, patch, 3 * math.prod(patch))
    head = SegmentationHead(3 * math.prod(patch), 3, patch, grid)
    for linear in (embedding.linear, head.linear):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    image = torch.randn(2, 3, *grid)
    torch.testing.assert_close(head(embedding(image)), image, rtol=0, atol=0)


def test_a_block_is_torchs_own_pre_norm_encoder_layer() -> None:
    block = small().vit.blocks[0].double()
    oracle = torch.nn.TransformerEncoderLayer(
        64, 4, 256, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    mine = block.state_dict()
    names = {
        "self_attn.in_proj_weight": "attention.qkv.weight",
        "self_attn.in_proj_bias": "attention.qkv.bias",
        "self_attn.out_proj.weight": "attention.projection.weight",
        "self_attn.out_proj.bias": "attention.projection.bias",
        "linear1.weight": "mlp.0.weight",
        "linear1.bias": "mlp.0.bias",
        "linear2.weight": "mlp.3.weight",
        "linear2.bias": "mlp.3.bias",
        "norm1.weight": "attention_norm.weight",
        "norm1.bias": "attention_norm.bias",
        "norm2.weight": "mlp_norm.weight",
        "norm2.bias": "mlp_norm.bias",
    }
    oracle.load_state_dict({theirs: mine[ours] for theirs, ours in names.items()})
    tokens = torch.randn(2, 10, 64, dtype=torch.float64)
    torch.testing.assert_close(block(tokens), oracle(tokens), rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_and_not_in_evaluation() -> None:
    model, image = small(dropout=0.5), torch.randn(1, 2, 8, 12, 8)
    assert torch.equal(model(image), model(image))
    model.train()
    assert not torch.equal(model(image), model(image))


def test_each_of_the_three_dropouts_acts_by_itself() -> None:
    block, tokens = small(dropout=0.5).vit.blocks[0].train(), torch.randn(1, 200, 64)
    before_projection: list[torch.Tensor] = []
    block.attention.projection.register_forward_hook(
        lambda _module, inputs, _output: before_projection.append(inputs[0])
    )
    first, second = (block.attention(tokens, block.attention_norm) for _ in range(2))
    assert not torch.equal(*before_projection)  # the attention weights
    for dropped in (first, second, block.mlp(tokens)):  # projection, MLP's output
        assert 0.45 < (dropped == 0).float().mean() < 0.55
    inside = block.mlp[:3](tokens)
    assert 0.45 < (inside == 0).float().mean() < 0.55


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (small(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["vit.head.linear.weight"], other["vit.head.linear.weight"])


def test_a_grid_that_patches_do_not_tile_says_which_sizes_fit() -> None:
    with pytest.raises(
        UserError, match="axis H is 10; the patch needs a multiple of 4: 8 or 12 fits"
    ):
        build_model(SMALL, 1, 1, (8, 10, 8))


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean vit_baseline"):
        check_model_name("vit_base")
    assert {"vit_baseline", "medvisionllama"} <= set(MODELS)
