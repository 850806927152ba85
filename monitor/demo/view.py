"""What the demo shows: a live view in a terminal, plain lines elsewhere, or JSON lines for programs.

All three hear the same story: `tell` for what happened (an alarm, a launch, a promotion), each once, and `show` for how
things stand, a few times a second. JSON lines leave `show` out; plain lines say it every ten seconds; the live view
draws it. Nothing is computed here: the numbers are those of the decision, the ledger and the serving side.
"""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol

from monitor.demo.serve import Traffic
from monitor.flow import Evaluation, Launch

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType
    from rich.panel import Panel
    from rich.table import Table

COLUMNS_SHOWN = 6
STORY_SHOWN = 9
SCORES_SHOWN = 60
#: Seconds between two plain lines on how things stand.
PLAIN_SECONDS = 10.0
_SPARKS = "▁▂▃▄▅▆▇█"
_STATE_STYLES = {"quiet": "green", "drift": "bold red", "warning": "yellow"}


@dataclass(frozen=True)
class Scene:
    """How things stand at one moment.

    elapsed : seconds since the demo began            rate : events a second, served and read
    scores  : the decision score of the newest panes, oldest first; 1 is an alarm
    """

    elapsed: float
    phase: str
    address: str = ""
    rate: float = 0.0
    lag: int = 0
    traffic: Traffic | None = None
    evaluation: Evaluation | None = None
    launch: Launch | None = None
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class ColumnMoved:
    """One row of the table of columns: effect with its interval, evidence (1 is an alarm)."""

    name: str
    what: str
    effect: float
    lower: float
    upper: float
    unit: str
    evidence: float


def top_columns(evaluation: Evaluation, count: int = COLUMNS_SHOWN) -> list[ColumnMoved]:
    """The columns with the strongest evidence, strongest first; rows made of all columns are left to the reports."""
    scores, evidence = evaluation.scores, evaluation.scores.evidence
    columns = [j for j, name in enumerate(scores.rows) if not name.startswith("joint[")]
    order = sorted(columns, key=lambda j: -float(evidence[j]))[:count]
    return [ColumnMoved(scores.rows[j], scores.what[j], float(scores.effect[j]), float(scores.effect_lower[j]),
                        float(scores.effect_upper[j]), scores.unit[j], float(evidence[j])) for j in order]


class Story(Protocol):
    """Who hears what happens in the demo; a context manager."""

    def __enter__(self) -> Story: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...

    def tell(self, event: str, at: float, sentence: str, facts: dict[str, object]) -> None:
        """Something happened, `at` seconds after the start: a word for programs, a sentence for people."""

    def show(self, scene: Scene) -> None:
        """How things stand."""


def story(*, as_json: bool, out: IO[str] | None = None) -> Story:
    """JSON lines if asked for, the live view on a terminal, plain lines elsewhere."""
    stream = out if out is not None else sys.stdout
    if as_json:
        return JsonStory(stream)
    return LiveStory(stream) if stream.isatty() else PlainStory(stream)


def say(out: IO[str], line: str) -> None:
    """Write one line, whole: two threads tell the story, and `print` writes the line's end by itself."""
    out.write(f"{line}\n")
    out.flush()


@dataclass
class JsonStory:
    """One JSON object a line: `event`, `at` and the facts."""

    out: IO[str]

    def __enter__(self) -> JsonStory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.out.flush()

    def tell(self, event: str, at: float, sentence: str, facts: dict[str, object]) -> None:
        """Print the event."""
        say(self.out, json.dumps({"event": event, "at": round(at, 2), **facts}))

    def show(self, scene: Scene) -> None:
        """Nothing: programs ask /metrics for how things stand."""


@dataclass
class PlainStory:
    """A line for what happens, and one now and then for how things stand."""

    out: IO[str]
    _next: float = PLAIN_SECONDS

    def __enter__(self) -> PlainStory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.out.flush()

    def tell(self, event: str, at: float, sentence: str, facts: dict[str, object]) -> None:
        """Print the sentence."""
        say(self.out, f"{at:6.1f} s  {sentence}")

    def show(self, scene: Scene) -> None:
        """Print a line every PLAIN_SECONDS."""
        if scene.elapsed < self._next:
            return
        self._next = scene.elapsed + PLAIN_SECONDS
        say(self.out, f"{scene.elapsed:6.1f} s    {standing(scene)}")


def standing(scene: Scene) -> str:
    """How things stand, in one line."""
    words = [scene.phase]
    if scene.traffic is not None:
        words.append(f"{scene.rate:,.0f} events/s")
        if not math.isnan(scene.traffic.accuracy):
            words.append(f"accuracy {scene.traffic.accuracy:.1%} (version {scene.traffic.version})")
    if scene.evaluation is not None:
        words.append(f"{scene.evaluation.state}, score {scene.evaluation.scores.score:.2f}")
    if scene.launch is not None and scene.launch.progress:
        words.append(f"training: {scene.launch.progress}")
    return ", ".join(words)


@dataclass
class LiveStory:
    """The live view."""

    out: IO[str]
    _lines: deque[tuple[float, str, str]] = field(default_factory=lambda: deque(maxlen=STORY_SHOWN))
    _scene: Scene = field(default_factory=lambda: Scene(0.0, "starting"))

    def __enter__(self) -> LiveStory:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(get_renderable=self._picture, console=Console(file=self.out), refresh_per_second=4)
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._live.__exit__(kind, error, trace)

    def tell(self, event: str, at: float, sentence: str, facts: dict[str, object]) -> None:
        """Add a line to the story; a training's epochs replace one another."""
        if event == "training" and self._lines and self._lines[-1][1] == "training":
            self._lines.pop()
        self._lines.append((at, event, sentence))

    def show(self, scene: Scene) -> None:
        """Draw this from now on."""
        self._scene = scene

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table

        scene = self._scene
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(f"[bold]tidemark demo[/]  {scene.phase}",
                     f"{scene.address}   {int(scene.elapsed) // 60}:{int(scene.elapsed) % 60:02d}")
        lines = Table.grid(padding=(0, 2))
        for at, event, sentence in self._lines:
            style = {"severe": "bold red", "alarm": "red", "failed": "bold red", "promoted": "bold green",
                     "closed": "bold green", "cleared": "green", "verdict": "cyan"}.get(event, "")
            lines.add_row(f"[dim]{at:5.1f} s[/]", f"[{style}]{sentence}[/]" if style else sentence)
        return Panel(Group(head, "", self._numbers(scene), "", self._columns(scene), "", Panel(lines, title="story")))

    def _numbers(self, scene: Scene) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 3))
        traffic, evaluation = scene.traffic, scene.evaluation
        if traffic is not None:
            quality = "" if math.isnan(traffic.accuracy) else f"{traffic.accuracy:.1%}"
            table.add_row("served", f"{scene.rate:,.0f} events/s, {traffic.events:,} in all, {scene.lag:,} not yet read")
            table.add_row("model", f"version {traffic.version}, accuracy [bold]{quality}[/]")
        if evaluation is not None:
            style = _STATE_STYLES.get(evaluation.state, "")
            state = f"[{style}]{evaluation.state}[/]" if style else evaluation.state
            table.add_row("state", f"{state} (version {evaluation.window.version})")
            table.add_row("score", f"{evaluation.scores.score:5.2f}  {sparks(scene.scores)}  1 is an alarm")
        if (launch := scene.launch) is not None:
            table.add_row("launch", f"{launch.id} {launch.state}  [dim]{launch.progress or launch.detail}[/]")
        return table

    def _columns(self, scene: Scene) -> Table | Panel:
        from rich.table import Table

        table = Table(expand=True, box=None, header_style="dim")
        for name, justify in (("column", "left"), ("what moved", "left"), ("effect", "right"), ("95 % interval", "right"),
                              ("evidence", "right")):
            table.add_column(name, justify="right" if justify == "right" else "left")
        for moved in top_columns(scene.evaluation) if scene.evaluation is not None else ():
            unit = "s.d." if moved.unit == "sd" else "of events"
            style = "red" if moved.evidence > 1 else "dim"
            table.add_row(moved.name, moved.what, f"{moved.effect:+.2f} {unit}", f"{moved.lower:+.2f} to {moved.upper:+.2f}",
                          f"{moved.evidence:.2f}", style=style)
        return table


def sparks(scores: tuple[float, ...], top: float = 4.0) -> str:
    """Scores as a row of bars; the highest bar stands for `top` and more.

    >>> sparks((0.0, 1.0, 4.0))
    '▁▂█'
    """
    last = len(_SPARKS) - 1
    return "".join(_SPARKS[min(last, int(max(0.0, score) / top * last))] if score == score else " " for score in scores)
