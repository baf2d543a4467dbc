from pathlib import Path

import pytest
import torch

from mvl_dist.errors import UserError
from mvl_dist.files import sha256_of
from mvl_dist.finding import find_model
from mvl_dist.postprocess import Gain, choice_of_model, choose, write_choice
from mvl_dist.tracking import Tracker
from mvl_dist.trained import load_model
from tests.saved import config, save_run

TASK = "Task93_PhantomLesion"


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output") / TASK / "vit_baseline-fold0-0123456789"
    save_run(folder, config(phantom_store, TASK))
    return folder


@pytest.fixture(scope="module")
def ids(run: Path) -> tuple[str, str]:
    """MLflow runs: one with a model, one that ended before it had any."""
    uri = f"sqlite:///{run.parents[1] / 'mlflow.db'}"
    found = []
    for name in ("whole", "ended"):
        folder = run.parents[1] / "track" / name
        folder.mkdir(parents=True)
        tracker = Tracker(folder, uri, "tests", name)
        for file in ("config.yaml", "run.json", "split.json"):
            tracker.artifact(run / file)
        if name == "whole":
            tracker.artifact(run / "best.safetensors", "model")
            chosen = choose([Gain("a", "organ", 0.8, 0.9)], [sha256_of(run / "best.safetensors")])
            write_choice(folder, chosen)
            tracker.artifact(folder / "postprocessing.json")
        tracker.close("FINISHED" if name == "whole" else "FAILED")
        found.append(tracker.run_id)
    return found[0], found[1]


def test_a_run_id_gives_the_same_model_as_the_runs_folder(
    run: Path, ids: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MVL_OUTPUT", str(run.parents[1]))
    found = find_model(ids[0])
    assert choice_of_model(found, "best.safetensors").regions == ("organ",)
    recipe, model = load_model(found)
    expected_recipe, expected = load_model(find_model(str(run)))
    assert recipe == expected_recipe
    assert recipe.normalisation["scheme"] == "ct-percentiles"
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_ids_that_lead_to_no_model_are_one_line(
    run: Path, ids: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{run.parents[1] / 'mlflow.db'}"
    for uri, run_id, reason in (
        (database, "0" * 32, "in MLflow at sqlite"),
        (database, ids[1], "has no model/best.safetensors in MLflow"),
        (f"sqlite:///{tmp_path / 'absent.db'}", ids[0], "in MLflow at sqlite.*absent.db"),
        ("http://127.0.0.1:9", ids[0], "cannot be asked"),
        ("spool:", ids[0], "names no server to ask"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=reason) as caught:
            find_model(run_id)
        assert run_id in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "absent.db").exists()


def test_folders_that_hold_no_model_are_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("config.yaml", "run.json"):
        (begun / name).write_bytes((run / name).read_bytes())
    for place, reason in (
        (tmp_path / "absent", "no such folder, and no MLflow run id"),
        (tmp_path / "empty", "config.yaml is missing"),
        (run.parents[1], f"did you mean {run}"),
        (begun, "no trained model there yet"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            find_model(str(place))
        assert str(place) in str(caught.value)
