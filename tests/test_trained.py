import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvl_dist.errors import UserError
from mvl_dist.models.donors.extract import extract
from mvl_dist.runs import load_trained
from mvl_dist.trained import load_model, read_recipe
from tests.saved import RANDOM_DONOR, config, save_run, with_donor

TASK = "Task91_PhantomTumour"


def around(store: Path, donor: str, folder: Path) -> Path:
    base = config(store, TASK, name="medvisionllama")
    model = replace(with_donor(base.model, donor), lora=replace(base.model.lora, targets=()))
    save_run(folder, replace(base, model=model))
    return folder


def test_a_donor_may_lie_elsewhere_but_must_be_the_same(
    phantom_store: Path, tmp_path: Path
) -> None:
    there = extract(RANDOM_DONOR, (-1,), tmp_path / "there").folder
    run = around(phantom_store, str(there), tmp_path / "run")
    _, expected = load_trained(run)
    there.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"needs its language-model block.*--donor"):
        load_model(run)
    with pytest.raises(UserError, match=r"is not the one that .* was trained with"):
        load_model(run, donor=str(extract(RANDOM_DONOR, (-1,), tmp_path / "other", seed=1).folder))
    _, model = load_model(run, donor=str(tmp_path / "moved"))
    image = torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(image), expected(image))


def test_a_run_of_an_older_version_needs_its_store(phantom_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(phantom_store, tmp_path / "store")
    run = tmp_path / "run"
    plan = save_run(run, config(store, TASK))
    about = json.loads((run / "run.json").read_text())
    old = {key: about[key] for key in ("data_checksum", "donor_checksum")}
    (run / "run.json").write_text(json.dumps(old))
    assert read_recipe(run).normalisation == plan.manifest.normalisation
    (run / "run.json").write_text(json.dumps({**old, "data_checksum": "0"}))
    with pytest.raises(UserError, match="has changed since"):
        read_recipe(run)
    shutil.rmtree(store)
    with pytest.raises(UserError, match="needs the store of then: no store at"):
        read_recipe(run)


def test_a_damaged_description_is_one_line(phantom_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_run(run, config(phantom_store, TASK))
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "task": {"name": "x"}}))
    with pytest.raises(UserError, match=r"run\.json: damaged"):
        read_recipe(run)
    (run / "run.json").write_text("{")
    with pytest.raises(UserError, match="not a run's folder"):
        read_recipe(run)
