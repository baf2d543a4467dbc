from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from mvl_dist.augment import affine
from mvl_dist.augment.affine import paper_map, resample, strong_map

SHAPE = (20, 24, 28)
SPACING = (1.5, 1.0, 0.8)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def always(patch: pytest.MonkeyPatch, rotation: float = 1, scale: float = 1) -> None:
    patch.setattr(affine, "ROTATION_PROBABILITY", rotation)
    patch.setattr(affine, "SCALE_PROBABILITY", scale)


def in_mm(theta: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """The map on (D, H, W) in millimetres about the centre: from the result to what it shows."""
    half = (np.array(shape) * spacing)[::-1] / 2
    return (theta[:, :3].astype(np.float64) * half[:, None] / half[None, :])[::-1, ::-1]


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float]) -> torch.Tensor:
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    distance = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))
    return torch.from_numpy((distance < 30).astype(np.float32))[None, None]


def by_scipy(volume: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`matrix` on voxels (D, H, W) about the volume's centre."""
    centre = (np.array(volume.shape) - 1) / 2
    moved: np.ndarray = scipy.ndimage.affine_transform(
        volume, matrix, centre - matrix @ centre, order=1, mode="nearest"
    )
    return moved


def test_the_papers_map_is_the_one_that_earlier_runs_had() -> None:
    expected = [
        [1.0780694, -0.059924047, 0.028406793, 0],
        [0.08451974, 1.0762353, -0.05993204, 0],
        [-0.04891729, 0.08926103, 1.0779375, 0],
    ]
    np.testing.assert_array_equal(paper_map((10, 12, 14), (0, 1, 2)), np.float32(expected))


def test_the_papers_map_depends_on_seed_epoch_and_position() -> None:
    maps = {paper_map((8, 8, 8), seed).tobytes() for seed in [(0, 5, 1), (0, 6, 1), (0, 5, 2)]}
    assert len(maps) == 3


def test_the_papers_rotation_and_scale_keep_to_its_ranges() -> None:
    for position in range(200):
        theta = paper_map((10, 10, 10), (0, 0, position))[:, :3].astype(np.float64)
        scale = np.linalg.det(theta) ** (-1 / 3)
        rotation = theta * scale
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert 0.9 <= scale <= 1.1
        # Three turns of at most 5 degrees about different axes.
        assert np.degrees(np.arccos((np.trace(rotation) - 1) / 2)) <= 3 * 5.0


@pytest.mark.parametrize(
    ("draw", "spacing"),
    [
        (lambda: paper_map(SHAPE, (0, 0, 0)), (1.0, 1.0, 1.0)),
        (lambda: strong_map(SHAPE, SPACING, (0, 1, 2), generator(4)), SPACING),
    ],
    ids=["paper", "strong"],
)
def test_the_map_equals_scipys_affine_transform(
    draw: Callable[[], np.ndarray],
    spacing: tuple[float, float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always(monkeypatch)
    monkeypatch.setattr(affine, "PAPER_ROTATION_DEGREES", 20.0)
    volume = scipy.ndimage.gaussian_filter(generator(0).standard_normal(SHAPE), 2)
    theta = draw()
    image = torch.from_numpy(volume)[None, None]
    moved, _ = resample(image, torch.zeros(1, 1, *SHAPE), [theta])
    matrix = in_mm(theta, SHAPE, spacing)
    expected = by_scipy(volume, matrix * spacing / np.array(spacing)[:, None])
    inside = (slice(6, -6),) * 3
    np.testing.assert_allclose(moved[0, 0].numpy()[inside], expected[inside], atol=1e-5)


def test_places_are_those_of_torchs_affine_grid() -> None:
    theta = torch.from_numpy(generator(0).uniform(-1.5, 1.5, (3, 3, 4))).float()
    for shape in ((5, 6, 7), (1, 9, 2), (32, 16, 24)):
        expected = F.affine_grid(theta.double(), [3, 1, *shape], align_corners=False)
        found = affine.places(theta, shape)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_image_and_label_move_together() -> None:
    # The published code turned them in different planes: at 5 degrees their Dice fell to 0.86.
    mask = ball((24, 32, 28), (8, 22, 18))
    for seed in range(20):
        drawn = strong_map((24, 32, 28), SPACING, (0, 2), generator(seed))
        for theta in (paper_map((24, 32, 28), (0, 0, seed)), drawn):
            if theta is not None:
                image, target = resample(mask, mask, [theta])
                assert torch.equal(image > 0.5, target > 0.5)


def test_a_landmark_comes_to_lie_where_the_map_says(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    shape, centre = (32, 32, 32), np.array([15.5, 15.5, 15.5])
    landmark = np.array([12.0, 19.0, 17.0])
    mask = ball(shape, tuple(landmark))
    for seed in range(10):
        theta = strong_map(shape, SPACING, (2,), generator(seed))
        assert theta is not None
        _, moved = resample(mask, mask, [theta])
        offset_mm = np.linalg.solve(
            in_mm(theta, shape, SPACING), (landmark - centre) * np.array(SPACING)
        )
        expected = centre + offset_mm / SPACING
        found = scipy.ndimage.center_of_mass(moved[0, 0].numpy())
        np.testing.assert_allclose(found, expected, atol=0.15)


def test_strong_turns_and_scales_are_rigid_in_millimetres_and_within_nnunets_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always(monkeypatch)
    scales, angles = [], []
    for seed in range(300):
        theta = strong_map(SHAPE, SPACING, (), generator(seed))
        assert theta is not None
        matrix = in_mm(theta, SHAPE, SPACING)
        scale = np.linalg.det(matrix) ** (1 / 3)
        rotation = matrix / scale
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        scales.append(scale)
        angles.append(np.degrees(np.arcsin(np.abs(rotation[2, 0]))))  # of the middle turn
    assert 0.7 <= min(scales) < 0.75
    assert 1.35 < max(scales) <= 1.4
    assert 28 < max(angles) <= 30


def test_across_coarse_slices_nothing_is_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    spacing, widest = (5.0, 1.0, 1.2), 0.0
    for seed in range(100):
        theta = strong_map(SHAPE, spacing, (0,), generator(seed))
        assert theta is not None
        matrix = in_mm(theta, SHAPE, spacing)
        np.testing.assert_allclose(np.abs(matrix[0]), [1, 0, 0], atol=1e-6)
        np.testing.assert_allclose(np.abs(matrix[:, 0]), [1, 0, 0], atol=1e-6)
        widest = max(widest, np.degrees(np.arctan2(np.abs(matrix[1, 2]), matrix[1, 1])))
    assert widest > 150  # nnU-Net turns by up to 180 degrees there
    assert affine.coarse_axis((1.0, 1.0, 3.1)) == 2
    assert affine.coarse_axis((1.0, 1.0, 3.0)) is None
    assert affine.coarse_axis((0.4, 1.5, 1.5)) is None  # no single axis is coarse


def test_only_allowed_axes_are_mirrored_and_each_half_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always(monkeypatch, rotation=0, scale=0)
    image = torch.from_numpy(generator(0).standard_normal((1, 1, 6, 7, 8))).float()
    seen = {(): 0, (2,): 0, (4,): 0, (2, 4): 0}
    for seed in range(400):
        theta = strong_map((6, 7, 8), SPACING, (0, 2), generator(seed))
        resampled = image if theta is None else resample(image, image, [theta])[0]
        found = [axes for axes in seen if torch.allclose(resampled, image.flip(axes), atol=1e-4)]
        assert len(found) == 1
        moved, target = image.clone(), image.clone()
        affine.move(moved, target, {} if theta is None else {0: theta}, continues=False)
        assert torch.equal(moved, image.flip(found[0]))
        assert torch.equal(target, image.flip(found[0]))
        seen[found[0]] += 1
    assert all(60 < count < 140 for count in seen.values()), seen


def test_maps_are_drawn_as_often_as_nnunet_draws_them() -> None:
    drawn = [strong_map(SHAPE, SPACING, (), generator(seed)) for seed in range(4000)]
    maps = [in_mm(theta, SHAPE, SPACING) for theta in drawn if theta is not None]
    assert len(maps) / 4000 == pytest.approx(1 - 0.8 * 0.8, abs=0.03)
    scaled = sum(abs(np.linalg.det(matrix) - 1) > 1e-4 for matrix in maps)
    turned = sum(abs(matrix[0, 1]) > 1e-6 for matrix in maps)
    assert scaled / 4000 == pytest.approx(0.2, abs=0.03)
    assert turned / 4000 == pytest.approx(0.2, abs=0.03)


def test_masks_stay_binary_and_nothing_comes_in_from_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always(monkeypatch)
    monkeypatch.setattr(affine, "SCALE", (1.4, 1.4))
    theta = strong_map((16, 16, 16), (1.0, 1.0, 1.0), (), generator(0))
    image, moved = resample(torch.ones(1, 1, 16, 16, 16), torch.ones(1, 1, 16, 16, 16), [theta])
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    # All there is, made smaller: its volume over the cube of 1.4.
    assert float(moved.mean()) == pytest.approx(1.4**-3, abs=0.02)
    torch.testing.assert_close(image, torch.ones_like(image))  # the image's edge goes on
    identity = F.affine_grid(torch.eye(3, 4)[None], [1, 1, 16, 16, 16], align_corners=False)
    mask = torch.ones(1, 1, 16, 16, 16)
    assert torch.equal(F.grid_sample(mask, identity, align_corners=False) > 0.5, mask > 0.5)


def test_the_masks_of_a_crop_go_on_beyond_its_edge_and_those_of_a_scan_end_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shrunk to 0.8, a full mask leaves a rim that nothing is known of: a crop's goes on there."""
    always(monkeypatch, rotation=0)
    monkeypatch.setattr(affine, "SCALE", (1.25, 1.25))
    theta = strong_map(SHAPE, SPACING, (), generator(0))
    assert theta is not None
    image = target = torch.ones(1, 1, *SHAPE)
    for continues, expected in ((True, 1.0), (False, 0.8**3)):
        moved, mask = resample(image, target, [theta], continues=continues)
        assert moved.min() > 0.999
        assert abs(float(mask.mean()) - expected) < 0.1
