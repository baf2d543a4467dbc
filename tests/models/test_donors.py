import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvl_dist.errors import UserError
from mvl_dist.models.donors import check_donor, load_donor, open_source
from mvl_dist.models.donors.extract import extract

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 17,
}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """A whole tiny Llama by transformers, with norms that are not 1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    whole = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}))
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 3.0)
    return whole


@pytest.fixture
def folder(model: torch.nn.Module, tmp_path: Path) -> Path:
    """The model as a Hub folder in two shards, the last layer and the norm in the second."""
    path = tmp_path / "donor"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    second = {n: t for n, t in model.state_dict().items() if ".layers.2." in n or "model.norm" in n}
    first = {n: t for n, t in model.state_dict().items() if n not in second}
    weight_map = {}
    for file, tensors in (("a.safetensors", first), ("b.safetensors", second)):
        save_file({n: t.clone() for n, t in tensors.items()}, path / file)
        weight_map |= dict.fromkeys(tensors, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def written_by_hand(state: dict[str, torch.Tensor], layer: int, x: torch.Tensor) -> torch.Tensor:
    """A Llama layer and the final norm, bidirectional and without positions, from the formulas."""
    w = {n.removeprefix(f"model.layers.{layer}."): t.double() for n, t in state.items()}

    def rms(v: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        v = v.float()  # as transformers' norm does, whatever the precision around it
        return weight * (v * torch.rsqrt(v.square().mean(-1, keepdim=True) + 1e-5)).double()

    batch, length, _ = x.shape
    h = rms(x, w["input_layernorm.weight"])
    q, k, v = (h @ w[f"self_attn.{n}_proj.weight"].T for n in "qkv")
    q, k, v = (t.reshape(batch, length, -1, 8).transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    mixed = ((q @ k.transpose(-1, -2)) / 8**0.5).softmax(-1) @ v
    x = x + mixed.transpose(1, 2).flatten(2) @ w["self_attn.o_proj.weight"].T
    h = rms(x, w["post_attention_layernorm.weight"])
    gate, up = h @ w["mlp.gate_proj.weight"].T, h @ w["mlp.up_proj.weight"].T
    x = x + (gate * gate.sigmoid() * up) @ w["mlp.down_proj.weight"].T
    return rms(x, w["model.norm.weight"])


def test_the_block_is_the_formula_bidirectional_and_without_positions(
    model: torch.nn.Module, folder: Path
) -> None:
    block = load_donor(str(folder)).block.double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    expected = written_by_hand(model.state_dict(), 2, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_the_order_of_tokens_does_not_matter(folder: Path) -> None:
    block = load_donor(str(folder), (0, 2)).block.double()
    x, order = torch.randn(1, 9, 32, dtype=torch.float64), torch.randperm(9)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-12, atol=1e-12)


def test_only_the_shard_with_the_wanted_layer_need_be_there(folder: Path) -> None:
    whole = load_donor(str(folder)).checksum
    (folder / "a.safetensors").unlink()
    assert load_donor(str(folder)).checksum == whole
    with pytest.raises(UserError, match=r"a\.safetensors"):
        check_donor(str(folder), (0,))


def test_layers_are_counted_from_either_end(folder: Path) -> None:
    assert load_donor(str(folder), (2,)).checksum == load_donor(str(folder), (-1,)).checksum
    assert load_donor(str(folder), (0, -1)).layers == (0, 2)
    assert load_donor(str(folder), (0,)).checksum != load_donor(str(folder), (1,)).checksum


def write_meta(model: torch.nn.Module, folder: Path) -> Path:
    """The model as Meta's checkpoint: its names, and q/k rows in interleaved rotary pairs."""
    folder.mkdir()
    names = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {"norm.weight": model.state_dict()["model.norm.weight"]}
    for name, tensor in model.state_dict().items():
        if ".layers." not in name:
            continue
        _, _, layer, *path, kind = name.split(".")
        part = ".".join(path)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = 4 if "q_proj" in part else 2
            # halves (2, dim/2) of each head -> pairs (dim/2, 2)
            halves = tensor.reshape(heads, 2, -1, tensor.shape[1])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        tensors[f"layers.{layer}.{names[part]}.{kind}"] = tensor.clone()
    torch.save(tensors, folder / "consolidated.00.pth")
    params = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5}
    params |= {"multiple_of": 16, "ffn_dim_multiplier": 0.5}  # 0.5 * 85 -> 42 -> 48
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def test_metas_checkpoint_is_the_same_donor(
    model: torch.nn.Module, folder: Path, tmp_path: Path
) -> None:
    meta = write_meta(model, tmp_path / "meta")
    assert load_donor(str(meta)).checksum == load_donor(str(folder)).checksum
    assert load_donor(str(meta / "consolidated.00.pth")).layers == (2,)


def test_the_gguf_of_smollm2_equals_what_transformers_reads_from_it() -> None:
    from transformers import AutoModelForCausalLM

    from mvl_dist.models.donors import KNOWN_DONORS

    path = KNOWN_DONORS["smollm2-135m"]()
    donor = load_donor("smollm2-135m")
    oracle = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).state_dict()
    mine = dict(donor.block.named_parameters())
    assert len(mine) == 10
    for inside, parameter in mine.items():
        outside = inside.replace("layers.0", "model.layers.29")
        outside = (
            outside.replace("norm.weight", "model.norm.weight") if inside[0] == "n" else outside
        )
        torch.testing.assert_close(parameter, oracle[outside].float(), rtol=0, atol=1e-6)
    assert (donor.hidden_size, donor.layers) == (576, (29,))


def test_extraction_keeps_names_layer_numbers_and_values(folder: Path, tmp_path: Path) -> None:
    done = extract(str(folder), (-1,), tmp_path / "small")
    assert load_donor(str(tmp_path / "small")).checksum == load_donor(str(folder)).checksum
    names = set(load_file(tmp_path / "small" / "block.safetensors"))
    assert "model.layers.2.self_attn.q_proj.weight" in names
    assert len(names) == 10
    assert done.layers == (2,)
    with pytest.raises(UserError, match=r"does not hold layer 0 \(it holds 2\)"):
        check_donor(str(tmp_path / "small"), (0,))
    assert extract(str(folder), (-1,), tmp_path / "small") == done  # a second time: left alone
    with pytest.raises(UserError, match="holds something else"):
        extract(str(folder), (0,), tmp_path / "small")


def test_half_precision_is_kept_as_stored(folder: Path, tmp_path: Path) -> None:
    file = folder / "b.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(file).items()}, file)
    extract(str(folder), (-1,), tmp_path / "small")
    kept = load_file(tmp_path / "small" / "block.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}


def test_random_weights_follow_their_seed() -> None:
    one, again, other = (load_donor("random:smollm2-135m", seed=s).checksum for s in (0, 0, 1))
    assert one == again != other


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


def test_missing_llama_weights_say_which_command_makes_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"mvl weights extract --source .* --output .*llama-3.1-8b"):
        check_donor("llama-3.1-8b", (-1,))


def test_a_truncated_gguf_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="not a whole GGUF file"):
        open_source(str(path))


def test_checking_a_donor_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from mvl_dist.models.donors import check_donor; "
        f"check_donor({str(folder)!r}, (-1,)); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
