"""From a config to everything that is known before anything slow is imported.

A wrong path, task, fold, grid or donor is found here, in one process or on every rank alike, in
well under a second.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mvl_dist.case_reader import CaseReader
from mvl_dist.config import DataConfig, RunConfig
from mvl_dist.errors import UserError
from mvl_dist.models import MODELS, check_model
from mvl_dist.models.donors import check_donor
from mvl_dist.recipe import Recipe
from mvl_dist.splits import Split, held_out_cases, make_split
from mvl_dist.store import Manifest, read_manifest
from mvl_dist.tasks import Region


@dataclass(frozen=True)
class Plan:
    """A run that can start: its config (task name in full), data and split."""

    config: RunConfig
    manifest: Manifest
    split: Split

    @property
    def reader(self) -> CaseReader:
        """Reads the arrays of its cases."""
        return CaseReader(self.config.data.store, self.manifest.task.name)

    @property
    def data_checksum(self) -> str:
        """Identity of the data that it reads."""
        return data_checksum(self.manifest, self.config.data)

    @property
    def recipe(self) -> Recipe:
        """What of it outlives the store."""
        manifest = self.manifest
        return Recipe(self.config, manifest.task, manifest.normalisation, self.spacing_mm)

    @property
    def regions(self) -> tuple[Region, ...]:
        """One output channel of the model each."""
        return self.recipe.regions

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of the model's voxels along D, H, W: of a grid's the median over the cases."""
        if self.config.data.resolution == "spaced":
            assert self.manifest.spacing_mm is not None
            return self.manifest.spacing_mm
        cases = self.manifest.cases.values()
        sizes = (
            [
                case.spacing_mm[axis] * case.native_shape[axis] / self.manifest.grid[axis]
                for case in cases
            ]
            for axis in range(3)
        )
        d, h, w = (statistics.median(axis) for axis in sizes)
        return d, h, w


def data_checksum(manifest: Manifest, data: DataConfig) -> str:
    """Identity of what a run reads of a task: with crops, of the arrays at its spacing too."""
    return manifest.spaced_checksum if data.resolution == "spaced" else manifest.checksum


def make_plan(config: RunConfig) -> Plan:
    """Check a config against store, model registry and donor.

    Raises:
        UserError: the first thing found missing, with the command that makes it.
    """
    data = config.data
    check_model(config.model, data.grid)
    manifest = read_manifest(data.store, data.task)
    task = manifest.task.name
    split = make_split(
        tuple(manifest.cases), task, data.fold, data.fraction, seed=manifest.split_seed
    )
    _check_arrays(manifest, data)
    if set(split.test) != set(manifest.test_cases):
        # The store's intensity statistics would have seen cases that this split tests.
        raise UserError(
            f"{data.store}/{task}: its held-out cases are not those of this program's split "
            f"({len(held_out_cases(tuple(manifest.cases), task, manifest.split_seed))} expected): "
            "convert again"
        )
    split = _without(split, data.leave_out)
    if MODELS[config.model.name].needs_donor:
        check_donor(config.model.donor.source, config.model.donor.layers)
    return Plan(replace(config, data=replace(data, task=task)), manifest, split)


def _check_arrays(manifest: Manifest, data: DataConfig) -> None:
    """Refuse a run whose arrays the store does not hold."""
    where = f"{data.store}/{manifest.task.name}"
    if data.resolution == "spaced":
        if manifest.spacing_mm is None:
            raise UserError(
                f"{where} holds no arrays at the task's spacing, which --resolution spaced reads: "
                f"make them with 'mvl convert --spacing auto --store {data.store} --grid "
                f"{' '.join(map(str, manifest.grid))} --tasks {manifest.task.name} --msd-root DIR'"
            )
    elif manifest.grid != data.grid:
        held, asked = ("x".join(map(str, grid)) for grid in (manifest.grid, data.grid))
        raise UserError(
            f"{where} holds {held} voxels, the run asks for {asked}: pass --grid "
            f"{' '.join(map(str, manifest.grid))} (and a --patch that divides it), or convert with "
            f"'mvl convert --grid {' '.join(map(str, data.grid))}' into another --store"
        )


def _without(split: Split, cases: Sequence[str]) -> Split:
    """The split without some cases."""
    parts = (split.train, split.validation, split.test)
    for case in cases:
        if not any(case in part for part in parts):
            raise UserError(
                f"--leave-out {case}: no such case in fold {split.fold} of {split.task} at "
                f"fraction {split.fraction:g}"
            )
    train, validation, test = (tuple(c for c in part if c not in cases) for part in parts)
    if not (train and validation and test):
        raise UserError(f"--leave-out leaves a part of fold {split.fold} without a case")
    return replace(split, train=train, validation=validation, test=test)


def with_batch_for(config: RunConfig, world_size: int) -> RunConfig:
    """The config with the global batch that this number of ranks can hold.

    A batch smaller than the number of ranks is raised to one case a rank (the caller says so: it
    is another run); one that does not divide is refused.

    Raises:
        UserError: the batch does not divide among the ranks.
    """
    batch = config.optim.batch_size
    if batch < world_size:
        return replace(config, optim=replace(config.optim, batch_size=world_size))
    if batch % world_size:
        fits = batch // world_size * world_size
        raise UserError(
            f"--batch-size {batch} does not divide among {world_size} ranks: "
            f"{fits} or {fits + world_size} does"
        )
    return config
