"""Numbers as people read them (pure)."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_KIB = 1024
_ROUNDING = 1e-9  # 0.57 * 1000 is less than 570


def size(amount: float) -> str:
    unit = 0
    while amount >= _KIB and unit < len(_UNITS) - 1:
        amount, unit = amount / _KIB, unit + 1
    text = f"{amount:.1f}".removesuffix(".0") if unit else f"{amount:.0f}"
    return f"{text} {_UNITS[unit]}"


def percent(part: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{int(part * 1000 + _ROUNDING) / 10:.1f} %"


def share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "-"


def money(amount: float) -> str:
    return f"{amount:,.4f}" if amount < 1 else f"{amount:,.2f}"
