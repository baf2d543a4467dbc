import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from mvl_dist import augment as module
from mvl_dist.augment import augment, random_affine


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float]) -> torch.Tensor:
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    distance = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))
    return torch.from_numpy((distance < 30).astype(np.float32))[None, None]


def test_a_samples_map_depends_on_seed_epoch_and_position_alone() -> None:
    image, target = torch.randn(4, 1, 12, 12, 12), torch.ones(4, 1, 12, 12, 12)
    together, _ = augment(image, target, 0, 5, [0, 1, 2, 3])
    apart, _ = augment(image[2:], target[2:], 0, 5, [2, 3])
    torch.testing.assert_close(together[2:], apart, rtol=0, atol=0)
    other_epoch, _ = augment(image, target, 0, 6, [0, 1, 2, 3])
    assert not torch.equal(together, other_epoch)


def test_image_and_label_move_together() -> None:
    # The published code turned them in different planes: at 5 degrees their Dice fell to 0.86.
    mask = ball((24, 32, 28), (8, 22, 18))
    for position in range(20):
        image, target = augment(mask, mask, 0, 0, [position])
        assert torch.equal(image > 0.5, target > 0.5)


def test_rotation_and_scale_keep_to_the_papers_ranges() -> None:
    for position in range(200):
        theta = random_affine((10, 10, 10), (0, 0, position))[:, :3].astype(np.float64)
        scale = np.linalg.det(theta) ** (-1 / 3)
        rotation = theta * scale
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert 0.9 <= scale <= 1.1
        # Three turns of at most 5 degrees about different axes.
        assert np.degrees(np.arccos((np.trace(rotation) - 1) / 2)) <= 3 * 5.0


def test_the_map_equals_scipys_affine_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROTATION_DEGREES", 20.0)
    shape = (20, 24, 28)
    volume = scipy.ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 2)
    theta = random_affine(shape, (0, 0, 0))[:, :3].astype(np.float64)
    moved, _ = augment(torch.from_numpy(volume)[None, None], torch.zeros(1, 1, *shape), 0, 0, [0])
    # theta is in normalised (x, y, z); back to voxels (D, H, W) about the centre.
    half = np.array(shape[::-1]) / 2
    matrix = (theta * half[:, None] / half[None, :])[::-1, ::-1]
    centre = (np.array(shape) - 1) / 2
    expected = scipy.ndimage.affine_transform(
        volume, matrix, centre - matrix @ centre, order=1, mode="nearest"
    )
    inside = (slice(6, -6),) * 3
    np.testing.assert_allclose(moved[0, 0].numpy()[inside], expected[inside], atol=1e-5)


def test_masks_stay_binary_and_nothing_comes_in_from_outside() -> None:
    target = torch.ones(1, 1, 16, 16, 16)
    _, moved = augment(torch.zeros(1, 1, 16, 16, 16), target, 0, 0, [3])
    assert set(moved.unique().tolist()) <= {0.0, 1.0}
    identity = F.affine_grid(torch.eye(3, 4)[None], [1, 1, 16, 16, 16], align_corners=False)
    assert torch.equal(F.grid_sample(target, identity, align_corners=False) > 0.5, target > 0.5)
