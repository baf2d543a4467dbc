"""`mvl weights`: what it writes is a donor; what goes wrong leaves nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mvl_dist import weights
from mvl_dist.cli import main
from mvl_dist.errors import UserError
from mvl_dist.models.donors import load_donor
from mvl_dist.models.donors.extract import extract

SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 17,
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(SHAPE))
    return f"random:{path}"


def folders(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir() if entry.is_dir()}


def test_the_gguf_of_smollm2_extracted_is_the_same_donor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "smollm2"
    assert weights.main(["extract", "--source", "smollm2-135m", "--output", str(output)]) == 0
    assert "layer 29 of smollm2-135m, 14.2 MB" in capsys.readouterr().out
    kept, original = load_donor(str(output)), load_donor("smollm2-135m")
    assert (kept.checksum, kept.layers, kept.hidden_size) == (original.checksum, (29,), 576)
    assert {entry.name for entry in output.iterdir()} == {
        "block.safetensors",
        "config.json",
        "source.json",
    }
    about = json.loads((output / "source.json").read_text())
    assert about == {"source": "smollm2-135m", "layers": [29], "checksum": original.checksum}


def test_several_layers_keep_their_numbers_and_order(source: str, tmp_path: Path) -> None:
    output = tmp_path / "two"
    command = ["extract", "--source", source, "--output", str(output), "--layers", "-1", "0"]
    assert weights.main(command) == 0
    assert load_donor(str(output), (-1, 0)).checksum == load_donor(source, (-1, 0)).checksum
    with pytest.raises(UserError, match=r"does not hold layer 1 \(it holds 0, 2\)"):
        weights.main(["extract", "--source", str(output), "--output", "x", "--layers", "1"])


def test_all_layers_can_be_asked_for_in_a_word(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "all"
    command = ["extract", "--source", source, "--output", str(output), "--layers", "all"]
    assert weights.main(command) == 0
    assert "layer 0, 1, 2 of random:" in capsys.readouterr().out
    assert load_donor(str(output), "all").checksum == load_donor(source, (0, 1, 2)).checksum
    extract(str(output), (-1,), tmp_path / "last")
    with pytest.raises(UserError, match=r"does not hold layer 0 \(it holds 2\)"):
        weights.main([*command[:2], str(tmp_path / "last"), *command[3:]])


def test_an_extraction_can_be_extracted_from(source: str, tmp_path: Path) -> None:
    first = extract(source, (-1,), tmp_path / "first")
    second = extract(str(first.folder), (-1,), tmp_path / "second")
    assert (second.checksum, second.layers) == (first.checksum, first.layers)


def test_a_damaged_extraction_is_not_taken_for_a_whole_one(source: str, tmp_path: Path) -> None:
    output = tmp_path / "small"
    extract(source, (-1,), output)
    block = output / "block.safetensors"
    block.write_bytes(block.read_bytes()[:-10])
    with pytest.raises(UserError, match="holds something else, or is damaged: delete it"):
        extract(source, (-1,), output)


def test_an_empty_folder_and_a_killed_runs_leftovers_are_no_obstacle(
    source: str, tmp_path: Path
) -> None:
    output = tmp_path / "small"
    output.mkdir()
    (tmp_path / ".partial-small").mkdir()
    (tmp_path / ".partial-small" / "block.safetensors").write_bytes(b"half")
    extract(source, (-1,), output)
    assert folders(tmp_path) == {"small"}
    load_donor(str(output))


@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_disk_that_fills_up_leaves_nothing_behind(
    source: str, tmp_path: Path, limit: int
) -> None:
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "import sys; sys.dont_write_bytecode = True; "
        "from mvl_dist.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["weights", "extract", "--source", source, "--output", str(tmp_path / "small")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: cannot write to")
    assert "make room" in done.stderr
    assert done.stderr.count("\n") == 1
    assert folders(tmp_path) == set()


def test_an_output_below_a_file_is_one_line(source: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        extract(source, (-1,), tmp_path / "file" / "small")


def test_the_list_says_what_is_here_and_how_to_get_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    assert weights.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "smollm2-135m: found"
    assert lines[1].startswith("llama-3.1-8b: absent;")
    assert f"--output {tmp_path}/llama-3.1-8b" in lines[1]
    assert lines[2] == "minilm-l6: found"
    assert [line.split(":")[0] for line in lines[3:]] == ["biobert", "clinicalbert", "biogpt"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--source", "smolm2"], "did you mean 'smollm2-135m'"),
        (["--source", "smollm2-135m", "--layers", "30"], "has 30 layers"),
        (["--source", "smollm2-135m", "--layers"], "no layers asked for"),
        (["--source", "random:gpt9"], "known: llama-3.1-8b, llama-3.1-70b, smollm2-135m"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "extract", *arguments, "--output", str(tmp_path / "x")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert reason in message
    assert message.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_help_list_and_mistakes_import_nothing_slow() -> None:
    code = (
        "import contextlib, sys\n"
        "from mvl_dist.cli import main\n"
        "main(['weights', 'list'])\n"
        "main(['weights', 'extract', '--source', 'gpt9', '--output', 'x'])\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['weights', 'extract', '--help'])\n"
        "sys.exit(bool({'torch', 'transformers', 'peft', 'zarr'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
