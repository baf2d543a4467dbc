"""A study file and the runs it asks for.

    name: ours
    preset: paper                      # what every run starts from
    set: {optim: {epochs: 100}}        # laid over it
    tasks: [Task02, Task04, Task09]    # or: all (the ten of the decathlon)
    folds: [0, 1, 2, 3, 4]
    variants:                          # names for what a table compares, laid over `set`
      rank 4: {model: {lora: {rank: 4}}}
    tables:
      main: {models: [vit_baseline, medvisionllama, rank 4]}
      few-shot: {models: [vit_baseline, medvisionllama], fractions: [0.1, 0.3]}

A table may give its own tasks, folds, fractions and seeds. Its models are variants of the file or
names of the registry.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mvl_dist.config import PRESETS, RunConfig, check, from_plain, request_key
from mvl_dist.errors import UserError
from mvl_dist.models import MODELS, check_model
from mvl_dist.splits import NUM_FOLDS
from mvl_dist.tasks import TASKS, resolve_task_name

FILE_KEYS = ("name", "preset", "set", "tasks", "folds", "fractions", "seeds", "variants", "tables")
TABLE_KEYS = ("models", "tasks", "folds", "fractions", "seeds")
WHERE_KEYS = ("table", "model", "task", "fold", "fraction", "seed", "key")


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        key: what MLflow is asked for (`config.request_key`).
        tables: (table, the model's name in it), every place that shows this run.
    """

    key: str
    tables: tuple[tuple[str, str], ...]
    config: RunConfig

    @property
    def label(self) -> str:
        """The model's name where it stands first."""
        return self.tables[0][1]

    def __str__(self) -> str:
        data, seed = self.config.data, self.config.optim.seed
        fraction = "" if data.fraction == 1 else f" {data.fraction:.0%} of the cases"
        return f"{self.label}, {data.task} fold {data.fold}{fraction}" + (
            f" seed {seed}" if seed else ""
        )


@dataclass(frozen=True)
class Study:
    """A study's distinct runs, in the order of its tables."""

    name: str
    file: Path
    tables: tuple[str, ...]
    runs: tuple[StudyRun, ...]


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        UserError: not readable, an unknown key, task, model or setting, or a run that cannot be.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        near = ", ".join(sorted(str(file) for file in Path("studies").glob("*.yaml")))
        hint = f"; there are {near}" if near else ""
        raise UserError(f"study {path}: {error.strerror}{hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"study {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"study {path}: holds no mapping; see studies/paper.yaml")
    _known(raw, FILE_KEYS, str(path))
    name = str(raw.get("name", path.stem))
    base = _base(raw, path, name)
    variants = _mapping(raw, "variants", str(path))
    tables = _mapping(raw, "tables", str(path))
    if not tables:
        raise UserError(f"study {path}: 'tables' names nothing to compare")
    found: dict[str, StudyRun] = {}
    for table in tables:
        where = f"{path}: table '{table}'"
        settings = _mapping(tables, table, where)
        _known(settings, TABLE_KEYS, where)
        axes = {**raw, **settings}
        for run in _table_runs(str(table), axes, variants, base, where):
            known = found.get(run.key)
            found[run.key] = replace(known, tables=known.tables + run.tables) if known else run
    return Study(name, path, tuple(map(str, tables)), tuple(found.values()))


def _base(raw: Mapping[str, Any], path: Path, name: str) -> RunConfig:
    preset = raw.get("preset", "paper")
    if preset not in PRESETS:
        raise UserError(f"study {path}: preset '{preset}': known are {', '.join(PRESETS)}")
    base = from_plain(raw.get("set") or {}, PRESETS[preset](), str(path))
    # One experiment a study, unless the file says otherwise.
    named = "experiment" in (raw.get("set") or {})
    return base if named else replace(base, experiment=name)


def _table_runs(
    table: str,
    axes: Mapping[str, Any],
    variants: Mapping[str, Any],
    base: RunConfig,
    where: str,
) -> list[StudyRun]:
    runs = []
    labels = _list(axes, "models", [], where)
    tasks = _tasks(axes.get("tasks", "all"), where)
    if not labels:
        raise UserError(f"{where}: 'models' is empty")
    for label in labels:
        model = _model(str(label), variants, base, where)
        for task, fold, fraction, seed in itertools.product(
            tasks,
            _list(axes, "folds", list(range(NUM_FOLDS)), where),
            _list(axes, "fractions", [base.data.fraction], where),
            _list(axes, "seeds", [base.optim.seed], where),
        ):
            plain = {
                "data": {"task": task, "fold": fold, "fraction": fraction},
                "optim": {"seed": seed},
            }
            config = from_plain(plain, model, where)
            if not 0 <= fold < NUM_FOLDS or not 0 < fraction <= 1:
                raise UserError(
                    f"{where}: fold {fold}, fraction {fraction}: folds go from 0 to "
                    f"{NUM_FOLDS - 1}, fractions from above 0 to 1"
                )
            key = request_key(config, MODELS[config.model.name].reads)
            runs.append(StudyRun(key, ((table, str(label)),), config))
    return runs


def _model(label: str, variants: Mapping[str, Any], base: RunConfig, where: str) -> RunConfig:
    if label in variants:
        config = from_plain(variants[label] or {}, base, f"{where}: variant '{label}'")
    else:
        if label not in MODELS:
            near = difflib.get_close_matches(label, [*variants, *MODELS], n=2, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(MODELS)}"
            raise UserError(f"{where}: '{label}' is no variant of this file and no model: {hint}")
        config = replace(base, model=replace(base.model, name=label))
    try:
        check(config)
        check_model(config.model, config.data.grid)
    except UserError as error:
        raise UserError(f"{where}: '{label}': {error}") from error
    return config


def _tasks(asked: Any, where: str) -> list[str]:
    if asked == "all":
        return list(TASKS)
    if not isinstance(asked, list) or not asked:
        raise UserError(f"{where}: 'tasks' takes a list of tasks, or all")
    # A task that is not one of the ten is known by its store alone, so by its whole name.
    return [
        task if task[:4] == "Task" and task[6:7] == "_" else resolve_task_name(task)
        for task in map(str, asked)
    ]


def _list(axes: Mapping[str, Any], key: str, default: list[Any], where: str) -> list[Any]:
    values = axes.get(key, default)
    if not isinstance(values, list):
        raise UserError(f"{where}: '{key}' takes a list, not {values!r}")
    return values


def _mapping(raw: Mapping[Any, Any], key: Any, where: str) -> Mapping[str, Any]:
    values = raw.get(key) or {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: '{key}' takes a mapping, not {values!r}")
    return values


def _known(values: Mapping[Any, Any], keys: Sequence[str], where: str) -> None:
    for key in values:
        if key not in keys:
            raise UserError(f"{where}: unknown key '{key}'; known: {', '.join(keys)}")


# ----------------------------------------------------------------------------------------- choice


def select(runs: Sequence[StudyRun], conditions: Sequence[str]) -> tuple[StudyRun, ...]:
    """Runs that meet every condition `KEY=VALUE` or `KEY=VALUE,VALUE`.

    Raises:
        UserError: no such key, or a value that no run has.
    """
    for condition in conditions:
        key, equals, values = condition.partition("=")
        if key not in WHERE_KEYS or not equals:
            raise UserError(
                f"--where {condition}: takes KEY=VALUE with a KEY of {', '.join(WHERE_KEYS)}"
            )
        wanted = {value.strip().lower() for value in values.split(",")}
        there = {name for run in runs for name in _names(run, key)}
        unknown = wanted - {name.lower() for name in there}
        if unknown:
            shown = ", ".join(sorted(there)[:12]) + (", ..." if len(there) > 12 else "")
            raise UserError(
                f"--where {condition}: no run has {key} '{sorted(unknown)[0]}'; there are {shown}"
            )
        runs = [run for run in runs if wanted & {name.lower() for name in _names(run, key)}]
    return tuple(runs)


def _names(run: StudyRun, key: str) -> set[str]:
    """What a run goes by in a condition on `key`."""
    data = run.config.data
    task = {data.task, data.task.partition("_")[0], data.task.partition("_")[2]}
    return {
        "table": {table for table, _ in run.tables},
        "model": {run.config.model.name} | {label for _, label in run.tables},
        "task": task - {""},
        "fold": {str(data.fold)},
        "fraction": {f"{data.fraction:g}"},
        "seed": {str(run.config.optim.seed)},
        "key": {run.key},
    }[key]
