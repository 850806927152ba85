"""Numbers in JSON to the nearest double, compiled: the scanner's arithmetic.

Idea: digits become a whole number w and a power of ten q. Up to w = 2**53 and 22 powers one division or product of two exact
doubles is right (Clinger 1990); everywhere else the 128-bit product of w with a table of 5**q decides the 53 bits and the
rounding (Lemire, "Number parsing at a gigabyte per second", 2021). What neither can say is left to msgspec.

Invariant: a number is the double that msgspec and Python give, to the last bit, or a place of -1. Cost: 1-2 ns per digit.
Neighbour: `columns_scan` calls this; both are one machine code.
"""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-call,assignment,call-arg,attr-defined"
import math
from typing import Any

import numba as nb
import numpy as np

_LOWEST_POWER, _HIGHEST_POWER = -300, 300

_U = np.uint64


def _powers_of_five() -> tuple[Any, Any]:
    """The upper and lower 64 bits of 5**q, normalised to 128 bits: cut for q >= 0, rounded up below."""
    high, low = [], []
    for q in range(_LOWEST_POWER, _HIGHEST_POWER + 1):
        if q >= 0:
            power = 5**q
            shift = 128 - power.bit_length()
            power = power << shift if shift >= 0 else power >> -shift
        else:
            divisor = 5**-q
            bits = (divisor - 1).bit_length()
            power = (1 << (bits + 127 if q >= -27 else 2 * bits + 128)) // divisor + 1
            while power >> 128:
                power >>= 1
        high.append(power >> 64)
        low.append(power & (2**64 - 1))
    return np.array(high, np.uint64), np.array(low, np.uint64)


FIVES_HIGH, FIVES_LOW = _powers_of_five()
TENS = np.array([10.0**k for k in range(23)])


@nb.njit(nogil=True)
def _product(a: Any, b: Any) -> Any:
    """The 128 bits of a * b as (high, low)."""
    mask, half = _U(0xFFFFFFFF), _U(32)
    a1, a0, b1, b0 = a >> half, a & mask, b >> half, b & mask
    low, middle, other = a0 * b0, a1 * b0, a0 * b1
    carried = middle + (low >> half)
    second = (carried & mask) + other
    return a1 * b1 + (carried >> half) + (second >> half), (second << half) | (low & mask)


@nb.njit(nogil=True)
def scaled(w: Any, q: Any, fives_high: Any, fives_low: Any) -> Any:
    """The double nearest to w * 10**q, w > 0; NaN where that cannot be said here."""
    if q < _LOWEST_POWER or q > _HIGHEST_POWER:
        return math.nan
    zeros = 0
    while w >> _U(56) == _U(0):
        w <<= _U(8)
        zeros += 8
    while w >> _U(63) == _U(0):
        w <<= _U(1)
        zeros += 1
    high, low = _product(w, fives_high[q - _LOWEST_POWER])
    if high & _U(0x1FF) == _U(0x1FF):
        more, _ = _product(w, fives_low[q - _LOWEST_POWER])
        low += more
        if low < more:
            high += _U(1)
    if low == _U(0xFFFFFFFFFFFFFFFF):
        return math.nan
    upper = high >> _U(63)
    mantissa = high >> (upper + _U(9))
    exponent = ((217706 * q) >> 16) + 63 + np.int64(upper) - zeros + 1023
    if exponent <= 0 or exponent >= 2046:
        return math.nan
    if low <= _U(1) and -4 <= q <= 23 and mantissa & _U(3) == _U(1) and mantissa << (upper + _U(9)) == high:
        mantissa &= ~_U(1)
    mantissa += mantissa & _U(1)
    mantissa >>= _U(1)
    return math.ldexp(np.float64(mantissa), exponent - 1023 - 52)


@nb.njit(nogil=True)
def number(buf: Any, p: Any, fives_high: Any, fives_low: Any, tens: Any) -> Any:
    """(value, place behind it); a place of -1 leaves it to msgspec."""
    is_negative = buf[p] == 45
    if is_negative:
        p += 1
    c = buf[p]
    w, digits, exponent = _U(0), 0, 0
    is_whole = True
    if c == 48:
        p += 1
        c = buf[p]
        if 48 <= c <= 57:
            return 0.0, np.int64(-1)
    elif 49 <= c <= 57:
        while 48 <= c <= 57:
            w = w * _U(10) + _U(c - 48)
            digits += 1
            p += 1
            c = buf[p]
    else:
        return 0.0, np.int64(-1)
    if c == 46:
        is_whole = False
        p += 1
        c = buf[p]
        if not 48 <= c <= 57:
            return 0.0, np.int64(-1)
        while 48 <= c <= 57:
            w = w * _U(10) + _U(c - 48)
            if w != _U(0):
                digits += 1
            exponent -= 1
            p += 1
            c = buf[p]
    if digits > 19:                                             # w has run over, whatever it is now
        return 0.0, np.int64(-1)
    if c == 101 or c == 69:
        is_whole = False
        p += 1
        c = buf[p]
        is_small = c == 45
        if c == 45 or c == 43:
            p += 1
            c = buf[p]
        if not 48 <= c <= 57:
            return 0.0, np.int64(-1)
        said = 0
        while 48 <= c <= 57:
            if said < 100_000:
                said = said * 10 + np.int64(c - 48)
            p += 1
            c = buf[p]
        exponent += -said if is_small else said
    if w == _U(0):
        if is_negative and is_whole:                            # the integer -0 is no negative double
            return 0.0, np.int64(-1)
        return (-0.0 if is_negative else 0.0), np.int64(p)
    if exponent == 0:
        value = np.float64(w)
    elif w <= _U(9007199254740992) and -22 <= exponent <= 22:
        value = np.float64(w) * tens[exponent] if exponent > 0 else np.float64(w) / tens[-exponent]
    else:
        value = scaled(w, exponent, fives_high, fives_low)
        if value != value:
            return 0.0, np.int64(-1)
    return (-value if is_negative else value), np.int64(p)
