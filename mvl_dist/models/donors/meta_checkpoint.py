"""Meta's own layout: params.json beside consolidated.00.pth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvl_dist.errors import UserError
from mvl_dist.models.donors.sources import Source, read_json, unpermute
from mvl_dist.models.donors.torch_file import check_torch_file, open_torch_file, take_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn


class MetaCheckpoint(Source):
    """Meta's consolidated.00.pth with params.json beside it."""

    NAMES = {  # noqa: RUF012
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"donor {path}: missing, though params.json is there")
        if len(list(path.parent.glob("consolidated.*.pth"))) > 1:
            raise UserError(
                f"donor {path.parent}: several consolidated.*.pth (model-parallel) are not "
                "supported; use the model's safetensors"
            )
        params = read_json(path.parent / "params.json", f"donor {path}")
        try:
            dim, multiple = int(params["dim"]), int(params["multiple_of"])
            width = int(float(params.get("ffn_dim_multiplier") or 1) * int(2 * 4 * dim / 3))
            self.config = {
                "model_type": "llama",
                "hidden_size": dim,
                "intermediate_size": -(-width // multiple) * multiple,
                "num_hidden_layers": int(params["n_layers"]),
                "num_attention_heads": int(params["n_heads"]),
                "num_key_value_heads": int(params.get("n_kv_heads") or params["n_heads"]),
                "rms_norm_eps": float(params["norm_eps"]),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"donor {path.parent / 'params.json'}: not Meta's parameters "
                f"({type(error).__name__}: {error})"
            ) from error

    def check(self, layers: Sequence[int]) -> None:
        """The zip's directory, at the file's end, must be there; its tensors are not looked at."""
        check_torch_file(self.path)

    def read(
        self, names: Mapping[str, str], seed: int, block: nn.Module
    ) -> dict[str, torch.Tensor]:
        """Read through a memory map, refusing anything that is not plain tensors."""
        wanted = {name: self._meta_name(name) for name in names.values()}
        tensors = take_tensors(self.path, open_torch_file(self.path), wanted)
        return {name: unpermute(name, tensor, self.config) for name, tensor in tensors.items()}

    def _meta_name(self, name: str) -> str:
        if name == "model.norm.weight":
            return "norm.weight"
        _, _, layer, *path, kind = name.split(".")
        return f"layers.{layer}.{self.NAMES.get('.'.join(path), '.'.join(path))}.{kind}"
