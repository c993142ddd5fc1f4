"""Text of clients on a terminal (pure)."""


def printable(text: str) -> str:
    """Without control characters: clients choose the names of models, and the terminal would obey them."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
