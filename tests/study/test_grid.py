"""The paper's grid as it is counted in the paper, and a group's own study."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mvl_dist.config import RunConfig
from mvl_dist.errors import UserError
from mvl_dist.study.grid import load_study, select
from mvl_dist.study.smoke import smoke_study

REPO = Path(__file__).resolve().parents[2]
PAPER = REPO / "studies" / "paper.yaml"

OWN = """\
name: ours
preset: paper
tasks: [Task02, Task04, hippocampus]
folds: [0, 1]
tables:
  main:
    models: [vit_baseline, medvisionllama]
    fractions: [0.2, 1.0]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_the_papers_grid_has_1050_runs_and_what_tables_share_exists_once() -> None:
    study = load_study(PAPER)
    first_shown = Counter(run.tables[0][0] for run in study.runs)
    # Runs 'more' than those of the tables before: Table 2 with Figure 2 and 3, Figure 4, Table 3,
    # Table 4, Figure 5, Table 5, Table 6 of the paper.
    assert first_shown == {
        "Table 2": 2 * 10 * 5,
        "Figure 4": 2 * 2 * 10 * 5,
        "Table 3": 6 * 10 * 5,
        "Table 4": 2 * 10 * 5,
        "Figure 5": 3 * 10 * 5,
        "Table 5": 1 * 10 * 5,
        "Table 6": 3 * 10 * 5,
    }
    assert len({run.key for run in study.runs}) == len(study.runs) == 1050


def test_every_run_of_the_paper_follows_its_protocol() -> None:
    for run in load_study(PAPER).runs:
        config = run.config
        assert (config.data.grid, config.model.patch) == ((128, 128, 128), (8, 8, 8))
        assert (config.optim.lr, config.optim.batch_size, config.optim.epochs) == (2e-3, 4, 200)
        assert config.data.target == "binary"


def test_the_second_track_differs_from_the_papers_in_channels_and_regions_alone() -> None:
    def table_2(file: Path) -> list[RunConfig]:
        return [run.config for run in load_study(file).runs if run.tables[0][0] == "Table 2"]

    paper, corrected = table_2(PAPER), table_2(PAPER.with_name("corrected.yaml"))
    assert len(paper) == len(corrected) == 2 * 10 * 5
    for first, second in zip(paper, corrected, strict=True):
        assert (second.data.channels, second.data.target) == ("all", "labels")
        asked = replace(second.data, channels="first", target="binary")
        assert replace(second, data=asked, experiment="paper") == first


def test_a_group_writes_its_own_study_in_ten_lines(tmp_path: Path) -> None:
    assert len(OWN.splitlines()) <= 10
    study = load_study(write(tmp_path, OWN))
    assert len(study.runs) == 2 * 2 * 2 * 2  # models, tasks (one named twice), folds, fractions
    assert {run.config.data.task for run in study.runs} == {"Task02_Heart", "Task04_Hippocampus"}
    assert {run.config.experiment for run in study.runs} == {"ours"}


def test_smoke_keeps_the_runs_apart_and_makes_them_small() -> None:
    study = load_study(PAPER)
    smoke = smoke_study(study)
    assert len({run.key for run in smoke.runs}) == len(study.runs)
    assert {run.config.optim.epochs for run in smoke.runs} == {1}
    assert "Task04_PhantomHippocampus" in {run.config.data.task for run in smoke.runs}


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        (["table=Table 2"], 100),
        (["model=vit_baseline", "fraction=1"], 50),
        (["model=ViT-MLP,ViT-Depth", "task=Task04"], 10),
        (["table=Table 6", "fold=0", "task=hippocampus"], 4),
    ],
)
def test_conditions_choose_runs(conditions: list[str], count: int) -> None:
    assert len(select(load_study(PAPER).runs, conditions)) == count


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("table=Table 9", "no run has table 'table 9'; there are Figure 4, Figure 5, Table 2"),
        ("colour=red", "takes KEY=VALUE with a KEY of table, model"),
        ("fold", "takes KEY=VALUE"),
    ],
)
def test_a_condition_that_nothing_meets_says_what_there_is(condition: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        select(load_study(PAPER).runs, [condition])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("vit_baseline", "vit_basline", "table 'main': 'vit_basline' is no variant.*vit_baseline"),
        ("Task02", "Task22", "unknown task 'Task22'"),
        ("fractions", "fraction", "unknown key 'fraction'; known: models, tasks, folds, fractions"),
        ("preset: paper", "preset: papr", "preset 'papr': known are paper"),
        ("folds: [0, 1]", "folds: [0, 5]", "folds go from 0 to 4"),
        ("folds: [0, 1]", "folds: 3", "'folds' takes a list, not 3"),
        ("name: ours", "set: {optim: {epoch: 3}}", "unknown key 'optim.epoch'"),
        ("name: ours", "set: {data: {grid: [100, 128, 128]}}", "96 or 104 fits"),
        ("tables:", "tables: {", "not YAML"),
    ],
)
def test_a_bad_study_is_one_line(tmp_path: Path, old: str, new: str, reason: str) -> None:
    path = write(tmp_path, OWN.replace(old, new))
    with pytest.raises(UserError, match=reason) as caught:
        load_study(path)
    assert "\n" not in str(caught.value)


def test_a_missing_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_study(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("file", sorted((REPO / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_studies_of_the_project_can_be_read(file: Path) -> None:
    assert load_study(file).runs
