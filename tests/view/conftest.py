"""A headless Chromium for the tests of pages, and what they do with it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required", "--window-size=1400,900",
)  # fmt: skip


class Page:
    """A page in the browser; times, classes and bars instead of pixels."""

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads
        self.expected = ""  # words of an error that a test provokes

    def open(self, path: Path) -> None:
        self.driver.get(path.resolve().as_uri())
        self.wait("return document.documentElement.dataset.ready === 'true'")

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: str, *arguments: Any, seconds: float = 20) -> Any:
        """Until the script returns something true."""
        end = time.monotonic() + seconds
        while not (value := self.js(condition, *arguments)):
            assert time.monotonic() < end, f"never true: {condition}; errors: {self.errors()}"
            time.sleep(0.02)
        return value

    def settle(self) -> None:
        """Until the next frame is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        self.settle()

    def chord(self, modifier: str, key: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()
        self.settle()

    def click(self, element: str) -> None:
        self.driver.find_element("id", element).click()
        self.settle()

    def drag(self, start: tuple[float, float], *stops: tuple[float, float]) -> None:
        """Press at (x, y) of the timeline, move over the stops, release."""
        from selenium.webdriver.common.action_chains import ActionChains

        canvas = self.driver.find_element("id", "timeline")
        width, height = self.js("return [size.width, size.height]")
        actions = ActionChains(self.driver, duration=10)
        actions.move_to_element_with_offset(canvas, int(start[0] - width / 2), int(start[1] - height / 2))
        actions.click_and_hold()
        for x, y in stops:
            actions.move_to_element_with_offset(canvas, int(x - width / 2), int(y - height / 2))
        actions.release().perform()
        self.settle()

    def place(self, seconds: float, label: int, row: float = 0.5) -> tuple[float, float]:
        """Where a time of a class lies; ``row``: share of the lane's height."""
        self.settle()  # the pointer hits what is drawn
        x, y = self.js(
            "const t = tracks.find((t) => t.kind === 'lane' && t.c === arguments[1]);"
            "return [xOf(arguments[0]), RULER + t.y - scroll.scrollTop + arguments[2] * t.h]",
            seconds, label, row,
        )  # fmt: skip
        return x, y

    def truth(self) -> list[list[Any]]:
        """Annotated [start, end, class] by start."""
        return self.js("return state.rec.truth.map((t) => [t.s, t.e, t.c]).sort((a, b) => a[0] - b[0])")

    def downloaded(self, name: str = "annotations.json") -> Path:
        path, end = self.downloads / name, time.monotonic() + 20
        while not path.is_file():
            assert time.monotonic() < end, f"{name} never came: {self.errors()}"
            time.sleep(0.02)
        return path


def _unavailable(reason: str) -> None:
    if os.environ.get("TZN_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def _driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        _unavailable("no browser: these tests need Debian's chromium and chromium-driver")
    try:
        from selenium import webdriver
    except ImportError:
        _unavailable("these tests drive a browser with selenium: pip install 'tzn[dev]'")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Chromium is the user's own here: selenium must neither look for drivers nor report home.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The archive of onnxruntime-web, from tzn's cache or from npm."""
    from tzn.errors import DataError
    from tzn.view.app import runtime_archive

    try:
        return runtime_archive()
    except DataError as error:
        _unavailable(str(error))
        raise


@pytest.fixture
def page(_driver: Any, tmp_path: Path) -> Iterator[Page]:
    """A browser with light colours and an empty folder for downloads; the test fails if the page logs an error."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    _driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    _driver.execute_cdp_cmd("Emulation.setEmulatedMedia", light)
    # Headless browsers cannot answer the dialog for a file; without it the page downloads.
    script = {"source": "delete window.showSaveFilePicker"}
    added = _driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    _driver.get_log("browser")
    shown = Page(_driver, downloads)
    yield shown
    errors = shown.errors()
    if shown.expected:
        assert errors and all(shown.expected in error for error in errors), errors
        errors = []
    _driver.execute_script("if (typeof state !== 'undefined') state.dirty = false")  # no question on leaving
    _driver.get("about:blank")
    _driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert not errors, errors
