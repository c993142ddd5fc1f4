"""The response that a client may get: that of a direct call to the upstream, with the few documented differences.

The differences, each with its function below or its place in `Oracle.fault`:

- A response made from stored vectors, or from a part of a call, is in the order of ``index``, has an ``index`` in every
  datum, a ``usage`` of its own and maybe the ``id`` of another call, may lack further fields beside the data, and has
  status 200 where the upstream's was 201.
- A request that the upstream refuses for its form or size, and one that comes while the upstream fails, may be answered
  better: with the right vectors.
- Errors that are about everybody (401, 429, 5xx, any with Retry-After) may be in the proxy's own words, with the same
  status and the upstream's Retry-After; all of these but plain 5xx in the upstream's words about a call for nothing but
  a part of the client's own items. A cut connection is the proxy's 502.
- ``only-if-cached`` may be answered 504. A refusal of the key that the proxy holds is its 502.
- Where the upstream failed for two or more other requests, for the model or shortly before, the proxy may have stopped
  retrying alone: any request may get the 5xx, in the proxy's own words.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
import pybase64

from tests.support.reference import HELD_KEY, Asked, Cut, Reference, Regime, Reply

_CANARY = re.compile(rb"canary-([a-z]+)")
_CREDENTIALS = frozenset({"authorization", "api-key"})
# What the holder of a key says: not for clients of a proxy that holds one.
_KEY_HOLDERS = frozenset({"openai-organization", "x-portkey-config", "x-portkey-metadata"})
_OWN_ERROR = {"message", "type", "param", "code"}
_OF_NOT_CACHED = {"items", "missing"}  # to `only-if-cached`: which of the client's own items
_PASSED_ON = frozenset({"retry-after", "x-ratelimit-remaining-requests"})  # with an error in the proxy's own words
_MOST_STOPPED_AFTER = 2


class Request(NamedTuple):
    client: str  # its texts, and what else only it says, contain "canary-" and this
    target: str
    headers: Mapping[str, str]
    body: bytes
    leaves_after: int | None = None  # turns of the loop; None: it waits for the response
    method: str = "POST"

    def __repr__(self) -> str:
        leaves = "" if self.leaves_after is None else f", leaves after {self.leaves_after} turns"
        return f"{self.client}: {self.target} {dict(self.headers)} {self.body.decode(errors='replace')}{leaves}"


class Received(NamedTuple):
    """The response; ``is_cut`` where the connection broke before its end."""

    status: int = 0
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    is_cut: bool = False
    reason: str = ""

    def header(self, name: str) -> str | None:
        return next((value for other, value in self.headers if other.lower() == name.lower()), None)

    def __repr__(self) -> str:
        if self.is_cut:
            return "a cut connection"
        told = {name: value for name, value in self.headers if name not in {"Date", "Server", "X-Request-Id"}}
        return f"{self.status} {self.body.decode(errors='replace')} {told}"


def upstream_target(target: str) -> str:
    """Where the proxy sends what comes at ``target``."""
    return re.sub("^/embeddings", "/v1/embeddings", target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """Judges responses of proxies in front of ``reference``."""

    reference: Reference
    owns_key: bool
    regime: Regime = Regime.NORMAL

    def expected(self, request: Request, *, has_limits: bool = True, regime: Regime | None = None) -> Reply:
        """The upstream's response to the client's own body without a proxy."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        if self.owns_key:
            headers = {name: value for name, value in headers.items() if name not in _CREDENTIALS | _KEY_HOLDERS}
            headers["authorization"] = f"Bearer {HELD_KEY}"
        asked = Asked(target=upstream_target(request.target), headers=headers, body=request.body)
        return self.reference.reply(asked, self.regime if regime is None else regime, has_limits=has_limits)

    def fault(self, request: Request, got: Received, expected: Reply, *, others_failing: int = 0) -> str | None:
        """What is wrong with a response where `expected` is right, as a category; None: nothing.

        ``others_failing`` requests came at the same time for the model and fail by `fails_for_all`, or came shortly
        before and failed.
        """
        if leak := leak_in(request, got):
            return leak
        if got.is_cut:
            return None if expected.cut is Cut.IN_BODY else "a cut connection"
        if expected.cut is None and _is_exact(got, expected):
            return None
        wrong = f"{_kind(expected)} alone, got {_kind(got)}"
        if not 200 <= got.status < 300:
            is_allowed = self._is_allowed_error(request, got, expected, others_failing)
            return None if is_allowed else f"{wrong}: {_words(got, expected)}"
        # Limits to a call's size are not the client's to see, and stored vectors outlast a failure.
        ideals = [expected, self.expected(request, has_limits=False)]
        if self.regime is not Regime.NORMAL:
            ideals.append(self.expected(request, has_limits=False, regime=Regime.NORMAL))
        reasons = [_rebuilt_fault(got, ideal) for ideal in ideals]
        return None if None in reasons else f"{wrong}: {reasons[-1]}"

    def _is_allowed_error(self, request: Request, got: Received, expected: Reply, others_failing: int) -> bool:
        is_paced = expected.status in {401, 429, 503, 529} or "Retry-After" in expected.headers
        if (
            is_paced
            and got.status == expected.status
            and got.header("Retry-After") == expected.headers.get("Retry-After")
        ):
            return True  # perhaps in words about a call for a part of the client's own items
        if not _is_own_error(got):
            return False
        if got.status == 504:
            return "only-if-cached" in request.headers.get("Cache-Control", "")
        if got.status >= 500 and others_failing >= _MOST_STOPPED_AFTER:
            return True
        if expected.cut is not None or (self.owns_key and expected.status in {401, 403}):
            return got.status == 502
        is_everybodys = expected.status in {401, 429} or expected.status >= 500 or "Retry-After" in expected.headers
        is_same = got.status == expected.status and got.header("Retry-After") == expected.headers.get("Retry-After")
        return is_everybodys and is_same


def fails_for_all(expected: Reply) -> bool:
    """Whether a request makes a merged call fail in a way that may be everybody's."""
    return expected.cut is not None or expected.status >= 500


def leak_in(request: Request, got: Received) -> str | None:
    """Where a response has a text of another client than the request's; None: nowhere."""
    head = [(f"header {name}", value.encode()) for name, value in got.headers]
    for where, text in (("reason", got.reason.encode()), *head, ("body", got.body)):
        if any(name.decode() != request.client for name in _CANARY.findall(text)):
            return f"another's text in {where}"
    return None


def _is_exact(got: Received, expected: Reply) -> bool:
    """A response relayed as it is; a cookie is for whoever's call it was."""
    if (got.status, got.body) != (expected.status, expected.body):
        return False
    return all(got.header(name) == value for name, value in expected.headers.items() if name != "Set-Cookie")


def _is_own_error(got: Received) -> bool:
    try:
        told = orjson.loads(got.body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    told_of_upstream = {name.lower() for name, _ in got.headers} & {"set-cookie", "x-debug-input"}
    return type(told) is dict and set(told) - _OF_NOT_CACHED == _OWN_ERROR and not told_of_upstream


def _kind(response: Reply | Received) -> str:
    if isinstance(response, Reply) and response.cut is not None:
        return f"cut {response.cut.value}"
    is_error_in_200 = response.status < 300 and response.body.startswith(b'{"error"')
    return f"{response.status}, an error" if is_error_in_200 else f"{response.status}"


def _words(got: Received, expected: Reply) -> str:
    if _is_own_error(got):
        return "the proxy's own words"
    return "other fields in its head" if got.body == expected.body else "words about another call"


def _rebuilt_fault(got: Received, ideal: Reply) -> str | None:
    """Why a success is not made of just the vectors of ``ideal``; None: it is."""
    if ideal.cut is not None or not 200 <= ideal.status < 300:
        return "not the upstream's"
    if got.status != ideal.status and (got.status, ideal.status) != (200, 201):
        return "another status"
    try:
        right, made = orjson.loads(ideal.body), orjson.loads(got.body)
    except ValueError:
        return "not JSON"
    if "data" not in right:
        return "not the upstream's"
    return _data_fault(made.get("data") or [], _in_order(right["data"])) or _envelope_fault(made, right)


def _data_fault(made: list[dict[str, Any]], right: list[dict[str, Any]]) -> str | None:
    if len(made) != len(right):
        return "another number of vectors"
    for index, (datum, of_upstream) in enumerate(zip(made, right, strict=True)):
        if datum.get("index") != index:
            return "indices"
        if not _is_same_vector(datum.get("embedding"), of_upstream["embedding"]):
            return "another vector"
        if _without(datum, "index", "embedding") != _without(of_upstream, "index", "embedding"):
            return "other fields in the data"
    return None


def _envelope_fault(made: dict[str, Any], right: dict[str, Any]) -> str | None:
    if any(made.get(name) != right[name] for name in ("object", "model")):
        return "another model or object"
    usage = made.get("usage")
    if type(usage) is not dict or {type(usage.get(name)) for name in ("prompt_tokens", "total_tokens")} != {int}:
        return "no usage"
    told = _without(made, "object", "model", "usage", "data", "id")
    return None if told.items() <= right.items() else "other fields beside the data"


def _in_order(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    indices = [datum.get("index") for datum in data]
    if indices.count(None) == len(data):
        return data
    return sorted(data, key=lambda datum: datum.get("index", 0))


def _is_same_vector(made: Any, right: Any) -> bool:
    """Bit for bit; where the upstream does not know base64, in the encoding that was asked for."""
    if type(made) is str and type(right) is list:
        made = memoryview(pybase64.b64decode(made)).cast("f").tolist()
    return bool(made == right)


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
