"""`mvl models`: its JSON is a contract for other programs, its table is for people."""

import json
import subprocess
import sys

import pytest

from mvl_dist.errors import UserError
from mvl_dist.model_table import main as models
from mvl_dist.models import MODELS

SMALL = ("--grid", "16", "16", "16", "--patch", "8", "8", "8")
LANGUAGE_MODELS = ("medvisionllama", "medvisionllama_linear")


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:  # type: ignore[type-arg]
    assert models(["--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_the_papers_model_at_rank_8(capsys: pytest.CaptureFixture[str]) -> None:
    lora, linear = listed(capsys, "--names", *LANGUAGE_MODELS)
    assert lora["trainable"] == 1_198_720
    assert lora["trainable_lora_in_block"] == 106_496
    assert lora["trainable_total"] == 1_198_720 + 106_496
    assert lora["frozen"] == 218_640_384
    assert lora["tflop"] == pytest.approx(2.143, abs=0.001)
    assert lora["tflop"] < lora["training_tflop"] < 3 * lora["tflop"]
    assert 2**29 < lora["peak_activation_bytes"] < 2**31
    assert lora["ms"] is None
    assert lora["paper"]["gflop"] == 0.45
    assert linear["trainable"] == linear["trainable_total"] == 1_128_000 + 528_448
    assert linear["frozen"] == 218_116_096
    assert linear["paper"]["gflop"] is None


@pytest.mark.slow
def test_every_model_of_the_registry_is_an_object_with_its_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = listed(capsys, "--grid", "64", "64", "64", "--features", "12")
    assert [one["name"] for one in found] == list(MODELS)
    for one in found:
        assert type(one["trainable"]) is type(one["frozen"]) is int, one["name"]
        assert one["trainable"] > 0
        assert one["trainable"] + one["trainable_lora_in_block"] == one["trainable_total"]
        assert (one["frozen"] > 0) == MODELS[one["name"]].needs_donor
        assert 0 < one["tflop"] < one["training_tflop"] <= 3.5 * one["tflop"]
        assert one["peak_activation_bytes"] > 64**3 * 2


def test_rank_shape_channels_and_regions_are_what_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = (*SMALL, "--channels", "4", "--regions", "3")
    block = ("--donor-shape", "smollm2-135m", "--lora-rank", "4")
    [one] = listed(capsys, "--names", "medvisionllama", *image, *block)
    tokens, patch = 8, 8**3
    vit = (4 * patch + 1) * 64 + tokens * 64 + 16 * 49_984 + 65 * 3 * patch
    mappers = 4 * 2 * (64 + 576) + 576 + 64  # adapters of both, biases
    assert one["trainable"] == vit + mappers
    assert one["trainable_lora_in_block"] == 4 * ((576 + 576) + (576 + 192))
    linears = 576 * (576 + 192 + 192 + 576) + 3 * 576 * 1536
    assert one["frozen"] == linears + 3 * 576 + 2 * 64 * 576  # norms, frozen mapper weights


def test_the_table_has_a_line_a_model_the_papers_figures_and_what_was_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert models(["--names", "vit_baseline", "medvisionllama", *SMALL, "--time", "False"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for heading in ("model", "trainable", "LoRA in block", "frozen", "TFLOP", "GiB", "ms", "paper"):
        assert heading in lines[0]
    ours, _, paper = lines[2].partition("|")
    assert ours.split()[0] == "medvisionllama"
    assert ours.split()[2:4] == ["106,496", "218,640,384"]
    assert ours.split()[-1] == "-"
    assert paper.split() == ["223.67", "5.43", "0.45", "6.48"]
    notes = "\n".join(lines[3:])
    assert "4,000 times too low" in notes
    assert "not timed" in notes


def test_the_table_is_timed_and_says_so_and_json_is_when_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert models(["--names", "vit_baseline", *SMALL]) == 0
    printed = capsys.readouterr()
    assert "timing vit_baseline" in printed.err
    assert float(printed.out.splitlines()[1].partition("|")[0].split()[-1]) > 0
    assert "float32" in printed.out or "bf16" in printed.out
    [one] = listed(capsys, "--names", "vit_baseline", *SMALL, "--time", "True")
    assert one["ms"] > 0


def test_a_model_that_does_not_fit_has_the_reason_in_its_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("--names", "vit_baseline", "unetr", "--grid", "24", "24", "24")
    assert models([*names, "--time", "False"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("vit_baseline")
    reason = "--grid axis D is 24; unetr needs a multiple of 16: 16 or 32 fits"
    assert lines[2].split(maxsplit=1) == ["unetr", reason]
    assert models(["--json", *names]) == 1
    fits, does_not = json.loads(capsys.readouterr().out)
    assert fits["trainable"] > 0
    assert does_not == {"name": "unetr", "error": reason}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--names", "vit_basline"], "unknown model 'vit_basline': did you mean vit_baseline"),
        (["--names", "unetr", "--grid", "20", "16", "16"], "--grid axis D is 20; unetr needs"),
        (["--grid", "0", "16", "16"], r"--grid \(axis D\) is 0"),
        (["--patch", "8", "8", "0"], r"--patch \(axis W\) is 0"),
        (["--channels", "0"], "--channels is 0"),
        (["--regions", "-1"], "--regions is -1"),
        (["--features", "-1"], "--features must not be negative"),
        (["--lora-rank", "0"], "--lora-rank is 0"),
        (["--donor-shape", "gpt9"], "donor random:gpt9: no such shape; known: llama-3.1-8b"),
        (
            ["--names", "medvisionllama", "--donor-shape", "biobert"],
            "--lora-targets q_proj: no such linear in the donor's block",
        ),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as raised:
        models(arguments)
    assert "\n" not in str(raised.value)


def test_other_donors_shapes_are_counted_with_their_own_targets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = ("--donor-shape", "biobert", "--lora-targets", "query", "value")
    [bert] = listed(capsys, "--names", "medvisionllama", *SMALL, *wanted)
    assert bert["trainable_lora_in_block"] == 2 * 8 * (768 + 768)


def test_help_and_mistakes_need_no_torch() -> None:
    code = (
        "import sys; from mvl_dist.cli import main; "
        "assert main(['models', '--names', 'nothing']) == 1; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
