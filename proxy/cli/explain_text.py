"""An explanation as text (pure)."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import orjson

from proxy.explain.recent_report import report_recent
from proxy.explain.report import Explanation, FieldReport, ItemReport, KeyReport
from proxy.printable import printable
from proxy.telemetry.recent_request import RecentRequest

_MAX_ITEMS = 20
_KEY_CHARS = 16
_LABEL = 10


def render(explanation: Explanation) -> str:
    lines = [
        f"{explanation.request} to {explanation.upstream} ({explanation.provider})",
        "",
        _labelled("keyed", _keyed(explanation)),
        _labelled("outcome", f"{explanation.outcome or 'not known'}: {explanation.why}"),
        _labelled("merging", explanation.merging),
    ]
    lines += _section("header fields", map(_field, explanation.headers))
    lines += _section("body", map(_field, explanation.body))
    if explanation.key is not None:
        lines += _section("key", _key(explanation.key))
    lines += _section("items", _items(explanation.items))
    lines += _section("what would change it", (f"  {text}" for text in explanation.advice))
    lines += _section("notes", (f"  {text}" for text in explanation.notes))
    return "\n".join(lines)


def render_recent(requests: Sequence[RecentRequest]) -> str:
    """The last requests, one after the other, the newest last."""
    return "\n".join(map(_recent, requests)) or "no requests yet"


def _recent(request: RecentRequest) -> str:
    at = datetime.fromtimestamp(request.ended_at_s, UTC).strftime("%H:%M:%SZ")
    head = (
        f"{at}  {request.outcome.upper():<9} {request.status}  {request.cached}/{request.items} cached"
        f"  {request.duration_ms:,.1f} ms  {printable(request.model or '-')}  {printable(request.request_id)}"
    )
    report = report_recent(request)
    advice = "" if report.advice is None else f"\n    to change that: {report.advice}"
    return f"{head}\n    {printable(report.why)}{advice}"


def _labelled(label: str, text: str) -> str:
    return f"  {label:<{_LABEL}}{text}"


def _section(title: str, lines: Iterable[str]) -> list[str]:
    listed = list(lines)
    return ["", title, *listed] if listed else []


def _keyed(explanation: Explanation) -> str:
    if explanation.reason is None:
        return explanation.keyed.value
    about = f" {explanation.field}" if explanation.field else ""
    return f"{explanation.keyed.value}, because of {explanation.reason}{about}"


def _field(field: FieldReport) -> str:
    value = "…" if field.value is None else field.value
    head = f"  {field.name}: {value}" if value else f"  {field.name}"
    document = f" ({field.document})" if field.document else ""
    return f"{head}\n      {field.kind}, {'in' if field.is_in_key else 'not in'} the key: {field.why}{document}"


def _key(key: KeyReport) -> list[str]:
    parts = [("scope", f"{key.scope} ({key.scope_fingerprint})"), ("url", key.url), ("model", key.model or "none")]
    if key.headers:
        parts.append(("headers", ", ".join(key.headers)))
    if key.parameters:
        parts.append(("fields", orjson.dumps(key.parameters).decode()))
    return [_labelled(*part) for part in parts]


def _items(items: Sequence[ItemReport]) -> list[str]:
    lines = [_item(item) for item in items[:_MAX_ITEMS]]
    return lines if len(items) <= _MAX_ITEMS else [*lines, f"  … and {len(items) - _MAX_ITEMS:,} more (--json has all)"]


def _item(item: ItemReport) -> str:
    unit = "tokens" if item.kind == "tokens" else "bytes"
    text = f"  {item.position}: {item.kind} of {item.size:,} {unit}, key {item.key[:_KEY_CHARS]}…"
    stored = item.stored
    if stored is None:
        return text
    exact = "" if stored.is_tokens_exact else " (estimated)"
    too_old = "" if stored.is_served else ", too old for this request"
    model = f", model {stored.model}" if stored.model else ""
    return (
        f"{text}\n      stored since {stored.since}{too_old}: {stored.dimensions} x {stored.dtype}{model},"
        f" {stored.tokens:,} tokens{exact}"
    )
