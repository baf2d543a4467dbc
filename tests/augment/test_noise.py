import numpy as np
import pytest
import scipy.stats
import torch

from mvl_dist.augment.noise import normal_fields, philox

ONE, OTHER = np.array([[1, 2]]), np.array([[7, 9], [7, 10]])
CPU = torch.device("cpu")


# Random123's kat_vectors, philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            (0xFFFFFFFF, 0xFFFFFFFF),
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: str, key: tuple[int, int], expected: str
) -> None:
    words = [torch.tensor([int(word, 16)]) for word in counter.split()]
    keys = [torch.tensor([word]) for word in key]
    assert " ".join(f"{int(word):08x}" for word in philox(words, keys)) == expected


def test_the_field_is_normal_and_its_voxels_are_independent() -> None:
    field, other = normal_fields((40, 41, 43), OTHER, CPU).numpy()
    assert (field.dtype, field.shape) == (np.float32, (40, 41, 43))
    assert scipy.stats.kstest(field.ravel(), "norm").pvalue > 1e-3
    bound = 4 / np.sqrt(field.size)
    for axis in range(3):
        before, after = np.split(field[:40, :40, :42], 2, axis)
        assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < bound * 2
    for shift in range(1, 6):
        flat = field.ravel()
        assert abs(np.corrcoef(flat[shift:], flat[:-shift])[0, 1]) < bound
    assert abs(np.corrcoef(field.ravel(), other.ravel())[0, 1]) < bound


def test_the_devices_own_random_numbers_have_no_part_in_it() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = normal_fields((5, 6, 7), ONE, CPU)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(normal_fields((5, 6, 7), ONE, CPU), first)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_noise() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    there = normal_fields((32, 33, 34), OTHER, torch.device("cuda")).cpu()
    torch.testing.assert_close(there, normal_fields((32, 33, 34), OTHER, CPU), rtol=0, atol=1e-5)
