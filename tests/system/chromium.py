"""Debian's Chromium without a screen, driven through Selenium."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.debian import require

PROGRAMS = ("chromium", "chromedriver")
PACKAGES = ("chromium", "chromium-driver")
# WebGL 2 on the CPU, for the report's viewer; and none of the calls home that a browser makes.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)


@contextlib.contextmanager
def browser(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A Selenium driver for the duration of a `with` block.

    Args:
        profile: an empty folder for what the browser keeps.

    Raises:
        NotInstalledError: no Chromium here, and it cannot be installed.
    """
    require(PROGRAMS, PACKAGES)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(str(shutil.which("chromedriver")))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def wait(driver: Any, condition: Any, what: str, seconds: float = 45) -> Any:
    """Wait until `condition(driver)` gives something; an error names what was waited for."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds, poll_frequency=0.2).until(
        condition, f"waiting for {what}"
    )


def body(driver: Any) -> str:
    """All text that the page shows."""
    text: str = driver.execute_script("return document.body.innerText")
    return text


def shows(text: str) -> Any:
    """A condition for `wait`: the page shows a text."""
    return lambda driver: text in body(driver)


def errors(driver: Any) -> list[str]:
    """What the page complained of in the console."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
