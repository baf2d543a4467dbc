"""What `measure` counts, against closed forms, torch's own counter, and nets of other people."""

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mvl_dist.config import ModelConfig
from mvl_dist.models import build_model
from mvl_dist.models.count import parameter_report
from mvl_dist.models.donors import Donor, llama
from mvl_dist.models.donors.sources import KNOWN_SHAPES
from mvl_dist.models.measure import flop
from mvl_dist.models.measure.flop import tflop_per_sample, training_tflop_per_sample
from mvl_dist.models.measure.memory import peak_activation_bytes
from mvl_dist.models.measure.paper import PAPER_FIGURES
from mvl_dist.models.measure.timing import milliseconds_per_sample
from mvl_dist.models.weightless import WithoutWeights, fill_weights

PAPER_GRID = (128, 128, 128)
T = 16**3  # tokens of 8^3 voxels in 128^3
CPU = torch.device("cpu")


def empty(name: str) -> nn.Module:
    """A model at the paper's size, without weights."""
    block = llama.empty_block(KNOWN_SHAPES["llama-3.1-8b"], 1).requires_grad_(False)
    donor = Donor(block, 4096, "meta", (31,), "llama", "")
    with WithoutWeights():
        return build_model(ModelConfig(name=name), 1, 1, PAPER_GRID, donor)


def vit_flop() -> int:
    linears = 64 * 192 + 64 * 64 + 2 * 64 * 256  # q, k, v, projection, MLP of a block
    return 2 * T * (512 * 64 + 16 * linears + 64 * 512) + 16 * 4 * T * T * 64


# ------------------------------------------------------------------------------------------- FLOP


def test_the_vits_flop_is_the_hand_formulas() -> None:
    assert tflop_per_sample(empty("vit_baseline"), 1, PAPER_GRID) * 1e12 == vit_flop()


def test_the_llama_blocks_flop_is_the_closed_form() -> None:
    block = 2 * T * (218_116_096 - 3 * 4096) + 4 * T * T * 4096  # linears without the norms
    mappers = 2 * T * 2 * 64 * 4096
    counted = tflop_per_sample(empty("medvisionllama_linear"), 1, PAPER_GRID) * 1e12
    assert counted == vit_flop() + block + mappers
    assert 2.0e12 < block < 2.1e12  # 1.79 + 0.27


def test_lora_costs_its_two_products() -> None:
    lora = 2 * 8 * ((64 + 4096) * 2 + (4096 + 4096) + (4096 + 1024))
    difference = tflop_per_sample(empty("medvisionllama"), 1, PAPER_GRID) - tflop_per_sample(
        empty("medvisionllama_linear"), 1, PAPER_GRID
    )
    assert difference * 1e12 == pytest.approx(T * lora, rel=1e-6)


@pytest.mark.parametrize("name", ["vit_mlp", "vit_depth"])
def test_the_controls_have_the_papers_size(name: str) -> None:
    counts = parameter_report(empty(name))
    assert counts["trainable"] / 1e6 == pytest.approx(PAPER_FIGURES[name].parameters_m, rel=0.01)
    assert counts["frozen"] == 0


class GroupedAttention(nn.Module):
    """Attention whose key and value heads are shared by two query heads each."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = nn.Linear(8, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = image.flatten(1, 3).unflatten(-1, (1, 8))  # (1, T, 1, 8)
        q = tokens.transpose(1, 2).expand(-1, 4, -1, -1)
        kv = self.kv(tokens).transpose(1, 2).expand(-1, 2, -1, -1)
        mixed = F.scaled_dot_product_attention(
            q, kv, kv, dropout_p=0.5 if self.training else 0.0, enable_gqa=True
        )
        return mixed.sum(1).reshape(image.shape)


def test_shared_heads_cost_as_much_as_if_each_query_had_its_own() -> None:
    tokens, attention = 4 * 6, 4 * 24 * 24 * 8 * 2  # one of the products
    linear = 2 * tokens * 8 * 8
    net, grid = GroupedAttention(), (4, 6, 8)
    assert tflop_per_sample(net, 1, grid) * 1e12 == 2 * attention + linear
    # The input needs no gradient; flash attention computes the scores again in its backward.
    assert training_tflop_per_sample(net, 1, grid) * 1e12 == pytest.approx(
        (2 + 5) * attention + 2 * linear
    )


def test_a_forward_is_what_torchs_counter_sees_of_the_real_one() -> None:
    net = build_model(ModelConfig(name="vit_baseline", depth=2), 1, 2, (16, 16, 16)).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 16, 16, 16))
    assert tflop_per_sample(net, 1, (16, 16, 16)) * 1e12 == counter.get_total_flops()


class Chain(nn.Module):
    """Linears over the last axis, one after the other, or `segment` of them at a checkpoint."""

    def __init__(self, width: int, count: int, segment: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))
        self.segment = segment

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not self.segment:
            return self.run(image, 0, len(self.layers))
        for start in range(0, len(self.layers), self.segment):
            image = checkpoint(self.run, image, start, start + self.segment, use_reentrant=False)
        return image

    def run(self, image: torch.Tensor, start: int, end: int) -> torch.Tensor:
        for layer in self.layers[start:end]:
            image = layer(image)
        return image


def test_a_backward_costs_what_needs_a_gradient_and_no_more() -> None:
    once = 2 * 16 * 8 * 8
    chain = Chain(8, 3)
    # Forward 3, weight gradients 3, input gradients 2: the image needs none.
    assert training_tflop_per_sample(chain, 1, (4, 4, 8)) * 1e12 == pytest.approx(8 * once)
    chain.layers[0].requires_grad_(False)
    assert training_tflop_per_sample(chain, 1, (4, 4, 8)) * 1e12 == pytest.approx(6 * once)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
def test_convolutions_cost_the_forward_for_each_gradient(kind: type, groups: int) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv3d(1, 4, 1)
            self.second = kind(4, 8, 2, stride=2, groups=groups)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(image))

    first = 2 * 8**3 * 4
    positions = 4**3 if kind is nn.Conv3d else 8**3  # where the kernel is laid
    second = 2 * positions * (4 // groups) * 8 * 8
    assert tflop_per_sample(Two(), 1, (8, 8, 8)) * 1e12 == first + second
    both = training_tflop_per_sample(Two(), 1, (8, 8, 8)) * 1e12
    assert both == pytest.approx(2 * first + 3 * second)


# ----------------------------------------------------------------------------------------- memory

SIZE = 4 * 4 * 8  # values of the image and of each layer's output


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_chains_peak_is_every_input_and_two_gradients(dtype: torch.dtype, width: int) -> None:
    for count in (2, 5):
        # x0 ... xn, of which the last is the logits; the last layer's two gradients meet.
        expected = (count + 1 + 2) * SIZE * width
        assert peak_activation_bytes(Chain(8, count), 1, (4, 4, 8), dtype) == expected


def test_frozen_layers_keep_no_input() -> None:
    chain = Chain(8, 9)
    chain.layers[1:].requires_grad_(False)
    # Image, logits, two gradients, however many layers there are.
    assert peak_activation_bytes(chain, 1, (4, 4, 8), torch.float32) == 4 * SIZE * 4


def test_checkpointing_keeps_the_segments_inputs_and_one_segments_inside() -> None:
    # x0, x4, x8, the logits x12, x9 to x11 computed again, and two gradients.
    counted = peak_activation_bytes(Chain(8, 12, segment=4), 1, (4, 4, 8), torch.float32)
    assert counted == 9 * SIZE * 4
    assert peak_activation_bytes(Chain(8, 12), 1, (4, 4, 8), torch.float32) == 15 * SIZE * 4


def test_attention_never_stores_its_scores() -> None:
    grid = (16, 16, 8)  # 256 tokens, so 4 heads of scores are 256 KiB a copy in bfloat16
    assert peak_activation_bytes(GroupedAttention(), 1, grid, torch.bfloat16) < 4 * 256 * 256 * 2


def test_dropout_keeps_a_byte_a_value() -> None:
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Dropout(0.5))
    # Image, linear's output until it is dropped out, mask, logits; their gradient, and the
    # linear output's: the output itself has gone by then.
    values, masks = 4, 1
    counted = peak_activation_bytes(net, 1, (4, 4, 8), torch.float32)
    assert counted == (4 * values + masks) * SIZE


# ------------------------------------------------------------------- other people's nets, and ours


class TwoOutputs(nn.Module):
    """Deep supervision: a tuple of logits in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        fine, coarse = self.conv(image), self.conv(image[..., ::2])
        return (fine, coarse) if self.training else fine


def test_every_output_of_deep_supervision_is_run_backward() -> None:
    fine = 2 * 2 * 8**3
    assert tflop_per_sample(TwoOutputs(), 1, (8, 8, 8)) * 1e12 == pytest.approx(1.5 * fine)
    training = training_tflop_per_sample(TwoOutputs(), 1, (8, 8, 8)) * 1e12
    assert training == pytest.approx(3 * fine)


def monai_nets() -> dict[str, nn.Module]:
    from monai.networks.nets import UNETR, BasicUNetPlusPlus, SwinUNETR

    with WithoutWeights():
        return {
            "UNETR": UNETR(1, 2, (32, 32, 32), feature_size=4, hidden_size=48, mlp_dim=96),
            "SwinUNETR": SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1)),
            "BasicUNetPlusPlus": BasicUNetPlusPlus(3, 1, 2, features=(4, 4, 8, 8, 16, 4)),
        }


def test_monais_nets_are_counted_as_torchs_counter_sees_the_real_ones() -> None:
    for name, net in monai_nets().items():
        grid = (64, 32, 32) if name == "SwinUNETR" else (32, 32, 32)
        forward = tflop_per_sample(net, 1, grid)
        fill_weights(net, CPU, torch.float32)
        math = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), math, FlopCounterMode(display=False) as counter:
            net.eval()(torch.zeros(1, 1, *grid))
        assert forward * 1e12 == pytest.approx(counter.get_total_flops(), rel=1e-9), name


def test_counting_leaves_a_model_as_it_was() -> None:
    net = build_model(ModelConfig(name="vit_baseline", depth=1), 1, 1, (16, 16, 16)).eval()
    before = {name: p.clone() for name, p in net.named_parameters()}
    tflop_per_sample(net, 1, (16, 16, 16))
    training_tflop_per_sample(net, 1, (16, 16, 16))
    peak_activation_bytes(net, 1, (16, 16, 16), torch.bfloat16)
    assert not net.training
    for name, parameter in net.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


class Shared(nn.Module):
    """One layer under two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.tied = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.also_one, self.tied.weight = self.one, self.one.weight

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.tied(self.also_one(self.one(image)))


def test_shared_weights_are_shared_in_the_count_and_after_it() -> None:
    net, grid = Shared(), (4, 4, 8)
    weight = net.one.weight
    assert training_tflop_per_sample(net, 1, grid) * 1e12 == pytest.approx(8 * 2 * 16 * 8 * 8)
    # As three layers in a chain, and each use's part of the one gradient until it is added.
    peak = peak_activation_bytes(net, 1, grid, torch.float32)
    assert 6 * SIZE * 4 <= peak <= 6 * SIZE * 4 + 2 * 8 * 8 * 4
    assert net.one.weight is net.also_one.weight is net.tied.weight is weight
    assert weight.grad is None
    assert milliseconds_per_sample(net, 1, grid, CPU, torch.float32) > 0


def test_a_failing_model_is_left_as_it_was_too() -> None:
    net = build_model(ModelConfig(name="vit_baseline", depth=1), 1, 1, (16, 16, 16)).eval()
    with contextlib.suppress(RuntimeError):
        training_tflop_per_sample(net, 3, (16, 16, 16))
    assert not net.training


def test_a_forward_is_timed_with_weights_drawn_for_what_is_on_meta() -> None:
    with WithoutWeights():
        net = build_model(ModelConfig(name="vit_baseline", depth=1), 1, 1, (16, 16, 16))
    assert 0 < milliseconds_per_sample(net, 1, (16, 16, 16), CPU, torch.float32) < 5000
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_grouped_query_attention_counts_as_if_each_querys_head_had_its_own_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch 2.11's formulas refuse fewer heads of keys than of queries; newer ones do not."""
    query, fewer, all_heads = (2, 9, 64, 16), (2, 3, 64, 16), (2, 9, 64, 16)
    for name, ours in (
        ("sdpa_flop_count", flop._flash_forward),
        ("sdpa_backward_flop_count", flop._flash_backward),
    ):
        formula = getattr(flop, name)

        def strict(*shapes: tuple[int, ...], formula: Any = formula) -> int:
            assert len({shape[1] for shape in shapes}) == 1
            return int(formula(*shapes))

        monkeypatch.setattr(flop, name, strict)
        gradient = (query,) if "backward" in name else ()
        assert ours(*gradient, query, fewer, fewer) == formula(
            *gradient, query, all_heads, all_heads
        )
