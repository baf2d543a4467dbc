"""The memory calculator against closed forms; tests/system/test_zero_memory.py measures it."""

import pytest

from mvl_dist.memory import Layers, rank_memory, starting_host_bytes

LAYERS = Layers(
    trainable=(1_000_000,), frozen=(7_000_000,), largest_layer=2_000_000, activation_bytes=5
)
ZERO = {
    "reduce_bucket_size": 1000,
    "stage3_prefetch_bucket_size": 1000,
    "stage3_param_persistence_threshold": 0,
}


def settings(stage: int, bf16: bool = True, **more: object) -> dict[str, object]:
    return {"bf16": {"enabled": bf16}, "zero_optimization": {"stage": stage, **ZERO, **more}}


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    # Rajbhandari et al. 2020, figure 1: 2S, 2S, 12S, of which a rank keeps an Nth part.
    [
        (0, 16e6, 2e6, 12e6),
        (1, 16e6, 2e6, 12e6 / 8),
        (2, 16e6, 2e6 / 8, 12e6 / 8),
        (3, 16e6 / 8, 2e6 / 8, 12e6 / 8),
    ],
)
def test_each_stage_partitions_what_its_paper_says(
    stage: int, weights: float, gradients: float, optimizer: float
) -> None:
    got = rank_memory(LAYERS, settings(stage), ranks=8, batch_size=16)
    assert (got.weights, got.gradients, got.optimizer) == (weights, gradients, optimizer)
    assert got.activations == 2 * 5


def test_small_weights_stay_whole_and_the_gathered_ones_are_counted() -> None:
    zero = {**ZERO, "stage3_param_persistence_threshold": 2_000_000}
    got = rank_memory(LAYERS, settings(3, **zero), ranks=8, batch_size=8)
    assert got.weights == 2 * (8_000_000 // 8 + 1_000_000)
    assert got.gathered == 2 * (2_000_000 + 1000)


def test_what_is_offloaded_is_on_the_host() -> None:
    on_gpu = rank_memory(LAYERS, settings(3), ranks=8, batch_size=8)
    off = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
    offloaded = rank_memory(LAYERS, settings(3, **off), ranks=8, batch_size=8)
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (0, 0, 0)
    assert offloaded.host == on_gpu.weights + on_gpu.gradients + on_gpu.optimizer


def test_a_node_that_starts_a_run_holds_the_network_once_a_rank() -> None:
    assert starting_host_bytes(LAYERS, 8) == 8 * 8_000_000 * 4
