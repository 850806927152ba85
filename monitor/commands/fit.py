"""`tidemark fit DATA... -o REFERENCE`: make a reference from data that a model was accepted on.

Every column is proposed with a kind and a role, shown in a table with the reason, and can be set by a flag. At the end
the command prints the monitor's entry for the configuration, ready to be pasted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from rich.console import Console
from rich.progress import Progress

from detectors.reference import SAMPLE_ROWS, Column, Proposal, Reference
from detectors.rows import Kind, Role
from monitor.commands.shared import counted, progress_bar, table
from monitor.config import NAME, Brokers, Kafka, load_brokers
from monitor.errors import ConfigError
from monitor.ingest.span import read_span
from monitor.ingest.tables import DataSet, Values, as_kind, read_files

ROLES: tuple[Role, ...] = ("prediction", "score", "path", "label", "ignored")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark fit`."""
    parser.add_argument("data", nargs="*", metavar="DATA", help="Parquet, CSV or JSON lines files, in time order")
    parser.add_argument("-o", "--output", required=True, metavar="REFERENCE", help="the file to write")
    parser.add_argument("--model", required=True, help="the model's name, as in the configuration")
    parser.add_argument("--version", default="1", help="the model's version (default 1)")
    parser.add_argument("--topic", help="read a span of this topic instead of files")
    parser.add_argument("--bootstrap-servers", default="", metavar="HOST:PORT,...", help="the brokers of --topic")
    parser.add_argument("-c", "--config", metavar="FILE", help="a configuration, in place of --bootstrap-servers: its `kafka` "
                        "section, with the security, and its `limits`; it need not be complete")
    parser.add_argument("--events", type=int, default=50_000, help="events to read from --topic, the newest (default 50000)")
    parser.add_argument("--format", choices=("json", "arrow"), default="json", help="what a message of --topic is, as "
                        "schema.format (default json)")
    parser.add_argument("--rows", metavar="START:END", help="use only these rows, such as 0:55535")
    for role in ROLES:
        said = "leave this column out" if role == "ignored" else f"this column is a {role}"
        parser.add_argument("--ignore" if role == "ignored" else f"--{role}", action="append", default=[], metavar="COLUMN",
                            help=f"{said} (repeatable)")
    parser.add_argument("--category", action="append", default=[], metavar="COLUMN", help="take this column as text levels")
    parser.add_argument("--text", action="append", default=[], metavar="COLUMN", help="take this column as text to read")
    parser.add_argument("--numeric", action="append", default=[], metavar="COLUMN", help="take this column as numbers")
    parser.add_argument("--timestamp", metavar="COLUMN", help="event time; left out of what is watched")
    parser.add_argument("--id", metavar="COLUMN", help="the event's id; left out of what is watched")
    parser.add_argument("--season-hours", type=float, metavar="H", help="the data has a season of so many hours (24, 168): a "
                        "reference of fewer than 3 of them starts no retraining; needs --timestamp")
    parser.add_argument("--sample-rows", type=int, default=SAMPLE_ROWS, metavar="N", help="rows to keep in the reference as they "
                        "are, for detectors that need raw values and for reports (default %(default)s; 0 keeps none)")
    parser.add_argument("--unordered", action="store_true", help="the rows are not in time order (a shuffled training table)")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    """Fit and save."""
    console = Console(stderr=True, quiet=args.quiet)
    if bool(args.data) == bool(args.topic):
        raise ConfigError("expected either files or --topic, got " + ("both" if args.data else "neither") + "; give one of them")
    for flag in ("model", "version"):
        if not re.fullmatch(NAME, getattr(args, flag)):
            raise ConfigError(f"--{flag}: expected at most 63 letters, digits and . _ -, got {getattr(args, flag)!r}; "
                              "it must be a name that the configuration takes")
    if args.config and not args.topic:
        raise ConfigError("--config: expected it beside --topic, got files; leave it out")
    if args.format != "json" and not args.topic:
        raise ConfigError(f"--format: expected it beside --topic, got {args.format} with files; a file's name says what it holds")
    if args.events < 1:
        raise ConfigError(f"--events: expected a whole number >= 1, got {args.events}")
    with progress_bar(console) as progress:
        found = _read(args, progress)
        data = _rows(found.columns, args.rows)
        proposals = _decided(_proposed(data), args)
        watched = [p.column for p in proposals if p.column.role not in ("ignored", "label")]
        if not watched:
            raise ConfigError("expected a column to watch, got none; every one is a label or ignored, see the flags of roles")
        columns = {column.name: as_kind(column.name, data[column.name], column.kind) for column in watched}
        task = progress.add_task("fitting columns", total=len(watched))
        reference = Reference.fit(
            columns, watched, model=args.model, version=args.version, ordered=not args.unordered,
            cycles=_cycles(args, data), sample_rows=args.sample_rows,
            progress=lambda done, total: progress.update(task, completed=done, total=total))
    try:
        reference.save(args.output)
    except OSError as error:
        raise ConfigError(f"{args.output}: cannot be written: {error.strerror}; check the folder") from None
    _report(console, args, proposals, reference)
    if not args.quiet:
        print(_entry(args, proposals, found), file=sys.stdout)
        console.print("Put this into a configuration; `tidemark check-config -c FILE` says what it will do.", markup=False)
    return 0


def _cycles(args: argparse.Namespace, data: dict[str, Values]) -> float | None:
    """How many cycles of --season-hours the rows span."""
    if args.sample_rows < 0:
        raise ConfigError(f"--sample-rows: expected a whole number >= 0, got {args.sample_rows}")
    if args.season_hours is None:
        return None
    if not args.season_hours > 0:
        raise ConfigError(f"--season-hours: expected hours above 0, got {args.season_hours:g}")
    if not args.timestamp:
        raise ConfigError("--season-hours: expected --timestamp beside it, got none; name the column of the event time")
    seconds = _spanned_seconds(data[args.timestamp])
    if seconds is None:
        raise ConfigError(f"--season-hours: expected event times in column {args.timestamp!r}, got other values; "
                          "give milliseconds or seconds since 1970, or ISO 8601")
    return seconds / (3600 * float(args.season_hours))


def _spanned_seconds(times: Values) -> float | None:
    """Seconds from the earliest to the latest event time; None where the values are no times."""
    unit = _timestamp_unit(times)
    try:
        if isinstance(times, np.ndarray) and times.dtype.kind == "M":
            found = times.astype("datetime64[ms]").astype(np.float64)
        elif unit == "iso8601":
            found = np.array([datetime.fromisoformat(str(one)).timestamp() * 1000 for one in times if one is not None])
        else:
            found = np.asarray(times, np.float64) * (1000 if unit == "seconds" else 1)
    except (TypeError, ValueError):
        return None
    found = found[np.isfinite(found)]
    return float(found.max() - found.min()) / 1000 if len(found) else None


def _brokers(args: argparse.Namespace) -> Brokers:
    """How to reach the brokers of --topic: what a configuration says, or plain addresses."""
    if args.config and args.bootstrap_servers:
        raise ConfigError("--bootstrap-servers: expected either it or --config, got both; give one of them")
    if args.config:
        return load_brokers(args.config)
    servers = [server for server in args.bootstrap_servers.split(",") if server]
    if not servers or not all(re.fullmatch(r".+:\d{1,5}", server) for server in servers):
        raise ConfigError(f"--bootstrap-servers: expected HOST:PORT of each broker of --topic, got {args.bootstrap_servers!r}; "
                          "separate them by commas, or give a configuration with -c")
    return Brokers(kafka=Kafka(bootstrap_servers=servers))


def _read(args: argparse.Namespace, progress: Progress) -> DataSet:
    if args.topic:
        brokers = _brokers(args)
        task = progress.add_task(f"reading {args.topic}", total=args.events)
        span = read_span(brokers.kafka, args.topic, args.events, lambda done: progress.update(task, completed=done),
                         form=args.format, limits=brokers.limits)
        if not len(span.data):
            wanted = "JSON objects" if args.format == "json" else "Arrow messages of a row or more"
            raise ConfigError(f"--topic: expected {wanted} in {args.topic!r}, got none{span.left_out and ': ' + span.left_out}; "
                              "produce events, or give files")
        if span.left_out:
            progress.console.print(f"{args.topic}: {span.left_out}", style="yellow", markup=False, highlight=False,
                                   soft_wrap=True)
        return span.data
    task = progress.add_task("reading files", total=None)
    return read_files(args.data, lambda rows: progress.update(task, advance=rows), text=[*args.category, *args.text])


def _rows(data: dict[str, Values], span: str | None) -> dict[str, Values]:
    if span is None:
        return data
    match = re.fullmatch(r"([0-9]{0,18}):([0-9]{0,18})", span)
    if match is None:
        raise ConfigError(f"--rows: expected START:END such as 0:50000, got {span!r}; END is the first row left out")
    cut = slice(int(match[1] or 0), int(match[2]) if match[2] else None)
    rows = len(next(iter(data.values())))
    if not range(rows)[cut]:
        raise ConfigError(f"--rows: expected some of the {counted(rows, 'row')}, got none in {span!r}; give a span among them")
    return {name: values[cut] for name, values in data.items()}


def _proposed(data: dict[str, Values]) -> list[Proposal]:
    """What `detectors` proposes; a time is no input, since it moves on for ever."""
    times = {name for name, values in data.items() if isinstance(values, np.ndarray) and values.dtype.kind == "M"}
    proposals = {proposal.column.name: proposal
                 for proposal in Reference.propose({name: data[name] for name in data if name not in times})}
    return [proposals[name] if name in proposals else
            Proposal(Column(name, "numeric", "ignored"), "a time; --timestamp says that it is the event's", warning=True)
            for name in data]


def _decided(proposals: Sequence[Proposal], args: argparse.Namespace) -> list[Proposal]:
    """The proposals with what the flags say."""
    said: dict[str, Role] = {}
    for role in ROLES:
        for name in getattr(args, "ignore" if role == "ignored" else role):
            said[name] = role
    for name in filter(None, (args.timestamp, args.id)):
        said[name] = "ignored"
    kinds: dict[str, Kind] = {}
    kinds.update((name, "category") for name in args.category)
    kinds.update((name, "text") for name in args.text)
    kinds.update((name, "numeric") for name in args.numeric)
    names = {proposal.column.name for proposal in proposals}
    for name in (*said, *kinds):
        if name not in names:
            raise ConfigError(f"expected one of the columns {', '.join(sorted(names))[:300]}, got {name!r}; "
                              "mend the flag that names it")
    decided = []
    for proposal in proposals:
        column, reason, warning = proposal.column, proposal.reason, proposal.warning
        role, kind = column.role, column.kind
        if column.name in said:
            role, reason, warning = said[column.name], "as asked", False
        if column.name in kinds:
            kind, reason, warning = kinds[column.name], "as asked", False
            role = "input" if role == "ignored" and column.name not in said else role
        decided.append(Proposal(Column(column.name, kind, role), reason, warning))
    return decided


def _report(console: Console, args: argparse.Namespace, proposals: Sequence[Proposal], reference: Reference) -> None:
    rows = [((p.column.name, p.column.kind, p.column.role, p.reason), "yellow" if p.warning else "") for p in proposals]
    console.print(table(("column", "kind", "role", "why"), rows, f"{args.output}: {args.model} version {args.version}"))
    # The estimate may come out a little above the rows themselves; they are not worth more than that.
    console.print(f"{counted(reference.events, 'event')}, worth {reference.independent_events:,.0f} independent ones; "
                  f"digest {reference.digest[:12]}", markup=False, highlight=False)
    if reference.inadequate:
        console.print(f"The reference is inadequate: {reference.inadequate}. It may alarm, never start a retraining.",
                      style="yellow", markup=False)


def _entry(args: argparse.Namespace, proposals: Sequence[Proposal], found: DataSet) -> str:
    """The monitor's entry for the configuration; every text is quoted as JSON, which YAML reads as it stands."""
    lines = [f"  - model: {_quoted(args.model)}", f"    version: {_quoted(args.version)}",
             f"    topic: {args.topic or args.model + '.inference'}", f"    reference: {_quoted(args.output)}"]
    schema = ["      format: arrow"] if args.format == "arrow" else []
    if args.timestamp:
        schema.append(f"      timestamp: {_quoted(_path(args.timestamp, found))}")
        schema.append(f"      timestamp_unit: {_timestamp_unit(found.columns[args.timestamp])}")
    if args.id:
        schema.append(f"      id: {_quoted(_path(args.id, found))}")
    columns = []
    for column in (proposal.column for proposal in proposals):
        said = [f"role: label, kind: {column.kind}"] if column.role == "label" else []
        said += [f"path: {_quoted(found.paths[column.name])}"] if column.name in found.paths else []
        if said and column.role != "ignored":
            columns.append(f"        {_quoted(column.name)}: {{{', '.join(said)}}}")
    schema += ["      columns:", *columns] if columns else []
    return "\n".join(["monitors:", *lines, *(["    schema:", *schema] if schema else [])])


def _quoted(text: str) -> str:
    return json.dumps(text)


def _path(name: str, found: DataSet) -> str:
    """The path of a column: where it is nested, else its own name as one key."""
    return found.paths.get(name) or name.replace("\\", "\\\\").replace(".", "\\.")


def _timestamp_unit(values: Values) -> str:
    """By the first value: text is a date, and 10^11 seconds would be the year 5138."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        return "milliseconds"
    value = next((one for one in values if one is not None and one == one), 0)
    if isinstance(value, str):
        return "iso8601"
    return "seconds" if value < 1e11 else "milliseconds"
