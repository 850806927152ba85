"""evidently's HTML report of two samples: its own drift widget for every column, and no verdict on the whole.

Idea: whoever knows evidently's report finds it again for an alarm's window. Its headline on the whole data set ("drift is
NOT detected" below half of the columns) is left out: a report that speaks against the decision beside it helps nobody.

Invariants. One bad column ends no report: what has no values on a side, and what evidently fails on, is left out by
name. Values come from events, and evidently writes them into its script unescaped, so no angle bracket reaches it; levels
beyond LEVELS of a column are one. The page holds all that it shows, and loads nothing.

Cost: 8 s of a core to import evidently, then some .1 s a column of 2,000 rows; 350 MB. So this runs in a process of its own.
Neighbours: `parity` is the one door to evidently; `monitor.commands.report_worker` calls this.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.parity import Theirs, Values, quietly, theirs

#: Levels of a category that are drawn one by one, those of both samples together; more cannot be read.
LEVELS = 30
_REST = "(other levels)"
#: What would end evidently's script, and what takes its place.
_BRACKETS = str.maketrans({"<": "\u2039", ">": "\u203a"})
_WORDS_MAX = 160


@dataclass(frozen=True, slots=True)
class Drawn:
    """The report: one whole HTML document, the columns in it, and those left out with the reason of each."""

    html: str
    columns: tuple[str, ...]
    left_out: Mapping[str, str]


def drift_html(reference: Mapping[str, Values], window: Mapping[str, Values], kinds: Mapping[str, str],
               progress: Callable[[int, int], None] | None = None) -> Drawn:
    """evidently's widgets for the columns of `kinds`, in their order.

    kinds  : column -> "numeric", or any other kind for levels
    raises : ImportError without evidently, with what to install; ValueError where no column can be drawn
    """
    pandas = theirs("report")
    before: dict[str, Theirs] = {}
    now: dict[str, Theirs] = {}
    titles: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name, kind in kinds.items():                            # turns: columns
        prepared = _numbers if kind == "numeric" else _levels
        sides = prepared(reference[name], window[name])
        lacking = [side for side, values in zip(("reference", "window"), sides, strict=True) if not _is_present(values).any()]
        if lacking:
            left_out[name] = f"no values in the {lacking[0]}'s rows"
            continue
        titles[name] = title = _distinct(_clean(name), before)
        before[title], now[title] = sides
    frames = pandas.DataFrame(before), pandas.DataFrame(now)
    numeric = {titles[name] for name in titles if kinds[name] == "numeric"}
    with quietly():
        try:
            html = _rendered(frames, list(titles.values()), numeric)
        except Exception:                           # one column spoils the whole: each is tried alone
            for done, name in enumerate(list(titles)):
                try:
                    _rendered(frames, [titles[name]], numeric)
                except Exception as error:
                    left_out[name] = f"evidently: {' '.join(str(error).split())[:_WORDS_MAX] or type(error).__name__}"
                    del titles[name]
                if progress is not None:
                    progress(done, len(kinds))
            html = _rendered(frames, list(titles.values()), numeric) if titles else ""
    if not html:
        raise ValueError(f"expected a column with values on both sides, got none of {len(kinds)}: "
                         f"{'; '.join(f'{name}: {why}' for name, why in list(left_out.items())[:3])}")
    return Drawn(html, tuple(titles), left_out)


def _rendered(frames: tuple[Theirs, Theirs], columns: Sequence[str], numeric: set[str]) -> str:
    """evidently's document for some columns of (reference, window)."""
    if not columns:
        return ""
    evidently, metrics = importlib.import_module("evidently"), importlib.import_module("evidently.metrics")
    described = evidently.DataDefinition(numerical_columns=[name for name in columns if name in numeric],
                                         categorical_columns=[name for name in columns if name not in numeric])
    reference, window = (evidently.Dataset.from_pandas(frame[list(columns)], data_definition=described) for frame in frames)
    report = evidently.Report([metrics.ValueDrift(column=name) for name in columns])
    return str(report.run(window, reference).get_html_str(as_iframe=False))


def _numbers(reference: Values, window: Values) -> tuple[Any, Any]:
    """Both sides as float64, what is infinite as missing."""
    sides = []
    for values in (reference, window):
        numbers = np.array(values, np.float64)
        numbers[~np.isfinite(numbers)] = np.nan
        sides.append(numbers)
    return sides[0], sides[1]


def _levels(reference: Values, window: Values) -> tuple[Any, Any]:
    """Both sides as objects, without brackets; of many levels the commonest, and the rest as one."""
    sides = [[None if value is None else _clean(str(value)) for value in values] for values in (reference, window)]
    common = Counter(level for side in sides for level in side if level is not None).most_common(LEVELS)
    known = {level for level, _ in common}
    made = []
    for side in sides:
        column = np.empty(len(side), object)
        column[:] = [level if level is None or level in known else _REST for level in side]
        made.append(column)
    return made[0], made[1]


def _is_present(values: Any) -> Any:
    return ~np.isnan(values) if values.dtype.kind == "f" else np.array([value is not None for value in values], bool)


def _clean(text: str) -> str:
    return text.translate(_BRACKETS).encode("utf-8", "replace").decode()


def _distinct(name: str, taken: Mapping[str, object]) -> str:
    while name in taken:
        name += "'"
    return name
