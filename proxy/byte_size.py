"""Amounts of bytes as people read them (pure)."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024


def byte_size(amount: float) -> str:
    """``amount`` bytes, as `12.3 MiB` or `12 B`."""
    unit = 0
    while amount >= _STEP and unit < len(_UNITS) - 1:
        amount, unit = amount / _STEP, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{amount:.0f} B"
