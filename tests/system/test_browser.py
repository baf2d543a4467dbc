"""A person's way through the report and MLflow's own pages, in Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mvl_dist.cli import main
from tests.debian import NotInstalledError
from tests.report.pictured import TASK, log_pictured, phantom_study
from tests.servers import MLflowServer
from tests.system.chromium import body, browser, errors, shows, wait
from tests.system.screens import Pages, viewer_is_ready

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, or skip where it is not installed; CI must have it."""
    running = browser(tmp_path_factory.mktemp("profile"), 1500, 900)
    try:
        started = running.__enter__()
    except NotInstalledError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield started
    running.__exit__(None, None, None)


@pytest.fixture(scope="module")
def folder(driver: Any, phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in MLflow's database, arranged, and their report in `out`."""
    folder = tmp_path_factory.mktemp("browser")
    path = phantom_study(folder)
    log_pictured(folder / "runs", f"sqlite:///{folder / 'runs' / 'mlflow.db'}", path, phantom_store)
    arguments = ["--experiment", "trial", "--study", str(path), "--arrange"]
    arguments += ["--output", str(folder / "runs"), "--out", str(folder / "out")]
    assert main(["report", *arguments]) == 0
    return folder


def element(driver: Any, name: str) -> Any:
    return driver.find_element("id", name)


def coloured(driver: Any) -> int:
    """Pixels of the viewer's canvas that are not grey, drawn anew first: WebGL keeps no picture."""
    count: int = driver.execute_script(
        "const view = window.reportViewer; view.drawScene(); const gl = view.gl; "
        "const width = gl.drawingBufferWidth, height = gl.drawingBufferHeight; "
        "const all = new Uint8Array(4 * width * height); "
        "gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, all); let count = 0; "
        "for (let i = 0; i < all.length; i += 4) { const of = [all[i], all[i + 1], all[i + 2]]; "
        "count += Math.max(...of) - Math.min(...of) > 40; } return count;"
    )
    return count


def test_the_report_opens_from_its_file_and_shows_cases_in_3d(driver: Any, folder: Path) -> None:
    driver.get((folder / "out" / "index.html").as_uri())
    assert "Cannot be said" in element(driver, "conclusion").text
    pictures = driver.execute_script(
        "return [...document.images].map(i => i.complete && i.naturalWidth)"
    )
    assert len(pictures) >= 7
    assert all(pictures)
    # All that was fetched is the page itself.
    fetched = driver.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(name.startswith(("data:", "blob:")) for name in fetched)

    driver.execute_script("document.getElementById('viewer').scrollIntoView()")
    wait(driver, viewer_is_ready, "the viewer")
    names = "return window.reportViewer.volumes.map(v => v.name.replace('.nii.gz', ''))"
    assert driver.execute_script(names) == ["image", "reference", "ViT-Baseline", "errors"]

    # Without overlays only the crosshair is coloured; the reference colours a part of the slice.
    for name in ("prediction", "errors", "reference"):
        box = element(driver, f"viewer-{name}")
        if box.is_selected():
            box.click()
    driver.execute_script("document.getElementById('viewer-view').value = 'axial';")
    driver.execute_script(
        "document.getElementById('viewer-view').dispatchEvent(new Event('change'))"
    )
    plain = coloured(driver)
    opacities = "return window.reportViewer.volumes.map(v => v.opacity)"
    assert driver.execute_script(opacities) == [1, 0, 0, 0]
    element(driver, "viewer-reference").click()
    assert driver.execute_script(opacities)[1] > 0.5
    assert coloured(driver) > plain + 500

    # Another model, another case.
    element(driver, "viewer-model").send_keys("M")
    driver.execute_script(
        "const s = document.getElementById('viewer-case'); s.selectedIndex = s.options.length - 1; "
        "s.dispatchEvent(new Event('change'))"
    )
    wait(
        driver,
        lambda d: (
            viewer_is_ready(d)
            and "worst" in element(d, "viewer-state").text
            and "MedVisionLlama" in element(d, "viewer-state").text
        ),
        "the worst case",
    )
    assert driver.execute_script(names)[2] == "MedVisionLlama"
    assert errors(driver) == []


def test_mlflows_pages_answer_who_is_best_and_what_it_got_wrong(
    driver: Any, folder: Path, tmp_path: Path
) -> None:
    server = MLflowServer(tmp_path, f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    server.start()
    try:
        pages = Pages(server.uri, "trial")
        driver.get(pages.nested())  # MLflow's first page takes its time
        wait(driver, shows(f"all of {TASK}"), "the list of runs", 80)

        link = f"//a[contains(., 'all of {TASK}')]"
        driver.find_element("xpath", link).click()
        wait(driver, shows("What it got wrong"), "the task's page")
        assert f"Best on {TASK}" in body(driver)
        driver.get(pages.run(pages.parent.info.run_id, "leaderboard.json"))
        wait(driver, shows("worst_case"), "the leaderboard")

        driver.get(pages.run(pages.best))
        wait(driver, shows("held-out cases"), "the best run's description")
        assert f"all of {TASK}" in body(driver)  # its parent
        driver.get(pages.run(pages.best, "test_cases.csv"))
        wait(driver, shows("hd95_mm"), "the per-case table")
    finally:
        server.kill()
