"""Numbers of things, as people write them (pure)."""


def counted(count: int, one: str, several: str = "") -> str:
    """``several`` is the plural, if it is not ``one`` with an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def entries(count: int) -> str:
    return counted(count, "entry", "entries")
