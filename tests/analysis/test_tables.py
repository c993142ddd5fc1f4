"""The report as tables: what each says, and which are left out."""

import pytest
from msgspec.structs import replace

from proxy.analysis.report import (
    Assumptions,
    BypassCount,
    FileSummary,
    LineProblem,
    Money,
    Report,
    Scenario,
)
from proxy.analysis.simulation import Outcome
from proxy.analysis.statistics import Interval, ModelTotals, Repetition
from proxy.analysis.tables import Table, headline, sizes, tables

MIB = 1024**2
EXACT = Assumptions(
    tokens="exact", dimensions={}, guessed_dimensions=[], model=None, batch=1, rate=None, provider="openai"
)
NOTHING_REPEATS = Repetition(
    requests=1, items=2, distinct=2, in_request=0, over_time=0, requests_without_new=0, most_repeated=1, tokens=10,
    tokens_distinct=10, intervals=[Interval("1 min", 0)], steps=[],
)  # fmt: skip
SMALL = Report(
    version="1", files=[], unread=[], skipped=[], repetition=NOTHING_REPEATS, models=[], bypasses=[],
    refused_requests=0, memory_needed_bytes=MIB, store_needed_bytes=2 * MIB, money=None, scenarios=[],
    assumptions=EXACT,
)  # fmt: skip
REPEATING = replace(
    NOTHING_REPEATS, requests=1000, items=4000, distinct=1000, in_request=500, over_time=2500,
    requests_without_new=333, most_repeated=77, tokens=9000, tokens_distinct=3000,
    intervals=[Interval("1 min", 1000), Interval("1 h", 500), Interval("longer", 1000)],
)  # fmt: skip
OUTCOME = Outcome(memory=1000, store=2000, duplicate=500, upstream=500, upstream_calls=321, upstream_tokens=[1234])
SCENARIO = Scenario(
    memory_bytes=512 * MIB, store_bytes=None, evicts=False, hit_rate=0.875, items=OUTCOME, tokens_upstream=1234,
    money_upstream=None,
)  # fmt: skip
WHAT_REPEATS, BY_SIZE = "What repeats", "With caches of several sizes"
SOON, BYPASSED = "How soon items come again", "Requests that are not cached item by item"


def table(report: Report, title: str) -> Table:
    (found,) = (one for one in tables(report) if one.title.startswith(title))
    return found


def rows(report: Report, title: str) -> dict[str, tuple[str, ...]]:
    """By their first column."""
    found = table(report, title)
    assert {len(row) for row in found.rows} == {len(found.columns)}
    return {row[0]: row[1:] for row in found.rows}


def test_tables_that_have_nothing_to_say_are_left_out() -> None:
    assert [found.title for found in tables(SMALL)] == [WHAT_REPEATS, "Assumptions"]
    assert [found.of_text for found in tables(SMALL)] == [False, True]


def test_all_tables_in_their_order() -> None:
    problem = [LineProblem(file="a.log", reason="not JSON", lines=1200, first_line=7)]
    report = replace(
        SMALL, repetition=REPEATING, scenarios=[SCENARIO], unread=problem, skipped=problem,
        models=[ModelTotals(model=None, requests=1000, items=4000, distinct=1000, tokens=9000, tokens_distinct=1)],
        bypasses=[BypassCount(reason="stream", requests=1, items=2, is_cached_whole=False)],
        files=[FileSummary(name="a.log", format="litellm", lines=5000, requests=1000, texts=0)],
    )  # fmt: skip
    assert [found.title.partition(" (")[0] for found in tables(report)] == [
        WHAT_REPEATS, BY_SIZE, "By model", SOON, BYPASSED, "Files", "Lines that could not be read",
        "Lines that are no embeddings requests", "Assumptions",
    ]  # fmt: skip
    assert rows(report, "By model") == {"(none)": ("1,000", "4,000", "1,000", "75.0 %", "9,000")}
    assert rows(report, "Files") == {"a.log": ("litellm", "5,000", "-", "1,000")}
    assert rows(report, "Lines that could") == {"a.log": ("not JSON", "1,200", "7")}


def test_the_first_table_says_what_repeats() -> None:
    assert rows(replace(SMALL, repetition=REPEATING), WHAT_REPEATS) == {
        "requests": ("1,000", ""),
        "… without any new item": ("333", "33.3 %"),
        "items": ("4,000", ""),
        "… distinct": ("1,000", "25.0 %"),
        "… repeated in the same request": ("500", "12.5 %"),
        "… repeated over time": ("2,500", "62.5 %"),
        "most frequent item": ("77", ""),
        "tokens (exact)": ("9,000", ""),
        "… of distinct items": ("3,000", "33.3 %"),
    }


def test_requests_that_are_not_cached_are_requests_too() -> None:
    bypasses = [
        BypassCount(reason="stream", requests=20, items=30, is_cached_whole=False),
        BypassCount(reason="cross-item", requests=40, items=50, is_cached_whole=True),  # among the 1000
    ]
    report = replace(SMALL, repetition=REPEATING, bypasses=bypasses, refused_requests=3)
    assert rows(report, WHAT_REPEATS)["requests"] == ("1,023", "")
    assert rows(report, WHAT_REPEATS)["requests that the proxy would refuse"] == ("3", "")
    assert rows(report, BYPASSED) == {
        "stream": ("relayed, not cached", "20", "30"),
        "cross-item": ("cached as a whole: only the same body hits", "40", "50"),
    }


def test_money_and_times_are_told_where_they_are_known() -> None:
    money = Money(without_cache=200.0, at_best=50.0, models_without_price=["x"])
    report = replace(SMALL, money=money, begins_at_s=1_800_000_000.9, ends_at_s=1_800_003_600.0)
    found = rows(report, WHAT_REPEATS)
    assert found["money without a cache"] == ("200.00", "")
    assert found["… with one that keeps everything"] == ("50.00", "25.0 %")
    assert found["first request"] == ("2027-01-15 08:00:00Z", "")
    assert found["last request"] == ("2027-01-15 09:00:00Z", "")
    assert rows(report, "Assumptions")["models without a price"] == ("x",)
    free = replace(report, money=replace(money, without_cache=0.0, at_best=0.0))
    assert rows(free, WHAT_REPEATS)["… with one that keeps everything"] == ("0.0000", "0.0 %")
    assert "first request" not in rows(replace(report, ends_at_s=None), WHAT_REPEATS)


def test_each_size_has_a_row_with_its_hits() -> None:
    with_store = replace(SCENARIO, store_bytes=4096 * MIB, evicts=True)
    report = replace(SMALL, scenarios=[SCENARIO, with_store])
    found = table(report, BY_SIZE)
    assert found.title.endswith("(everything takes 1 MiB of memory, or 2 MiB of the store)")
    numbers = ("1,000", "2,000", "500", "321", "1,234")
    assert list(found.rows) == [
        ("512 MiB, no store", "87.5 %", *numbers),
        ("512 MiB, 4 GiB", "≈ 87.5 %", *numbers),
    ]
    assert sizes(with_store) == "512 MiB, 4 GiB"
    assert "≈" in rows(report, "Assumptions")
    assert "≈" not in rows(replace(SMALL, scenarios=[SCENARIO]), "Assumptions")
    priced = replace(SMALL, scenarios=[replace(SCENARIO, money_upstream=0.5), SCENARIO])
    found = table(priced, BY_SIZE)
    assert (found.columns[-1], [row[-1] for row in found.rows]) == ("money", ["0.5000", "0.0000"])


def test_how_soon_items_come_again() -> None:
    assert rows(replace(SMALL, repetition=REPEATING), SOON) == {
        "within 1 min": ("1,000", "40.0 %"),
        "within 1 h": ("500", "60.0 %"),
        "longer": ("1,000", "100.0 %"),
    }


def test_only_so_many_models_are_shown() -> None:
    models = [
        ModelTotals(model=str(n), requests=1, items=1, distinct=1, tokens=1, tokens_distinct=1) for n in range(30)
    ]
    assert list(rows(replace(SMALL, models=models), "By model")) == [str(n) for n in range(20)]


def test_assumptions_are_listed() -> None:
    assert rows(SMALL, "Assumptions") == {
        "the API's rules": ("those of openai (--provider)",),
        "order": ("requests in the order of their times",),
    }
    more = replace(
        EXACT, tokens="estimated", dimensions={"a": 1536, "b": 768}, guessed_dimensions=["b"], model="a", batch=8,
        rate=2.5,
    )  # fmt: skip
    found = rows(replace(SMALL, assumptions=more), "Assumptions")
    assert found["texts of corpora"] == ("8 in a request (--batch), for a (--model)",)
    assert found["tokens"] == ("estimated by bytes: one for 4 bytes of ASCII, for 3 of other text",)
    assert found["dimensions of a"] == ("1,536, as its maker documents",)
    assert found["dimensions of b"] == ("768, not known, assumed (--dimensions)",)
    assert found["times"] == ("not every request has one: 2.5 requests a second (--rate), in the order of the files",)
    assert "order" not in found


@pytest.mark.parametrize(
    ("report", "says"),
    [
        (SMALL, "0.0 % of 2 items repeat an earlier one: a cache saves up to 0 of 10 tokens."),
        (
            replace(SMALL, repetition=REPEATING),
            "75.0 % of 4,000 items repeat an earlier one: a cache saves up to 6,000 of 9,000 tokens.",
        ),
        (
            replace(SMALL, repetition=REPEATING, money=Money(200.0, 50.0, []),
                    assumptions=replace(EXACT, tokens="partly estimated")),
            "75.0 % of 4,000 items repeat an earlier one: a cache saves up to 150.00 of 200.00"
            " (partly estimated by bytes).",
        ),
        (
            replace(SMALL, money=Money(0.0, 0.0, [])),
            "0.0 % of 2 items repeat an earlier one: a cache saves up to 0 of 10 tokens.",
        ),
    ],
)  # fmt: skip
def test_the_headline_says_what_would_be_saved(report: Report, says: str) -> None:
    assert headline(report) == says
