"""Which run of which study stands where, and the per-case values of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvl_dist.errors import UserError
from mvl_dist.report.source import ROWS, VALIDATION_ROWS, Run, Source
from mvl_dist.showcase import FILE, FOLDER
from mvl_dist.statistics import per_case
from mvl_dist.study.grid import Study, StudyRun
from mvl_dist.tasks import TASKS

FOREGROUND = "foreground"
MEAN_OF_REGIONS = "mean of regions"

# What the paper calls a model of the registry; studies may use either name.
PAPER_NAMES = {
    "unetpp": "UNet++",
    "unetr": "UNETR",
    "nnunet": "nnU-Net",
    "missformer": "MissFormer",
    "transunet": "TransUNet",
    "swin_unet": "Swin-UNet",
    "vit_baseline": "ViT-Baseline",
    "vit_mlp": "ViT-MLP",
    "vit_depth": "ViT-Depth",
    "medvisionllama": "MedVisionLlama",
    "medvisionllama_linear": "MedVisionLlama (Linear)",
}


@dataclass(frozen=True)
class Slot:
    """A place in a table that one run fills.

    Attributes:
        run: None until the run is finished and tested.
    """

    table: str
    model: str
    asked: StudyRun
    run: Run | None

    @property
    def task(self) -> str:
        """Name of its task."""
        return self.asked.config.data.task


class Results:
    """The slots of one or more studies, filled with what MLflow has."""

    def __init__(
        self, source: Source, studies: Sequence[Study], experiments: Sequence[str]
    ) -> None:
        """Ask MLflow and fill the slots.

        Raises:
            UserError: no such experiment, an empty one, none of whose runs is of these studies, or
                MLflow does not answer.
        """
        self.source, self.studies = source, studies
        found = [run for name in experiments for run in source.runs(name)]
        by_key: dict[str, list[Run]] = {}
        for run in found:
            by_key.setdefault(run.tags["key"], []).append(run)
        asked = {run.key: run for study in studies for run in study.runs}
        if not asked.keys() & by_key.keys():
            files = ", ".join(str(study.file) for study in studies)
            raise UserError(
                f"none of the {len(found)} runs of experiment {', '.join(experiments)} is asked "
                f"for by {files}: name the study that they are of with --study"
            )
        self.notes: list[str] = []
        finished = {
            key: run
            for key in asked
            for run in [next((r for r in by_key.get(key, []) if r.status == "FINISHED"), None)]
            if run is not None
        }
        finished = self._of_one_store(finished, asked)
        source.fetch(list(finished.values()), ROWS, VALIDATION_ROWS, f"{FOLDER}/{FILE}")
        self._rows = {key: self._read(run, asked[key]) for key, run in finished.items()}
        for key in [key for key, rows in self._rows.items() if not rows]:
            self.notes.append(f"{asked[key]} is finished but has no {ROWS}: counted as missing")
            del finished[key]
        self._validation = {
            key: self._read(run, asked[key], VALIDATION_ROWS) for key, run in finished.items()
        }
        self.slots = tuple(
            Slot(table, PAPER_NAMES.get(model, model), run, finished.get(run.key))
            for study in studies
            for run in study.runs
            for table, model in run.tables
        )
        strangers = sum(key not in asked for key in by_key)
        if strangers:
            self.notes.append(
                f"{strangers} runs of the experiment are asked for by none of these studies"
            )
        self.present, self.expected = len(finished), len(asked)
        self.unfinished = Counter(
            runs[0].status for key, runs in by_key.items() if key in asked and key not in finished
        )

    def _of_one_store(
        self, finished: Mapping[str, Run], asked: Mapping[str, StudyRun]
    ) -> dict[str, Run]:
        """Runs of a task are compared on the same data: those of the most frequent store stay."""
        kept: dict[str, Run] = {}
        for task in dict.fromkeys(asked[key].config.data.task for key in finished):
            of_task = {k: run for k, run in finished.items() if asked[k].config.data.task == task}
            stores = Counter(_store_of(run) for run in of_task.values())
            ((most, _),) = stores.most_common(1)
            kept |= {k: r for k, r in of_task.items() if _store_of(r) == most}
            if len(stores) > 1:
                left = sum(stores.values()) - stores[most]
                self.notes.append(
                    f"{task}: {left} runs were trained on other data than the rest and are left out"
                )
        return kept

    def _read(self, run: Run, asked: StudyRun, file: str = ROWS) -> list[dict[str, Any]]:
        about = {"fold": asked.config.data.fold, "seed": asked.config.optim.seed}
        return with_headline([{**row, **about} for row in self.source.rows(run, file)])

    # ------------------------------------------------------------------------------- choosing

    def of(
        self, table: str = "", model: str = "", task: str = "", fraction: float | None = 1.0
    ) -> list[Slot]:
        """Slots that meet all conditions; an empty condition is none."""
        return [
            slot
            for slot in self.slots
            if (not table or slot.table == table)
            and (not model or slot.model == model)
            and (not task or slot.task == task)
            and (fraction is None or slot.asked.config.data.fraction == fraction)
        ]

    def tables(self) -> list[str]:
        """Names of the studies' tables, in order."""
        return list(dict.fromkeys(slot.table for slot in self.slots))

    def models(self, table: str = "") -> list[str]:
        """Models of a table, or of all, in order."""
        return list(dict.fromkeys(slot.model for slot in self.of(table, fraction=None)))

    def tasks(self, present_only: bool = False) -> list[str]:
        """Tasks of the studies, sorted; those with a finished run."""
        return sorted({slot.task for slot in self.slots if slot.run or not present_only})

    def rows(self, slots: Iterable[Slot]) -> list[dict[str, Any]]:
        """Per-case rows of slots, each run's once."""
        keys = dict.fromkeys(slot.asked.key for slot in slots if slot.run)
        return [row for key in keys for row in self._rows[key]]

    def validation_rows(self, slots: Iterable[Slot]) -> list[dict[str, Any]]:
        """Rows of each run's own validation cases; none where it was not scored on them."""
        keys = dict.fromkeys(slot.asked.key for slot in slots if slot.run)
        return [row for key in keys for row in self._validation[key]]

    def cases(
        self, slots: Iterable[Slot], metric: str = "dice", region: str = ""
    ) -> dict[str, float]:
        """Case -> value averaged over folds and seeds (of one task); empty where nothing is.

        Args:
            region: the task's headline region where '', see `headline`.
        """
        rows = self.rows(slots)
        region = region or headline(rows)
        rows = [row for row in rows if row["region"] == region and metric in row]
        return per_case(rows, metric, region) if rows else {}


def _store_of(run: Run) -> str:
    """Which store a run was trained on, whether at its grid or at the task's spacing."""
    return run.tags.get("store_checksum") or run.tags.get("data_checksum", "")


def headline(rows: Iterable[Mapping[str, Any]]) -> str:
    """The region that a run's one number is of: what the paper scores, as far as it was scored.

    `foreground`; else the union of all labels of the task, by whatever name; else the mean over the
    regions of a case.
    """
    rows = list(rows)
    names = {row["region"] for row in rows}
    if FOREGROUND in names or not rows:
        return FOREGROUND
    task = TASKS.get(rows[0]["task"])
    if task is not None:
        every = {value for value, _ in task.labels}
        for region in (*task.union_regions, *task.label_regions):
            if set(region.labels) == every and region.name in names:
                return region.name
    return MEAN_OF_REGIONS if MEAN_OF_REGIONS in names else min(names)


def with_headline(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one run, with a row a case for the mean over its regions where that is the headline.

    With one region only that is the headline itself.
    """
    names = {row["region"] for row in rows}
    if (
        len(names) < 2
        or headline([*rows, {**rows[0], "region": MEAN_OF_REGIONS}]) != MEAN_OF_REGIONS
    ):
        return rows
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    means = []
    for of_case in by_case.values():
        mean = {**of_case[0], "region": MEAN_OF_REGIONS}
        for key, value in mean.items():
            if isinstance(value, float):
                mean[key] = sum(row[key] for row in of_case) / len(of_case)
        means.append(mean)
    return [*rows, *means]
