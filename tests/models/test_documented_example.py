"""The example of docs/adding_a_model.md, run as it is printed there."""

import re
from pathlib import Path

import pytest
import torch

from mvl_dist.config import ModelConfig
from mvl_dist.losses import training_loss
from mvl_dist.models import MODELS, Entry, build_model

DOC = Path(__file__).resolve().parents[2] / "docs" / "adding_a_model.md"


def test_the_documented_model_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, line = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(file.strip().splitlines()) <= 40
    (tmp_path / "mixer.py").write_text(file)
    monkeypatch.syspath_prepend(tmp_path)
    # Beside the package's modules, so that the printed line holds as it is.
    monkeypatch.setattr("mvl_dist.models.__path__", [str(tmp_path), *_package_path()])
    monkeypatch.setitem(MODELS, "mixer", eval("{" + line + "}", {"Entry": Entry})["mixer"])
    torch.manual_seed(0)
    config = ModelConfig(name="mixer", patch=(4, 4, 4), width=16, depth=2)
    model = build_model(config, 2, 3, (8, 8, 12))
    image, target = torch.randn(2, 2, 8, 8, 12), torch.rand(2, 3, 8, 8, 12) < 0.3
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = training_loss(model(image), target, "sigmoid")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def _package_path() -> list[str]:
    import mvl_dist.models

    return list(mvl_dist.models.__path__)
