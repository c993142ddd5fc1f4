"""The settings that follow from what is known of an upstream (pure)."""

import re
from typing import NamedTuple

from proxy.config.settings import UpstreamSetting
from proxy.inquiry.facts import Facts, Verdict
from proxy.protocol.provider import InputFormat, Provider

_PROBED = (InputFormat.TEXT, InputFormat.TEXTS, InputFormat.TOKENS, InputFormat.TOKEN_LISTS)
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")


class Advice(NamedTuple):
    """``serve`` is a command line. ``toml`` is for the file of `--config`; the command needs it if ``needs_file``."""

    serve: str
    toml: str
    needs_file: bool


def advise(facts: Facts, setting: UpstreamSetting, *, key_env: str | None) -> Advice:
    row = setting.provider
    changes = _changes(facts, row)
    upstream = "demo" if setting.is_demo else row.name if setting.base_url == row.base_url else setting.base_url
    key = f" --upstream-key-env {key_env}" if key_env else ""
    provider = "" if upstream in (row.name, "demo") or row.name == "generic" else f" --provider {row.name}"
    if setting.is_demo:
        return Advice("embedding-proxy serve --upstream demo", "", needs_file=False)
    if not changes:
        table = ["[[upstream]]", f'provider = "{row.name}"', *_base_url(setting), *_key(key_env)]
        return Advice(f"embedding-proxy serve --upstream {upstream}{provider}{key}", _joined(table), needs_file=False)
    name = _name(setting, row)
    own = [f"[providers.{name}]", *([] if name == row.name else [f'like = "{row.name}"']), *changes]
    table = ["", "[[upstream]]", f'provider = "{name}"', f'base_url = "{setting.base_url}"', *_key(key_env)]
    return Advice("embedding-proxy serve --config proxy.toml", _joined([*own, *table]), needs_file=True)


def _changes(facts: Facts, row: Provider) -> list[str]:
    """Keys of `[providers.NAME]` in which the upstream differs from the row."""
    changes = []
    known = {own: facts.inputs[own.value].verdict for own in _PROBED}
    inputs = {own for own in row.inputs if known.get(own, Verdict.YES) is not Verdict.NO}
    inputs |= {own for own, verdict in known.items() if verdict is Verdict.YES}
    if inputs != row.inputs:
        listed = ", ".join(f'"{own.value}"' for own in InputFormat if own in inputs)
        changes.append(f"inputs = [{listed}]")
    batch = facts.batch
    if batch.smallest_refused is not None and batch.largest_accepted < row.limits.items:
        changes.append(f"max_items = {batch.largest_accepted}")
    encodings = row.encoding.get("encoding_format", frozenset())
    refused = {name for name, fact in facts.encodings.items() if fact.verdict is Verdict.NO} & encodings
    if refused:
        listed = ", ".join(f'"{name}"' for name in sorted(encodings - refused))
        changes.append(f"encoding = {{ encoding_format = [{listed}] }}")
    return changes


def _name(setting: UpstreamSetting, row: Provider) -> str:
    """A name for the row: its own if this is its own address, or one of the host."""
    if setting.base_url == row.base_url:
        return row.name
    return "my-" + (_NOT_IN_NAMES.sub("-", setting.name.lower()).strip("-")[:48] or "upstream")


def _base_url(setting: UpstreamSetting) -> list[str]:
    return [] if setting.base_url == setting.provider.base_url else [f'base_url = "{setting.base_url}"']


def _key(key_env: str | None) -> list[str]:
    return [f'key_env = "{key_env}"'] if key_env else []


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
