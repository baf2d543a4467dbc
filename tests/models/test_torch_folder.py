"""pytorch_model.bin is the same donor as safetensors, however old; nothing in it is executed."""

import json
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mvl_dist import weights
from mvl_dist.errors import UserError
from mvl_dist.models.donors import check_donor, load_donor
from mvl_dist.models.donors.extract import extract

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 17,
}
Tensors = dict[str, torch.Tensor]


def state_of(model_type: str) -> Tensors:
    """Tensors of a language model with its head, as transformers names them today."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    auto = AutoModelForMaskedLM if model_type == "bert" else AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(model_type, **SIZES))
    return {
        name: torch.randn_like(t) for name, t in model.state_dict().items() if t.is_floating_point()
    }


@pytest.fixture(scope="module")
def bert() -> Tensors:
    return state_of("bert")


def folder_of(path: Path, model_type: str = "bert") -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": model_type, **SIZES}))
    return path


def as_safetensors(path: Path, tensors: Tensors, model_type: str = "bert") -> Path:
    folder = folder_of(path, model_type)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


def as_zip(path: Path, tensors: object, model_type: str = "bert") -> Path:
    folder = folder_of(path, model_type)
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def as_legacy(path: Path, tensors: object, model_type: str = "bert") -> Path:
    """As torch before 1.6 wrote it: BioBERT's and ClinicalBERT's files are that old."""
    folder = folder_of(path, model_type)
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    return folder


def bare(tensors: Tensors) -> Tensors:
    """As saved from the model without a head: no first word."""
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items()}


def old(tensors: Tensors) -> Tensors:
    """As pytorch-pretrained-bert wrote norms."""
    new = ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")
    return {name.replace(*new[0]).replace(*new[1]): tensor for name, tensor in tensors.items()}


def transposed_views(tensors: Tensors) -> Tensors:
    """As converted from TensorFlow: each matrix is a view of its transpose."""
    return {n: t.T.contiguous().T if t.ndim == 2 else t for n, t in tensors.items()}


def parameters(tensors: Tensors) -> Tensors:
    return {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}


SPELLINGS: dict[str, Callable[[Tensors], Tensors]] = {
    "as today": dict,
    "bare": bare,
    "old": old,
    "bare and old": lambda tensors: bare(old(tensors)),
    "transposed views": transposed_views,
    "parameters": parameters,
}


@pytest.mark.parametrize("write", [as_safetensors, as_zip, as_legacy])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_donor_has_one_checksum_whatever_file_and_spelling(
    spelling: str, write: Callable[[Path, Tensors], Path], bert: Tensors, tmp_path: Path
) -> None:
    expected = load_donor(str(as_safetensors(tmp_path / "today", bert)), (0, -1))
    folder = write(tmp_path / "other", SPELLINGS[spelling](bert))
    check_donor(str(folder), (0, -1))
    got = load_donor(str(folder), (0, -1))
    assert got.checksum == expected.checksum
    assert not any(parameter.requires_grad for parameter in got.block.parameters())
    small = extract(str(folder), (0, -1), tmp_path / "small")
    assert load_donor(str(small.folder), (0, -1)).checksum == expected.checksum


@pytest.mark.parametrize("model_type", ["biogpt", "llama"])
def test_the_first_word_of_a_name_is_left_out_in_any_family(
    model_type: str, tmp_path: Path
) -> None:
    tensors = state_of(model_type)
    expected = load_donor(str(as_safetensors(tmp_path / "full", tensors, model_type)), "all")
    got = load_donor(str(as_zip(tmp_path / "bare", bare(tensors), model_type)), "all")
    assert got.checksum == expected.checksum


@pytest.mark.parametrize(
    ("name", "folder"),
    [("biobert", "biobert-v1.1"), ("clinicalbert", "Bio_ClinicalBERT"), ("biogpt", "biogpt")],
)
def test_the_command_that_an_absent_donor_names_makes_it(
    name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MVL_WEIGHTS", raising=False)
    model_type = "biogpt" if name == "biogpt" else "bert"
    downloaded = as_zip(tmp_path / folder, state_of(model_type), model_type)
    with pytest.raises(UserError) as caught:
        check_donor(name, (-1,))
    command = str(caught.value).split("'mvl weights ")[1].split("'")[0]
    assert weights.main(command.split()) == 0
    assert load_donor(name).checksum == load_donor(str(downloaded)).checksum


def test_safetensors_come_first_where_both_are(bert: Tensors, tmp_path: Path) -> None:
    folder = as_safetensors(tmp_path / "both", bert)
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    check_donor(str(folder), (-1,))
    load_donor(str(folder))


def test_a_folder_without_weights_names_both_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.safetensors file and no pytorch_model\.bin"):
        check_donor(str(folder_of(tmp_path / "empty")), (-1,))


def fails_in_one_line(folder: Path, reason: str = "") -> None:
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*" + reason) as caught:
        load_donor(str(folder))
    assert "\n" not in str(caught.value)


def test_a_truncated_zip_is_found_without_torch(bert: Tensors, tmp_path: Path) -> None:
    folder = as_zip(tmp_path / "donor", bert)
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    for length in (0, 10, 1000, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"pytorch_model\.bin: damaged or not a torch"):
            check_donor(str(folder), (-1,))
    code = (
        "import sys; from mvl_dist.models.donors import check_donor\n"
        f"try: check_donor({str(folder)!r}, (-1,))\n"
        "except Exception: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_a_damaged_file_is_one_line_wherever_the_damage_is(
    write: Callable[[Path, object], Path], tmp_path: Path
) -> None:
    """Bits that flip among a tensor's values cannot be found: what loads is no failure here."""
    folder = write(tmp_path / "donor", {"bert.encoder.layer.2.x.weight": torch.zeros(4, 4)})
    file = folder / "pytorch_model.bin"
    whole, dice = file.read_bytes(), random.Random(0)
    broken = [whole[: len(whole) * n // 40] for n in range(40)]
    for _ in range(100):
        flipped = bytearray(whole)
        for _ in range(3):
            flipped[dice.randrange(len(flipped))] = dice.randrange(256)
        broken.append(bytes(flipped))
    for content in broken:
        file.write_bytes(content)
        fails_in_one_line(folder)  # also of a whole file: the layer's other tensors are not there


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (Path.touch, (Path("bomb-went-off"),))  # type: ignore[return-value]


@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_a_malicious_pickle_is_refused_and_not_run(
    write: Callable[[Path, object], Path],
    bert: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "donor", {**bert, "extra": _Bomb()})
    fails_in_one_line(folder, "refused, it holds more than plain tensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    fails_in_one_line(folder, "not a torch")
    assert not Path("bomb-went-off").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda bert: list(bert.values()), "holds a list, not named tensors"),
        (lambda bert: {**bert, "bert.encoder.layer.2.output.dense.bias": "x"}, "is a str, not a"),
        (
            lambda bert: {n: t for n, t in bert.items() if ".layer.2." not in n},
            "16 tensors of the layers asked for are not there",
        ),
    ],
)
def test_a_whole_file_with_other_things_in_it_is_one_line(
    change: Callable[[Tensors], object], reason: str, bert: Tensors, tmp_path: Path
) -> None:
    fails_in_one_line(as_zip(tmp_path / "donor", change(bert)), reason)


def test_a_pointer_of_git_lfs_is_one_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "donor")
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"not a torch zip file \(fetch it again"):
        check_donor(str(folder), (-1,))
