"""Numbers as people read them (pure)."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024
_ROUNDING = 1e-9  # 0.57 * 1000 is less than 570


def byte_size(amount: float) -> str:
    """``amount`` bytes, as `12.3 MiB` or `12 B`."""
    unit = 0
    while amount >= _STEP and unit < len(_UNITS) - 1:
        amount, unit = amount / _STEP, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{amount:.0f} B"


def short_byte_size(amount: float) -> str:
    """The same without a fraction of zero, as `512 MiB`."""
    return byte_size(amount).replace(".0 ", " ")


def percent(part: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{int(part * 1000 + _ROUNDING) / 10:.1f} %"


def percent_of(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "-"


def money(amount: float) -> str:
    return f"{amount:,.4f}" if amount < 1 else f"{amount:,.2f}"


def counted(count: int, one: str, several: str = "") -> str:
    """``several`` is the plural, if it is not ``one`` with an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def entries(count: int) -> str:
    return counted(count, "entry", "entries")
