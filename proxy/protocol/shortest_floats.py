"""Whether float64 values are what the shortest texts of float32 values parse to, found without writing texts (pure).

The shortest text of a float32 is, of the decimals that round to it, one with the fewest digits and of these the closest
(Steele & White, "How to print floating-point numbers accurately", PLDI 1990). For each binary exponent there is a scale
10**k by which a whole number is always in reach, so the decimals with the fewest digits become multiples of the largest
power of ten that has one in reach. The arithmetic is exact up to 2**-53 of a value: whatever is so close to a bound
that this might matter counts as not known.
"""

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]

_EXPONENTS = 256
_EXPONENT_BIAS, _MANTISSA_BITS = 127, 23
_MANTISSA = (1 << _MANTISSA_BITS) - 1
_SMALLEST_SCALED = 10**7  # so scaled values are below 2e8, and between 0.59 and 6 is in reach
_MAX_EXACT_POWER = 22  # 10**22 is the largest power of ten that is a float64
_TOO_CLOSE = 1e-6  # what is computed below is wrong by less than 1e-7


def _scales() -> tuple[_Floats, _Floats]:
    """By a float32's exponent field: the scale, and half the distance to the next float32, scaled. NaN where these are
    not exact."""
    scales, reaches = np.full(_EXPONENTS, np.nan), np.full(_EXPONENTS, np.nan)
    for field in range(1, _EXPONENTS - 1):
        exponent = field - _EXPONENT_BIAS
        power = next(k for k in range(60) if 10**k * 2.0**exponent >= _SMALLEST_SCALED)
        if 0 < power <= _MAX_EXACT_POWER:
            scales[field] = 10.0**power
            reaches[field] = 10.0**power * 2.0 ** (exponent - _MANTISSA_BITS - 1)
    return scales, reaches


_SCALES, _REACHES = _scales()


def are_shortest(wide: _Floats, narrow: NDArray[np.float32]) -> bool:
    """Whether each of ``wide`` is certainly what the shortest text of ``narrow``, the nearest float32, parses to."""
    wide, narrow = wide.reshape(-1), narrow.reshape(-1)
    fields = ((narrow.view(np.uint32) >> _MANTISSA_BITS) & (_EXPONENTS - 1)).astype(np.intp)
    scale, reach = _SCALES.take(fields), _REACHES.take(fields)
    decimals = np.rint(wide * scale)
    if not (decimals / scale == wide).all():
        return False
    exact = narrow * scale
    tens, margin = _nearest(exact, 10.0, reach)
    best = np.where(margin > 0, tens, np.rint(exact))
    is_doubtful = np.abs(margin) < _TOO_CLOSE
    # Whether it is the nearest one: it may be halfway to the next. A hundred in reach comes before any ten.
    distance = np.abs(exact - best)
    is_doubtful |= np.abs(distance - 0.5) < _TOO_CLOSE
    is_doubtful |= np.abs(distance - 5.0) < _TOO_CLOSE
    is_doubtful |= _nearest(exact, 100.0, reach)[1] > -_TOO_CLOSE
    is_doubtful |= best != decimals
    is_doubtful |= (narrow.view(np.uint32) & _MANTISSA) == 0
    rest = np.flatnonzero(is_doubtful)
    return not len(rest) or _are_best(decimals[rest], exact[rest], reach[rest], narrow[rest])


def _are_best(decimals: _Floats, exact: _Floats, reach: _Floats, narrow: NDArray[np.float32]) -> bool:
    """Whether each of ``decimals`` is certainly the shortest and closest for ``exact``, which is ``narrow`` scaled."""
    best = np.rint(exact)
    is_unsure = np.abs(np.abs(exact - best) - 0.5) < _TOO_CLOSE
    for step in (10.0, 100.0):  # of 1000 there is a multiple in reach only if it is the one of 100
        multiple, margin = _nearest(exact, step, reach)
        is_in_reach = margin > 0
        is_tie = np.abs(np.abs(exact - multiple) - step / 2) < _TOO_CLOSE
        is_unsure = (is_unsure & ~is_in_reach) | (is_tie & is_in_reach) | (np.abs(margin) < _TOO_CLOSE)
        best = np.where(is_in_reach, multiple, best)
    # Below a power of two the next float32 is half as far away.
    is_unsure |= ((narrow.view(np.uint32) & _MANTISSA) == 0) & (best != exact)
    return bool((best == decimals).all()) and not bool(is_unsure.any())


def _nearest(exact: _Floats, step: float, reach: _Floats) -> tuple[_Floats, _Floats]:
    """The nearest multiples of ``step``, and how far inside the ``reach`` they are."""
    multiple = exact * (1 / step)
    np.rint(multiple, out=multiple)
    multiple *= step
    margin = exact - multiple
    np.abs(margin, out=margin)
    np.subtract(reach, margin, out=margin)
    return multiple, margin
