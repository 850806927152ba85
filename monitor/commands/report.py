"""`tidemark report ALARM -c FILE`: the report of an alarm as one HTML file, by hand.

For an alarm of which the service keeps no report any more, or for a file to pass on: everything is in it, evidently's half
too, and it loads nothing. What the service keeps is taken as it is; else the report is made from the panes and rows in the
state, which is only read, beside the service that holds it. ALARM is the name in the link, MODEL-VERSION-WORD-EPISODE;
`latest` as the episode is the newest one.
"""

from __future__ import annotations

import argparse
import html
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from monitor.commands.shared import paragraph
from monitor.config import Config, load, state_path
from monitor.errors import ConfigError, one_line
from monitor.expose.report_facts import Facts, episode_of, report_name, told
from monitor.expose.report_maker import Said, command, environment
from monitor.expose.report_page import page
from monitor.expose.report_shelf import Shelf
from monitor.flow import Alarm, Launch
from monitor.reporting import folder_of, packed, stored_facts
from monitor.retrain.ledger import launch_from_json
from monitor.state.store import KEPT_PANES, Store

#: Names that an error offers.
_KNOWN = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark report`."""
    parser.add_argument("alarm", metavar="ALARM", help="as in the link of an alert: MODEL-VERSION-WORD-EPISODE, the word being "
                                                       "drift, quality, wrong_type or volume; `latest` is an episode, too")
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("-o", "--output", metavar="FILE", help="write here (default: ALARM.html)")
    parser.add_argument("--plain", action="store_true", help="without evidently's half")


def run(args: argparse.Namespace) -> int:
    """Make it and say where it is."""
    config = load(args.config)
    state = state_path(config.service.state)
    console = Console(stderr=True)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True,
                  disable=not console.is_terminal) as progress:
        task = progress.add_task("reading the state")
        store = Store(state, read_only=True)
        try:
            alarms = [msgspec.json.decode(document, type=Alarm) for document in store.history("alarms")]
            launches = [launch_from_json(document) for document in store.history("launches")]
            name = _named(args.alarm, alarms)
            facts, theirs, rows = _found(config, store, name, alarms)
        finally:
            store.close()
        if rows is not None and not args.plain:
            progress.update(task, description="evidently draws the sampled rows")
            facts, theirs = _drawn(facts, rows, config.reports.seconds)
        elif args.plain:
            facts, theirs = replace(facts, state="none", why="it was not asked for"), ""
    target = Path(args.output or f"{name}.html".replace("/", "_"))
    _written(target, _whole(facts, launches, theirs))
    print(paragraph(f"{target}: {facts.alarm.state} alarm of {facts.alarm.model}, "
                    f"{'with' if theirs else 'without'} evidently's half{'' if theirs else ': ' + facts.why}."))
    return 0


def _named(asked: str, alarms: Sequence[Alarm]) -> str:
    """The report that is asked for; ConfigError with those that there are."""
    names = list(dict.fromkeys(report_name(alarm) for alarm in reversed(alarms)))
    if asked in names:
        return asked
    head = asked.removesuffix("latest")
    newest = next((name for name in names if name.startswith(head) and name.removeprefix(head).isdigit()), None)
    if head != asked and newest is not None:
        return newest
    known = f"the newest are {', '.join(names[:_KNOWN])}" if names else "the state holds none yet"
    raise ConfigError(f"expected an alarm of the state, got {asked!r}; {known}")


def _found(config: Config, store: Store, name: str, alarms: Sequence[Alarm]) -> tuple[Facts, str, bytes | None]:
    """(our half, evidently's half if it is kept, rows to make it of if not); ConfigError where nothing is kept any more."""
    changes = episode_of(alarms, name)
    folder = folder_of(config)
    if folder is not None:
        shelf = Shelf(folder, config.reports.keep)
        kept, drawn = shelf.facts(name), shelf.path(name, ".html")
        if kept is not None and kept.state == "made" and drawn.is_file():
            return replace(kept, changes=changes), drawn.read_text(encoding="utf-8"), None
        last = None if kept is None else kept.alarm
        if kept is not None and last is not None and kept.columns and not store.window(
                last.model, last.version, last.pane, last.pane):
            return replace(kept, changes=changes, state="none", why="the panes of its window are no longer kept"), "", None
    alarm = told(changes)
    if alarm is None:
        raise ConfigError(f"{name}: expected the raising of the alarm in the state, got its end alone; "
                          "it is older than what is kept")
    facts = stored_facts(store, alarm, changes)
    if not facts.columns and not alarm.cause:
        raise ConfigError(f"{name}: expected the panes of its window in {store.path}, got none; they are older than what the "
                          f"state keeps ({KEPT_PANES:,} panes), and no report of it is in the folder of reports either")
    rows, why = packed(store, facts, replace(config.reports, enabled=None))
    return replace(facts, why=why), "", rows


def _drawn(facts: Facts, rows: bytes, seconds: float) -> tuple[Facts, str]:
    """evidently's half, made in a process of its own as the service makes it."""
    with tempfile.TemporaryDirectory(prefix="tidemark-report-") as folder:
        given, made = Path(folder) / "rows", Path(folder) / "report.html"
        given.write_bytes(rows)
        try:
            ended = subprocess.run(command(given, made, seconds, niceness=0), env=dict(environment()), stdin=subprocess.DEVNULL,
                                   capture_output=True, timeout=seconds + 5, check=False)
        except subprocess.TimeoutExpired:
            return replace(facts, state="failed", why=f"it took more than reports.seconds = {seconds:g}"), ""
        words = ended.stderr.decode("utf-8", "replace").strip().splitlines() or [f"the process ended with {ended.returncode}"]
        if ended.returncode != 0 or not made.is_file():
            return replace(facts, state="failed", why=one_line(words[-1])[:300]), ""
        said = msgspec.json.decode(words[-1], type=Said)
        return replace(facts, state="made", why=said.why, rows=said.rows), made.read_text(encoding="utf-8")


def _whole(facts: Facts, launches: Sequence[Launch], theirs: str) -> str:
    """One document: evidently's stands inside it as text, in a frame that may run its scripts and nothing else."""
    frame = ""
    if theirs:
        frame = f'<iframe title="Report of evidently" sandbox="allow-scripts" srcdoc="{html.escape(theirs)}"></iframe>'
    return page(facts if theirs or facts.state != "waiting" else replace(facts, state="none"), launches, frame=frame)


def _written(target: Path, text: str) -> None:
    try:
        target.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{target}: expected a file that can be written, got: {error.strerror}; "
                          "choose another with -o") from None
