"""Pictures of the report and of MLflow's pages for the docs.

    python -m tests.system.screens --output RUNS --experiment NAME --report DIR --to docs/figures

The runs were arranged before with `mvl report ... --arrange`.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from mlflow import MlflowClient

from tests.servers import MLflowServer
from tests.system.chromium import browser, shows, wait

RANKED_BY = "test_dice/foreground"
SETTLE_SECONDS = 1.5  # from a page's text to its pictures


@dataclass(frozen=True)
class Arguments:
    """Where the runs and the report are, and where pictures go."""

    output: Path
    experiment: str
    report: Path
    to: Path


class Pages:
    """MLflow's pages of one experiment."""

    def __init__(self, uri: str, experiment: str) -> None:
        client = MlflowClient(uri)
        self.experiment_id = client.get_experiment_by_name(experiment).experiment_id
        self.root = f"{uri}/#/experiments/{self.experiment_id}"
        (self.parent,) = client.search_runs([self.experiment_id], "tags.`mvl.role` = 'parent'")
        self.best = self.parent.data.tags["best_run"]
        self.task = self.parent.data.tags["task"]
        best = client.get_run(self.best)
        self.best_name = best.info.run_name

    def ranked(self) -> str:
        """The runs of a task, the best first."""
        condition = f"tags.task%20%3D%20'{self.task}'"
        order = f"metrics.%60{RANKED_BY.replace('/', '%2F')}%60"
        return f"{self.root}/runs?searchFilter={condition}&orderByKey={order}&orderByAsc=false"

    def nested(self) -> str:
        """All runs, the parents foldable."""
        return f"{self.root}/runs"

    def run(self, run_id: str, artifact: str = "") -> str:
        """A run's overview, or one of its artifacts."""
        return f"{self.root}/runs/{run_id}" + (f"/artifacts/{artifact}" if artifact else "")


@contextlib.contextmanager
def mlflow_page(folder: Path, database: str) -> Iterator[str]:
    """MLflow's own server over a database; yields its address."""
    server = MLflowServer(folder, database)
    server.start()
    try:
        yield server.uri
    finally:
        server.kill()


def viewer_is_ready(driver: Any) -> bool:
    """Whether the report's viewer shows a case."""
    state = "return document.getElementById('viewer-state').dataset.state"
    return bool(driver.execute_script(state) == "ready")


def tidy(driver: Any) -> None:
    """Close the panel that MLflow opens beside its pages, and show its side for trainings."""
    for path in (
        "//*[text()='MLflow Assistant']/following::button[3]",
        "//*[text()='Model training']",
    ):
        for found in driver.find_elements("xpath", path)[:1]:
            found.click()
    time.sleep(SETTLE_SECONDS)


def with_metric(driver: Any) -> None:
    """Add the metric that runs are ranked by to their columns."""
    driver.find_element("xpath", "//button[contains(., 'Columns')]").click()
    time.sleep(SETTLE_SECONDS)
    driver.find_element("xpath", "//input[@placeholder='Search columns']").send_keys(RANKED_BY)
    time.sleep(SETTLE_SECONDS)
    driver.find_element("xpath", f"//strong[text()='{RANKED_BY}']").click()
    driver.find_element("tag name", "body").send_keys("\ue00c")  # Escape closes the menu


def unfold(driver: Any) -> None:
    """Show the whole of a run's description."""
    for found in driver.find_elements("xpath", "//*[text()='Show more']")[:1]:
        found.click()


def main(argv: Sequence[str]) -> None:
    """Make all pictures."""
    arguments = tyro.cli(Arguments, args=list(argv))
    arguments.to.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{(arguments.output / 'mlflow.db').resolve()}"
    with tempfile.TemporaryDirectory() as name, browser(Path(name) / "profile") as driver:

        def keep(file: str, prepare: Callable[[Any], None] | None = None) -> None:
            if prepare:
                prepare(driver)
            time.sleep(SETTLE_SECONDS)
            driver.save_screenshot(str(arguments.to / f"{file}.png"))

        driver.get((arguments.report / "index.html").resolve().as_uri())
        keep("report_claim")
        for part in ("tables", "figures", "beyond", "ranking", "out_of_fold", "viewer"):
            driver.execute_script(f"document.getElementById('{part}').scrollIntoView()")
            if part == "viewer":
                wait(driver, viewer_is_ready, "the viewer", 120)
            keep(f"report_{part}")
        with mlflow_page(Path(name), database) as uri:
            pages = Pages(uri, arguments.experiment)
            parent = pages.parent.info.run_id
            driver.set_window_size(1500, 1000)
            driver.get(pages.nested())
            wait(driver, shows("matching runs"), "MLflow's page", 120)
            time.sleep(SETTLE_SECONDS)
            tidy(driver)
            for file, address, text, prepare in (
                ("mlflow_ranked", pages.ranked(), pages.best_name, with_metric),
                ("mlflow_task", pages.run(parent), "What it got wrong", unfold),
                ("mlflow_leaderboard", pages.run(parent, "leaderboard.json"), "worst_case", None),
                ("mlflow_run", pages.run(pages.best), "held-out cases", unfold),
                ("mlflow_worst", pages.run(pages.best, "test_overlay.png"), "Path:", None),
            ):
                driver.get(address)
                wait(driver, shows(text), text, 120)
                time.sleep(SETTLE_SECONDS)
                keep(file, prepare)


if __name__ == "__main__":
    main(sys.argv[1:])
