"""What a MONAI bundle of ours runs with; it carries a copy of this file and of what this imports.

So a machine with MONAI, and nothing of this project, predicts as `mvl predict` does. Arrays are
(C, W, H, D) of the RAS orientation where MONAI has them, (C, D, H, W) inside the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch.export.passes import move_to_device_pass

from mvl_dist.intensity import normalise
from mvl_dist.labelling import label_map, region_logits
from mvl_dist.native_grid import to_native
from mvl_dist.resample import resample_image, shape_at

NATIVE = "native"  # what LabelMapd needs to know of the scan that ModelInputd read


class ModelInputd(MapTransform):
    """A scan in RAS, (C, W, H, D) raw intensities -> the model's input (C, D, H, W) float32."""

    def __init__(
        self,
        keys: KeysCollection,
        normalisation: Mapping[str, Any],
        channels: int,
        grid: Sequence[int] = (),
        spacing_mm: Sequence[float] = (),
    ) -> None:
        """Take the training's statistics, how many channels the model takes, and what it takes
        them at: a grid of voxels, or a voxel size along D, H, W."""
        super().__init__(keys)
        self.normalisation, self.channels = dict(normalisation), channels
        self.grid, self.spacing_mm = grid, spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise, resample, and round to float16 as the converter stores it."""
        out = dict(data)
        for key in self.keys:
            scan = out[key]
            values = np.asarray(scan, dtype=np.float32)[: self.channels].transpose(0, 3, 2, 1)
            if len(values) != self.channels or not np.isfinite(values).all():
                raise ValueError(f"{key}: takes {self.channels} channels, all of them finite")
            own_mm = scan.pixdim.tolist()[::-1]
            d, h, w = self.grid or shape_at(values.shape[1:], own_mm, self.spacing_mm)
            image = resample_image(
                normalise(np.ascontiguousarray(values), self.normalisation), (d, h, w)
            )
            out[NATIVE] = {"shape": values.shape[1:], "meta": dict(scan.meta)}
            out[key] = torch.from_numpy(image.astype(np.float16).astype(np.float32))
        return out


class LabelMapd(MapTransform):
    """A model's logits (R, D, H, W) -> a label map (1, W, H, D) over the scan in RAS."""

    def __init__(
        self,
        keys: KeysCollection,
        values: Sequence[int],
        contains: Sequence[Sequence[float]],
        activation: str,
    ) -> None:
        """Take the label values, which region each is part of (L, R), and the activation."""
        super().__init__(keys)
        self.values = torch.tensor([0, *values])
        self.contains, self.activation = torch.tensor(contains), activation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring the logits to the scan's own grid, then decide."""
        out = dict(data)
        native = out[NATIVE]
        for key in self.keys:
            logits = torch.as_tensor(out[key]).float()
            scores = region_logits(to_native(logits, native["shape"])[None], self.activation)[0]
            labels = self.values.to(scores.device)[label_map(scores, self.contains)]
            labels = labels.permute(2, 1, 0)[None].to(torch.uint8).cpu()
            out[key] = MetaTensor(labels, meta=native["meta"])
        return out


class ExportedNetwork(torch.nn.Module):
    """A network saved by torch.export: (1, C, D, H, W) -> logits (1, R, D, H, W)."""

    def __init__(self, model_file: str, device: str | torch.device = "cpu") -> None:
        super().__init__()
        program = move_to_device_pass(torch.export.load(model_file), device)
        self.network = program.module()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """One scan a call."""
        return self.network(image)

    def train(self, mode: bool = True) -> ExportedNetwork:
        """It was saved in evaluation mode and stays so; torch.export's modules refuse the call."""
        return self


class Inference:
    """What the bundle's `run` does: every scan of a dataset through the network, one by one."""

    def __init__(
        self, dataset: Any, network: torch.nn.Module, inferer: Any, postprocessing: Any, device: Any
    ) -> None:
        self.dataset, self.network, self.inferer = dataset, network, inferer
        self.postprocessing, self.device = postprocessing, device

    def run(self) -> None:
        """Predict and write all."""
        for item in self.dataset:
            with torch.no_grad():
                image = item["image"][None].to(self.device)
                item["pred"] = self.inferer(inputs=image, network=self.network)[0]
            self.postprocessing(item)
