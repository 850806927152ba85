"""What several commands print with: progress bars, tables, wrapped sentences, and JSON of the same values.

Everything that came from data (columns, levels, versions) is printed as plain text: no markup of the tables, and no
control character that a terminal would obey.
"""

from __future__ import annotations

import json
import math
import shutil
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from monitor.decide.explain import effect_text
from monitor.decisions import Limit
from monitor.errors import one_line
from monitor.flow import Alarm
from monitor.retrain.ledger import REFUSALS, Decision


def progress_bar(console: Console) -> Progress:
    """A bar on stderr that says what is done, how much of it, and how long it will take; nothing without a terminal."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
        transient=True, disable=not console.is_terminal)


def print_json(value: Any) -> None:
    """For programs: one document on stdout; a number that does not exist is null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def table(headers: Sequence[str], rows: Iterable[tuple[Sequence[str], str]], title: str | None = None) -> Table:
    """A table of plain texts, each row with a style; what does not fit goes on in the next line, nothing is cut off."""
    made = Table(title=None if title is None else Text(one_line(title)))
    for header in headers:
        made.add_column(header, overflow="fold")
    for cells, style in rows:
        made.add_row(*(Text(one_line(cell)) for cell in cells), style=style)
    return made


def paragraph(text: str, indent: str = "") -> str:
    """A sentence at the terminal's width, further lines indented; unbroken where nobody looks."""
    width = shutil.get_terminal_size((100_000, 24)).columns
    return textwrap.fill(one_line(text), max(width, 40), initial_indent=indent, subsequent_indent=indent + "  ",
                         break_long_words=False, break_on_hyphens=False)


def instant(seconds: float) -> str:
    """A time with date and zone, which is UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds > 0 else "-"


def counted(count: int, word: str) -> str:
    """A number with its noun.

    >>> counted(1, "pane"), counted(6400, "event")
    ('1 pane', '6,400 events')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def alarm_lines(alarms: Sequence[Alarm], most: int = 3) -> str:
    """Alarms in the order they were decided: when and what, how sure, and the columns that moved, most evidence first."""
    lines = []
    for alarm in alarms:
        head = f"{instant(alarm.at)}  {alarm.model} version {alarm.version}, episode {alarm.episode}: {alarm.state}"
        if alarm.state == "cleared":
            lines.append(paragraph(f"{head}, {alarm.words or alarm.reason}"))
            continue
        score, of = (alarm.severe_score, "a retraining") if alarm.state == "severe" else (alarm.score, "an alarm")
        lines.append(paragraph(f"{head} ({alarm.kind})"))
        if alarm.words:
            lines.append(paragraph(alarm.words, "    "))
        lines.append(paragraph(f"evidence {score:.2f} of {of}'s, in {counted(alarm.window_panes, 'pane')} of "
                               f"{counted(alarm.window_events, 'event')} since {instant(alarm.since)}", "    "))
        lines += [paragraph(f"{mover.role} {mover.column}: " + effect_text(
            mover.what, mover.effect, mover.lower, mover.upper, mover.unit) + (f" ({mover.words})" if mover.words else ""),
                            "    ") for mover in alarm.movers[:most]]
        if len(alarm.movers) > most:
            lines.append(f"    and {counted(len(alarm.movers) - most, 'column')} more")
    return "\n".join(lines)


def decision_lines(decisions: Sequence[Decision]) -> str:
    """What the trigger answered to severe alarms, and to who asked."""
    return "\n".join(paragraph(
        f"{instant(decision.at)}  {decision.model} version {decision.version}, "
        + (f"asked by {decision.by}: " if decision.by else f"episode {decision.episode}: ")
        + ("a retraining is worth it" if decision.outcome == "launch" and not decision.by
           else f"launch {decision.launch}" if decision.outcome == "launch"
           else f"no retraining ({decision.reason}): {REFUSALS.get(decision.reason, decision.reason)}"
                + (f" (until {instant(decision.until)})" if decision.until else "")))
        for decision in decisions)


def limit_lines(limits: Sequence[Limit]) -> str:
    """How each limit of a retraining policy stands: what holds a launch back first."""
    lines = [paragraph(f"{'holds' if limit.holds else 'free '}  {limit.words}", "  ")
             for limit in sorted(limits, key=lambda limit: not limit.holds)]
    return "\n".join(["Limits of a retraining now:", *lines])
