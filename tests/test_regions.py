from __future__ import annotations

import numpy as np
import pytest

from mvl_dist.regions import pairs_to_score, scored_regions
from mvl_dist.store import regions_of
from mvl_dist.tasks import TASKS, Region, Task


def test_a_binary_model_is_scored_in_the_papers_foreground_alone() -> None:
    (region,) = scored_regions(TASKS["Task01_BrainTumour"], "binary")
    assert (region.name, region.kind, region.labels) == ("foreground", "foreground", (1, 2, 3))


@pytest.mark.parametrize("target", ["labels", "regions"])
def test_msds_labels_the_papers_foreground_and_the_unions_are_each_named(target: str) -> None:
    regions = scored_regions(TASKS["Task01_BrainTumour"], target)
    assert [(region.kind, region.labels) for region in regions] == [
        *(("label", (1,)), ("label", (2,)), ("label", (3,))),
        *(("foreground", (1, 2, 3)), ("union", (1, 2, 3)), ("union", (2, 3))),
    ]
    assert len({region.name for region in regions}) == 6


def test_a_union_is_the_models_own_mask_where_it_marks_one() -> None:
    task = TASKS["Task01_BrainTumour"]
    marked = [region.name for region in regions_of(task, "regions")]
    of = {region.name: region for region in scored_regions(task, "regions")}
    assert of["tumour core"].outputs == (marked.index("tumour core"),)
    assert of["foreground"].outputs == (marked.index("whole tumour"),)
    of = {region.name: region for region in scored_regions(task, "labels")}
    assert of["tumour core"].outputs == (1, 2)
    assert of["foreground"].outputs == (0, 1, 2)


def test_masks_are_unions_of_what_the_model_marks_and_of_label_values() -> None:
    task = Task("T", ("MRI",), ((1, "a"), (5, "b")), "mri", 1.0, 0, (Region("both", (1, 5)),))
    label = np.array([[[0, 1, 5, 5]]], np.uint8)
    predicted = np.array([[[[1, 1, 0, 0]]], [[[0, 1, 1, 0]]]], bool)
    pairs = pairs_to_score(scored_regions(task, "labels"), predicted, label)
    assert list(pairs) == ["a", "b", "foreground", "both"]
    for name, (wanted_prediction, wanted_reference) in {
        "a": ([1, 1, 0, 0], [0, 1, 0, 0]),
        "b": ([0, 1, 1, 0], [0, 0, 1, 1]),
        "foreground": ([1, 1, 1, 0], [0, 1, 1, 1]),
        "both": ([1, 1, 1, 0], [0, 1, 1, 1]),
    }.items():
        assert pairs[name][0].ravel().tolist() == [bool(x) for x in wanted_prediction]
        assert pairs[name][1].ravel().tolist() == [bool(x) for x in wanted_reference]


def test_a_label_that_is_called_foreground_stands_once() -> None:
    task = Task("T", ("MRI",), ((1, "foreground"),), "mri", 1.0)
    assert [region.kind for region in scored_regions(task, "labels")] == ["label"]
