"""The tiny Llama that these tests load: its shape, and how Meta would have saved it."""

import json
from pathlib import Path

import torch

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
