"""NSD, HD95 and HD100 agree with surface-distance, MONAI and closed forms."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mvl_dist import surface_metrics
from mvl_dist.metrics import case_metrics
from mvl_dist.surface_metrics import surfel_area_table
from tests.oracles import (
    SHAPE,
    Mask,
    box,
    monai_nsd,
    random_blob,
    surface_distance_metrics,
    surface_distance_package,
)

ISOTROPIC = (1.0, 1.0, 1.0)
SPACINGS = [ISOTROPIC, (0.7, 0.7, 5.0), (2.5, 0.9, 0.8)]
SURFACE_KEYS = ("nsd", "hd95_mm", "hd100_mm")
MSD_ROOT = Path(os.environ.get("MVL_MSD_ROOT", Path(__file__).parents[2] / "shared" / "data"))
HIPPOCAMPUS = MSD_ROOT / "Task04_Hippocampus" / "labelsTr"


def single_voxel(at: tuple[int, int, int]) -> Mask:
    return box(at, (1, 1, 1))


def assert_agrees_with_surface_distance(
    prediction: Mask, reference: Mask, spacing_mm: tuple[float, ...], tolerance_mm: float
) -> None:
    ours = case_metrics(prediction, reference, spacing_mm, tolerance_mm)
    oracle = surface_distance_metrics(prediction, reference, spacing_mm, tolerance_mm)
    assert {key: ours[key] for key in SURFACE_KEYS} == pytest.approx(oracle, rel=1e-9, abs=1e-12)


PAIRS = {
    "two blobs": (random_blob(SHAPE, 1), random_blob(SHAPE, 2)),
    "a blob moved": (np.roll(random_blob(SHAPE, 3), 1, axis=0), random_blob(SHAPE, 3)),
    "rough blobs": (random_blob(SHAPE, 4, 0.8, 0.3), random_blob(SHAPE, 5, 0.8, 0.3)),
    "noise against a blob": (random_blob(SHAPE, 6, 0.1, 0.05), random_blob(SHAPE, 7)),
    "a whole volume against a corner": (np.ones(SHAPE, bool), box((0, 0, 0), (8, 8, 8))),
    "border slabs": (box((0, 0, 0), (3, 28, 20)), box((21, 0, 0), (3, 28, 20))),
    "corner boxes": (box((0, 0, 0), (8, 8, 8)), box((0, 0, 0), (8, 8, 10))),
    "single voxels": (single_voxel((0, 0, 0)), single_voxel((23, 27, 19))),
    "a voxel in a corner and a blob": (single_voxel((23, 0, 19)), random_blob(SHAPE, 8)),
}


def force(branch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have distances found by one of the two ways alone."""
    monkeypatch.setattr(surface_metrics, "KDTREE_ALWAYS_BELOW", 0)
    most = 1.1 if branch == "k-d tree" else 0.0
    monkeypatch.setattr(surface_metrics, "KDTREE_MAX_SURFEL_FRACTION", most)


@pytest.mark.parametrize("spacing_mm", [*SPACINGS, (0.7, 1.1, 5.3)])
def test_surfel_areas_equal_those_of_surface_distance_for_every_cell(
    spacing_mm: tuple[float, float, float],
) -> None:
    tables = surface_distance_package().lookup_tables
    expected = tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    np.testing.assert_allclose(surfel_area_table(spacing_mm), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("branch", ["k-d tree", "distance transform"])
@pytest.mark.parametrize("pair", PAIRS)
def test_both_ways_to_find_distances_agree_with_surface_distance(
    pair: str, branch: str, spacing_mm: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    force(branch, monkeypatch)
    for prediction, reference in (PAIRS[pair], PAIRS[pair][::-1]):
        assert_agrees_with_surface_distance(prediction, reference, spacing_mm, tolerance_mm=1.13)


@pytest.mark.parametrize(("noise", "uses_tree"), [(0.0, True), (0.05, False)])
def test_a_small_surface_takes_the_tree_and_a_noisy_one_the_distance_transform(
    noise: float, uses_tree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    tree = surface_metrics.KDTree
    monkeypatch.setattr(surface_metrics, "KDTree", lambda *a, **k: taken.append(1) or tree(*a, **k))
    organ = box((10, 10, 10), (20, 20, 20), (40, 40, 40))
    noisy = organ ^ (np.random.default_rng(0).random(organ.shape) < noise)
    case_metrics(noisy, organ, ISOTROPIC, 1.0)
    assert bool(taken) == uses_tree


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("pair", PAIRS)
def test_nsd_agrees_with_monai_subvoxels(pair: str, spacing_mm: tuple[float, ...]) -> None:
    prediction, reference = PAIRS[pair]
    nsd = case_metrics(prediction, reference, spacing_mm, 1.13)["nsd"]
    assert nsd == pytest.approx(monai_nsd(prediction, reference, spacing_mm, 1.13), abs=1e-6)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_voxel_moved_along_an_axis_is_that_far_away_in_mm(
    axis: int, spacing_mm: tuple[float, ...]
) -> None:
    there = [4, 4, 4]
    there[axis] += 6
    values = case_metrics(
        single_voxel((4, 4, 4)), single_voxel((there[0], there[1], there[2])), spacing_mm, 0.1
    )
    # Each voxel's far side is 6 voxels from the near one's far side, its near side 5.
    assert values["hd100_mm"] == pytest.approx(6 * spacing_mm[axis], rel=1e-12)
    assert values["nsd"] == 0


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_a_box_grown_on_one_side_is_off_by_the_growth_on_that_side_alone(
    spacing_mm: tuple[float, ...],
) -> None:
    reference = box((4, 4, 4), (10, 12, 8))
    values = case_metrics(box((4, 4, 4), (12, 12, 8)), reference, spacing_mm, 0.5 * spacing_mm[0])
    assert values["hd100_mm"] == pytest.approx(2 * spacing_mm[0], rel=1e-12)
    assert values["dice"] == pytest.approx(2 * 10 / (10 + 12), rel=1e-12)
    assert 0 < values["nsd"] < 1


@pytest.mark.parametrize("spacing_mm", [ISOTROPIC, (40.0, 0.7, 0.7), (0.5, 3.0, 2.0)])
def test_nsd_weighs_faces_by_their_area_in_mm2_and_not_by_voxels(
    spacing_mm: tuple[float, ...],
) -> None:
    thin, thick = (box((4, 0, 0), (n, 200, 200), (12, 200, 200)) for n in (3, 5))
    d, h, w = spacing_mm
    face, rim = 200 * h * 200 * w, 2 * 200 * d * (h + w)  # the rim of one layer of voxels
    # Slabs share one face and the rim: all 3 layers of the thin one, and 3.5 of the thick one,
    # whose surfels at the thin one's edge stand for half a layer on either side.
    expected = (2 * face + 6.5 * rim) / (4 * face + 8 * rim)
    nsd = case_metrics(thick, thin, spacing_mm, 0.1)["nsd"]
    assert nsd == pytest.approx(expected, abs=0.003)


def test_concentric_spheres_are_their_difference_of_radii_apart() -> None:
    spacing_mm = (0.5, 0.5, 0.5)
    grid = np.indices((60, 60, 60)) - 29.5
    radius_mm = np.sqrt((grid**2).sum(axis=0)) * 0.5
    small, large = radius_mm < 9, radius_mm < 12
    values = case_metrics(large, small, spacing_mm, 3.6)
    assert values["dice"] == pytest.approx(2 * 9**3 / (9**3 + 12**3), rel=0.005)
    assert values["jaccard"] == pytest.approx(9**3 / 12**3, rel=0.005)
    assert values["hd95_mm"] == pytest.approx(3, abs=0.5)
    assert values["nsd"] == 1


def test_surfels_of_a_sphere_add_up_to_little_more_than_its_area() -> None:
    grid = np.indices((60, 60, 60)) - 29.5
    codes = surface_metrics._cell_codes((grid**2).sum(axis=0) < 25**2)
    area_mm2 = surfel_area_table((2.0, 2.0, 2.0))[codes].sum()
    # Marching cubes on a binary sphere overestimates 4 pi r^2 by 9 %, as terraces do.
    assert area_mm2 / (4 * math.pi * 50**2) == pytest.approx(1.09, abs=0.01)


def test_an_object_at_the_border_scores_as_inside_a_larger_image() -> None:
    prediction, reference = PAIRS["corner boxes"]
    inside = case_metrics(np.pad(prediction, 5), np.pad(reference, 5), (0.7, 0.7, 5), 1.0)
    at_border = case_metrics(prediction, reference, (0.7, 0.7, 5), 1.0)
    assert [at_border[key] for key in SURFACE_KEYS] == [inside[key] for key in SURFACE_KEYS]
    assert case_metrics(prediction, reference, ISOTROPIC, 1.0)["nsd"] == pytest.approx(
        0.8774, abs=5e-5
    )


def test_axes_and_roles_may_be_permuted_and_mirrored() -> None:
    prediction, reference = PAIRS["rough blobs"]
    spacing_mm = (0.7, 1.1, 5.3)
    expected = case_metrics(prediction, reference, spacing_mm, 1.2)
    symmetric = ("dice", "jaccard", *SURFACE_KEYS)
    for axes in itertools.permutations(range(3)):
        p, r = (np.flip(mask.transpose(axes), axis=1) for mask in (prediction, reference))
        turned = case_metrics(p, r, [spacing_mm[axis] for axis in axes], 1.2)
        assert turned == pytest.approx(expected, rel=1e-12)
        swapped = case_metrics(r, p, [spacing_mm[axis] for axis in axes], 1.2)
        assert [swapped[k] for k in symmetric] == pytest.approx([expected[k] for k in symmetric])


@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("spacing", [0.1, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("branch", ["k-d tree", "distance transform"])
def test_a_distance_equal_to_the_tolerance_in_decimals_is_within_it(
    steps: int, spacing: float, branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(branch, monkeypatch)
    tolerance_mm = round(steps * spacing, 10)  # 0.3, where 3 * 0.1 is 0.30000000000000004
    a, b = box((2, 2, 2), (9, 9, 9)), box((2 + steps, 2, 2), (9, 9, 9))
    spacing_mm = (spacing,) * 3
    assert case_metrics(a, b, spacing_mm, tolerance_mm)["nsd"] == 1
    assert case_metrics(a, b, spacing_mm, tolerance_mm * 0.999)["nsd"] < 1


def test_a_small_false_positive_hides_from_hd95_but_not_from_hd100() -> None:
    reference = box((2, 2, 2), (14, 14, 14))
    prediction = reference | single_voxel((22, 26, 18))
    values = case_metrics(prediction, reference, ISOTROPIC, 1.0)
    assert values["hd95_mm"] == 0
    assert values["hd100_mm"] > 10


@pytest.mark.msd
@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason=f"no real labels in {HIPPOCAMPUS}")
def test_real_hippocampi_agree_with_surface_distance() -> None:
    import nibabel

    paths = sorted(HIPPOCAMPUS.glob("[!.]*.nii.gz"))[:10]
    assert len(paths) == 10
    for index, path in enumerate(paths):
        reference = np.asarray(nibabel.load(path).dataobj) > 0
        predictions = {
            "eroded": ndimage.binary_erosion(reference),
            "dilated": ndimage.binary_dilation(reference),
            "shifted": np.roll(reference, 2, axis=index % 3),
            "noisy": reference ^ random_blob(reference.shape, index, 1.0, 0.02),
        }
        for prediction in predictions.values():
            for spacing_mm in (ISOTROPIC, (0.7, 0.7, 5.0)):
                assert_agrees_with_surface_distance(prediction, reference, spacing_mm, 1.13)
