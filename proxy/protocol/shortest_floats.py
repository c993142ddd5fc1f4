"""Whether float64 values are what the shortest texts of float32 values parse to, found without writing texts (pure).

A decimal is in reach of a float32 if it rounds to it. The shortest text is the decimal in reach with the fewest digits,
and of several the closest (Steele & White, "How to print floating-point numbers accurately", PLDI 1990). Each binary
exponent has a scale 10**k that brings a whole number into reach of every float32. After scaling, the decimals with the
fewest digits are the multiples of the largest power of ten that has a multiple in reach. The arithmetic is exact up to
2**-53 of a value. A value so close to a bound that this might matter counts as not known.
"""

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Narrow = NDArray[np.float32]

_EXPONENTS = 256
_EXPONENT_BIAS, _MANTISSA_BITS = 127, 23
_MANTISSA = np.uint32((1 << _MANTISSA_BITS) - 1)
_EXPONENT = np.uint32((_EXPONENTS - 1) << _MANTISSA_BITS)
_SMALLEST_SCALED = 10**7  # so scaled values are below 2e8, and between 0.59 and 6 is in reach
_MAX_EXACT_POWER = 22  # 10**22 is the largest power of ten that is a float64
_HALF_STEP = np.float32(2.0 ** (-_MANTISSA_BITS - 1))  # half the distance to the next float32, of a power of two
_TOO_CLOSE = 1e-6  # what is computed in float64 is wrong by less than 1e-7
_TOO_CLOSE_IN_FLOAT32 = np.float32(3e-5)  # and in float32 by less than 1e-5
_TEN, _FIVE, _FORTY_FIVE = np.uint8(10), np.uint8(5), np.uint8(45)


def _scales() -> _Floats:
    """The scale of a float32, by its exponent field. NaN where it is not exact."""
    scales = np.full(_EXPONENTS, np.nan)
    for field in range(1, _EXPONENTS - 1):
        exponent = field - _EXPONENT_BIAS
        power = next(k for k in range(60) if 10**k * 2.0**exponent >= _SMALLEST_SCALED)
        if 0 < power <= _MAX_EXACT_POWER:
            scales[field] = 10.0**power
    return scales


_SCALES = _scales()


def are_shortest(wide: _Floats, narrow: _Narrow) -> bool:
    """Whether each of ``wide`` is certainly what the shortest text of ``narrow``, the nearest float32, parses to.

    The fixed cost of a call is that of 2000 numbers.
    """
    wide, narrow = wide.reshape(-1), narrow.reshape(-1)
    bits = narrow.view(np.uint32)
    scales = _SCALES.take((bits >> _MANTISSA_BITS).astype(np.uint8))  # without the sign
    decimals = wide * scales
    np.rint(decimals, out=decimals)
    if not (decimals / scales == wide).all():
        return False
    scale = scales.astype(np.float32)
    reach = (bits & _EXPONENT).view(np.float32) * scale
    reach *= _HALF_STEP
    offset = (narrow - wide).astype(np.float32)  # from the decimal to the float32; exact before it is rounded
    offset *= scale
    is_best = _are_best(decimals.astype(np.int32), offset, reach)
    # Below a power of two the next float32 is half as far away.
    is_best &= (bits & _MANTISSA) != 0
    if is_best.all():
        return True
    rest = np.flatnonzero(~is_best)
    return _are_best_exactly(decimals[rest], narrow[rest], scales[rest])


def _are_best(decimals: NDArray[np.int32], offset: _Narrow, reach: _Narrow) -> NDArray[np.bool_]:
    """Whether each of ``decimals`` is certainly the shortest and closest one in ``reach`` of ``decimals + offset``.

    A number that is no multiple of ten has to be the nearest whole number, with no multiple of ten in reach. A multiple
    of ten has to be the nearest one, with no multiple of a hundred in reach. A multiple of a hundred only has to be in
    reach: there is no room for another.
    """
    last_two = (decimals - decimals // 100 * 100).astype(np.uint8)
    last = last_two - last_two // _TEN * _TEN
    is_ten = (last == 0).view(np.uint8)
    half = is_ten * _FORTY_FIVE + _FIVE  # of the next larger power of ten
    last += last_two * is_ten
    last -= half
    from_middle = last.view(np.int8) + offset
    np.abs(from_middle, out=from_middle)
    from_middle += reach
    bound = half.astype(np.float32)
    bound -= _TOO_CLOSE_IN_FLOAT32
    np.abs(offset, out=offset)
    reach -= _TOO_CLOSE_IN_FLOAT32
    is_in_reach = offset < reach
    offset *= _TEN
    is_best: NDArray[np.bool_] = (from_middle < bound) & (offset < bound)
    is_best |= last_two == 0
    is_best &= is_in_reach
    return is_best


def _are_best_exactly(decimals: _Floats, narrow: _Narrow, scales: _Floats) -> bool:
    """As `_are_best`, but one result for all. For decimals that are too close to a bound in float32."""
    bits = narrow.view(np.uint32)
    exact = narrow * scales
    reach = (bits & _EXPONENT).view(np.float32) * scales * float(_HALF_STEP)
    best = np.rint(exact)
    is_unsure = np.abs(np.abs(exact - best) - 0.5) < _TOO_CLOSE
    for step in (10.0, 100.0):  # a multiple of 1000 in reach is the only multiple of 100 in reach
        multiple = np.rint(exact * (1 / step)) * step
        margin = reach - np.abs(exact - multiple)
        is_in_reach = margin > 0
        is_tie = np.abs(np.abs(exact - multiple) - step / 2) < _TOO_CLOSE
        is_unsure = (is_unsure & ~is_in_reach) | (is_tie & is_in_reach) | (np.abs(margin) < _TOO_CLOSE)
        best = np.where(is_in_reach, multiple, best)
    is_unsure |= ((bits & _MANTISSA) == 0) & (best != exact)
    return bool((best == decimals).all()) and not bool(is_unsure.any())
