"""Pictures of the dashboards: ``python -m tests.grafana.pictures grafana/pictures``.

A page made of Grafana's own components, page/page.tsx, draws in a headless Chromium what a real Prometheus answers to
the dashboards' queries after `tests.grafana.scene`. It ends in any case, after ten minutes at the latest.
"""

import functools
import http.server
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tests.grafana import scene
from tests.grafana.expressions import dashboards, filled, panels
from tests.grafana.live import LOOPBACK, Prometheus, listening
from tests.support.browser import Browser, browsing, chromium

_PAGE = Path(__file__).parent / "page"
_ESBUILD = [
    str(_PAGE / "node_modules" / ".bin" / "esbuild"), str(_PAGE / "page.tsx"), "--bundle", "--format=esm", "--minify",
    "--jsx=automatic", '--define:process.env.NODE_ENV="production"', "--loader:.woff2=dataurl",
    "--loader:.woff=empty", "--loader:.ttf=empty", "--log-level=warning",
]  # fmt: skip
_STEP_S = 2
_WIDTH, _FIRST_SCREEN = 1472, 780
# Half of a PNG's size or less, and nobody sees it.
_COLOURS = 256
_MAX_S = 600
_NEEDED = {
    "prometheus": "apt install prometheus",
    "chromedriver": "apt install chromium-driver",
    "chromium": "apt install chromium",
}


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """No access log."""


def results(prometheus: Prometheus, dashboard: dict[str, Any], *, end_s: int) -> dict[str, Any]:
    """What page.tsx draws: see ``Results`` there."""
    times = range(end_s - scene.LENGTH_S, end_s + 1, _STEP_S)
    drawn = {
        panel["id"]: [series for target in panel["targets"] for series in _series(prometheus, target, times)]
        for panel in panels(dashboard)
    }
    return {"times": [1000 * second for second in times], "now": 1000 * end_s, "panels": drawn}


def _series(prometheus: Prometheus, target: dict[str, Any], times: Sequence[int]) -> list[dict[str, Any]]:
    promql = filled(target["expr"].replace("$__range", f"{times[-1] - times[0]}s"))
    if target["instant"]:
        times = times[-1:]
        found = prometheus.get("query", query=promql, time=str(times[0]))["result"]
    else:
        asked = {"start": str(times[0]), "end": str(times[-1]), "step": str(_STEP_S)}
        found = prometheus.get("query_range", query=promql, **asked)["result"]
    return [
        {
            "legend": _legend(target["legendFormat"], series["metric"]),
            "labels": series["metric"],
            "values": _at(times, series.get("values") or [series["value"]]),
        }
        for series in found
    ]


def _legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), pattern)


def _at(times: Sequence[int], points: Sequence[tuple[float, str]]) -> list[float | None]:
    """The values at these times; where there is none, or it is no finite number, nothing."""
    values = {round(second): value for second, text in points if math.isfinite(value := float(text))}
    return [values.get(second) for second in times]


def _drawn(browser: Browser, url: str) -> Image.Image:
    browser.look(width=_WIDTH)
    browser.driver.get(url)
    browser.wait_for("document.body.dataset.drawn === 'yes'")
    if failed := [line for line in browser.complaints() if "Uncaught" in line]:
        raise RuntimeError("\n".join(failed))
    browser.look(width=_WIDTH, height=browser.run("return document.getElementById('dashboard').offsetHeight"))
    picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    return picture.quantize(_COLOURS, dither=Image.Dither.NONE)


class _Steps:
    """Says on stderr which step begins."""

    def __init__(self) -> None:
        self.step = "nothing yet"

    def begin(self, step: str) -> None:
        self.step = step
        sys.stderr.write(f"{step} ...\n")


@contextmanager
def _in_time(steps: _Steps) -> Iterator[None]:
    """Ends the block after `_MAX_S`, whatever it waits for. Raises `TimeoutError`."""

    def on_alarm(*_: object) -> None:
        raise TimeoutError(f"gave up after {_MAX_S // 60} minutes while {steps.step}")

    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(_MAX_S)
    try:
        yield
    finally:
        signal.alarm(0)


def _require_programs() -> None:
    """Before five minutes are spent."""
    for program, how in _NEEDED.items():
        if not (chromium() if program == "chromium" else shutil.which(program)):
            raise RuntimeError(f"{program} is needed and was not found in PATH; Debian and Ubuntu: {how}")


def _draw_all(pictures: Path, steps: _Steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        steps.begin("bundling the page")
        site = Path(folder) / "site"
        subprocess.run([*_ESBUILD, f"--outdir={site}"], check=True)
        shutil.copy(_PAGE / "index.html", site)
        steps.begin(f"playing {scene.LENGTH_S // 60} minutes of load on two proxies")
        with scene.played(Path(folder)) as prometheus:
            steps.begin("waiting for a scrape of both proxies")
            end_s = scene.settled(prometheus)
            steps.begin("reading the results")
            answers = {name: results(prometheus, dashboard, end_s=end_s) for name, dashboard in dashboards().items()}
        server = http.server.ThreadingHTTPServer(LOOPBACK, functools.partial(_Files, directory=str(site)))
        with listening(server) as url, browsing() as browser:
            for name, dashboard in dashboards().items():
                steps.begin(f"drawing {name}")
                (site / "dashboard.json").write_text(json.dumps(dashboard))
                (site / "results.json").write_text(json.dumps(answers[name]))
                picture = _drawn(browser, url)
                picture.save(pictures / f"{name}.png", optimize=True)
                if name == "overview":
                    picture.crop((0, 0, _WIDTH, _FIRST_SCREEN)).save(pictures / "first-screen.png", optimize=True)


def main(pictures: Path) -> None:
    """Exits with one line if the pictures can't be made."""
    pictures.mkdir(exist_ok=True)
    steps = _Steps()
    try:
        _require_programs()
        with _in_time(steps):
            _draw_all(pictures, steps)
    except (RuntimeError, TimeoutError) as error:
        sys.exit(f"dashboard pictures: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
