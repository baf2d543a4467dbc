import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mvl_dist.errors import UserError
from mvl_dist.kernels import dispatch
from mvl_dist.kernels.picks import Pick, cache_file

REPO = Path(__file__).resolve().parent.parent.parent


def operation(
    torch_seconds: float = 0.0, triton_seconds: float = 0.0, error: float = 0.0, cannot: str = ""
) -> ModuleType:
    """x -> 2 x in two ways that differ in how long they take; `calls` says who was asked."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * (2 + error)

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient * 2

    module = ModuleType("mvl_dist.kernels.double")
    module.calls = []  # type: ignore[attr-defined]

    def in_torch(x: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        module.calls.append("torch")
        time.sleep(torch_seconds)
        torch.rand(1)
        return 2 * x

    def in_triton(x: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        module.calls.append("triton")
        time.sleep(triton_seconds)
        if error < 0:
            raise RuntimeError("out of resource: shared memory")
        return Double.apply(x)

    module.reference = in_torch  # type: ignore[attr-defined]
    module.triton_fused = in_triton  # type: ignore[attr-defined]
    module.cannot = lambda x, dropout=0.0: cannot  # type: ignore[attr-defined]
    return module


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def auto(told: list[Pick] | None = None, **settings: object):  # type: ignore[no-untyped-def]
    tell = (lambda pick: None) if told is None else told.append
    return dispatch.using("auto", measured=("cpu",), tell=tell, **settings)


def x(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 4, requires_grad=True)


SLOW, FAST = 0.004, 0.0


def test_a_plain_import_runs_torch() -> None:
    assert dispatch.policy() == "torch"
    double = operation()
    dispatch.run(double, x())
    assert double.calls == ["torch"]


def test_auto_is_torch_on_a_cpu_and_measures_nothing() -> None:
    double = operation()
    with dispatch.using("auto"):
        dispatch.run(double, x())
    assert double.calls == ["torch"]
    assert not cache_file().exists()


@pytest.mark.parametrize(
    ("torch_seconds", "triton_seconds", "winner"), [(SLOW, FAST, "triton"), (FAST, SLOW, "torch")]
)
def test_auto_takes_the_faster_way_and_says_so_once(
    torch_seconds: float, triton_seconds: float, winner: str
) -> None:
    double, told = operation(torch_seconds, triton_seconds), list[Pick]()
    with auto(told):
        first = dispatch.run(double, x())
        double.calls.clear()
        dispatch.run(double, x())
    assert double.calls == [winner]
    assert [pick.way for pick in told] == [winner]
    assert told[0].what == "float32[3,4]"
    assert f"double: {winner} (triton " in str(told[0])
    first.sum().backward()


def test_a_trial_leaves_torchs_random_numbers_alone() -> None:
    drawn = []
    for policy in (dispatch.using("torch"), auto()):
        with policy:
            torch.manual_seed(1)
            dispatch.run(operation(triton_seconds=SLOW), x())
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"error": 0.1}, "results differ from torch's by 5.0e-02"),
        ({"error": -1.0}, "RuntimeError: out of resource: shared memory"),
        ({"cannot": "heads of 17 values"}, "heads of 17 values"),
    ],
)
def test_a_kernel_that_is_wrong_or_fails_is_not_used_however_fast(
    broken: dict[str, float], reason: str
) -> None:
    double, told = operation(torch_seconds=SLOW, **broken), list[Pick]()  # type: ignore[arg-type]
    with auto(told):
        given = x()
        assert torch.equal(dispatch.run(double, given), 2 * given)
    assert double.calls[-1] == "torch"
    assert reason in str(told[0])
    assert not cache_file().exists()  # tried again by the next run


def test_without_gradients_nothing_is_measured_and_another_batchs_pick_is_used() -> None:
    double = operation(torch_seconds=SLOW)
    with auto():
        with torch.no_grad():
            dispatch.run(double, x())
        assert double.calls == ["torch"]
        dispatch.run(double, x())
        double.calls.clear()
        with torch.no_grad():
            dispatch.run(double, x(batch=1))
        assert double.calls == ["triton"]


def test_a_later_run_finds_the_pick_in_the_users_cache() -> None:
    double = operation(torch_seconds=SLOW)
    with auto():
        dispatch.run(double, x())
    double.calls.clear()
    with auto(told := []):
        dispatch.run(double, x())
        assert double.calls == ["triton"]
        double.calls.clear()
        dispatch.run(double, x(batch=2))  # another shape is another pick
        assert len(double.calls) > 2
    assert len(told) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_a_damaged_cache_costs_a_trial_and_nothing_else(text: str) -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(text)
    with auto(told := []):
        dispatch.run(operation(torch_seconds=SLOW), x())
    assert told[0].way == "triton"


def test_triton_refuses_what_the_kernel_cannot_take_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with dispatch.using("triton"), pytest.raises(UserError, match="heads of 17 values") as caught:
        dispatch.run(operation(cannot="heads of 17 values"), x())
    assert "--kernels auto" in str(caught.value)
    assert "\n" not in str(caught.value)
    double = operation(torch_seconds=0, triton_seconds=SLOW)
    with dispatch.using("triton"):
        dispatch.run(double, x())
    assert double.calls == ["triton"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_triton_without_a_gpu_says_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="no CUDA device is visible here"):
        dispatch.configure("triton")
    assert dispatch.policy() == "torch"  # as before


def test_without_triton_all_but_triton_works_and_triton_says_what_mends_it() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from mvl_dist.kernels import dispatch, layer_norm
x, one = torch.randn(2, 3), torch.ones(3)
for policy in ("torch", "auto"):
    dispatch.configure(policy)
    print(dispatch.run(layer_norm, x, one, one, 1e-5)[0].shape)
dispatch.configure("triton")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.stdout.count("torch.Size([2, 3])") == 2
    assert "pip install -c constraints.txt triton" in done.stderr.splitlines()[-1]


def test_an_import_brings_neither_triton_nor_torchs_compiler() -> None:
    code = (
        "import sys, mvl_dist.kernels.dispatch; print({'triton', 'torch._dynamo'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


TWO_RANKS = """
import sys, time
import torch, torch.distributed as dist
from mvl_dist.distributed import from_rank_0
from mvl_dist.kernels import dispatch
from tests.kernels.test_dispatch import operation
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
# Rank 1 would pick torch by its own clock.
double = operation(*((0.004, 0.0) if rank == 0 else (0.0, 0.004)))
with dispatch.using("auto", measured=("cpu",), leads=rank == 0, share=from_rank_0) as chooser:
    dispatch.run(double, torch.randn(3, 4, requires_grad=True))
print(len(double.calls) > 1, double.calls[-1])
"""


def test_rank_0_measures_and_the_others_follow(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path / "meet")],
            cwd=REPO,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=60)[0].split() for rank in ranks]
    assert said == [["True", "triton"], ["False", "triton"]]
