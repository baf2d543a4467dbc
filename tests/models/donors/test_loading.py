"""Donors as their formula and as other libraries have them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvl_dist.errors import UserError
from mvl_dist.models.donors import check_donor, load_donor
from mvl_dist.models.donors.extract import extract
from tests.models.donors.tiny import write_meta


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


def test_metas_checkpoint_is_the_same_donor(
    model: torch.nn.Module, folder: Path, tmp_path: Path
) -> None:
    meta = write_meta(model, tmp_path / "meta")
    assert load_donor(str(meta)).checksum == load_donor(str(folder)).checksum
    assert load_donor(str(meta / "consolidated.00.pth")).layers == (2,)


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


def test_checking_a_donor_is_quick() -> None:
    """Not a benchmark: far above what is measured (0.05 s), below gguf's own reader (2.8 s)."""
    check_donor("smollm2-135m", (-1,))  # imports gguf
    started = time.monotonic()
    check_donor("smollm2-135m", (-1,))
    assert time.monotonic() - started < 1.0
