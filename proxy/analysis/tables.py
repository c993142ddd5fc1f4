"""The report as titled tables of texts, which the terminal and the HTML page show alike."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from proxy.amounts import money, percent, percent_of, short_byte_size
from proxy.analysis.report import LineProblem, Report, Scenario

_MAX_ROWS = 20
_BASIS = {"estimated": "estimated by bytes", "partly estimated": "partly estimated by bytes", "exact": "exact"}


class Table(NamedTuple):
    """All columns but the first have numbers, except in a table ``of_text``."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    of_text: bool = False


def tables(report: Report) -> list[Table]:
    """All that have something to say."""
    found = [
        _totals(report),
        _scenarios(report),
        _models(report),
        _intervals(report),
        _bypasses(report),
        _files(report),
        _problems("Lines that could not be read", report.unread),
        _problems("Lines that are no embeddings requests", report.skipped),
        _assumptions(report),
    ]
    return [table for table in found if table.rows]


def headline(report: Report) -> str:
    """The result in one sentence."""
    of = report.repetition
    repeated = of.in_request + of.over_time
    text = f"{percent_of(repeated, of.items)} of {of.items:,} items repeat an earlier one"
    if report.money is not None and report.money.without_cache:
        saved = report.money.without_cache - report.money.at_best
        text += f": a cache saves up to {money(saved)} of {money(report.money.without_cache)}"
    else:
        text += f": a cache saves up to {of.tokens - of.tokens_distinct:,} of {of.tokens:,} tokens"
    return text + (f" ({_BASIS[report.assumptions.tokens]})." if report.assumptions.tokens != "exact" else ".")


def _totals(report: Report) -> Table:
    of = report.repetition
    bypassed = sum(own.requests for own in report.bypasses if not own.is_cached_whole)
    rows = [
        ("requests", f"{of.requests + bypassed + report.refused_requests:,}", ""),
        ("… without any new item", f"{of.requests_without_new:,}", percent_of(of.requests_without_new, of.requests)),
        ("items", f"{of.items:,}", ""),
        ("… distinct", f"{of.distinct:,}", percent_of(of.distinct, of.items)),
        ("… repeated in the same request", f"{of.in_request:,}", percent_of(of.in_request, of.items)),
        ("… repeated over time", f"{of.over_time:,}", percent_of(of.over_time, of.items)),
        ("most frequent item", f"{of.most_repeated:,}", ""),
        (f"tokens ({report.assumptions.tokens})", f"{of.tokens:,}", ""),
        ("… of distinct items", f"{of.tokens_distinct:,}", percent_of(of.tokens_distinct, of.tokens)),
    ]
    if report.money is not None:
        rows.append(("money without a cache", money(report.money.without_cache), ""))
        part = report.money.at_best / report.money.without_cache if report.money.without_cache else 0.0
        rows.append(("… with one that keeps everything", money(report.money.at_best), percent(part)))
    if report.refused_requests:
        rows.append(("requests that the proxy would refuse", f"{report.refused_requests:,}", ""))
    if report.begins_at_s is not None and report.ends_at_s is not None:
        rows.append(("first request", _moment(report.begins_at_s), ""))
        rows.append(("last request", _moment(report.ends_at_s), ""))
    return Table("What repeats", ("", "number", "share"), rows)


def _scenarios(report: Report) -> Table:
    has_money = any(own.money_upstream is not None for own in report.scenarios)
    columns = ("--memory and --store-limit", "hit rate", "memory", "store", "upstream", "calls", "tokens upstream")
    rows = [
        (
            sizes(own),
            ("≈ " if own.evicts else "") + percent(own.hit_rate),
            f"{own.items.memory:,}",
            f"{own.items.store:,}",
            f"{own.items.upstream:,}",
            f"{own.items.upstream_calls:,}",
            f"{own.tokens_upstream:,}",
            *((money(own.money_upstream or 0.0),) if has_money else ()),
        )
        for own in report.scenarios
    ]
    title = (
        f"With caches of several sizes (everything takes {short_byte_size(report.memory_needed_bytes)} of memory, or"
        f" {short_byte_size(report.store_needed_bytes)} of the store)"
    )
    return Table(title, (*columns, "money") if has_money else columns, rows)


def sizes(scenario: Scenario) -> str:
    store = "no store" if scenario.store_bytes is None else short_byte_size(scenario.store_bytes)
    return f"{short_byte_size(scenario.memory_bytes)}, {store}"


def _models(report: Report) -> Table:
    rows = [
        (
            str(own.model or "(none)"),
            f"{own.requests:,}",
            f"{own.items:,}",
            f"{own.distinct:,}",
            percent_of(own.items - own.distinct, own.items),
            f"{own.tokens:,}",
        )
        for own in report.models[:_MAX_ROWS]
    ]
    return Table("By model", ("model", "requests", "items", "distinct", "repeated", "tokens"), rows)


def _intervals(report: Report) -> Table:
    of, so_far, rows = report.repetition, 0, []
    for own in of.intervals:
        so_far += own.items
        within = own.label if own.label == "longer" else f"within {own.label}"
        rows.append((within, f"{own.items:,}", percent_of(so_far, of.over_time)))
    return Table("How soon items come again", ("", "items", "so far"), rows if of.over_time else [])


def _bypasses(report: Report) -> Table:
    rows = [
        (
            own.reason,
            "cached as a whole: only the same body hits" if own.is_cached_whole else "relayed, not cached",
            f"{own.requests:,}",
            f"{own.items:,}",
        )
        for own in report.bypasses
    ]
    columns = ("reason", "what the proxy does", "requests", "items")
    return Table("Requests that are not cached item by item", columns, rows)


def _files(report: Report) -> Table:
    rows = [
        (own.name, own.format, f"{own.lines:,}", f"{own.texts:,}" if own.texts else "-", f"{own.requests:,}")
        for own in report.files
    ]
    return Table("Files", ("file", "format", "lines", "texts", "requests"), rows)


def _problems(title: str, problems: list[LineProblem]) -> Table:
    rows = [(own.file, own.reason, f"{own.lines:,}", f"{own.first_line:,}") for own in problems]
    return Table(title, ("file", "reason", "lines", "first line"), rows)


def _assumptions(report: Report) -> Table:
    own = report.assumptions
    rows = [("the API's rules", f"those of {own.provider} (--provider)")]
    if own.model is not None:
        rows.append(("texts of corpora", f"{own.batch} in a request (--batch), for {own.model} (--model)"))
    if own.tokens != "exact":
        rows.append(("tokens", f"{_BASIS[own.tokens]}: one for 4 bytes of ASCII, for 3 of other text"))
    for model, dimensions in list(own.dimensions.items())[:_MAX_ROWS]:
        why = "not known, assumed (--dimensions)" if model in own.guessed_dimensions else "as its maker documents"
        rows.append((f"dimensions of {model}", f"{dimensions:,}, {why}"))
    if own.rate is not None:
        pace = f"{own.rate:g} requests a second (--rate), in the order of the files"
        rows.append(("times", f"not every request has one: {pace}"))
    else:
        rows.append(("order", "requests in the order of their times"))
    if report.money is not None and report.money.models_without_price:
        rows.append(("models without a price", ", ".join(report.money.models_without_price[:_MAX_ROWS])))
    if any(scenario.evicts for scenario in report.scenarios):
        rows.append(("≈", "what is evicted from memory is in part random, in a proxy too"))
    return Table("Assumptions", ("", ""), rows, of_text=True)


def _moment(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S}Z"
