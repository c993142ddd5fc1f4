"""What is known of an upstream, on a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.inquiry.advice import Advice
from proxy.inquiry.facts import BatchFact, Fact, Facts, Latency
from proxy.printable import printable

_PLAIN_WIDTH = 120  # where the output is no terminal


def show(facts: Facts, advice: Advice) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH, no_color=True)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")
    for row in rows(facts):
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(Text(f"{facts.model} at {facts.url}", style="bold"))
    console.print(table)
    console.print(Text(f"\n{facts.calls} calls, {facts.tokens:,} tokens as the upstream counts them", style="dim"))
    console.print(Text("\nTo serve it:\n", style="bold"))
    console.print(Text(f"  {advice.serve}"), soft_wrap=True)
    if advice.toml:
        title = "with this proxy.toml" if advice.needs_file else "or, in the file of --config"
        console.print(Text(f"\n{title}:\n", style="bold"))
        console.print(
            Text("".join(f"  {line}\n" if line else "\n" for line in advice.toml.splitlines())), soft_wrap=True
        )


def rows(facts: Facts) -> list[tuple[str, str, str]]:
    answered = facts.model_answered or "no name"
    found = [
        ("model", answered, "" if answered == facts.model else "another name than the one requested"),
        ("dimensions", f"{facts.dimensions:,}", ""),
        *(("input", name, _fact(fact)) for name, fact in facts.inputs.items()),
        *(("encoding_format", name, _fact(fact)) for name, fact in facts.encodings.items()),
        *(("fewer dimensions", name, _fact(fact)) for name, fact in facts.shorter.items()),
        ("items in a call", f"{facts.batch.largest_accepted:,}", _batch(facts.batch)),
        ("bits repeat", "in another call", _fact(facts.repeats_alone)),
        ("", "twice in a call", _fact(facts.repeats_in_batch)),
        ("", "alone and beside another", _fact(facts.same_alone_and_in_batch)),
        ("numbers", facts.float_text, ""),
        ("tokens", "reported" if facts.reports_tokens else "not reported", ""),
        ("latency", f"{facts.latency.median_s * 1000:.0f} ms", _latency(facts.latency)),
    ]
    limits = [("rate limits", name, value) for name, value in sorted(facts.rate_limit_headers.items())]
    return [*found, *(limits or [("rate limits", "none in the headers", "")])]


def _fact(fact: Fact) -> str:
    return f"{fact.verdict.value}: {fact.detail}" if fact.detail else fact.verdict.value


def _batch(batch: BatchFact) -> str:
    if batch.smallest_refused is None:
        return f"more were not tried; {batch.detail}" if batch.detail else "more were not tried (--max-items)"
    return f"{batch.smallest_refused:,} refused: {batch.detail}"


def _latency(latency: Latency) -> str:
    return (
        f"median of {latency.calls} calls for one item, {latency.least_s * 1000:.0f} to {latency.most_s * 1000:.0f} ms"
    )
