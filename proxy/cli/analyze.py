"""The command ``embedding-proxy analyze``: what a cache would save, from corpora and logs."""

import os
from pathlib import Path
from typing import Any

import click
import msgspec

from proxy.analysis import analysis, page
from proxy.analysis.formats import Format
from proxy.analysis.identifier import Identifier
from proxy.analysis.intake import Intake
from proxy.analysis.report import Report
from proxy.analysis.token_counter import TokenCounter, local_vocabulary
from proxy.cli.options.config_file import ConfigFile, config_file_of
from proxy.cli.options.config_flag import READS_CONFIG
from proxy.cli.options.table import BY_KEY
from proxy.cli.options.types import FILE, MODEL, Parsed
from proxy.cli.progress import progress
from proxy.config.quantities import parse_size
from proxy.config.settings import UpstreamSetting
from proxy.config.stores import parse_store_limit
from proxy.config.suggestion import suggestion
from proxy.config.upstream_tables import parse_upstreams
from proxy.config.upstream_urls import parse_upstream
from proxy.errors import ConfigError

_DEFAULT_MODEL = "text-embedding-3-small"
_NO_STORE = "none"
_MAX_DIMENSIONS = 65_536


def _sizes(text_: str) -> tuple[int, ...]:
    """Raises `ConfigError`."""
    return tuple(dict.fromkeys(parse_size(part) for part in text_.split(",")))


def _store_sizes(text_: str) -> tuple[int | None, ...]:
    """Raises `ConfigError`."""
    parts = [part.strip() for part in text_.split(",")]
    return tuple(dict.fromkeys(None if part.lower() == _NO_STORE else parse_store_limit(part) for part in parts))


class _EveryKey(dict[str, str]):
    """An environment in which each variable has a key: nothing is sent, so keys need not be at hand."""

    def get(self, _: str, default: Any = None) -> Any:
        return "unused"


_PARAMETERS: list[click.Parameter] = [
    click.Argument(["files"], nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True)),
    click.Option(
        ["--config"],
        type=FILE,
        **READS_CONFIG,
        help="The proxy's TOML file: its [prices], upstreams, providers and sizes apply.",
    ),
    *(BY_KEY[key].parameter() for key in ("upstream", "provider", "share", "key_headers", "neutral_headers")),
    click.Option(
        ["--memory"],
        type=Parsed("sizes", _sizes),
        default="128MiB,512MiB,2GiB",
        show_default=True,
        help="Sizes of the memory tier to try.",
    ),
    click.Option(
        ["--store-limit"],
        type=Parsed("sizes", _store_sizes),
        default="none,10GiB",
        show_default=True,
        help="Sizes of a SQLite store to try behind each of them; none: no store.",
    ),
    click.Option(
        ["--format", "file_format"],
        type=click.Choice([own.value for own in Format]),
        help="Format of the files: jsonl, text (a text on each line) or log. Default: detected in each file.",
    ),
    click.Option(
        ["--model"], type=MODEL, default=_DEFAULT_MODEL, show_default=True, help="Model of the texts of corpora."
    ),
    click.Option(
        ["--batch"],
        type=click.IntRange(1, 16_384),
        default=64,
        show_default=True,
        help="Texts of corpora in a request.",
    ),
    click.Option(
        ["--dimensions"],
        type=click.IntRange(1, _MAX_DIMENSIONS),
        help="Dimensions of vectors, where requests do not say. Default: as the model's maker documents, or 1536.",
    ),
    click.Option(
        ["--rate"],
        type=click.FloatRange(0.001, 1e6),
        default=1.0,
        show_default=True,
        help="Requests a second, where the files have no times. It matters only to stores that evict.",
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="Print the report as JSON."),
    click.Option(
        ["--html", "html"],
        type=FILE,
        help="Write the report as one HTML page, with plots, to this file.",
    ),
]


@click.command(name="analyze", params=_PARAMETERS)
@click.pass_context
def analyze_command(
    ctx: click.Context, /, files: tuple[Path, ...], *, as_json: bool, html: Path | None, **options: Any
) -> None:
    """Report what a cache would save, from corpora and request logs. Nothing is sent anywhere.

    FILES are texts (a text on each line, or JSON Lines with "text", "input" or "content"), request bodies, logs that
    contain them, logs of LiteLLM or of the OpenAI SDK, or input files of the Batch API; each may be gzipped, and - is
    standard input.
    """
    if html is not None and any(path.exists() and html.exists() and path.samefile(html) for path in files):
        raise ConfigError(f"--html {html}: it is one of the files to read; choose another name")
    report = _report(ctx, files, options)
    if html is not None:
        try:
            html.write_text(page.render(report), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--html {html}: {error.strerror or error}") from error
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        # Imported only here: other commands need not wait for rich.
        from proxy.analysis import text  # noqa: PLC0415

        text.show(report, text.console())


def _report(ctx: click.Context, files: tuple[Path, ...], options: dict[str, Any]) -> Report:
    """Raises `ConfigError` and `click.UsageError`."""
    file = config_file_of(ctx)
    default, routed = _upstreams(options, file)
    identifier = Identifier(
        default,
        routed,
        shares_all=options["share"] == "all",
        key_headers=options["key_headers"] or frozenset(),
        neutral_headers=options["neutral_headers"] or frozenset(),
    )
    counter, prices = TokenCounter(local_vocabulary(os.environ)), file.prices_by_model()
    file_format = options["file_format"]
    with progress("reading", _size_of(files), is_bytes=True) as advance:
        intake = Intake(
            identifier,
            counter,
            model=options["model"],
            batch=options["batch"],
            dimensions=options["dimensions"],
            file_format=None if file_format is None else Format(file_format),
            advanced=advance,
        )
        for path in files:
            intake.read(path)
    _require_something(intake)
    with progress("memory tiers", len(options["memory"])) as advance:
        return analysis.judge(
            intake,
            counter,
            memory_bytes=options["memory"],
            store_bytes=options["store_limit"],
            prices=prices,
            rate=options["rate"],
            provider=default.provider.name,
            advanced=advance,
        )


def _upstreams(options: dict[str, Any], file: ConfigFile) -> tuple[UpstreamSetting, tuple[UpstreamSetting, ...]]:
    """As `serve` has them, but no key is needed. Raises `ConfigError`."""
    rows = file.provider_rows()
    tables = parse_upstreams(file.upstream, rows, _EveryKey(), file.path)
    routed = tuple(setting for setting in tables if setting.models)
    default = next((setting for setting in tables if not setting.models), None)
    name = options["provider"]
    if name is not None and name not in rows:
        raise ConfigError(f"--provider: {name!r} is not a provider; {suggestion(name, rows)}")
    row = None if name is None else rows[name]
    if default is None or row is not None:
        upstream = options["upstream"]
        if row is not None and row.base_url is not None and upstream == "demo":
            upstream = row.name
        elif row is not None and upstream == "demo":
            upstream = "https://api.example.com/v1"  # any will do: nothing is sent
        default = parse_upstream(upstream, row=row, rows=rows)
    return default, routed


def _require_something(intake: Intake) -> None:
    """Raises `ConfigError` if the files have neither texts nor requests."""
    if any(file.requests for file in intake.files):
        return
    problems = [*intake.unread, *intake.skipped]
    if not problems:
        raise ConfigError(f"{intake.files[0].name}: no lines; accepted: texts, JSON Lines or logs of requests")
    first = problems[0]
    raise ConfigError(
        f"{first.file}: no text and no embeddings request; line {first.first_line}: {first.reason}; see --help for what"
        " is read"
    )


def _size_of(files: tuple[Path, ...]) -> int | None:
    """The bytes that will be read; None if their number is not known in advance."""
    if any(path.suffix == ".gz" or not path.is_file() for path in files):
        return None
    return sum(path.stat().st_size for path in files)
