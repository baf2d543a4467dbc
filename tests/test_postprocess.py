from __future__ import annotations

from pathlib import Path

import numpy as np

from mvl_dist.postprocess import (
    Gain,
    choose,
    combine,
    largest_component,
    read_choice,
    write_choice,
)
from tests.oracles import box


def test_only_the_largest_component_stays() -> None:
    organ, island = box((2, 2, 2), (8, 8, 8)), box((15, 15, 15), (3, 3, 3))
    np.testing.assert_array_equal(largest_component(organ | island), organ)
    np.testing.assert_array_equal(largest_component(organ), organ)
    empty = np.zeros_like(organ)
    np.testing.assert_array_equal(largest_component(empty), empty)


def test_voxels_that_share_a_corner_belong_together() -> None:
    chain = np.zeros((5, 5, 5), bool)
    chain[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = True
    apart = chain.copy()
    apart[4, 4, 4] = True
    np.testing.assert_array_equal(largest_component(apart), chain)


def test_the_mean_dice_of_the_validation_cases_decides_region_by_region() -> None:
    gains = [
        *(Gain("a", "organ", 0.80, 0.90), Gain("b", "organ", 0.85, 0.80)),
        *(Gain("a", "lesion", 0.50, 0.30), Gain("b", "lesion", 0.50, 0.55)),
        *(Gain("a", "level", 0.50, 0.50), Gain("b", "level", 0.70, 0.70)),
    ]
    choice = choose(gains, ["model"])
    assert (choice.regions, choice.cases) == (("organ",), 2)
    assert np.allclose(choice.dice["lesion"], (0.5, 0.425))


def test_an_ensemble_chooses_as_if_it_saw_the_cases_of_all_folds_at_once() -> None:
    first = [
        *(Gain("a", "organ", 0.80, 0.90), Gain("a", "lesion", 0.5, 0.9)),
        *(Gain("b", "organ", 0.80, 0.90), Gain("b", "lesion", 0.5, 0.4)),
    ]
    second = [Gain("c", "organ", 0.90, 0.75), Gain("c", "lesion", 0.9, 0.5)]
    together = choose([*first, *second], ["m", "n"])
    combined = combine([choose(first, ["m"]), choose(second, ["n"])])
    assert combined.regions == together.regions == ("organ",)
    assert (combined.cases, combined.models) == (together.cases, together.models)
    assert np.allclose(list(combined.dice.values()), list(together.dice.values()))


def test_a_choice_is_read_back_for_its_own_models_alone(tmp_path: Path) -> None:
    choice = choose([Gain("a", "organ", 0.8, 0.9)], ["first", "second"])
    write_choice(tmp_path, choice)
    assert read_choice(tmp_path, ["first", "second"]) == choice
    assert read_choice(tmp_path, ["retrained", "second"]) is None
    assert read_choice(tmp_path / "nowhere", ["first"]) is None
