import numpy as np
import pytest

from mvl_dist.half import to_half


def rounded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits of both conversions; every NaN counts as one."""
    ours = np.empty(values.shape, np.float16)
    with np.errstate(over="ignore"):
        to_half(values, ours)
        numpys = values.astype(np.float16)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(numpys))
    known = ~np.isnan(numpys)
    return ours.view(np.uint16)[known], numpys.view(np.uint16)[known]


def test_bits_from_the_whole_range_of_float32_round_as_numpy_rounds_them() -> None:
    values = np.arange(0, 2**32, 4999, dtype=np.uint64).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(*rounded(values))


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_ties_between_neighbours_go_to_the_even_one(step: int) -> None:
    halves = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    values = (ties.view(np.uint32) + np.uint32(step % 2**32)).view(np.float32)
    np.testing.assert_array_equal(*rounded(np.concatenate([values, -values])))


def test_a_volume_of_any_shape_is_filled_to_its_end() -> None:
    values = np.random.default_rng(0).standard_normal((3, 101, 333)).astype(np.float32)
    values[1] = 0
    np.testing.assert_array_equal(*rounded(values))
