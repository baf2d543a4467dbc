"""Placement of runs on GPUs, against the true optimum and Graham's bound."""

import itertools
import random

import pytest

from mvl_dist.placement import GROUP_EFFICIENCY, Job, Schedule, best_schedule, grouped, simulate


def jobs(*seconds: float, **settings: int) -> list[Job]:
    return [Job(f"job{number}", s, **settings) for number, s in enumerate(seconds)]


def optimum(seconds: tuple[float, ...], gpus: int) -> float:
    """Least makespan over every assignment."""
    return min(
        max(
            sum(s for s, g in zip(seconds, assigned, strict=True) if g == gpu)
            for gpu in range(gpus)
        )
        for assigned in itertools.product(range(gpus), repeat=len(seconds))
    )


def assert_possible(schedule: Schedule) -> None:
    """No GPU has two jobs at a time, and a job's GPUs are of one node."""
    for node, gpu in itertools.product(range(schedule.nodes), range(schedule.gpus_per_node)):
        here = sorted((p.start, p.end) for p in schedule.placed if p.node == node and gpu in p.gpus)
        for (_, end), (start, _) in itertools.pairwise(here):
            assert start >= end
    for place in schedule.placed:
        assert len(set(place.gpus)) == len(place.gpus) == place.job.gpus
        assert max(place.gpus) < schedule.gpus_per_node


@pytest.mark.parametrize("seed", range(20))
def test_longest_first_stays_within_grahams_bound_of_the_true_optimum(seed: int) -> None:
    generator = random.Random(seed)
    gpus = generator.choice([2, 3])
    seconds = tuple(generator.uniform(1, 10) for _ in range(generator.randint(3, 8)))
    schedule = simulate(jobs(*seconds), nodes=1, gpus_per_node=gpus)
    assert_possible(schedule)
    assert len(schedule.placed) == len(seconds)
    best = optimum(seconds, gpus)
    assert best <= schedule.makespan + 1e-9 <= (4 / 3 - 1 / (3 * gpus)) * best + 2e-9
    assert schedule.lower_bound <= best + 1e-9


def test_a_schedule_worked_out_by_hand() -> None:
    schedule = simulate(jobs(5, 4, 3, 3, 3), nodes=1, gpus_per_node=2)
    starts = {place.job.name: (place.gpus, place.start, place.end) for place in schedule.placed}
    assert starts == {
        "job0": ((0,), 0, 5),
        "job1": ((1,), 0, 4),
        "job2": ((1,), 4, 7),
        "job3": ((0,), 5, 8),
        "job4": ((1,), 7, 10),
    }
    assert (schedule.makespan, schedule.lower_bound) == (10, 9)
    assert schedule.utilisation == pytest.approx(18 / 20)


def test_groups_stay_on_one_node_and_smaller_jobs_do_not_pass_them() -> None:
    mixed = [Job("wide", 10, gpus=4), *jobs(9, 8, 7, 6, 5), Job("pair", 4, gpus=2)]
    schedule = simulate(mixed, nodes=2, gpus_per_node=4)
    assert_possible(schedule)
    assert schedule.placed[0].job.name == "wide"
    assert schedule.placed[1].job.name == "pair"
    assert [place.start for place in schedule.placed[:2]] == [0, 0]


def test_a_run_that_outlasts_the_rest_gets_several_gpus_as_its_batch_allows() -> None:
    long = Job("long", 100, most_gpus=4)
    schedule = best_schedule([long, *jobs(*[10] * 8)], nodes=1, gpus_per_node=8)
    spread = next(place for place in schedule.placed if place.job.name == "long")
    assert len(spread.gpus) == 4
    assert schedule.makespan == pytest.approx(100 / (4 * GROUP_EFFICIENCY))
    alone = best_schedule([Job("long", 100), *jobs(*[10] * 8)], nodes=1, gpus_per_node=8)
    assert alone.makespan == 100


def test_starting_takes_as_long_on_many_gpus() -> None:
    assert Job("one", 90, start_seconds=10).duration == 100
    assert Job("four", 90, 10, gpus=4).duration == pytest.approx(10 + 90 / (4 * GROUP_EFFICIENCY))


def test_short_runs_stay_on_one_gpu_each() -> None:
    placed = best_schedule(jobs(*[10] * 64, most_gpus=4), nodes=1, gpus_per_node=8).placed
    assert {place.job.gpus for place in placed} == {1}


def test_what_does_not_fit_one_gpus_memory_gets_more() -> None:
    [job] = grouped([Job("large", 10, least_gpus=4)], nodes=1, gpus_per_node=8)
    assert job.gpus == 4
    with pytest.raises(ValueError, match="needs 16 GPUs, a node has 8"):
        grouped([Job("large", 10, least_gpus=16)], nodes=1, gpus_per_node=8)


def test_a_long_run_left_on_one_gpu_is_no_excuse_for_the_makespan() -> None:
    """The bound counts it on the GPUs that it might have had; a bad grouping shows."""
    long = Job("long", 100, most_gpus=4)
    left_alone = simulate([long, *jobs(*[10] * 8)], nodes=1, gpus_per_node=8)
    assert left_alone.makespan == 100
    assert left_alone.lower_bound == pytest.approx(100 / (4 * GROUP_EFFICIENCY))
