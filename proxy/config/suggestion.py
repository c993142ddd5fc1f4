"""What an operator probably meant by a name that is not known (pure)."""

import difflib
from collections.abc import Iterable


def suggestion(name: str, names: Iterable[str]) -> str:
    """The end of an error message: the name that is closest to ``name``, or else all names that are accepted."""
    known = list(names)
    match = closest_match(name, known)
    return f"did you mean {match}?" if match else f"accepted: {', '.join(known)}"


def closest_match(name: str, names: Iterable[str]) -> str | None:
    known = list(names)
    matches = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name.lower(), known, n=1)
    return matches[0] if matches else None
