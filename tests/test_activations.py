from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvl_dist.activations import activation_maps, attention_from, has_maps
from mvl_dist.config import DonorConfig, LoRAConfig, smoke
from mvl_dist.models import build_model
from mvl_dist.models.donors import load_donor

GRID = (8, 8, 8)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """MedVisionLlama whose block stands after two of three ViT blocks."""
    config = replace(
        smoke().model,
        depth=3,
        llm_position=2,
        donor=DonorConfig("random:minilm-l6"),
        lora=LoRAConfig(targets=("query",)),
    )
    torch.manual_seed(0)
    donor = load_donor("random:minilm-l6", (-1,), seed=0)
    return build_model(config, 1, 2, GRID, donor).eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(1, *GRID, generator=torch.Generator().manual_seed(1))


def rms(tokens: torch.Tensor) -> np.ndarray:
    return tokens[0].square().mean(-1).sqrt().reshape(2, 2, 2).detach().numpy()


def test_maps_are_the_stages_of_the_forward(model: torch.nn.Module, image: torch.Tensor) -> None:
    maps = activation_maps(model, image, "sigmoid")
    vit = model.vit
    tokens = vit.positions(vit.embedding(image[None]))  # equation 2, by hand
    for block in vit.blocks[:2]:
        tokens = block(tokens)
    np.testing.assert_allclose(maps["V_E(X)"], rms(tokens), rtol=1e-5)
    hidden = model.mappers.into(tokens)
    np.testing.assert_allclose(maps["V_D1"], rms(hidden), rtol=1e-5)
    tokens = model.mappers.back(model.llm(hidden) + hidden)
    np.testing.assert_allclose(maps["V_D2"], rms(tokens), rtol=1e-5)
    tokens = vit.blocks[2](tokens)
    np.testing.assert_allclose(maps["V_D(Q)"], rms(tokens), rtol=1e-5)
    with torch.no_grad():
        logits = model(image[None])
    np.testing.assert_array_equal(maps["Y"], logits[0, 0].numpy())
    assert maps["attention"].sum() == pytest.approx(1, abs=1e-5)
    # The hooks are gone, and the answer is the same.
    assert not any(module._forward_hooks for module in model.modules())


def test_a_baseline_has_no_mapper_maps(image: torch.Tensor) -> None:
    config = replace(smoke().model, name="vit_baseline", depth=2)
    baseline = build_model(config, 1, 1, GRID).eval()
    assert set(activation_maps(baseline, image, "sigmoid")) == {
        "V_E(X)",
        "V_D(Q)",
        "attention",
        "Y",
    }


def test_another_networks_vit_is_not_ours() -> None:
    other = torch.nn.Module()
    other.vit = torch.nn.Linear(2, 2)  # as MONAI's UNETR has one
    assert not has_maps(other)


def test_attention_is_what_torch_mixes_values_by() -> None:
    heads, length, width = 2, 6, 8
    qkv = torch.randn(1, length, 3 * width, generator=torch.Generator().manual_seed(2))
    q, k, _ = qkv.reshape(1, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    identity = torch.eye(length).expand(1, heads, length, length)
    weights = F.scaled_dot_product_attention(q, k, identity)[0].mean(0)  # (T, T)
    chosen = torch.tensor([True, False, False, True, False, False])
    torch.testing.assert_close(attention_from(qkv, heads, chosen), weights[chosen].mean(0))
    torch.testing.assert_close(
        attention_from(qkv, heads, torch.zeros(length, dtype=torch.bool)), weights.mean(0)
    )
