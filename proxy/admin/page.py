"""The status page on the admin port, and the numbers it asks for every two seconds."""

import base64
import hashlib
import re
from collections.abc import Callable
from importlib import resources

import orjson
from aiohttp import web

from proxy.admin import status
from proxy.admin.status import About, History, Status
from proxy.telemetry.metrics import Families


class StatusPage:
    """The page and its JSON. ``about`` is asked anew each time; ``now`` counts seconds and only goes forward."""

    def __init__(
        self,
        families: Families,
        about: Callable[[], About],
        *,
        is_draining: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        self._families = families
        self._about = about
        self._is_draining = is_draining
        self._now = now
        self._started_s = now()
        self._history = History(self._started_s)
        self._html = resources.files("proxy.admin").joinpath("status.html").read_text(encoding="utf-8")
        self._policy = content_security_policy(self._html)

    async def sample(self) -> None:
        """Take down what the counters say, for the history."""
        self._history.note(self._now(), status.counts_of(await self._families()))

    async def status(self) -> Status:
        families = await self._families()
        now_s = self._now()
        return status.status_of(
            families,
            self._about(),
            self._history,
            now_s=now_s,
            uptime_s=now_s - self._started_s,
            is_draining=self._is_draining(),
        )

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/", self._page)
        router.add_get("/status.json", self._json)

    async def _page(self, _: web.Request) -> web.Response:
        fields = _HEADERS | {"Content-Security-Policy": self._policy}
        return web.Response(text=self._html, content_type="text/html", charset="utf-8", headers=fields)

    async def _json(self, _: web.Request) -> web.Response:
        body = orjson.dumps(await self.status())
        return web.Response(body=body, content_type="application/json", headers=_HEADERS)


# No other site's page is to embed it or read from it.
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def content_security_policy(html: str) -> str:
    """Nothing but the page's own inline script and style may run, and only this origin be asked.

    https://www.w3.org/TR/CSP3/#framework-directive-source-list
    """
    rules = {
        "default-src": "'none'",
        "script-src": _hashes("script", html),
        "style-src": _hashes("style", html),
        "img-src": "data:",  # the icon
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hashes(element: str, html: str) -> str:
    texts = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
