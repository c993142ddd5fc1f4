"""The status page on the admin port, and its JSON, which the page polls every two seconds."""

import base64
import hashlib
import re
import time
from collections.abc import Callable
from importlib import resources

import orjson
from aiohttp import web

from proxy.admin.history import History
from proxy.admin.last_used import LastUsed
from proxy.admin.samples import Samples
from proxy.admin.status import About, Status, status_of
from proxy.admin.window import counts_of
from proxy.telemetry.metrics import Families


class StatusPage:
    """The page and its JSON. ``now`` is a monotonic clock, in seconds."""

    def __init__(
        self,
        families: Families,
        about: About,
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
        self._last_used = LastUsed()
        self._html = page_html()
        self._policy = content_security_policy(self._html)

    async def sample(self) -> None:
        """Add a sample of the counters to the history."""
        samples = Samples(await self._families())
        self._history.note(self._now(), counts_of(samples))
        self._last_used.note(time.time(), samples)

    async def status(self) -> Status:
        families = list(await self._families())
        now_s = self._now()
        self._last_used.note(time.time(), Samples(families))
        return status_of(
            families,
            self._about,
            self._history,
            now_s=now_s,
            uptime_s=now_s - self._started_s,
            is_draining=self._is_draining(),
            last_used_s=self._last_used.by_client,
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


def page_html() -> str:
    """status.html with its style and script put in, so that a browser needs one request."""
    folder = resources.files("proxy.admin")
    html, style, script = (
        folder.joinpath(f"status.{ext}").read_text(encoding="utf-8") for ext in ("html", "css", "js")
    )
    return html.replace("/* status.css */\n", style).replace("/* status.js */\n", script)


# Keeps pages of other sites from embedding or reading these responses.
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def content_security_policy(html: str) -> str:
    """Allows the page its own inline script and style and requests to its own origin, and nothing else.

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
