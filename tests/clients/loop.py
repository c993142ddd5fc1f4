"""How each Python client here is driven: a JSON line says on stdin what to embed, and one on stdout what came of it.

{"base_url", "key", "model", "texts"} -> {"vectors": [[number]]} or {"error": {"status": int or null, "type": string}}
"""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

Embed = Callable[[str, str, str, list[str]], list[list[float]]]


def serve(embed: Embed) -> None:
    """Answer each line with what ``embed(base_url, key, model, texts)`` returns or raises."""
    answers = sys.stdout
    # Some clients print to people, and stdout is for answers only.
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            answers.write(json.dumps(_answer(embed, **json.loads(line))) + "\n")
            answers.flush()


def _answer(embed: Embed, *, base_url: str, key: str, model: str, texts: list[str]) -> dict[str, Any]:
    try:
        return {"vectors": embed(base_url, key, model, texts)}
    except Exception as error:  # noqa: BLE001 - whatever a client raises is its answer
        return {"error": {"status": getattr(error, "status_code", None), "type": type(error).__name__}}
