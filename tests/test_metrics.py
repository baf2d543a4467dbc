"""Overlap metrics, undefined cases and refused arguments."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from mvl_dist.metrics import case_metrics
from tests.oracles import SHAPE, Mask, box, random_blob

ISOTROPIC = (1.0, 1.0, 1.0)
EMPTY = np.zeros(SHAPE, dtype=bool)
BLOBS = (random_blob(SHAPE, 1), random_blob(SHAPE, 2))
SURFACE_KEYS = ("nsd", "hd95_mm", "hd100_mm")


def test_overlap_of_shifted_boxes_is_their_arithmetic() -> None:
    reference, prediction = box((2, 2, 2), (10, 10, 10)), box((6, 2, 2), (10, 10, 10))
    values = case_metrics(prediction, reference, ISOTROPIC, 1.0)
    n = math.prod(SHAPE)
    assert values["dice"] == pytest.approx(0.6, rel=1e-12)
    assert values["jaccard"] == pytest.approx(600 / 1400, rel=1e-12)
    assert values["sensitivity"] == pytest.approx(0.6, rel=1e-12)
    assert values["specificity"] == pytest.approx((n - 1400) / (n - 1000), rel=1e-12)


def test_dice_agrees_with_monai() -> None:
    import torch
    from monai.metrics import DiceMetric

    for seed, fraction in ((1, 0.1), (2, 0.4), (3, 0.01)):
        prediction, reference = random_blob(SHAPE, seed), random_blob(SHAPE, 9, 3.0, fraction)
        p, r = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
        expected = float(DiceMetric(include_background=True)(p, r))
        dice = case_metrics(prediction, reference, ISOTROPIC, 1.0)["dice"]
        assert dice == pytest.approx(expected, abs=1e-6)


def test_a_perfect_prediction_scores_perfectly() -> None:
    mask = random_blob(SHAPE, 1)
    values = case_metrics(mask, mask.copy(), (0.7, 0.7, 5.0), 0.0)
    perfect = dict.fromkeys(("dice", "jaccard", "sensitivity", "specificity", "nsd"), 1.0)
    volume = mask.sum() * 0.7 * 0.7 * 5.0 / 1000
    assert values == pytest.approx(
        perfect
        | {"hd95_mm": 0.0, "hd100_mm": 0.0, "false_positive_ml": 0.0}
        | {"predicted_ml": volume, "reference_ml": volume}
    )


def test_volumes_are_counted_in_millilitres() -> None:
    reference, prediction = box((2, 2, 2), (10, 10, 10)), box((6, 2, 2), (10, 10, 10))
    values = case_metrics(prediction, reference, (2.0, 0.5, 0.8), 1.0)
    assert values["reference_ml"] == values["predicted_ml"] == pytest.approx(0.8)
    assert values["false_positive_ml"] == pytest.approx(0.32)  # 4 of 10 layers


def test_threads_change_nothing() -> None:
    for pair in (BLOBS, (random_blob(SHAPE, 6, 0.1, 0.05), BLOBS[0])):  # by tree, by transform
        assert case_metrics(*pair, ISOTROPIC, 1.0, threads=3) == case_metrics(*pair, ISOTROPIC, 1.0)


def test_what_lies_outside_the_masks_box_counts_as_background_alone() -> None:
    prediction, reference = BLOBS
    near = case_metrics(prediction, reference, (0.7, 1.1, 5.3), 1.0)
    padded = [np.pad(mask, ((9, 0), (3, 7), (0, 5))) for mask in BLOBS]
    far = case_metrics(*padded, (0.7, 1.1, 5.3), 1.0)
    assert far.pop("specificity") > near.pop("specificity")
    assert far == near


def test_sensitivity_sees_misses_and_specificity_false_positives() -> None:
    reference = box((2, 2, 2), (10, 10, 10))
    missed = case_metrics(box((2, 2, 2), (5, 10, 10)), reference, ISOTROPIC, 1.0)
    extra = case_metrics(box((2, 2, 2), (15, 10, 10)), reference, ISOTROPIC, 1.0)
    assert (missed["sensitivity"], missed["specificity"]) == (0.5, 1.0)
    assert extra["sensitivity"] == 1
    assert extra["specificity"] < 1


# --- empty masks and full ones ---

OVERLAP_AND_NSD = ("dice", "jaccard", "nsd")


def test_two_empty_masks_agree_perfectly() -> None:
    values = case_metrics(EMPTY, EMPTY, (0.7, 0.7, 5.0), 1.0)
    assert [values[key] for key in OVERLAP_AND_NSD] == [1, 1, 1]
    assert (values["hd95_mm"], values["hd100_mm"]) == (0, 0)
    assert math.isnan(values["sensitivity"])
    assert values["specificity"] == 1


def test_a_total_miss_scores_zero_and_the_diagonal_of_the_image() -> None:
    spacing_mm = (0.7, 0.7, 5.0)
    diagonal_mm = math.sqrt((24 * 0.7) ** 2 + (28 * 0.7) ** 2 + (20 * 5.0) ** 2)
    small = box((10, 10, 10), (2, 3, 4))
    for prediction, reference in ((EMPTY, small), (small, EMPTY)):
        values = case_metrics(prediction, reference, spacing_mm, 1000.0)
        assert [values[key] for key in OVERLAP_AND_NSD] == [0, 0, 0]
        assert values["hd95_mm"] == pytest.approx(diagonal_mm, rel=1e-12)
        assert values["hd100_mm"] == pytest.approx(diagonal_mm, rel=1e-12)


def test_sensitivity_is_undefined_without_reference_and_zero_without_prediction() -> None:
    blob = random_blob(SHAPE, 1)
    assert math.isnan(case_metrics(blob, EMPTY, ISOTROPIC, 1.0)["sensitivity"])
    assert case_metrics(EMPTY, blob, ISOTROPIC, 1.0)["sensitivity"] == 0
    assert case_metrics(EMPTY, blob, ISOTROPIC, 1.0)["specificity"] == 1


def test_specificity_is_undefined_where_the_reference_fills_the_image() -> None:
    full = ~EMPTY
    assert case_metrics(EMPTY, full, ISOTROPIC, 1.0)["predicted_ml"] == 0
    assert math.isnan(case_metrics(full, full, ISOTROPIC, 1.0)["specificity"])
    values = case_metrics(full, full, ISOTROPIC, 1.0)
    assert (values["nsd"], values["hd100_mm"]) == (1, 0)
    assert case_metrics(full, EMPTY, ISOTROPIC, 1.0)["specificity"] == 0


# --- interface ---


def test_the_result_has_exactly_the_ten_metrics_as_python_floats() -> None:
    for prediction, reference in ((EMPTY, EMPTY), BLOBS, (EMPTY, ~EMPTY)):
        values = case_metrics(prediction, reference, ISOTROPIC, 1.0)
        keys = {"dice", "jaccard", "sensitivity", "specificity", *SURFACE_KEYS}
        keys |= {"predicted_ml", "reference_ml", "false_positive_ml"}
        assert set(values) == keys
        assert all(type(value) is float for value in values.values())


def test_masks_that_are_views_score_as_their_copies_and_stay_unchanged() -> None:
    prediction, reference = BLOBS
    before = prediction.copy()
    views = (prediction[::-1, ::2, 1:], reference[::-1, ::2, 1:])
    copies = tuple(np.ascontiguousarray(view) for view in views)
    assert case_metrics(*views, ISOTROPIC, 1.0) == case_metrics(*copies, ISOTROPIC, 1.0)
    np.testing.assert_array_equal(prediction, before)


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing_mm", "tolerance_mm", "says"),
    [
        (EMPTY[:-1], EMPTY, ISOTROPIC, 1, "equal shape"),
        (EMPTY[0], EMPTY[0], ISOTROPIC, 1, "3D"),
        (EMPTY.astype(np.uint8), EMPTY, ISOTROPIC, 1, "bool"),
        (EMPTY, EMPTY.astype(float), ISOTROPIC, 1, "bool"),
        (EMPTY, EMPTY, (1, 1), 1, "spacing_mm"),
        (EMPTY, EMPTY, (1, 1, 0), 1, "spacing_mm"),
        (EMPTY, EMPTY, (1, -1, 1), 1, "spacing_mm"),
        (EMPTY, EMPTY, (1, math.nan, 1), 1, "spacing_mm"),
        (EMPTY, EMPTY, ISOTROPIC, -1, "tolerance_mm"),
        (EMPTY, EMPTY, ISOTROPIC, math.nan, "tolerance_mm"),
    ],
)
def test_wrong_arguments_are_refused(
    prediction: Mask, reference: Mask, spacing_mm: tuple, tolerance_mm: float, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        case_metrics(prediction, reference, spacing_mm, tolerance_mm)


def test_metrics_need_no_torch() -> None:
    code = "import sys, mvl_dist.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
