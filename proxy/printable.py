"""Text of clients and upstreams where people read it, on a terminal or in a log (pure)."""


def printable(text: str) -> str:
    """Without control characters: clients choose the names of models, and a terminal would obey them."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
