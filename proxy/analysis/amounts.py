"""Numbers as people read them (pure)."""

from proxy.byte_size import byte_size

_ROUNDING = 1e-9  # 0.57 * 1000 is less than 570


def size(amount: float) -> str:
    return byte_size(amount).replace(".0 ", " ")


def percent(part: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{int(part * 1000 + _ROUNDING) / 10:.1f} %"


def share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "-"


def money(amount: float) -> str:
    return f"{amount:,.4f}" if amount < 1 else f"{amount:,.2f}"
