"""The streaming detectors of river: which there are, how each is made, and the statistic that it compares.

Idea: river's classes keep their statistic to themselves and take any option; an adapter per class says where the
statistic stands, which options have which bounds, and whether the class takes 0 and 1 only. `streaming.River` runs one.

Invariants: an option is checked against the type of river's own default and our bounds before river sees it; KSWIN, which
draws at random, gets a seed, so that a detector can be rebuilt from its values. Statistics are finite.

Cost: reading a statistic takes under a microsecond (KSWIN keeps its own p-value).
Neighbours: `streaming` has the protocol and the catalogue. river is imported here, when a detector of it is made; its
attributes are read by name, so the range of its versions in pyproject.toml is narrow.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from detectors.options import known_options, within

#: An object of river, whose classes cannot be named without importing it.
RiverDetector = Any

#: A statistic ends here where its formula divides by nothing, and -log10 p as everywhere else.
_STATISTIC_MAX, _LOG10_P_MAX = 1e3, 300.0


def _page_hinkley(theirs: RiverDetector) -> float:
    up, down = theirs._sum_increase - theirs._min_increase, theirs._max_decrease - theirs._sum_decrease
    return float({"up": up, "down": down}.get(theirs.mode, max(up, down)))


def _kswin(theirs: RiverDetector) -> float:
    if not theirs.drift_detected and len(theirs.window) < theirs.window_size:
        return 0.0                                         # not tested yet
    return -math.log10(max(float(theirs.p_value), 10**-_LOG10_P_MAX))


def _ddm(theirs: RiverDetector) -> float:
    if theirs._p_min is None:
        return 0.0
    p = theirs._p.get()
    above = p + math.sqrt(p * (1 - p) / theirs._p.n) - theirs._p_min
    if theirs._s_min <= 0:
        return _STATISTIC_MAX if above > 0 else 0.0
    return float(min(above / theirs._s_min, _STATISTIC_MAX))


def _eddm(theirs: RiverDetector) -> float:
    if theirs._n_errors <= theirs.warm_start or theirs._p2s_prime_max <= 0:
        return 0.0
    gaps = theirs._error_distances
    return float(max(0.0, 1 - (gaps.mean.get() + 2 * math.sqrt(gaps.get())) / theirs._p2s_prime_max))


def _hddm_a(theirs: RiverDetector) -> float:
    up = theirs._z.get() - theirs._x_min.get()
    return float(max(up, theirs._x_max.get() - theirs._z.get()) if theirs.two_sided_test else up)


def _hddm_w(theirs: RiverDetector) -> float:
    def risen(before: RiverDetector, after: RiverDetector) -> float:
        return float(after.ewma - before.ewma) if before.is_init and after.is_init else 0.0

    up = risen(theirs._s1_incr, theirs._s2_incr)
    return max(up, risen(theirs._s2_decr, theirs._s1_decr)) if theirs.two_sided_test else up


def fhddm(theirs: RiverDetector, share: float) -> float:
    """`share` of ones in the window that was compared: the oldest of them is dropped before update returns."""
    full = len(theirs._sliding_window) >= theirs.sliding_window_size - 1
    return float(max(0.0, theirs._u_max - share)) if full else 0.0


@dataclass(frozen=True, slots=True)
class Adapter:
    """How one class of river is run.

    statistic : of the detector after a value; None where the adapter has to know what went before (FHDDM)
    limits    : lowest and highest value of an option, ends included       binary : takes 0 and 1 only
    preset    : options that we set where the user does not; left_out : options that rebuilding cannot repeat
    """

    module: str
    statistic: Callable[[RiverDetector], float] | None
    limits: Mapping[str, tuple[float, float]]
    binary: bool = False
    preset: Mapping[str, object] | None = None
    left_out: frozenset[str] = frozenset()


_SHARE = (1e-12, 1 - 1e-12)                                 # more than 0, less than 1: both ends divide by nothing
_COUNT, _SIZE, _POSITIVE = (0, 1e9), (1, 1e6), (1e-12, 1e12)
_HDDM = {"drift_confidence": _SHARE, "warning_confidence": _SHARE, "lambda_val": _SHARE}
_BINARY = "river.drift.binary"
ADAPTERS: dict[str, Adapter] = {
    "ADWIN": Adapter("river.drift", lambda theirs: float(theirs.estimation),
                      {"delta": _SHARE, "clock": _SIZE, "max_buckets": (2, 1e6), "min_window_length": _SIZE,
                       "grace_period": _COUNT}),
    "PageHinkley": Adapter("river.drift", _page_hinkley,
                            {"min_instances": _SIZE, "delta": (0, 1e12), "threshold": _POSITIVE, "alpha": (1e-12, 1)}),
    "KSWIN": Adapter("river.drift", _kswin, {"alpha": _SHARE, "window_size": _SIZE, "stat_size": _SIZE, "seed": (0, 2**63)},
                      preset={"seed": 0}, left_out=frozenset({"window"})),
    "DDM": Adapter(_BINARY, _ddm, {"warm_start": _COUNT, "warning_threshold": _POSITIVE, "drift_threshold": _POSITIVE},
                    binary=True),
    "EDDM": Adapter(_BINARY, _eddm, {"warm_start": _COUNT, "alpha": (1e-12, 1), "beta": (1e-12, 1)}, binary=True),
    "HDDMA": Adapter(_BINARY, _hddm_a, _HDDM, binary=True),
    "HDDMW": Adapter(_BINARY, _hddm_w, _HDDM, binary=True),
    "FHDDM": Adapter(_BINARY, None, {"sliding_window_size": (2, 1e6), "confidence_level": _SHARE, "short_window_size": _SIZE},
                      binary=True),
}


def constructed(name: str, adapter: Adapter, options: Mapping[str, object]) -> RiverDetector:
    """river's detector with these options, each checked against the type of river's default."""
    maker = getattr(_river(name, adapter.module), name.removeprefix("river:"))
    signature = {option: parameter.default for option, parameter in inspect.signature(maker).parameters.items()
                 if option not in adapter.left_out}
    known_options(name, options, list(signature))
    for option, value in options.items():
        default = signature[option]
        where = f"{name}.{option}"
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{where}: expected true or false, got {value!r}")
        elif isinstance(default, str):
            if not isinstance(value, str):
                raise ValueError(f"{where}: expected a word such as {default!r}, got {value!r}")
        elif not (value is None and default is None and option not in (adapter.preset or {})):
            low, high = adapter.limits[option]
            within(where, value, low, high, closed=True)
            if not isinstance(default, float) and value != int(value):  # type: ignore[call-overload]
                raise ValueError(f"{where}: expected a whole number, got {value!r}")
    chosen = {**(adapter.preset or {}), **options}
    if name == "river:KSWIN" and _given(chosen, signature, "window_size") < 2 * _given(chosen, signature, "stat_size"):
        raise ValueError(f"{name}.window_size: expected at least twice stat_size, so that as many values can be drawn from the "
                         f"rest, got {chosen.get('window_size', signature['window_size'])}; enlarge it")
    if name == "river:FHDDM" and (chosen.get("short_window_size") or 0) > _given(chosen, signature, "sliding_window_size"):  # type: ignore[operator]
        raise ValueError(f"{name}.short_window_size: expected at most sliding_window_size, got {chosen['short_window_size']}")
    try:
        return maker(**chosen)
    except (TypeError, ValueError) as error:               # what river itself checks: a mode, alpha >= beta
        words = " ".join(str(error).split())
        raise ValueError(f"{name}: expected options that river takes, got {dict(options)}; river says: {words}") from None


def _given(chosen: Mapping[str, object], signature: Mapping[str, object], option: str) -> int:
    return int(chosen.get(option, signature[option]))  # type: ignore[call-overload, no-any-return]


def _river(name: str, module: str) -> ModuleType:
    try:
        # Imported by name: river need not be there for anything else here, nor for the type checker.
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{name}: expected the package river, got {error}; pip install 'tidemark[river]'") from None
