"""From experiments and studies to the files of a report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mvl_dist import __version__
from mvl_dist.report import claim
from mvl_dist.report.extras import all_extras
from mvl_dist.report.figures import all_pictures
from mvl_dist.report.layout import Table, to_csv, to_latex
from mvl_dist.report.page import Content, render
from mvl_dist.report.plots import all_plots
from mvl_dist.report.ranks import ranking_table
from mvl_dist.report.results import Results
from mvl_dist.report.source import Source
from mvl_dist.report.tables import all_tables
from mvl_dist.report.unseen import out_of_fold_table
from mvl_dist.report.viewer import viewer_cases
from mvl_dist.study.grid import load_study


@dataclass(frozen=True)
class Built:
    """A report that is not written yet.

    Attributes:
        files: path below the folder -> content.
        summary: one line for the terminal.
    """

    results: Results
    files: Mapping[str, bytes]
    summary: str
    conclusion: str


def build(uri: str, experiments: Sequence[str], studies: Sequence[Path], folder: Path) -> Built:
    """Read MLflow and make every file of the report.

    Args:
        folder: for what is downloaded meanwhile.

    Raises:
        UserError: no such study or experiment, nothing in it, or MLflow does not answer.
    """
    results = Results(Source(uri, folder), [load_study(path) for path in studies], experiments)
    effects = claim.effects(results)
    judged = claim.verdicts(results, effects)
    cases, left_out = viewer_cases(results)
    ranked, not_ranked = ranking_table(results)
    unseen, not_scored = out_of_fold_table(results)
    content = Content(
        title=f"MVL-Dist report: {', '.join(experiments)}",
        head=_head(results, experiments),
        conclusion=claim.conclusion(judged),
        verdicts=judged,
        rule=(claim.__doc__ or "").partition("\n\n")[2].strip(),
        effects=claim.effect_table(effects),
        paper_tables=all_tables(results),
        extra_tables=[t for t in (*all_extras(results), ranked, unseen) if t.rows],
        figures=[*all_plots(results, effects), *all_pictures(results)],
        cases=cases,
        notes=[*results.notes, *left_out, *not_ranked, *not_scored, *_unfinished(results)],
    )
    return Built(results, _files(content), _summary(results), content.conclusion)


def _files(content: Content) -> dict[str, bytes]:
    files = {"index.html": render(content).encode()}
    tables: list[Table] = [content.effects, *content.paper_tables, *content.extra_tables]
    for table in tables:
        if table.rows:
            files[f"tables/{table.name}.csv"] = to_csv(table).encode()
            files[f"tables/{table.name}.tex"] = to_latex(table).encode()
    for figure in content.figures:
        files[f"figures/{figure.name}.png"] = figure.png
        files[f"figures/{figure.name}.svg"] = figure.svg
    return files


def _head(results: Results, experiments: Sequence[str]) -> dict[str, str]:
    return {
        "Experiment": ", ".join(experiments),
        "Study": ", ".join(study.name for study in results.studies),
        "Runs finished": f"{results.present} of {results.expected}",
        "Tasks with results": ", ".join(results.tasks(present_only=True)) or "none",
        "Made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "Version": __version__,
    }


def _unfinished(results: Results) -> list[str]:
    return [
        f"{count} runs of the studies stand in MLflow as {status}: not counted"
        for status, count in sorted(results.unfinished.items())
    ]


def _summary(results: Results) -> str:
    return f"{results.present} of {results.expected} runs are finished"
