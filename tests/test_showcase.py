from pathlib import Path

import numpy as np
import pytest

from mvl_dist.errors import UserError
from mvl_dist.showcase import (
    Packed,
    Showcase,
    Writer,
    add_case,
    by_importance,
    chosen_by_rule,
    relative_index,
)


def masks(seed: int, shape: tuple[int, ...] = (2, 5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) > 0.5


def test_masks_come_back_as_they_were(tmp_path: Path) -> None:
    writer = Writer()
    assert add_case(writer, "a", Packed.of(masks(0)), Packed.of(masks(1)), None)
    about = {"regions": ["x", "y"], "cases": {"a": {"native_shape": [5, 6, 7]}}}
    writer.write(tmp_path / "deep" / "showcase.npz", about)
    showcase = Showcase(tmp_path / "deep" / "showcase.npz")
    for which, seed in (("predicted", 0), ("reference", 1)):
        found = showcase.masks("a", which)
        assert found is not None
        np.testing.assert_array_equal(found, masks(seed))
    assert showcase.masks("a", "nothing") is None
    assert showcase.with_images() == []


def test_a_full_file_takes_no_more_and_stays_below_its_limit(tmp_path: Path) -> None:
    writer = Writer(limit_bytes=20_000)
    noise = np.random.default_rng(0).integers(0, 255, 9_000, np.uint8)  # cannot be deflated
    assert [writer.add(f"image{index}", noise) for index in range(4)] == [True, True, False, False]
    writer.write(tmp_path / "showcase.npz", {"cases": {}})
    assert (tmp_path / "showcase.npz").stat().st_size < 21_000
    assert set(np.load(tmp_path / "showcase.npz").files) >= {"image0", "image1"}


@pytest.mark.parametrize(
    ("dice", "best", "median", "worst"),
    [
        ({"a": 0.5}, "a", "a", "a"),
        ({"a": 0.5, "b": 0.7}, "b", "a", "a"),
        ({"a": 0.9, "b": 0.1, "c": 0.5}, "a", "c", "b"),
        ({"b": 0.5, "a": 0.5, "d": 0.5, "c": 0.5}, "d", "b", "a"),  # level: by name
    ],
)
def test_cases_are_chosen_by_rule(
    dice: dict[str, float], best: str, median: str, worst: str
) -> None:
    assert chosen_by_rule(dice) == {"best": best, "median": median, "worst": worst}
    assert (
        list(dict.fromkeys((worst, best, median)))
        == by_importance(dice)[: len({best, median, worst})]
    )
    assert sorted(by_importance(dice)) == sorted(dice)


def test_a_slice_keeps_its_relative_place() -> None:
    assert [relative_index(index, 4, 8) for index in range(4)] == [1, 3, 5, 7]
    assert relative_index(99, 100, 16) == 15


def test_what_is_no_showcase_is_named(tmp_path: Path) -> None:
    (tmp_path / "showcase.npz").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"showcase\.npz"):
        Showcase(tmp_path / "showcase.npz")
