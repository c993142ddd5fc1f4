"""Makes text of clients and upstreams safe to show on a terminal or in a log (pure)."""


def printable(text: str) -> str:
    """``text`` without control characters, which a terminal would obey: clients choose the names of models."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
