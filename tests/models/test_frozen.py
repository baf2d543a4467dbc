"""A donor's linears held in eight bits: the arithmetic, what stays as it was, what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mvl_dist import runs
from mvl_dist.config import LoRAConfig, ModelConfig
from mvl_dist.errors import UserError
from mvl_dist.export import export
from mvl_dist.kernels import dispatch
from mvl_dist.models import build_model, check_model
from mvl_dist.models.count import donor_parameter_names, parameter_report
from mvl_dist.models.donors import load_donor
from mvl_dist.models.empty import build_empty
from mvl_dist.models.frozen import EightBitLinear, check_device, check_launch
from mvl_dist.plan_memory import main as plan_memory
from mvl_dist.trained import load_model
from tests.models.test_medvisionllama import GRID, SMALL, TINY
from tests.saved import RANDOM_DONOR, config, save_run, with_donor

EIGHT_BITS = ["fp8", "int8"]
# Of a block of two layers: int8 rounds weights alone, FP8 also what they are multiplied with.
LARGEST_ERROR = {"int8": 1e-5, "fp8": 0.15}
DRAWN = 0.2  # deviation of adapters that do something


def shape_of(folder: Path, **changes: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**TINY, **changes}))
    return f"random:{path}"


def build(shape: str, precision: str, **changes: object) -> nn.Module:
    wanted = replace(SMALL, frozen_precision=precision, **changes)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return build_model(wanted, 1, 1, GRID, load_donor(shape, "all")).eval()


def with_adapters_at_work(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, DRAWN, generator=generator)
    return model


def widened(linear: EightBitLinear) -> nn.Linear:
    """The float64 linear that the bytes stand for, by their definition."""
    n, k = linear.weight.shape
    exact = nn.Linear(k, n, linear.bias is not None, dtype=torch.float64)
    kind = torch.float8_e4m3fn if linear.precision == "fp8" else torch.int8
    factors = linear.scale.view(torch.float32).double()
    exact.weight.data = linear.weight.view(kind).double() * factors
    if linear.bias is not None:
        exact.bias.data = linear.bias.detach().double()
    return exact.requires_grad_(False)


def in_float64(block: nn.Module) -> nn.Module:
    """A block with every eight-bit linear replaced by what it stands for."""
    block = copy.deepcopy(block)
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, EightBitLinear):
                setattr(parent, name, widened(child))
    return block.double()


def passes(block: nn.Module, hidden: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradient of the input, gradients of the adapters."""
    hidden = hidden.clone().requires_grad_()
    output = block(hidden)
    generator = torch.Generator().manual_seed(3)
    given = torch.randn(output.shape, generator=generator).to(output.dtype)
    trained = [p for p in block.parameters() if p.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, [hidden, *trained], given)]


@pytest.mark.parametrize("precision", EIGHT_BITS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
def test_the_block_is_that_of_the_widened_weights(
    family: str, precision: str, tmp_path: Path
) -> None:
    block = with_adapters_at_work(build(shape_of(tmp_path, model_type=family), precision)).llm
    held = [m for m in block.modules() if isinstance(m, EightBitLinear)]
    assert len(held) == 2 * 7
    hidden = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    found = passes(block, hidden)
    assert len(found) == 2 + 2 * 2 * 2  # A and B of two adapters in two layers
    exact = passes(in_float64(block), hidden.double())
    for got, right in zip(found, exact, strict=True):
        assert got.dtype == torch.float32
        error = (got.double() - right).norm() / right.norm()
        assert error < LARGEST_ERROR[precision]
        assert precision == "int8" or error > 1e-3  # products of FP8 values have run


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_bytes_and_factors_outlive_every_cast(precision: str, tmp_path: Path) -> None:
    model = build(shape_of(tmp_path), precision)
    before = copy.deepcopy(model)
    image = torch.randn(1, 1, *GRID)
    expected = model(image)
    rough = model.bfloat16()(image.bfloat16())
    assert (rough.float() - expected).norm() < 0.05 * expected.norm()
    for name, tensor in [*before.named_parameters(), *before.named_buffers()]:
        if not tensor.is_floating_point():
            now = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name]
            assert torch.equal(now, tensor), name
    assert all(p.element_size() == 1 for n, p in model.named_parameters() if "_proj.weight" in n)


@pytest.mark.parametrize("name", ["medvisionllama", "medvisionllama_linear"])
@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_counts_names_and_what_is_trained_stay(name: str, precision: str, tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    plain, held = build(shape, "model", name=name), build(shape, precision, name=name)
    assert parameter_report(held) == parameter_report(plain)
    assert donor_parameter_names(held) == donor_parameter_names(plain)
    assert held.state_dict().keys() == plain.state_dict().keys()
    weights = dict(plain.named_parameters())
    for key, parameter in held.named_parameters():
        assert parameter.requires_grad == weights[key].requires_grad
        assert parameter.shape == weights[key].shape
        same = key not in donor_parameter_names(held) or "norm" in key
        assert not same or torch.equal(parameter, weights[key])


def test_what_a_model_costs_is_counted_whatever_its_block_is_held_in() -> None:
    wanted = ModelConfig(frozen_precision="fp8")
    report = parameter_report(build_empty(wanted, 1, 1, (128, 128, 128)))
    assert report["frozen"] == 218_640_384  # as docs/models.md has it
    assert report["trainable"] == 1_198_720 + 106_496


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_a_saved_run_reads_back_and_exports_to_the_same_logits(
    precision: str, phantom_store: Path, tmp_path: Path
) -> None:
    wanted = config(phantom_store, "Task93_PhantomLesion", name="medvisionllama")
    model = with_donor(wanted.model, RANDOM_DONOR)
    model = replace(model, frozen_precision=precision, lora=LoRAConfig(targets=("query",)))  # type: ignore[arg-type]
    plan = save_run(tmp_path / "run", replace(wanted, model=model))
    image = torch.randn(1, len(plan.recipe.modalities), *plan.config.data.grid)
    with torch.no_grad():
        expected = runs.build(plan.recipe, runs.load_run_donor(plan.config)).eval()(image)
        _, trained = runs.load_trained(tmp_path / "run")
        assert torch.equal(trained(image), expected)
        export(tmp_path / "run", tmp_path / "exported", with_donor=True)
        _, exported = load_model(tmp_path / "exported")
        assert any(isinstance(m, EightBitLinear) for m in exported.modules())
        assert torch.equal(exported(image), expected)
        if precision == "fp8":  # as a MONAI bundle has it
            program = torch.export.export(exported, (image,), strict=False)
            torch.testing.assert_close(program.module()(image), expected)


def test_composed_kernels_leave_the_block_to_its_own_linears(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    model, image = build(shape, "fp8"), torch.randn(1, 1, *GRID)
    told: list[str] = []
    with torch.no_grad():
        expected = model(image)
        with dispatch.using("auto", measured=("cpu",), tell=lambda pick: told.append(str(pick))):
            assert torch.allclose(model(image), expected, rtol=1e-4, atol=1e-5)
    assert len(told) == 1
    assert "donor_block" in told[0]
    assert "held in fp8" in told[0]


# -------------------------------------------------------------------------------- what is refused


def test_a_trained_block_is_not_held_in_eight_bits() -> None:
    wanted = replace(SMALL, frozen_precision="int8", train_block=True)
    with pytest.raises(UserError, match=r"int8 holds the block in eight bits.*--train-block"):
        check_model(wanted, GRID)
    check_model(replace(wanted, name="vit_baseline"), GRID)  # which reads neither


def test_zero_3_is_refused_and_the_other_stages_are_not() -> None:
    cpu = torch.device("cpu")
    for stage in (0, 1, 2):
        check_launch("int8", stage, cpu)
    check_launch("model", 3, cpu)
    with pytest.raises(UserError, match=r"int8 does not go with ZeRO-3.*stage 0 to 2") as caught:
        check_launch("int8", 3, cpu)
    assert "\n" not in str(caught.value)


def test_fp8_needs_ada_or_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, capability = torch.device("cuda", 0), (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(UserError, match=r"NVIDIA A100 is sm_80, and FP8 needs sm_89.*use int8"):
        check_launch("fp8", 2, gpu)
    check_launch("int8", 2, gpu)
    capability = (8, 9)
    check_device("fp8", gpu)


def test_sizes_that_have_no_fp8_product_are_named(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, intermediate_size=40)
    with pytest.raises(UserError, match=r"gate_proj is 40 x 32.*multiples of 16: use int8"):
        build(shape, "fp8")
    build(shape, "int8")


def test_memory_is_not_planned_for_what_is_not_counted() -> None:
    with pytest.raises(UserError, match="--frozen-precision int8: weights are counted in"):
        plan_memory(["--frozen-precision", "int8"])
