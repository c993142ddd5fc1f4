"""A headless Chromium, and screenshots of the status page: ``python -m tests.support.browser docs``."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import orjson
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.support.demo_load import loaded

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
LIGHT, DARK = "light", "dark"


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """Its methods block; call them in a thread of the test, as the proxy runs in the test's loop."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def cdp(self, command: str, /, **parameters: Any) -> Any:
        """https://chromedevtools.github.io/devtools-protocol/"""
        return self.driver.execute_cdp_cmd(command, parameters)

    def look(self, *, width: int = 1120, height: int = 900, scheme: str = LIGHT) -> None:
        self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, condition: str, *arguments: Any) -> None:
        """Until the JavaScript expression holds."""
        script = (
            f"const done = arguments[arguments.length - 1], holds = () => {condition};"
            "if (holds()) { done(true); return; }"
            "const watch = new MutationObserver(() => { if (holds()) { watch.disconnect(); done(true); } });"
            "watch.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});"
        )
        assert self.driver.execute_async_script(script, *arguments)

    def _log(self, name: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.execute("getLog", {"type": name})["value"]
        return entries

    def requested(self) -> list[str]:
        """The URLs asked for since the last time."""
        entries = [orjson.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """What the console said since the last time."""
        return [entry["message"] for entry in self._log("browser")]


@contextmanager
def browsing() -> Iterator[Browser]:
    binary, driver_path = chromium(), shutil.which("chromedriver")
    assert binary, "chromium is needed (Debian and Ubuntu: apt install chromium chromium-driver)"
    assert driver_path, "chromedriver is needed (Debian and Ubuntu: apt install chromium-driver)"
    # Selenium would ask a proxy of the environment for a browser on this machine.
    here = mock.patch.dict(os.environ, no_proxy="127.0.0.1,localhost", NO_PROXY="127.0.0.1,localhost")
    with here, tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = binary
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = Chrome(options=options, service=ChromeService(driver_path))
        driver.set_script_timeout(30)
        try:
            driver.get("about:blank")
            browser = Browser(driver)
            browser.requested()  # those of the browser's own first page
            yield browser
        finally:
            driver.quit()


def _take(admin_url: str, folder: Path) -> None:
    with browsing() as browser:
        for name, width, scheme in (("light", 1120, LIGHT), ("dark", 1120, DARK), ("phone", 360, LIGHT)):
            browser.look(width=width, scheme=scheme)
            browser.driver.get(admin_url)
            browser.wait_for("document.getElementById('state').textContent === 'Live'")
            height = browser.run("return document.documentElement.scrollHeight")
            browser.look(width=width, height=height, scheme=scheme)
            browser.driver.save_screenshot(str(folder / f"status-{name}.png"))


async def _main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as store, chdir(store):
        async with loaded(Path()) as proxy:
            await asyncio.to_thread(_take, proxy.admin_url, folder)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]).absolute()))
