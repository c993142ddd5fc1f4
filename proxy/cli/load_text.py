"""The result of ``embedding-proxy cache load`` as text and as JSON (pure)."""

from typing import Any

from proxy.amounts import counted
from proxy.filling.results import Loaded

_MAX_SHOWN = 20
_WORDS = {
    "stored": "new entries",
    "replaced": "replaced, by --overwrite",
    "same": "were stored already",
    "kept": "another vector is stored, which stays without --overwrite",
    "repeated": "repeated in the file",
}


def loaded_text(loaded: Loaded, *, is_dry_run: bool) -> str:
    shown = [counted(loaded.lines, "line") + (", nothing written (--dry-run)" if is_dry_run else "")]
    for name, words in _WORDS.items():
        if count := getattr(loaded, name):
            shown.append(f"  {name:<10}{count:>12,}  {words}")
    if loaded.refused:
        shown.append(f"  {'refused':<10}{loaded.refused:>12,}")
        shown += [f"    line {refused.line}: {refused.reason}" for refused in loaded.refusals[:_MAX_SHOWN]]
        if loaded.refused > _MAX_SHOWN:
            shown.append(f"    and {loaded.refused - _MAX_SHOWN:,} more (--json lists up to {len(loaded.refusals):,})")
    return "\n".join(shown)


def loaded_json(loaded: Loaded, *, is_dry_run: bool) -> dict[str, Any]:
    counts = {name: getattr(loaded, name) for name in ("lines", *_WORDS, "refused")}
    refusals = [{"line": refused.line, "reason": refused.reason} for refused in loaded.refusals]
    return {**counts, "dry_run": is_dry_run, "refusals": refusals}
