"""Proposed kinds and roles for data that nobody has described yet.

Idea: numbers are numeric, truth values boolean, text a category, unless the values are identifiers, which are different
in every event and would alarm for ever: text with more than 50,000 levels, or of which more than half of the values
were seen once, and whole numbers that rise by the same step from row to row. Text that nearly always differs but is made
of several words is no identifier, it is to be read: kind text. Lists of numbers of one length are embeddings. Each
proposal says why; a person decides.

Cost: one pass over the values, 0.1 us each.

Neighbours: `reference` offers it; `tidemark fit` prints it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta

import numpy as np

from detectors.embedding import vectors
from detectors.rows import Column, Kind, Role, Values, as_levels, as_numbers
from detectors.text import UNSPACED

#: More levels than this are an identifier, whatever their counts; also the bound on a category's memory.
LEVELS_MAX = 50_000
#: Words per value from which on values are text to read, and levels from which on they are too many for a category.
WORDS_MIN, TEXT_LEVELS_MIN = 3.0, 1_000
#: Values that the choice looks at.
_LOOKED_AT = 2_000
#: Share of values seen once from which on even a route is an identifier: every request has its own.
UNIQUE_SHARE = 0.99
#: What no column of events is watched for: a clock moves on in every event.
_TIMES = (date, time, timedelta, np.datetime64, np.timedelta64)
_TIME_REASON = "times: every event has a later one; give an age or a duration as a number"
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
#: Names that say their role; everything else is proposed as an input.
_ROLE_OF_NAME: dict[str, Role] = {
    "prediction": "prediction", "predicted": "prediction", "score": "score", "probability": "score",
    "predicted_probability": "score", "label": "label", "target": "label", "path": "path", "route": "path",
}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A column as proposed, and why, in words for a person; `warning` when somebody should look."""

    column: Column
    reason: str
    warning: bool = False


def propose(data: Mapping[str, Values]) -> tuple[Proposal, ...]:
    """A proposal for every column of raw data: arrays, or sequences of numbers, truth values, text and None."""
    return tuple(_propose(name, values) for name, values in data.items())


def _propose(name: str, values: Values) -> Proposal:
    role = _ROLE_OF_NAME.get(name.lower(), "input")
    if other := _unwatchable(values):
        return Proposal(Column(name, "category", "ignored"), other, warning=True)
    kind = _kind(values)
    if kind == "embedding":
        return _propose_embedding(name, role, values)
    if kind == "numeric":
        with np.errstate(over="ignore", invalid="ignore"):      # infinities, and steps beyond float64
            steps = np.diff(as_numbers(values)[:LEVELS_MAX])
        if len(steps) > 1 and steps[0] != 0 and np.isfinite(steps[0]) and (steps == steps[0]).all():
            return Proposal(Column(name, kind, "ignored"), f"moves by {steps[0]:g} every row: a counter", warning=True)
        return Proposal(Column(name, kind, role), "numbers")
    if kind == "boolean":
        return Proposal(Column(name, kind, role), "truth values")
    counts = Counter(as_levels(values))
    counts.pop(None, None)
    once, events = sum(count == 1 for count in counts.values()), counts.total()
    if _names_a_path(name) and counts and once < UNIQUE_SHARE * events:
        return Proposal(Column(name, "category", "path"),
                        f"{len(counts)} routes, {once} of them seen once; the commonest are told apart by name",
                        warning=len(counts) > LEVELS_MAX)
    if (len(counts) > TEXT_LEVELS_MIN or 2 * once > events) and (found := _words_per_value(list(counts))) >= WORDS_MIN:
        return Proposal(Column(name, "text", role), f"{len(counts)} texts of {found:.0f} words on average")
    if len(counts) > LEVELS_MAX or 2 * once > events:
        if all(_is_written_list(level) for level in list(counts)[:_LOOKED_AT]):
            return Proposal(Column(name, "category", "ignored"), "lists written as text: give Parquet or JSON lines",
                            warning=True)
        return Proposal(Column(name, "category", "ignored"),
                        f"{len(counts)} levels in {events} values, {once} of them seen once: an identifier", warning=True)
    reason = f"text with {len(counts)} levels" if counts else "no value at all"
    return Proposal(Column(name, "category", role), reason, warning=not counts)


def _names_a_path(name: str) -> bool:
    """Whether a column's name says that it holds the way a request took: `path`, `route_id`, `requestPath`.

    Rare branches are many and common ones few, so such a column may have more levels than an identifier is allowed.
    """
    return bool({"path", "route"} & {word.lower() for word in _WORDS.findall(name)})


def _kind(values: Values) -> Kind:
    """The kind that the values' types speak for; anything mixed with text is a category."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        if values.ndim == 2:
            return "embedding"
        return "boolean" if values.dtype.kind == "b" else "numeric" if values.dtype.kind in "iuf" else "category"
    kinds = {type(value) for value in values if value is not None}
    if kinds & {list, tuple, np.ndarray}:
        return "embedding"
    if kinds and kinds <= {bool, np.bool_}:
        return "boolean"
    return "numeric" if kinds and kinds <= {int, float, np.float64, np.int64} else "category"


def _unwatchable(values: Values) -> str:
    """Why a column of neither numbers, truth values, text nor vectors is left out; empty for those."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        if values.ndim > 2 or values.dtype.kind in "cV":
            return f"an array of {values.dtype} of shape {values.shape}: give numbers, text or vectors"
        return _TIME_REASON if values.dtype.kind in "mM" else ""
    kinds = {type(value) for value in values if value is not None}
    if kinds and all(issubclass(kind, _TIMES) for kind in kinds):
        return _TIME_REASON
    nested = next((kind for kind in kinds if issubclass(kind, (Mapping, set, frozenset))), None)
    return f"values of type {nested.__name__}: give numbers, text or vectors" if nested else ""


def _propose_embedding(name: str, role: Role, values: Values) -> Proposal:
    try:
        dim = vectors(values).shape[1]
    except ValueError as error:
        return Proposal(Column(name, "embedding", "ignored"), str(error).removeprefix("embedding: "), warning=True)
    return Proposal(Column(name, "embedding", role if dim else "ignored"), f"vectors of {dim} numbers", warning=not dim)


def _words_per_value(levels: list[str | None]) -> float:
    """Words of letters per value on average, over some of the values; in scripts without spaces, half the characters.

    A value of which less than half is words of letters (an address of a machine, a date) has none.
    """
    if len(levels) > _LOOKED_AT:
        levels = [levels[i] for i in np.linspace(0, len(levels) - 1, _LOOKED_AT).astype(int).tolist()]
    found = 0.0
    for level in levels:                                        # turns: at most `_LOOKED_AT`
        pieces = (level or "")[:_LOOKED_AT].split()
        counts = [_words_in(piece) for piece in pieces]
        if 2 * sum(count > 0 for count in counts) >= len(pieces):
            found += sum(counts)
    return found / max(1, len(levels))


def _words_in(piece: str) -> float:
    """Words of what stands between two spaces: 1, more in scripts without spaces, 0 where it is not spelled in letters."""
    unspaced = sum(map(len, UNSPACED.findall(piece)))
    if 2 * unspaced > len(piece):
        return unspaced / 2
    letters = piece.strip(".,;:!?'\"()[]-\u2019\u0964\u060c").replace("'", "").replace("\u2019", "").replace("-", "")
    # Marks, too: the vowel signs of Indic scripts are no letters of their own.
    return float(bool(letters) and all(unicodedata.category(letter)[0] in "LM" for letter in letters))


def _is_written_list(level: str | None) -> bool:
    text = (level or "").strip()
    return text.startswith("[") and text.endswith("]")
