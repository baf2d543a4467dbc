"""Donors out of GGUF files."""

from pathlib import Path

import pytest
import torch

from mvl_dist.errors import UserError
from mvl_dist.models.donors import KNOWN_DONORS, check_donor, load_donor, open_source
from mvl_dist.models.donors.gguf_file import read_header


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


def test_a_truncated_gguf_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="not a whole GGUF file"):
        open_source(str(path))


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
