"""The results of the commands `cache …` as text and as JSON."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from proxy.access.access import EVERYBODY, OWN_KEY
from proxy.amounts import byte_size, counted, entries
from proxy.maintenance.entry_writer import WrittenEntries
from proxy.maintenance.purge import Purged
from proxy.maintenance.survey import AGES, OLDER, Group, Kind, Survey, Verified
from proxy.maintenance.transfer import Exported, Imported
from proxy.printable import printable
from proxy.protocol.keys import scope_fingerprint

_NAMED_KEYS = 5  # of each flaw
# The scopes that do not depend on a client's credentials.
_SCOPES = {
    scope_fingerprint(EVERYBODY): "all clients: --share all",
    scope_fingerprint(OWN_KEY): "all clients: the proxy has the upstream's key",
    scope_fingerprint([]): "requests without a credential",
}


def shown(text: str) -> str:
    """A name that a client or an upstream chose, without control characters."""
    return printable(text) or "(no name)"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns: the first on the left, the others on the right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def survey_text(name: str, found: Survey, *, is_by_scope: bool = False) -> str:
    lines = [f"{name}: {entries(found.entries)}, {byte_size(found.bytes)}"]
    if found.groups:
        head = ("model", "dimensions", "type", "entries", "size", "tokens", "oldest", "newest")
        rows = [_survey_row(kind, group) for kind, group in _by_size(found)]
        lines += ["", table(head, rows)]
        lines += ["", _scopes_text(found)] if is_by_scope else []
        lines += ["", "age"]
        lines += [f"  up to {age:8} {found.ages[age]:>12,}" for age in AGES if found.ages[age]]
        lines += [f"  {OLDER:14} {found.ages[OLDER]:>12,}"] if found.ages[OLDER] else []
    if found.own.entries:
        lines += ["", f"Besides, {counted(found.own.entries, 'value')} of the canary, {byte_size(found.own.bytes)}."]
    if found.tagged:
        lines += ["", f"{found.tagged:,} have a tag of a record key."]
    if found.invalid:
        lines += ["", f"{found.invalid.total():,} are invalid ({_counts(found.invalid)}); see cache verify."]
    return "\n".join(lines)


def _by_size(found: Survey) -> list[tuple[Kind, Group]]:
    return sorted(found.groups.items(), key=lambda item: (-item[1].entries, item[0]))


def _survey_row(kind: Kind, group: Group) -> Sequence[str]:
    return (shown(kind.model), str(kind.dimensions), kind.dtype, *_amounts(group))


def _scopes_text(found: Survey) -> str:
    rows = [(_scope_name(scope), *_amounts(group)) for scope, group in _scopes_by_size(found)]
    return table(("scope", "entries", "size", "tokens", "oldest", "newest"), rows)


def _scope_name(scope: bytes) -> str:
    """The fingerprint, and its meaning if it does not depend on a client's credentials."""
    meaning = _SCOPES.get(scope)
    return scope.hex() + (f" ({meaning})" if meaning else "") if scope else "(of an earlier version)"


def _amounts(group: Group) -> Sequence[str]:
    return (
        f"{group.entries:,}", byte_size(group.bytes), f"{group.tokens:,}", _date(group.oldest_s), _date(group.newest_s),
    )  # fmt: skip


def _scopes_by_size(found: Survey) -> list[tuple[bytes, Group]]:
    return sorted(found.scopes.items(), key=lambda item: (-item[1].entries, item[0]))


def _date(unix_s: int) -> str:
    try:
        return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):  # any number fits into a record
        return "?"


def survey_json(name: str, found: Survey) -> dict[str, Any]:
    return {
        "store": name,
        "entries": found.entries,
        "bytes": found.bytes,
        "own": {"values": found.own.entries, "bytes": found.own.bytes},
        "tagged": found.tagged,
        "invalid": dict(found.invalid),
        "ages": {age: found.ages[age] for age in (*AGES, OLDER)},
        "models": [
            {
                "model": kind.model, "dimensions": kind.dimensions, "dtype": kind.dtype, "entries": group.entries,
                "bytes": group.bytes, "tokens": group.tokens, "oldest_s": group.oldest_s, "newest_s": group.newest_s,
            }
            for kind, group in _by_size(found)
        ],
        "scopes": [
            {
                "scope": scope.hex() or None, "entries": group.entries, "bytes": group.bytes, "tokens": group.tokens,
                "oldest_s": group.oldest_s, "newest_s": group.newest_s,
            }
            for scope, group in _scopes_by_size(found)
        ],
    }  # fmt: skip


def verified_text(name: str, found: Verified) -> str:
    lines = [f"{name}: {counted(found.valid, 'valid record')}, {found.counts.total():,} invalid"]
    if found.unverified:
        lines.append(f"{found.unverified:,} have a tag, which only --record-key-env could verify.")
    for flaw, keys in found.invalid.items():
        more = found.counts[flaw] - len(keys[:_NAMED_KEYS])
        lines.append(f"  {flaw}: {found.counts[flaw]:,}")
        lines += [f"    {key}" for key in keys[:_NAMED_KEYS]] + ([f"    and {more:,} more"] if more else [])
    if found.invalid:
        lines.append("The proxy treats them as misses, and replaces them.")
    return "\n".join(lines)


def verified_json(name: str, found: Verified) -> dict[str, Any]:
    return {
        "store": name,
        "valid": found.valid,
        "unverified": found.unverified,
        "invalid": {flaw: {"count": found.counts[flaw], "keys": keys} for flaw, keys in found.invalid.items()},
    }


def exported_text(name: str, path: str, done: Exported) -> str:
    resumed = " (an interrupted export was continued)" if done.is_resumed else ""
    return f"{path}: {entries(done.entries)} of {name}, {byte_size(done.bytes)}{resumed}"


def exported_json(name: str, path: str, done: Exported) -> dict[str, Any]:
    return {
        "store": name, "file": path, "entries": done.entries, "bytes": done.bytes, "is_resumed": done.is_resumed,
    }  # fmt: skip


def written_text(name: str, written: WrittenEntries, *, is_dry_run: bool = False) -> str:
    verb = "would be stored" if is_dry_run else "stored"
    lines = [f"{name}: {entries(written.stored)} {verb}"]
    if written.existing:
        lines.append(f"  {written.existing:,} were there already, and stay (--overwrite replaces them)")
    if written.expired:
        lines.append(f"  {written.expired:,} are older than --ttl")
    if written.invalid:
        lines.append(f"  {written.invalid.total():,} are invalid ({_counts(written.invalid)})")
    return "\n".join(lines)


def written_json(name: str, written: WrittenEntries, *, is_dry_run: bool = False) -> dict[str, Any]:
    return {
        "store": name, "is_dry_run": is_dry_run, "stored": written.stored, "existing": written.existing,
        "expired": written.expired, "invalid": dict(written.invalid),
    }  # fmt: skip


def imported_text(name: str, path: str, done: Imported, *, is_dry_run: bool) -> str:
    lines = [written_text(name, done.written, is_dry_run=is_dry_run)]
    for start, stop in done.damaged:
        lines.append(f"  {path}: bytes {start:,} to {stop - 1:,} are damaged; the entries there are lost")
    if not done.is_complete:
        lines.append(f"  {path}: its end is missing; it was cut off")
    return "\n".join(lines)


def imported_json(name: str, path: str, done: Imported, *, is_dry_run: bool) -> dict[str, Any]:
    return written_json(name, done.written, is_dry_run=is_dry_run) | {
        "file": path, "is_complete": done.is_complete, "damaged": [list(part) for part in done.damaged],
    }  # fmt: skip


def purged_text(name: str, done: Purged, *, is_dry_run: bool) -> str:
    verb = "would be removed" if is_dry_run else "removed"
    lines = [f"{name}: {entries(done.entries.total())} {verb}, {byte_size(done.bytes)}"]
    lines += [f"  {shown(model)}: {count:,}" for model, count in done.entries.most_common()]
    if done.unknown:
        lines.append(f"left: {entries(done.unknown)} of an earlier version, whose scope is not known")
    return "\n".join(lines)


def purged_json(name: str, done: Purged, *, is_dry_run: bool) -> dict[str, Any]:
    return {
        "store": name, "is_dry_run": is_dry_run, "entries": done.entries.total(), "bytes": done.bytes,
        "models": dict(done.entries.most_common()), "unknown_scope": done.unknown,
    }  # fmt: skip


def _counts(counts: "dict[str, int]") -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()))
