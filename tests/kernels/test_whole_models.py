"""Whole models with kernels on and off: the same curve, the same parameters, the same names."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mvl_dist import activations
from mvl_dist.compiling import compile_in_place
from mvl_dist.config import LoRAConfig, ModelConfig
from mvl_dist.errors import UserError
from mvl_dist.kernels import dispatch, layer_norm_linear
from mvl_dist.losses import dice_bce_loss
from mvl_dist.models import build_model
from mvl_dist.models.count import parameter_report
from mvl_dist.models.donors import load_donor
from mvl_dist.models.donors.llama_recomputed import recompute_mlps
from tests.kernels.checking import kept_bytes
from tests.kernels.interpreter import DEVICE

GRID = (8, 8, 12)  # 12 tokens: no multiple of a kernel's block
SMALL = ModelConfig(patch=(4, 4, 4), depth=1, dropout=0.0, llm_position=1)
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
}
# Sums are formed in another order: float32 rounding, grown over the steps.
CURVE = 2e-4


@pytest.fixture
def shape(tmp_path: Path) -> str:
    return shape_of(tmp_path)


def shape_of(folder: Path, **changes: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(TINY | changes))
    return f"random:{path}"


def build(name: str, shape: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, name=name, **changes)
    donor = load_donor(shape, "all") if name.startswith("medvisionllama") else None
    return build_model(config, 2, 1, GRID, donor).to(DEVICE).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 2, *GRID, generator=generator)
    target = (image[:, :1] + image[:, 1:] > 0.5).float()
    return image.to(DEVICE), target.to(DEVICE)


def curve(model: nn.Module, policy: str, steps: int, lr: float = 2e-3) -> list[float]:
    """Losses of a training on one batch."""
    image, target = batch()
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    with dispatch.using(policy):
        for _ in range(steps):
            adam.zero_grad()
            loss = dice_bce_loss(model(image), target)
            loss.backward()
            adam.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["vit_baseline", "medvisionllama"])
def test_a_model_learns_the_same_curve_with_kernels_on_and_off(name: str, shape: str) -> None:
    off, on = curve(build(name, shape), "torch", 4), curve(build(name, shape), "triton", 4)
    assert off[-1] < 0.95 * off[0]  # it moved
    assert on == pytest.approx(off, rel=CURVE)
    assert on != off  # other kernels have run


def test_a_model_learns_with_dropout_inside_the_kernels(shape: str) -> None:
    off = curve(build("vit_baseline", shape, dropout=0.2), "torch", 8, 5e-3)
    on = curve(build("vit_baseline", shape, dropout=0.2), "triton", 8, 5e-3)
    assert on[-1] < 0.9 * on[0]
    assert on[-1] == pytest.approx(off[-1], rel=0.2)  # other elements are dropped


def as_before(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """MedVisionLlama as it was before there were kernels, written out: transformers' and PEFT's."""

    def norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], module.weight, module.bias)

    def attend(attention: nn.Module, x: torch.Tensor) -> torch.Tensor:
        qkv = F.linear(x, attention.qkv.weight, attention.qkv.bias).reshape(
            *x.shape[:2], 3, attention.heads, -1
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=attention.dropout)
        return F.dropout(attention.projection(mixed.transpose(1, 2).flatten(2)), attention.dropout)

    x = model.vit.positions(model.vit.embedding(image))
    for number, block in enumerate(model.vit.blocks, start=1):
        x = x + attend(block.attention, norm(block.attention_norm, x))
        x = x + block.mlp(norm(block.mlp_norm, x))
        if number == model.position:
            start = hidden = model.mappers.into(x)
            ones = hidden.new_ones(1, hidden.shape[1], 64)
            for layer in model.llm.layers:
                hidden = layer(
                    hidden,
                    attention_mask=None,
                    position_embeddings=(ones, torch.zeros_like(ones)),
                    is_causal=False,
                )
            x = model.mappers.back(model.llm.norm(hidden) + start)
    return model.vit.head(x)


def test_torch_is_bit_for_bit_what_was_there_before_the_kernels(shape: str) -> None:
    image, target = batch()
    found = []
    for forward in (lambda model: model(image), lambda model: as_before(model, image)):
        model = build("medvisionllama", shape, dropout=0.2)
        torch.manual_seed(3)
        logits = forward(model)
        precise = F.binary_cross_entropy_with_logits(logits, target)
        p, t = logits.flatten(2).sigmoid(), target.flatten(2)
        dice = (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
        loss = (1 - dice).mean() + precise
        if not found:
            assert torch.equal(loss, dice_bce_loss(logits, target))
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([logits, loss, *gradients])
    assert len(found[0]) > 25
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_parameters_stay_where_they_are_and_no_frozen_byte_is_there_twice(shape: str) -> None:
    model = build("medvisionllama", shape)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    counts = parameter_report(model)
    image, _ = batch()
    with dispatch.using("triton"), torch.no_grad():
        logits = model(image)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert parameter_report(model) == counts
    attention = model.llm.layers[0].self_attn
    storages = {
        getattr(linear, "base_layer", linear).weight.untyped_storage().data_ptr()
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    }
    assert len(storages) == 1
    # What moves or copies a model takes the weights apart again, or keeps them together.
    with dispatch.using("triton"), torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(image), logits)
        model.load_state_dict({name: value + 0.01 for name, value in before.items()})
        changed = model(image)
        model.double().float()
        assert torch.equal(model(image), changed)
    assert not torch.equal(changed, logits)


@pytest.mark.parametrize(
    ("changes", "lora"),
    [
        ({"model_type": "mistral"}, ("q_proj", "v_proj")),
        ({"model_type": "qwen2"}, ("k_proj", "down_proj")),
        ({"model_type": "qwen3"}, ("gate_proj", "o_proj")),
        ({}, ()),
    ],
    ids=["mistral", "qwen2 with biases", "qwen3 with norms of q and k", "no adapters"],
)
def test_every_llama_like_family_gives_the_same_with_kernels(
    changes: dict[str, object], lora: tuple[str, ...], tmp_path: Path
) -> None:
    image, target = batch()
    found = []
    for policy in ("torch", "triton"):
        model = build(
            "medvisionllama", shape_of(tmp_path, **changes), lora=LoRAConfig(targets=lora)
        )
        torch.manual_seed(5)
        with torch.no_grad():  # adapters that do something, biases that are not 0
            for name, parameter in model.named_parameters():
                if "lora_B" in name or name.endswith("bias"):
                    parameter.normal_(0, 0.1)
        with dispatch.using(policy):
            dice_bce_loss(model(image), target).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, expected in found[0].items():
        error = (found[1][name] - expected).norm() / expected.norm()
        assert error < 1e-3, name


def test_what_the_kernels_cannot_take_is_refused_by_triton_and_run_by_auto(shape: str) -> None:
    model, (image, _) = build("medvisionllama", shape, train_block=True), batch()
    with (
        dispatch.using("triton"),
        pytest.raises(UserError, match="donor_block: its weights are trained") as caught,
    ):
        model(image)
    assert "\n" not in str(caught.value)
    with dispatch.using("auto"):
        expected = model(image)
    assert torch.equal(model(image), expected)


def test_plain_mappers_have_no_kernel_and_run_as_they_are(shape: str) -> None:
    model, (image, _) = build("medvisionllama_linear", shape), batch()
    with dispatch.using("triton"), torch.no_grad():
        on = model(image)
    torch.testing.assert_close(on, model(image), rtol=1e-4, atol=1e-5)


def test_a_shown_case_has_the_same_maps_with_kernels_on(shape: str) -> None:
    model, (image, _) = build("medvisionllama", shape).eval(), batch()
    with torch.no_grad():
        off = activations.activation_maps(model, image[0], "sigmoid")
        with dispatch.using("triton"):
            on = activations.activation_maps(model, image[0], "sigmoid")
    assert on.keys() == off.keys()
    assert all((on[name] == expected).all() for name, expected in off.items())


def test_norm_and_linear_are_one_where_their_weights_are_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[object] = []
    one = layer_norm_linear.triton_fused
    monkeypatch.setattr(layer_norm_linear, "triton_fused", lambda *a: ran.append(a) or one(*a))
    image, _ = batch()
    outputs = []
    for changes, zero_3, times in (({}, False, 1), ({}, True, 0), ({"width": 128}, False, 0)):
        model = build("vit_baseline", "", **changes)
        if zero_3:  # as DeepSpeed marks a weight that it partitions
            model.vit.blocks[0].attention.qkv.weight.ds_id = 0
        ran.clear()
        with dispatch.using("triton"), torch.no_grad():
            outputs.append(model(image))
        assert len(ran) == times
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["torch", "triton"])
def test_an_mlp_that_is_computed_again_changes_no_bit_and_keeps_its_input_alone(
    policy: str, tmp_path: Path
) -> None:
    shape = shape_of(tmp_path, intermediate_size=4096)
    (image, target), found, kept = batch(), [], []
    for again in (False, True):
        model = build("medvisionllama", shape, lora=LoRAConfig(targets=("gate_proj", "v_proj")))
        if again:
            recompute_mlps(model, 2)
        weights = tuple(model.parameters())
        with dispatch.using(policy):
            kept.append(kept_bytes(model, image, but=weights))
            dice_bce_loss(model(image), target).backward()
        found.append([p.grad for p in weights if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    wide = 2 * 12 * 4096 * 4  # two samples of 12 tokens, in float32
    assert kept[0] - kept[1] > (2 if policy == "triton" else 3) * wide


def test_a_model_without_such_an_mlp_says_so(shape: str) -> None:
    with pytest.raises(UserError, match="--recompute-mlp True: the model has no block"):
        recompute_mlps(build("vit_baseline", ""), 2)
    with pytest.raises(UserError, match="does not go with ZeRO-3"):
        recompute_mlps(build("medvisionllama", shape), 3)


@pytest.mark.parametrize("policy", ["torch", "triton"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_graphs_around_the_kernels_give_the_same_curve(
    policy: str, again: bool, shape: str
) -> None:
    curves = []
    for compiled in (False, True):
        model = build("medvisionllama", shape)
        if again:
            recompute_mlps(model, 2)
        if compiled:  # the graphs alone: inductor's code is the system test's
            compile_in_place(model, backend="aot_eager")
        curves.append(curve(model, policy, 2))
    torch._dynamo.reset()
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
