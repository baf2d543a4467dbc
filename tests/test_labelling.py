import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit, softmax

from mvl_dist.labelling import label_map, mean_probability, region_logits, region_probabilities

rng = np.random.default_rng(0)


def most_probable(logits: np.ndarray, members: list[set[int]], labels: list[int]) -> np.ndarray:
    """The value whose regions are the likeliest, each region a coin of its own: by brute force."""
    likelihood = []
    for value in [0, *labels]:
        inside = np.array([value in region for region in members])[:, None, None, None]
        likelihood.append(np.where(inside, log_expit(logits), log_expit(-logits)).sum(axis=0))
    return np.array([0, *labels])[np.argmax(likelihood, axis=0)]


@pytest.mark.parametrize(
    "members",
    [
        [{1}],
        [{1}, {2}, {3}],
        [{1}, {2}, {3}, {1, 2, 3}, {2, 3}],  # the brain tumour's labels and unions
    ],
    ids=["binary", "labels", "regions"],
)
def test_the_label_map_holds_the_likeliest_value_of_each_voxel(members: list[set[int]]) -> None:
    labels = sorted(set().union(*members))
    logits = rng.normal(0, 3, (len(members), 6, 7, 8)).astype(np.float32)
    contains = torch.tensor([[float(label in region) for region in members] for label in labels])
    index = label_map(torch.from_numpy(logits), contains).numpy()
    np.testing.assert_array_equal(index, most_probable(logits, members, labels))
    assert len(np.unique(index)) == len(labels) + 1


def test_overlapping_labels_go_to_the_highest_logit_above_zero() -> None:
    logits = torch.tensor([[0.5, -1.0, -0.1], [2.0, 0.1, -0.2]]).reshape(2, 1, 1, 3)
    assert label_map(logits, torch.eye(2)).flatten().tolist() == [2, 2, 0]


def test_one_models_logits_stay_as_they_are() -> None:
    logits = torch.tensor([1e-9, -1e-9, 90.0, -90.0]).reshape(1, 1, 1, 2, 2)
    assert torch.equal(mean_probability([logits], "sigmoid"), logits)
    probabilities = region_probabilities(logits, "sigmoid")
    np.testing.assert_allclose(probabilities, expit(logits.numpy()), rtol=1e-6)


def test_several_models_are_averaged_as_probabilities() -> None:
    models = [rng.normal(0, 4, (1, 2, 4, 5, 6)).astype(np.float32) for _ in range(3)]
    logits = mean_probability([torch.from_numpy(m) for m in models], "sigmoid")
    mean = np.mean([expit(m.astype(np.float64)) for m in models], axis=0)
    np.testing.assert_allclose(region_probabilities(logits, "sigmoid"), mean, atol=1e-6)
    np.testing.assert_array_equal(logits.numpy() > 0, mean > 0.5)
    votes = np.mean([m > 0 for m in models], axis=0) > 0.5
    assert (votes != (mean > 0.5)).any()  # not the majority of masks


def test_certain_models_leave_finite_logits() -> None:
    certain = torch.full((1, 1, 1, 1, 1), 120.0)
    logits = mean_probability([certain, certain], "sigmoid")
    assert float(logits) == pytest.approx(120.0, rel=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_softmax_takes_the_most_probable_class(count: int) -> None:
    models = [rng.normal(0, 3, (1, 4, 4, 5, 6)).astype(np.float32) for _ in range(count)]
    logits = mean_probability([torch.from_numpy(m) for m in models], "softmax")
    mean = np.mean([softmax(m.astype(np.float64), axis=1) for m in models], axis=0)
    np.testing.assert_allclose(region_probabilities(logits, "softmax"), mean[:, 1:], atol=1e-6)
    scores = region_logits(logits, "softmax")[0]
    np.testing.assert_array_equal(label_map(scores, torch.eye(3)), mean[0].argmax(axis=0))


def test_a_softmax_region_is_marked_exactly_where_it_is_the_argmax() -> None:
    logits = torch.randn(2, 4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    marked = region_logits(logits, "softmax") > 0
    argmax = logits.argmax(1)
    for region in (1, 2, 3):
        assert torch.equal(marked[:, region - 1], argmax == region)
    assert torch.equal(region_logits(logits, "sigmoid"), logits)
