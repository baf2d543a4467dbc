"""What `--compile` refuses, in one line, before anything is written."""

from __future__ import annotations

import tempfile
from pathlib import Path

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


@pytest.mark.parametrize("name", ["TORCHINDUCTOR_CACHE_DIR", "TMPDIR"])
def test_a_folder_that_the_compilers_command_would_break_at_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv(name, str(folder))
    with pytest.raises(UserError, match=r"with a space'.* set TORCHINDUCTOR_CACHE_DIR") as caught:
        check_compile(2, "cpu")
    assert "\n" not in str(caught.value)
