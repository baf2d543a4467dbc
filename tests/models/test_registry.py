"""What every model of the registry keeps to, whatever its family."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch

from mvl_dist.config import DonorConfig, LoRAConfig, ModelConfig
from mvl_dist.errors import UserError
from mvl_dist.models import MODELS, build_model, check_grid, check_model_name
from mvl_dist.models.count import donor_parameter_names, parameter_report
from mvl_dist.models.donors import load_donor
from mvl_dist.models.empty import build_empty
from mvl_dist.models.nnunet import topology
from tests.models.test_medvisionllama import TINY

SMALL = ModelConfig(
    patch=(8, 8, 8), width=16, heads=2, depth=2, dropout=0.0, llm_position=2, features=4
)
GRID = (32, 32, 64)


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("donor") / "config.json"
    path.write_text(json.dumps(TINY))
    return f"random:{path}"


def small(name: str, shape: str, seed: int = 0, **changes: object) -> torch.nn.Module:
    config = dataclasses.replace(SMALL, name=name, **changes)
    torch.manual_seed(seed)
    donor = load_donor(shape, (-1,)) if MODELS[name].needs_donor else None
    return build_model(config, 2, 3, GRID, donor)


def first_of(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_alone_of_its_batch_and_reads_back(name: str, shape: str) -> None:
    model = small(name, shape)
    images = torch.randn(2, 2, *GRID)
    outputs = model(images)
    total = sum(o.square().mean() for o in ([outputs] if torch.is_tensor(outputs) else outputs))
    total.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, "never trained, so not to be counted as parameters"
    for p in model.parameters():  # away from LoRA's zeros
        if p.requires_grad:
            p.data += 0.01 * torch.randn_like(p)
    model.eval()
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 3, *GRID)
        # No batch statistics: a sample's logits do not depend on the others.
        torch.testing.assert_close(model(images[:1]), logits[:1], rtol=1e-4, atol=1e-4)
        again = small(name, shape, seed=1).eval()
        assert not torch.equal(again(images[:1]), logits[:1])
        saved = {n: p for n, p in model.named_parameters() if n not in donor_parameter_names(model)}
        again.load_state_dict({**saved, **dict(model.named_buffers())}, strict=False)
        assert torch.equal(again(images), logits)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_in_bfloat16_and_its_seed_decides_its_weights(name: str, shape: str) -> None:
    first, second = small(name, shape), small(name, shape)
    weights = second.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in first.state_dict().items())
    image = torch.randn(1, 2, *GRID)
    exact = first.eval()(image)
    rough = second.bfloat16().eval()(image.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert torch.isfinite(rough).all()
    assert (rough.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("name", ["transunet", "missformer", "swin_unet", "unetr", "swin_unetr"])
def test_a_corner_voxel_reaches_the_opposite_corner(name: str, shape: str) -> None:
    model = small(name, shape).double().eval()
    for parameter in model.parameters():  # fresh weights of 0.02 could round it away
        parameter.data += 0.2 * torch.randn_like(parameter)
    image = torch.randn(1, 2, *GRID, dtype=torch.float64)
    changed = image.clone()
    changed[0, :, :4, :4, :4] += torch.randn(2, 4, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        difference = (model(image) - model(changed)).abs()
    assert difference[0, :, -1, -1, -1].max() > 0


@pytest.mark.parametrize(
    ("name", "count", "tolerance"),
    [("vit_depth", 223.24e6, 0.01), ("vit_mlp", 220.45e6, 0.01)],
)
def test_the_grown_vits_have_the_papers_size(name: str, count: float, tolerance: float) -> None:
    model = build_empty(ModelConfig(name=name), 1, 1, (128, 128, 128))
    report = parameter_report(model)
    assert report["frozen"] == 0
    assert abs(report["trainable"] / count - 1) < tolerance


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("unetr", 93_011_153),
        ("swin_unetr", 62_186_659),
        ("nnunet", 31_190_628),
        ("unetpp", 6_979_745),
        ("transunet", 132_317_745),
        ("missformer", 65_019_377),
        ("swin_unet", 30_538_909),
    ],
)
def test_the_published_sizes_stay_what_the_docs_say(name: str, count: int) -> None:
    model = build_empty(ModelConfig(name=name), 1, 1, (128, 128, 128))
    assert parameter_report(model)["trainable"] == count


def test_linear_mappers_stand_around_a_wholly_frozen_block() -> None:
    config = ModelConfig(name="medvisionllama_linear")
    report = parameter_report(build_empty(config, 1, 1, (128, 128, 128)))
    assert report["trainable_mappers"] == 64 * 4096 + 4096 + 4096 * 64 + 64
    assert report["trainable_llm"] == 0
    assert report["frozen"] == 218_116_096


@pytest.mark.parametrize("name", ["medvisionllama", "medvisionllama_linear"])
def test_a_trained_block_has_the_same_shape_and_no_adapters(name: str, shape: str) -> None:
    frozen = small(name, shape, lora=LoRAConfig(targets=()))
    trained = small(name, shape, train_block=True)
    counts, free = parameter_report(frozen), parameter_report(trained)
    assert free["trainable_llm"] == counts["frozen_llm"]
    assert free["frozen_llm"] == 0
    assert donor_parameter_names(trained) == set()  # the checkpoint must hold it


@pytest.mark.parametrize(("layers", "count"), [((0,), 1), ((0, -1), 2), ("all", 30)])
def test_one_block_several_or_all(layers: tuple[int, ...] | str, count: int) -> None:
    donor = DonorConfig(source="smollm2-135m", layers=layers)  # type: ignore[arg-type]
    config = dataclasses.replace(SMALL, donor=donor)
    model = build_empty(config, 1, 1, GRID)
    a_layer = 3_540_672 - 576  # SmolLM2's, without the final norm
    assert parameter_report(model)["frozen_llm"] == count * a_layer + 576


# Strides and kernels as get_pool_and_conv_props of nnunetv2 2.8.1 gives them, a letter an axis:
# 2 or 1 for a stride, 3 or 1 for a kernel, coarser stages to the right.
@pytest.mark.parametrize(
    ("grid", "spacing_mm", "strides", "kernels"),
    [
        ((128, 128, 128), (1, 1, 1), "111 222 222 222 222 222", "333 333 333 333 333 333"),
        ((16, 128, 128), (5, 0.8, 0.8), "111 122 122 222 222 122", "133 133 333 333 333 333"),
        (
            (128, 128, 128),
            (5, 0.8, 0.8),
            "111 122 122 222 222 222 211",
            "133 133 333 333 333 333 333",
        ),
        ((64, 64, 32), (1, 1, 2.5), "111 221 222 222 222", "331 333 333 333 333"),
        ((32, 64, 96), (2.5, 1, 1), "111 122 222 222 222", "133 333 333 333 333"),
    ],
)
def test_nnunets_rules_are_nnunets(
    grid: tuple[int, int, int], spacing_mm: tuple[float, float, float], strides: str, kernels: str
) -> None:
    plan = topology(grid, spacing_mm)
    for found, expected in ((plan.strides, strides), (plan.kernels, kernels)):
        assert [tuple(map(int, stage)) for stage in expected.split()] == list(found)


def test_nnunet_supervises_all_but_the_two_coarsest_stages() -> None:
    config = ModelConfig(name="nnunet", features=2)
    model = build_model(config, 1, 1, (64, 64, 64)).train()
    outputs = model(torch.randn(1, 1, 64, 64, 64))
    assert len(outputs) == 3  # five stages: 64, 32, 16; not 8 and 4
    assert {tuple(o.shape) for o in outputs} == {(1, 1, 64, 64, 64)}


@pytest.mark.parametrize(
    ("name", "grid", "reason"),
    [
        ("unetr", (128, 100, 128), "axis H is 100; unetr needs a multiple of 16: 96 or 112 fits"),
        ("swin_unet", (16, 32, 32), "axis D is 16; swin_unet needs a multiple of 32: 32 fits"),
        ("unetpp", (16, 16, 16), "one voxel at its deepest stage.*make one axis 32 or more"),
    ],
)
def test_a_grid_that_does_not_fit_says_which_do(
    name: str, grid: tuple[int, int, int], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        check_grid(ModelConfig(name=name), grid)


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean swin_unet or swin_unetr"):
        check_model_name("swinunet")


def test_every_model_has_a_file_of_its_own_and_says_where_it_comes_from() -> None:
    modules = [entry.module for entry in MODELS.values()]
    assert len(set(modules)) == len(modules)
    for module in modules:
        loaded = importlib.import_module(module)
        assert loaded.__doc__
        assert Path(str(loaded.__file__)).stem == module.rsplit(".", 1)[-1]
