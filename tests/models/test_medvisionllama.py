import dataclasses

import pytest
import torch

from mvl_dist.config import LoRAConfig, ModelConfig
from mvl_dist.errors import UserError
from mvl_dist.models import build_model
from mvl_dist.models.count import donor_parameter_names, parameter_report
from mvl_dist.models.donors import Donor, llama, load_donor
from mvl_dist.models.donors.sources import KNOWN_SHAPES

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
SMALL = ModelConfig(patch=(4, 4, 4), depth=2, dropout=0.0, llm_position=2)
GRID = (8, 8, 8)


@pytest.fixture
def tiny_shape(tmp_path) -> str:  # type: ignore[no-untyped-def]
    import json

    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    return f"random:{path}"


def build(donor: Donor, seed: int = 0, **changes: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(dataclasses.replace(SMALL, **changes), 1, 1, GRID, donor)


def paper_counts(rank: int, targets: tuple[str, ...]) -> dict[str, int]:
    """Counts at the paper's size with Llama-3.1-8B's shapes, without allocating them."""
    with torch.device("meta"):
        block = llama.empty_block(KNOWN_SHAPES["llama-3.1-8b"], 1)
        donor = Donor(block, 4096, "meta", (31,), "llama", "")
        config = ModelConfig(lora=LoRAConfig(rank=rank, targets=targets))
        return parameter_report(build_model(config, 1, 1, (128, 128, 128), donor))


@pytest.mark.parametrize(("rank", "trainable"), [(4, 1_165_440), (8, 1_198_720)])
def test_the_papers_size_without_lora_in_the_block(rank: int, trainable: int) -> None:
    counts = paper_counts(rank, ())
    assert counts["trainable"] == trainable
    assert counts["frozen_llm"] == 218_116_096  # block and final norm
    assert counts["frozen_mappers"] == 524_288
    assert counts["trainable_llm"] == 0


def test_a_rank_costs_8320_parameters_in_the_mappers_and_lora_in_the_block_is_apart() -> None:
    two, sixteen = paper_counts(2, ("q_proj", "v_proj")), paper_counts(16, ("q_proj", "v_proj"))
    assert sixteen["trainable_mappers"] - two["trainable_mappers"] == 14 * 8_320
    # q: 4096 -> 4096, v: 4096 -> 1024
    assert two["trainable_llm"] == 2 * (4096 + 4096 + 4096 + 1024)


def test_only_lora_biases_and_vit_are_trained_and_all_of_them_are(tiny_shape: str) -> None:
    model = build(load_donor(tiny_shape))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):  # lora_A moves from the second step on: lora_B starts at zero
        optimizer.zero_grad()
        model(torch.randn(2, 1, *GRID)).square().mean().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = "base_layer.weight" in name or (name.startswith("llm.") and "lora_" not in name)
        assert parameter.requires_grad != frozen, name
        assert torch.equal(parameter, before[name]) == frozen, name


def test_checkpoints_leave_out_the_donor_and_nothing_else(tiny_shape: str) -> None:
    donor = load_donor(tiny_shape)
    count = sum(p.numel() for p in donor.block.parameters())
    model = build(donor)
    names = donor_parameter_names(model)
    assert sum(p.numel() for n, p in model.named_parameters() if n in names) == count
    assert all(name.startswith("llm.") for name in names)


def test_the_block_stands_where_the_number_says(tiny_shape: str) -> None:
    image = torch.randn(1, 1, *GRID)
    for position in (0, 1, 2):
        model = build(load_donor(tiny_shape), llm_position=position).eval()
        order: list[str] = []
        model.llm.register_forward_hook(lambda *_, o=order: o.append("llm"))
        model.vit.positions.register_forward_hook(lambda *_, o=order: o.append("positions"))
        for block in model.vit.blocks:
            block.register_forward_hook(lambda *_, o=order: o.append("block"))
        model(image)
        expected = ["positions", "block", "block"]
        # The published code (0) adds positions after the language model.
        expected.insert(0 if position == 0 else position + 1, "llm")
        assert order == expected


def test_the_refinement_is_equation_2_with_the_residual(tiny_shape: str) -> None:
    model = build(load_donor(tiny_shape)).eval()
    tokens = torch.randn(2, 8, 64)
    into, back = model.mappers.into.base_layer, model.mappers.back.base_layer
    hidden = into(tokens)  # LoRA starts at zero
    torch.testing.assert_close(model.refine(tokens), back(model.llm(hidden) + hidden))


def test_the_vit_starts_from_the_baselines_weights(tiny_shape: str) -> None:
    llama_like = build(load_donor(tiny_shape)).vit.state_dict()
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, name="vit_baseline")
    baseline = build_model(config, 1, 1, GRID).vit.state_dict()
    assert all(torch.equal(baseline[name], llama_like[name]) for name in baseline)


def test_an_unknown_lora_target_lists_what_there_is(tiny_shape: str) -> None:
    with pytest.raises(UserError, match="it has down_proj, gate_proj, k_proj, o_proj, q_proj"):
        build(load_donor(tiny_shape), lora=LoRAConfig(targets=("query",)))


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_where_the_block_would_never_be_called_is_refused(
    tiny_shape: str, position: int
) -> None:
    with pytest.raises(UserError, match="out of range: 0 to --depth 2"):
        build(load_donor(tiny_shape), llm_position=position)
