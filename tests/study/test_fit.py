"""Runs that one GPU cannot hold get several; the whole grid keeps a cluster busy."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mvl_dist.config import DonorConfig, ModelConfig
from mvl_dist.errors import UserError
from mvl_dist.memory import GIB, RESERVED_GIB, rank_memory
from mvl_dist.models.layers import layers_of
from mvl_dist.placement import best_schedule
from mvl_dist.study.cost import CostModel
from mvl_dist.study.fit import least_gpus
from mvl_dist.study.grid import StudyRun, load_study
from mvl_dist.study.plan import job_of, labelled_cases

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole_8b() -> StudyRun:
    """A run around all 32 layers of Llama-3.1-8B, batch 4."""
    run = load_study(REPO / "studies" / "paper.yaml").runs[0]
    model = ModelConfig(donor=DonorConfig(source="random:llama-3.1-8b", layers="all"))
    return replace(run, config=replace(run.config, model=model))


def settings(stage: int) -> dict[str, object]:
    return json.loads((REPO / "deepspeed_configs" / f"zero{stage}.json").read_text())  # type: ignore[no-any-return]


def test_a_run_gets_the_fewest_gpus_that_hold_it(whole_8b: StudyRun) -> None:
    layers = layers_of(whole_8b.config.model, whole_8b.config.data.grid)
    need = {
        gpus: rank_memory(layers, settings(3), gpus, 4).gpu / GIB + RESERVED_GIB
        for gpus in (1, 2, 4)
    }
    assert need[1] > need[2] > need[4]
    for gpus, gib in need.items():
        assert least_gpus(whole_8b, settings(3), gib * 1.001, 8) == gpus
        if gpus < 4:
            assert least_gpus(whole_8b, settings(3), gib * 0.999, 8) == 2 * gpus


def test_a_run_that_fits_no_node_is_one_line(whole_8b: StudyRun) -> None:
    # Batch 4 is shared among at most four GPUs, and ZeRO-2 keeps all weights on each.
    with pytest.raises(UserError, match=r"does not fit 8 GPUs of 16 GiB under ZeRO-2.*zero3\.json"):
        least_gpus(whole_8b, settings(2), 16, 8)


@pytest.mark.slow
def test_the_papers_whole_grid_keeps_eight_nodes_busy() -> None:
    """At least 95 % of the lower bound, with costs by counted TFLOP at any one speed."""
    runs = load_study(REPO / "studies" / "paper.yaml").runs
    model, cases = CostModel([], assumed_tflops=100), labelled_cases(runs)
    jobs = [job_of(run, model, cases, 30.0, least_gpus(run, settings(2), 80, 8)) for run in runs]
    schedule = best_schedule(jobs, nodes=8, gpus_per_node=8)
    assert len(schedule.placed) == 1050
    assert schedule.lower_bound / schedule.makespan >= 0.95
    assert schedule.utilisation >= 0.95
