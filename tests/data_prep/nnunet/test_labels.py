"""The task's labels and regions as nnunetv2 wants them."""

from data_prep.nnunet.labels import labels_for
from mvl_dist.tasks import TASKS, Task


def test_values_are_renumbered_without_a_gap_and_brought_back() -> None:
    task = Task("Task50_Gaps", ("CT",), ((7, "lesion"), (3, "organ")), "ct", 1.0)
    labels = labels_for(task, "labels")
    assert labels.values == ((3, 1), (7, 2))
    assert labels.entries == {"background": 0, "organ": 1, "lesion": 2}
    assert labels.class_order == ()
    assert labels_for(task, "binary").values == ((7, 1), (3, 1))


def test_regions_are_painted_from_the_outside_in() -> None:
    labels = labels_for(TASKS["Task01_BrainTumour"], "regions")
    assert labels.entries == {
        "background": 0,
        "whole tumour": [1, 2, 3],
        "tumour core": [2, 3],
        "edema": 1,
        "non-enhancing tumor": 2,
        "enhancing tumour": 3,
    }
    # Heads that agree with each other give the label map back, voxel by voxel.
    assert labels.class_order == (1, 2, 1, 2, 3)
    for value in range(4):
        painted = 0
        regions = list(labels.entries.values())[1:]
        for region, paint in zip(regions, labels.class_order, strict=True):
            if value in (region if isinstance(region, list) else [region]):
                painted = paint
        assert painted == value


def test_names_that_nnunet_reserves_are_told_apart() -> None:
    task = Task("Task50_Odd", ("CT",), ((1, "ignore"), (2, "a"), (3, "a")), "ct", 1.0)
    assert labels_for(task, "labels").entries == {
        "background": 0,
        "ignore (1)": 1,
        "a": 2,
        "a (3)": 3,
    }
