"""The models of several folds as one: their probabilities are averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvl_dist.config import RunConfig, to_plain
from mvl_dist.errors import UserError
from mvl_dist.inference import Ensemble
from mvl_dist.models.count import donor_parameter_names
from mvl_dist.place import StorePlace
from mvl_dist.plan import Plan
from mvl_dist.runs import about_run, load_trained


def load_ensemble(
    folders: Sequence[Path], store: StorePlace | None = None
) -> tuple[Plan, Ensemble]:
    """The models of several folds of one task as one, for the test cases that no fold has seen.

    Returns:
        The first run's plan, which has the test cases of all.

    Raises:
        UserError: fewer than two runs, one twice, or runs of another task, model, split or donor;
            and as `load_trained`.
    """
    _check_together(folders)
    members = []
    for folder in folders:
        plan, model = load_trained(folder, store)
        own = model.state_dict().keys() - donor_parameter_names(model)
        members.append({name: model.state_dict()[name].clone() for name in own})
        if len(members) == 1:
            first, network = plan, model
        if set(plan.split.test) != set(first.split.test):
            raise UserError(
                f"--ensemble: {folder} holds out other test cases than {folders[0]}: runs of one "
                "split belong together"
            )
    return first, Ensemble(network, members, first.config.model.activation).eval()


def ensemble_name(folders: Sequence[Path]) -> str:
    """Name of the folder for an ensemble's results, beside the first of its runs."""
    names = sorted(folder.resolve().name for folder in folders)
    model = names[0].partition("-fold")[0]
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:10]
    return f"{model}-ensemble{len(names)}-{digest}"


def _check_together(folders: Sequence[Path]) -> None:
    names = [folder.resolve() for folder in folders]
    if len(names) < 2:
        raise UserError(
            f"--ensemble averages several runs, there is one ({folders[0]}): pass the others too"
        )
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--ensemble: {name} is given twice")
    first, first_about = about_run(folders[0])
    for folder in folders[1:]:
        config, about = about_run(folder)
        differing = [
            f"{key} {there.get(key)} and {here.get(key)}"
            for there, here in [(_decides(first), _decides(config))]
            for key in there
            if there.get(key) != here.get(key)
        ]
        differing += [
            f"another {what} ({key})"
            for key, what in (("data_checksum", "store"), ("donor_checksum", "donor"))
            if first_about[key] != about[key]
        ]
        if differing:
            raise UserError(
                f"--ensemble: {folders[0]} and {folder} are not folds of one run: "
                f"{'; '.join(differing)}"
            )


def _decides(config: RunConfig) -> dict[str, Any]:
    """Settings in which an ensemble's members agree, flat: all but fold, seed and paths."""
    config = replace(
        config,
        data=replace(config.data, fold=0, store=Path(), workers=0),
        optim=replace(config.optim, seed=0),
    )
    plain = to_plain(config)
    parts = ("data", "model", "optim")
    flat = {f"{part}.{key}": value for part in parts for key, value in plain[part].items()}
    del flat["model.donor"]  # counts by its checksum: a folder may have moved
    return flat
