import dataclasses
import json
from pathlib import Path

import pytest

from mvl_dist.errors import UserError
from mvl_dist.tasks import TASKS, Task, load_task, resolve_task_name, task_from_plain

# As in the released dataset.json files: cases, channels, labels, tolerance in mm.
RELEASED = {
    "Task01_BrainTumour": (484, 4, 3, 5),
    "Task02_Heart": (20, 1, 1, 4),
    "Task03_Liver": (131, 1, 2, 7),
    "Task04_Hippocampus": (260, 1, 2, 1),
    "Task05_Prostate": (32, 2, 2, 4),
    "Task06_Lung": (63, 1, 1, 2),
    "Task07_Pancreas": (281, 1, 2, 5),
    "Task08_HepaticVessel": (303, 1, 2, 3),
    "Task09_Spleen": (41, 1, 1, 3),
    "Task10_Colon": (126, 1, 1, 4),
}


def test_the_table_holds_the_ten_tasks_as_released() -> None:
    table = {
        name: (t.num_training, len(t.modalities), len(t.labels), t.tolerance_mm)
        for name, t in TASKS.items()
    }
    assert table == RELEASED


def test_ct_tasks_are_normalised_as_ct_and_mri_tasks_as_mri() -> None:
    ct = {name[4:6] for name, task in TASKS.items() if task.intensity == "ct"}
    assert ct == {"03", "06", "07", "08", "09", "10"}


def test_a_task_is_mirrored_only_where_its_anatomy_allows() -> None:
    # No organ that lies on one side; never an axis that would swap two labels.
    mirrored = {name[4:6]: task.mirror_axes for name, task in TASKS.items() if task.mirror_axes}
    assert mirrored == dict.fromkeys(("01", "04", "05", "06"), ("W",))


def test_a_task_outside_the_ten_says_itself_what_may_be_mirrored(tmp_path: Path) -> None:
    folder = tmp_path / "Task50_Mouse"
    folder.mkdir()
    dataset: dict[str, object] = {"modality": {"0": "MRI"}, "labels": {"1": "tumour"}}

    def loaded() -> Task:
        (folder / "dataset.json").write_text(json.dumps(dataset))
        return load_task(folder)[0]

    assert loaded().mirror_axes == ()
    dataset["mirror_axes"] = ["W", "D"]
    assert loaded().mirror_axes == ("D", "W")
    for wrong in ("W", ["X"], [2], {"W": 1}):
        dataset["mirror_axes"] = wrong
        with pytest.raises(UserError, match=r"dataset.json: 'mirror_axes' is .* as in \[\"W\"\]"):
            loaded()


def test_a_task_written_before_there_were_mirror_axes_has_those_of_the_table() -> None:
    for task, axes in ((TASKS["Task04_Hippocampus"], ("W",)), (Task("T", (), (), "mri", 1.0), ())):
        plain = json.loads(json.dumps(dataclasses.asdict(task)))
        assert task_from_plain(plain) == task
        del plain["mirror_axes"]
        assert task_from_plain(plain).mirror_axes == axes


@pytest.mark.parametrize("name", ["Task04_Hippocampus", "task04", "04", "4", "hippocampus"])
def test_a_task_is_found_by_any_of_its_names(name: str) -> None:
    assert resolve_task_name(name) == "Task04_Hippocampus"


def test_a_mistyped_task_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"did you mean .*Task04_Hippocampus"):
        resolve_task_name("Task04_Hipocampus")


def test_a_task_outside_the_ten_is_read_from_its_json(tmp_path: Path) -> None:
    folder = tmp_path / "Task50_Mouse"
    folder.mkdir()
    dataset = {"modality": {"0": "CT"}, "labels": {"0": "background", "7": "tumour"}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    task, _ = load_task(folder)
    assert (task.intensity, task.labels, task.foreground.labels) == ("ct", ((7, "tumour"),), (7,))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "missing"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"labels": {"1": "a"}}', "needs 'modality' and 'labels'"),
        ('{"modality": {"0": "MRI"}, "labels": {"1": "a", "5": "b"}}', "lists labels"),
    ],
)
def test_a_bad_dataset_json_is_one_line_that_names_it(
    tmp_path: Path, text: str | None, reason: str
) -> None:
    folder = tmp_path / "Task04_Hippocampus"
    folder.mkdir()
    if text is not None:
        (folder / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        load_task(folder)
    assert str(folder / "dataset.json") in str(caught.value)
    assert "\n" not in str(caught.value)
