"""SwiGLU: the middle of transformers' LlamaMLP, with its input alone kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvl_dist.kernels import swiglu
from tests.kernels.checking import DTYPES, Draw, check, few, kept_bytes, on_gpu
from tests.kernels.interpreter import DEVICE


def exactly(gate_up: Tensor) -> Tensor:
    """As transformers' LlamaMLP writes it."""
    gate, up = gate_up.split(gate_up.shape[-1] // 2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def test_the_reference_is_that_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    mlp = LlamaMLP(
        LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2)
    ).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    gate_up = torch.cat([mlp.gate_proj(x), mlp.up_proj(x)], -1)
    torch.testing.assert_close(mlp.down_proj(swiglu.reference(gate_up)), mlp(x))


@few
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 1100), st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)  # fmt: skip
def test_the_kernel_is_swiglu_in_float64(
    batch: int, length: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    check(swiglu, Draw(seed, dtype).normal(batch, length, 2 * width), exact=exactly)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart(dtype: torch.dtype) -> None:
    check(swiglu, Draw(1, dtype).strided(2, 5, 66), exact=exactly)


@pytest.mark.filterwarnings("ignore:overflow")  # the interpreter's; exp is infinite there
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_gates_stay_finite(dtype: torch.dtype) -> None:
    gate_up = torch.full((2, 8), 200.0, dtype=dtype, device=DEVICE)
    gate_up[0] = -200.0
    out = swiglu.triton_fused(gate_up.requires_grad_())
    (gradient,) = torch.autograd.grad(out.sum(), gate_up)
    assert out.isfinite().all()
    assert gradient.isfinite().all()


def test_backward_may_run_twice() -> None:
    gate_up = Draw(2, torch.float32).normal(3, 40)
    out = swiglu.triton_fused(gate_up).sum()
    first, second = (torch.autograd.grad(out, gate_up, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_input_alone_is_kept_for_backward() -> None:
    gate_up = Draw(3, torch.bfloat16).normal(16, 512)

    def eager(gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up

    ours = kept_bytes(swiglu.triton_fused, gate_up)
    theirs = kept_bytes(eager, *(half.contiguous() for half in gate_up.chunk(2, -1)))
    assert ours == 2 * gate_up.numel()
    assert theirs == 1.5 * ours


def test_what_the_kernel_cannot_do_is_said() -> None:
    assert "float64" in swiglu.cannot(torch.ones(2, 4, dtype=torch.float64, device=DEVICE))
    assert "5 columns" in swiglu.cannot(torch.ones(2, 5, device=DEVICE))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_the_size_of_a_training_step(dtype: torch.dtype) -> None:
    check(swiglu, Draw(4, dtype).normal(1, 4096, 2 * 14336), exact=exactly)
