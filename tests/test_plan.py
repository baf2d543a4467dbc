from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.convert import ConvertOptions, convert_task
from mvl_dist.config import RunConfig, smoke
from mvl_dist.errors import UserError
from mvl_dist.plan import make_plan, with_batch_for


@pytest.fixture
def config(phantom_store: Path) -> RunConfig:
    base = smoke()
    data = replace(base.data, store=phantom_store, task="91", grid=(16, 16, 16))
    return replace(base, data=data, model=replace(base.model, name="vit_baseline"))


def test_a_plan_names_the_task_in_full_and_knows_channels_and_regions(config: RunConfig) -> None:
    plan = make_plan(config)
    assert plan.config.data.task == "Task91_PhantomTumour"
    assert len(plan.recipe.modalities) == 4
    assert [region.labels for region in plan.regions] == [(1,), (2,), (3,)]
    paper_like = replace(config, data=replace(config.data, channels="first", target="binary"))
    assert len(make_plan(paper_like).recipe.modalities) == 1
    assert [region.labels for region in make_plan(paper_like).regions] == [(1, 2, 3)]


def test_test_cases_are_those_the_stores_statistics_have_not_seen(config: RunConfig) -> None:
    plan = make_plan(config)
    assert set(plan.split.test) == set(plan.manifest.test_cases)


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("data", {"task": "Task92"}, "unknown task 'Task92'"),
        ("data", {"fold": 7}, "--fold takes 0 to 4"),
        ("data", {"grid": (32, 32, 32)}, "holds 16x16x16 voxels, the run asks for 32x32x32"),
        ("data", {"store": Path("/nowhere")}, "no store at /nowhere.*mvl convert"),
        ("model", {"name": "unet"}, "unknown model 'unet'"),
    ],
)
def test_what_is_wrong_is_found_before_anything_starts(
    config: RunConfig, part: str, values: dict[str, object], reason: str
) -> None:
    changed = replace(config, **{part: replace(getattr(config, part), **values)})
    with pytest.raises(UserError, match=reason):
        make_plan(changed)


def test_crops_need_no_grid_but_arrays_at_the_tasks_spacing(
    config: RunConfig, phantom_root: Path, tmp_path: Path
) -> None:
    crops = replace(config, data=replace(config.data, resolution="spaced", grid=(32, 16, 16)))
    plan = make_plan(crops)
    assert plan.spacing_mm == plan.manifest.spacing_mm
    assert plan.data_checksum == plan.manifest.spaced_checksum
    assert make_plan(config).data_checksum == plan.manifest.checksum != plan.data_checksum
    options = ConvertOptions(phantom_root, tmp_path / "store", grid=(16, 16, 16), spacing="none")
    convert_task(phantom_root / plan.manifest.task.name, options)
    without = replace(crops, data=replace(crops.data, store=tmp_path / "store"))
    with pytest.raises(UserError, match=r"no arrays at the task's spacing.*mvl convert") as caught:
        make_plan(without)
    assert "\n" not in str(caught.value)


def test_a_batch_is_raised_to_the_ranks_or_must_divide_among_them(config: RunConfig) -> None:
    assert with_batch_for(config, 2) == config
    assert with_batch_for(config, 8).optim.batch_size == 8
    with pytest.raises(UserError, match="batch-size 4 does not divide among 3 ranks: 3 or 6"):
        with_batch_for(config, 3)


def test_cases_that_are_left_out_leave_the_others_where_they_are(config: RunConfig) -> None:
    whole = make_plan(config).split
    gone = (whole.train[1], whole.validation[0])
    less = make_plan(replace(config, data=replace(config.data, leave_out=gone))).split
    assert less.train == (whole.train[0], *whole.train[2:])
    assert less.validation == whole.validation[1:]
    assert less.test == whole.test


def test_leaving_out_what_is_not_there_or_all_there_is_is_refused(config: RunConfig) -> None:
    data = config.data
    with pytest.raises(UserError, match="--leave-out nobody: no such case in fold 0"):
        make_plan(replace(config, data=replace(data, leave_out=("nobody",))))
    all_tests = make_plan(config).split.test
    with pytest.raises(UserError, match="leaves a part of fold 0 without a case"):
        make_plan(replace(config, data=replace(data, leave_out=all_tests)))
