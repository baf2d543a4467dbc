"""`mvl evaluate` on runs that lie on disk and in MLflow."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from mvl_dist import evaluate
from mvl_dist.checkpoint import BEST
from mvl_dist.ensemble import Ensemble, load_ensemble
from mvl_dist.errors import UserError
from mvl_dist.evaluation import evaluate_cases
from mvl_dist.finding import find_run
from mvl_dist.labelling import mean_probability
from mvl_dist.runs import CONFIG, load_trained
from mvl_dist.splits import make_split
from mvl_dist.statistics import out_of_fold, per_case
from mvl_dist.store import read_manifest
from mvl_dist.tracking import Tracker
from tests.servers import free_port
from tests.trained import make_run, small_config


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder of its own, without a server."""
    monkeypatch.setenv("MVL_OUTPUT", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def two_folds(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folds 0 and 1 of one model; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("folds")
    return [make_run(folder, small_config(phantom_store, fold=fold)) for fold in (0, 1)]


@pytest.fixture
def folds(two_folds: list[Path], output: Path) -> list[Path]:
    """Copies of them in the output folder."""
    return [Path(shutil.copytree(run, output / run.parent.name / run.name)) for run in two_folds]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Tracked:
    """Runs with an MLflow run each, and their database."""

    uri: str
    folder: Path
    run_id: str
    untrained: Path
    untrained_id: str


@pytest.fixture(scope="module")
def tracked(
    two_folds: list[Path], phantom_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Tracked:
    """A trained and an untrained run, with what a training sends to MLflow."""
    output = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{output / 'mlflow.db'}"
    trained = Path(shutil.copytree(two_folds[0], output / "there" / two_folds[0].name))
    untrained = make_run(output, small_config(phantom_store, fold=3), trained=False)
    ids = []
    for folder in (trained, untrained):
        tracker = Tracker(folder, uri, "test", folder.name)
        tracker.params({"data": {"task": "Task91_PhantomTumour"}, "output": "/on/another/machine"})
        for file in (CONFIG, "run.json", "split.json"):
            tracker.artifact(folder / file)
        if (folder / BEST).exists():
            tracker.artifact(folder / BEST, "model")
        assert tracker.close("FINISHED") == ""
        ids.append(tracker.run_id)
    return Tracked(uri, trained, ids[0], untrained, ids[1])


# --- what is written ---


def test_validation_cases_of_the_folds_are_each_scored_once_by_a_model_that_never_saw_them(
    folds: list[Path], phantom_store: Path
) -> None:
    evaluate.main([*map(str, folds), "--split", "validation"])
    manifest = read_manifest(phantom_store, "91")
    expected: list[str] = []
    for fold in (0, 1):
        split = make_split(tuple(manifest.cases), manifest.task.name, fold, seed=0)
        assert not set(split.validation) & set(split.train)
        expected += split.validation
    scored = [row for folder in folds for row in rows(folder / "validation_cases.csv")]
    assert sorted(per_case(out_of_fold(scored), "dice", "foreground")) == sorted(expected)


def test_what_is_printed_names_regions_grids_and_conventions(
    folds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(folds[0])]) == 0
    printed = capsys.readouterr().out
    for words in ("foreground", "whole tumour", "NSD at 2 mm", "HD95 (voxels)", "one mask empty"):
        assert words in printed
    assert str(folds[0] / "test_cases.csv") in printed


# --- ensembles ---


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_an_ensembles_logits_are_those_of_the_mean_probability(activation: str) -> None:
    logits = [3 * torch.randn(1, 3, 4, 4, 4, dtype=torch.float64) for _ in range(5)]
    mixed = mean_probability(logits, activation)
    if activation == "sigmoid":
        torch.testing.assert_close(mixed.sigmoid(), sum(x.sigmoid() for x in logits) / 5)
    else:
        torch.testing.assert_close(mixed.exp(), sum(x.softmax(1) for x in logits) / 5)
    one = mean_probability(logits[:1], "sigmoid")
    torch.testing.assert_close(one, logits[0])


def test_certain_models_do_not_make_an_infinite_logit() -> None:
    certain = [torch.full((1, 1, 2, 2, 2), value) for value in (90.0, 200.0)]
    assert mean_probability(certain, "sigmoid").isfinite().all()
    against = mean_probability([torch.full((1, 1, 1, 1, 1), v) for v in (90.0, -90.0)], "sigmoid")
    assert float(against) == pytest.approx(0, abs=1e-3)


def test_an_ensemble_scores_the_mean_of_its_folds_on_the_held_out_cases(folds: list[Path]) -> None:
    assert evaluate.main([*map(str, folds), "--ensemble"]) == 0
    (folder,) = folds[0].parent.glob("*-ensemble2-*")
    scored = rows(folder / "ensemble_test_cases.csv")
    members = json.loads((folder / "ensemble.json").read_text())["members"]
    assert members == [str(run.resolve()) for run in folds]

    models = [load_trained(run) for run in folds]
    plan = models[0][0]
    assert {row["case"] for row in scored} == set(plan.split.test)

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.models = torch.nn.ModuleList([model for _, model in models])

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            p = sum(model(image).double().sigmoid() for model in self.models) / 2
            return torch.logit(p)

    expected = evaluate_cases(Mean(), plan, plan.split.test)
    for row, wanted in zip(scored, expected, strict=True):
        assert row["fold"] == "ensemble"
        assert float(row["dice"]) == pytest.approx(wanted["dice"], abs=2e-3)
    single = evaluate_cases(models[0][1], plan, plan.split.test)
    assert [row["dice"] for row in single] != [row["dice"] for row in expected]


def test_an_ensemble_holds_the_network_once(folds: list[Path]) -> None:
    _, ensemble = load_ensemble(folds)
    _, model = load_trained(folds[0])
    assert isinstance(ensemble, Ensemble)
    assert len(list(ensemble.parameters())) == len(list(model.parameters()))


def test_runs_that_do_not_belong_together_are_no_ensemble(
    folds: list[Path], phantom_store: Path, output: Path
) -> None:
    config = small_config(phantom_store, fold=2)
    deeper = make_run(output, replace(config, model=replace(config.model, depth=3)))
    few_shot = make_run(output, replace(config, data=replace(config.data, fraction=0.5)))
    other_task = make_run(output, small_config(phantom_store, task="93"))
    for arguments, says in (
        ([folds[0], deeper], "model.depth 2 and 3"),
        ([folds[0], few_shot], "data.fraction 1.0 and 0.5"),
        ([folds[0], other_task], "data.task Task91_PhantomTumour and Task93"),
        ([folds[0], folds[0]], "given twice"),
        ([folds[0]], "there is one"),
        ([*folds, "--split", "validation"], "--ensemble is for the test cases"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            evaluate.main([*map(str, arguments), "--ensemble"])
        assert "\n" not in str(caught.value)
    assert not list(output.rglob("*ensemble*"))


# --- largest component ---


def test_the_largest_component_is_chosen_on_validation_and_applied_to_the_test(
    folds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(folds[0]), "--largest-component"])
    about = json.loads((folds[0] / "postprocessing.json").read_text())["largest_component"]
    plan, model = load_trained(folds[0])
    assert about["cases"] == len(plan.split.validation)
    assert about["dice"].keys() == {region.name for region in plan.regions}
    wanted = [r for r, (before, after) in about["dice"].items() if after > before]
    assert about["regions"] == wanted
    plain = evaluate_cases(model, plan, plan.split.test)
    cleaned = evaluate_cases(model, plan, plan.split.test, largest=wanted)
    scored = rows(folds[0] / "test_largest_component_cases.csv")
    assert [float(row["dice"]) for row in scored] == [row["dice"] for row in cleaned]
    # Drawn weights make noise, of which one component alone is another prediction.
    every = evaluate_cases(
        model, plan, plan.split.test, largest=[region.name for region in plan.regions]
    )
    assert [row["predicted_ml"] for row in every] != [row["predicted_ml"] for row in plain]
    assert "validation cases" in capsys.readouterr().out
    assert not (folds[0] / "test_cases.csv").exists()


def test_an_ensemble_chooses_on_every_folds_own_validation_cases(folds: list[Path]) -> None:
    evaluate.main([*map(str, folds), "--ensemble", "--largest-component"])
    (folder,) = folds[0].parent.glob("*-ensemble2-*")
    about = json.loads((folder / "postprocessing.json").read_text())["largest_component"]
    unseen = {case for run in folds for case in load_trained(run)[0].split.validation}
    assert about["cases"] == len(unseen)
    members = [json.loads((run / "postprocessing.json").read_text()) for run in folds]
    dice = [member["largest_component"]["dice"]["edema"] for member in members]
    counts = [member["largest_component"]["cases"] for member in members]
    mean = [sum(n * d[i] for n, d in zip(counts, dice, strict=True)) / sum(counts) for i in (0, 1)]
    assert about["dice"]["edema"] == pytest.approx(mean)
    assert (folder / "ensemble_test_largest_component_cases.csv").exists()


# --- MLflow ---


def test_results_go_into_the_runs_mlflow_run_beside_what_is_there(tracked: Tracked) -> None:
    evaluate.main([str(tracked.folder), "--split", "validation"])
    evaluate.main([str(tracked.folder)])
    client = MlflowClient(tracked.uri)
    run = client.get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    scored = rows(tracked.folder / "test_cases.csv")
    dice = [float(row["dice"]) for row in scored if row["region"] == "edema"]
    assert run.data.metrics["test_dice/edema"] == pytest.approx(sum(dice) / len(dice))
    assert "validation_nsd/foreground" in run.data.metrics
    files = {item.path for item in client.list_artifacts(tracked.run_id)}
    assert files >= {"test_cases.json", "validation_cases.csv", "validation_cases.json"}
    shown = {table["path"] for table in json.loads(run.data.tags["mlflow.loggedArtifacts"])}
    assert shown >= {"test_cases.json", "validation_cases.json"}


def test_an_ensembles_table_stands_in_the_mlflow_run_of_its_members(
    tracked: Tracked, folds: list[Path]
) -> None:
    evaluate.main([str(tracked.folder), str(folds[1]), "--ensemble"])
    files = {item.path for item in MlflowClient(tracked.uri).list_artifacts(tracked.run_id)}
    assert files >= {"ensemble_test_cases.json", "ensemble_test_cases.csv"}


def test_a_run_that_is_not_on_this_machine_is_fetched_by_its_id(
    tracked: Tracked, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    evaluate.main([tracked.run_id, "--largest-component"])
    (folder,) = output.glob("from-mlflow/*/*")
    assert folder.name == tracked.folder.name
    assert (folder / "test_largest_component_cases.csv").exists()
    metrics = MlflowClient(tracked.uri).get_run(tracked.run_id).data.metrics
    assert "test_largest_component_dice/edema" in metrics
    assert find_run(tracked.run_id) == folder  # and is there from now on


def test_a_run_in_the_output_folder_is_found_by_its_id_without_a_server(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVL_OUTPUT", str(tracked.folder.parent.parent))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert find_run(tracked.run_id) == tracked.folder


def test_what_cannot_be_evaluated_is_one_line(
    tracked: Tracked, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = f"http://127.0.0.1:{free_port()}"
    for uri, run, says in (
        (tracked.uri, "0" * 32, r"no run 0{32} in .*runs or in MLflow at sqlite"),
        (tracked.uri, "no-such-run", r"no such folder, and no MLflow run id"),
        (tracked.uri, str(tracked.untrained), r"best.safetensors: no trained model there"),
        (tracked.uri, tracked.untrained_id, r"FINISHED\) has no model/best.safetensors"),
        (tracked.uri, str(tracked.folder.parent), r"not a run's folder"),
        (down, "0" * 32, r"cannot be asked for run 0{32}.*start the server"),
        ("spool:", "0" * 32, r"names no server"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=says) as caught:
            evaluate.main([run])
        assert "\n" not in str(caught.value)
    assert not list(output.glob("from-mlflow/*/*"))


def test_a_server_that_is_down_costs_no_results(
    tracked: Tracked,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(tracked.folder, output / "T" / "run"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert evaluate.main([str(folder)]) == 0
    assert (folder / "test_cases.csv").exists()
    assert f"'mvl sync {folder}' again" in capsys.readouterr().out


# --- several ranks ---


@pytest.mark.tworank
def test_two_ranks_score_every_case_once_and_one_speaks(folds: list[Path]) -> None:
    command = [sys.executable, "-m", "mvl_dist.evaluate", str(folds[0]), "--split", "validation"]
    # What torchrun sets, without the time that it takes to start.
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    first, second = (rank.communicate()[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert first.count("per case     ") == 1
    assert not second
    together = rows(folds[0] / "validation_cases.csv")
    evaluate.main([str(folds[0]), "--split", "validation"])
    assert together == rows(folds[0] / "validation_cases.csv")
