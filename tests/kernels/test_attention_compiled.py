"""What the attention kernels compile to for an A100 and an H100: it fits, and where time goes.

A thread of a warp holds scores one by one; counts are instructions for each of them, in the loop
over whole steps. A multiprocessor starts 128 lanes of instructions a cycle and 16 of exponentials:
below 8 instructions a score the exponential is the limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.compiling import SHARED_MEMORY

Reports = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def reports() -> Reports:
    """Of all cases and tiles; or of one case, by its fields, the first tile's: kernel -> report."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.attention_compiled"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]

    def of(**fields: Any) -> dict[str, dict[str, Any]]:
        if not fields:
            return {str(number): line for number, line in enumerate(lines)}
        return {
            line["kernel"]: line
            for line in lines
            if line["first"] and all(line[name] == value for name, value in fields.items())
        }

    return of


def test_every_kernel_fits_a_multiprocessor_and_spills_nothing(reports: Reports) -> None:
    assert len(reports()) == 27 + 3 * 4
    for report in reports().values():
        assert report["shared"] <= SHARED_MEMORY[report["capability"]], report
        if report["dtype"] != "fp32" and report["first"]:  # float32 is for comparisons
            assert report["spilled"] == 0, report


def test_on_an_a100_heads_of_16_take_no_more_matrix_instructions_than_their_products(
    reports: Reports,
) -> None:
    """m16n8k16 multiplies 16 x 16 by 16 x 8, which is four scores a thread: 1/4 each product.

    Padded to 32 each would be 1/2. The row sums are a product with 8 columns: 1/8.
    """
    found = reports(capability=80, head_size=16, dtype="bf16", dropout=False)
    assert found["forward"]["HMMA"] == 2 / 4 + 1 / 8
    assert found["queries"]["HMMA"] == 3 / 4
    assert found["keys"]["HMMA"] == 4 / 4


@pytest.mark.parametrize("capability", [80, 90])
def test_heads_of_16_have_one_exponential_a_score_and_keep_below_its_time(
    reports: Reports, capability: int
) -> None:
    found = reports(capability=capability, head_size=16, dtype="bf16", dropout=False)
    # Forward: one more for each row and step, when a row's maximum grows.
    assert found["forward"]["MUFU"] == pytest.approx(1 + 1 / 16, abs=1e-3)
    assert found["queries"]["MUFU"] == found["keys"]["MUFU"] == 1
    assert found["forward"]["a_score"] < 6
    assert found["queries"]["a_score"] < 7
    assert found["keys"]["a_score"] < 8.5
    for report in found.values():
        assert "STS" not in report, "scores leave the registers"
        assert report["FFMA"] == 1


@pytest.mark.parametrize("capability", [80, 90])
def test_dropout_takes_five_instructions_more_a_score_and_pass(
    reports: Reports, capability: int
) -> None:
    case = {"capability": capability, "head_size": 16, "dtype": "bf16"}
    plain, dropped = (reports(**case, dropout=dropout) for dropout in (False, True))
    for name, most in (("forward", 5), ("queries", 5), ("keys", 6)):
        assert dropped[name]["a_score"] - plain[name]["a_score"] < most


def test_on_an_h100_the_products_are_warpgroup_instructions(reports: Reports) -> None:
    for report in reports(capability=90, head_size=128, dtype="bf16").values():
        assert "HGMMA" in report
        assert "HMMA" not in report


@pytest.mark.parametrize("capability", [80, 90])
def test_a_second_head_of_16_in_a_program_would_spill(reports: Reports, capability: int) -> None:
    """Why a program owns one head: a thread has 255 registers, and one head takes over half.

    dq alone, at 126 to 128, might hold two.
    """
    found = reports(capability=capability, head_size=16, dtype="bf16", dropout=True)
    assert found["forward"]["registers"] > 255 / 2
    assert found["keys"]["registers"] > 255 / 2
