"""What `--compile` refuses, in one line, before anything is written."""

from __future__ import annotations

import pytest

from mvl_dist.compiling import check_compile
from mvl_dist.errors import UserError


def test_zero_3_is_refused() -> None:
    with pytest.raises(UserError, match="does not go with ZeRO-3"):
        check_compile(3, "cpu")


def test_without_a_compiler_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler") as caught:
        check_compile(2, "cpu")
    assert "\n" not in str(caught.value)
