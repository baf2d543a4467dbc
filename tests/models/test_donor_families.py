"""Each family's block against transformers' own whole model, called without our code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mvl_dist.models.donors import KNOWN_DONORS, load_donor
from mvl_dist.models.donors.families import FAMILIES
from mvl_dist.models.donors.sources import KNOWN_SHAPES

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 17,
}
LLAMA_LIKE = {"num_key_value_heads": 2, "head_dim": 8}
# Every kind of dropout that any family's config has.
DROPOUTS = {
    "attention_dropout": 0.5,
    "hidden_dropout_prob": 0.5,
    "attention_probs_dropout_prob": 0.5,
    "activation_dropout": 0.5,
    "layerdrop": 0.5,
}


def config_of(model_type: str) -> dict[str, Any]:
    sizes = SIZES if model_type in ("bert", "biogpt") else SIZES | LLAMA_LIKE
    return {"model_type": model_type, **sizes}


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Softmax attention by its formula, in float64 throughout, to all tokens."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@pytest.fixture(params=FAMILIES)
def whole(request: pytest.FixtureRequest) -> Any:
    """A whole tiny model by transformers, far from its initialisation, in float64."""
    from transformers import AttentionInterface, AutoConfig, AutoModel

    AttentionInterface.register("formula", attend)
    config = config_of(request.param)
    model = AutoModel.from_config(
        AutoConfig.for_model(**config), attn_implementation="formula", dtype=torch.float32
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.uniform_(0.5, 3.0)
            else:
                parameter.normal_(std=0.3)
    return model.double().eval()


def folder_of(whole: Any, path: Path) -> Path:
    """The model as `save_pretrained` of the bare model leaves it, in float32."""
    path.mkdir()
    config = config_of(whole.config.model_type) | DROPOUTS
    (path / "config.json").write_text(json.dumps(config))
    tensors = {n: t.float() for n, t in whole.state_dict().items()}
    save_file(tensors, path / "model.safetensors")
    return path


def layer_by_layer(whole: Any, hidden: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
    """The whole model's layers and final norm called by hand, nothing masked, no positions."""
    tokens = hidden.shape[1]
    extra: dict[str, Any] = {"attention_mask": hidden.new_zeros(1, 1, tokens, tokens)}
    if whole.config.model_type == "bert":
        stack, norm = whole.encoder.layer, torch.nn.Identity()
    elif whole.config.model_type == "biogpt":
        stack, norm = whole.layers, whole.layer_norm
    else:
        stack, norm = whole.layers, whole.norm
        extra["position_embeddings"] = hidden.new_ones(1, tokens, 8), hidden.new_zeros(1, tokens, 8)
    for layer in layers:
        hidden = stack[layer](hidden, **extra)
    return norm(hidden)


@pytest.mark.parametrize("layers", [(-1,), (0, 2), "all"])
def test_a_block_is_the_whole_models_layers_and_norm(
    whole: Any, layers: Any, tmp_path: Path
) -> None:
    donor = load_donor(str(folder_of(whole, tmp_path / "donor")), layers)
    hidden = torch.randn(2, 9, 32, dtype=torch.float64)
    expected = layer_by_layer(whole, hidden, donor.layers)
    got = donor.block.double()(hidden)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_every_token_sees_every_token_and_none_its_place(whole: Any, tmp_path: Path) -> None:
    block = load_donor(str(folder_of(whole, tmp_path / "donor")), (0, 2)).block.double()
    hidden, order = torch.randn(1, 9, 32, dtype=torch.float64), torch.randperm(9)
    # The RMS norms of transformers compute in float32.
    torch.testing.assert_close(block(hidden[:, order]), block(hidden)[:, order], rtol=0, atol=1e-5)
    changed = hidden.clone()
    changed[:, -1] = torch.randn(32)
    assert (block(changed) - block(hidden))[:, 0].abs().max() > 1e-3, "the first sees the last"


def test_the_donors_dropout_never_acts(whole: Any, tmp_path: Path) -> None:
    block = load_donor(str(folder_of(whole, tmp_path / "donor")), "all").block
    hidden = torch.randn(2, 9, 32)
    assert torch.equal(block.train()(hidden), block.eval()(hidden))


def test_a_bert_that_was_a_chunked_decoder_is_an_encoder_here(tmp_path: Path) -> None:
    plain, decoder = tmp_path / "plain.json", tmp_path / "decoder.json"
    config = config_of("bert")
    plain.write_text(json.dumps(config))
    odd = {"is_decoder": True, "add_cross_attention": True, "chunk_size_feed_forward": 4}
    decoder.write_text(json.dumps(config | odd))
    hidden = torch.randn(2, 9, 32)
    expected = load_donor(f"random:{plain}").block(hidden)
    assert torch.equal(load_donor(f"random:{decoder}").block(hidden), expected)


@pytest.mark.parametrize("source", ["minilm-l6", "biobert", "clinicalbert", "biogpt"])
def test_random_weights_of_a_known_shape_begin_as_transformers_begins(source: str) -> None:
    shape = KNOWN_SHAPES[source]
    donor = load_donor(f"random:{source}")
    assert donor.layers == (shape["num_hidden_layers"] - 1,)
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    count = 4 * (width**2 + width) + 2 * width * inner + inner + width + 2 * 2 * width
    count += 2 * width if source == "biogpt" else 0  # the model's final norm
    assert sum(parameter.numel() for parameter in donor.block.parameters()) == count
    for name, parameter in donor.block.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name.lower():
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.01), name


def test_the_known_shapes_are_those_of_transformers_defaults() -> None:
    """BERT-base and BioGPT are what transformers builds when it is told nothing."""
    from transformers import BertConfig, BioGptConfig

    for name, default in (("biobert", BertConfig()), ("biogpt", BioGptConfig())):
        for key, value in KNOWN_SHAPES[name].items():
            assert getattr(default, key) == value


def test_minilm_is_what_transformers_computes_from_the_same_file() -> None:
    """The whole real model runs on words; its hidden states go through our block."""
    from transformers import BertModel

    folder = KNOWN_DONORS["minilm-l6"]()
    model = BertModel.from_pretrained(folder).double().eval()
    words = torch.randint(1000, 20000, (2, 12), generator=torch.Generator().manual_seed(0))
    states = model(words, output_hidden_states=True).hidden_states
    assert len(states) == 7
    whole, third = load_donor("minilm-l6", "all"), load_donor("minilm-l6", (2,))
    assert (whole.hidden_size, whole.layers) == (384, tuple(range(6)))
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(whole.block.double()(states[0]), states[6], **close)
    torch.testing.assert_close(third.block.double()(states[2]), states[3], **close)
