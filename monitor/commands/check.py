"""`tidemark check REFERENCE DATA...`: one comparison of a data set with a reference, for people and for CI pipelines.

Columns with a dot in their name are looked for in nested objects, too. The data are judged as one window, with the same
scan as the stream's, at a chance of `--false-alarm` (1 % unless told) that anything is said when nothing moved. Exit
code 0: quiet, 3: drift.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console

from detectors.comparison import display
from detectors.embedding import dimensions
from detectors.reference import Reference
from detectors.scan import LOCATION_SHARE, Ring, Scan
from monitor.commands.shared import counted, paragraph, print_json, progress_bar, table
from monitor.config import Limits, Schema, SchemaColumn
from monitor.decide.explain import columns, effect_text
from monitor.errors import ConfigError, SourceFailed
from monitor.ingest.decode import Decoder
from monitor.ingest.files import FileSource
from monitor.ingest.schema import StreamSchema, parse_path

#: Narrower than this, a terminal shows decision and effect, and no distances.
DISTANCES_WIDTH = 120


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark check`."""
    parser.add_argument("reference", metavar="REFERENCE", help="a file made by `tidemark fit`")
    parser.add_argument("data", nargs="+", metavar="DATA", help="Parquet, CSV or JSON lines files")
    parser.add_argument("--ignore-below", type=float, default=0.1, metavar="SD",
                        help="what is too small to matter, in reference standard deviations (default 0.1)")
    parser.add_argument("--false-alarm", type=float, default=0.01, metavar="P",
                        help="chance of drift where none is (default 0.01)")
    parser.add_argument("--prefix", default="", help="keys that stand before every column, such as features")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Compare and report."""
    if not 0 < args.false_alarm < 1:
        raise ConfigError(f"--false-alarm: expected a chance between 0 and 1, got {args.false_alarm}")
    if not 0 <= args.ignore_below <= 3:
        raise ConfigError(f"--ignore-below: expected 0 to 3 standard deviations, got {args.ignore_below}")
    try:
        reference = Reference.load(args.reference)
    except OSError as error:
        raise ConfigError(f"{args.reference}: cannot be read: {error.strerror}; make it with `tidemark fit`") from None
    if args.prefix:
        parse_path(args.prefix.removesuffix("."), "--prefix")
    schema = StreamSchema.resolve(_schema(reference, args.prefix), reference.columns, where="reference",
                                  dimensions=dimensions(reference.expansions))
    decoder = Decoder(reference.model, schema, Limits(message_bytes=64 << 20))
    profile = None
    console = Console(stderr=True)
    reasons: Counter[str] = Counter()
    try:
        with progress_bar(console) as progress:
            task = progress.add_task("counting", total=None)
            for batch in FileSource(args.data, "data"):
                for part in batch.parts:
                    rows = decoder.decode(part)
                    reasons.update(f"{refusal.reason}: {refusal.detail}" for refusal in rows.refusals)
                    counts = reference.profile(rows.columns, len(rows))
                    profile = counts if profile is None else profile + counts
                    progress.update(task, advance=len(rows))
                if batch.ended:
                    break
    except SourceFailed as error:                   # here the source is a file that was named on the command line
        raise ConfigError(str(error)) from None
    refused = reasons.total()
    if profile is None or profile.events == 0:
        raise ConfigError(f"{', '.join(args.data)}: expected events, got none that can be used "
                          f"({refused} refused{_most(reasons)}); mend the data, or give their place with --prefix")
    of_columns = [column is not None for column in reference.column_of_row]
    if (profile.counts[of_columns, 0] == profile.events).all() and not (reference.arrays.p0[of_columns, 0] > 0.5).any():
        raise ConfigError(f"{', '.join(args.data)}: expected a column of the reference such as {reference.rows[0]!r}, got none "
                          f"in {counted(profile.events, 'event')}; give their place with --prefix")
    scan = Scan(reference, tolerance=args.ignore_below, panes_per_false_alarm=1 / args.false_alarm,
                common_shift=True, location_share=LOCATION_SHARE)
    ring = Ring(reference)
    ring.push(profile)
    scores = scan(ring)
    drift = bool(scores.score > 1) and not reference.too_small
    with np.errstate(all="ignore"):
        distances = display(reference, profile.counts, profile.events)
    answer = {
        "drift": drift, "score": scores.score, "events": profile.events, "refused": refused,
        "reference_events": reference.events, "reference_inadequate": reference.inadequate,
        "columns": [
            {"column": why.column, "role": why.role, "state": why.state, "evidence": why.evidence, "effect": why.effect,
             "lower": why.lower, "upper": why.upper, "unit": why.unit, "what": why.what,
             **{name: float(values[reference.rows.index(why.column)]) for name, values in distances.items()}}
            for why in columns(reference, scan, scores)
        ],
    }
    if args.json:
        print_json(answer)
    else:
        _print(answer, list(distances), reference.too_small, _most(reasons))
    return 3 if drift else 0


def _schema(reference: Reference, prefix: str) -> Schema:
    """A column named `a.b` is looked for as `b` in the object `a`, then under its own name as one key."""
    head = prefix.removesuffix(".") + "." if prefix else ""
    said = {}
    for column in reference.columns:
        if "." not in column.name or "\\" in column.name:
            continue
        try:
            parse_path(column.name)
        except ConfigError:                         # not a path at all: a key of that name
            continue
        said[column.name] = SchemaColumn(path=head + column.name, aliases=[head + column.name.replace(".", "\\.")])
    return Schema(prefix=prefix, columns=said)


def _most(reasons: Counter[str]) -> str:
    """The commonest reason of refusals, as the end of a clause."""
    return f", mostly {reasons.most_common(1)[0][0]}" if reasons else ""


def _print(answer: dict[str, Any], detectors: list[str], is_too_small: bool, most: str) -> None:
    console = Console()
    shown = detectors if console.width >= DISTANCES_WIDTH else []
    rows = [(
        (one["column"], one["role"], one["state"], f"{one['evidence']:.2f}",
         effect_text(one["what"], one["effect"], one["lower"], one["upper"], one["unit"]),
         *("-" if one[name] != one[name] else f"{one[name]:.3g}" for name in shown)),
        "red" if one["state"] == "drift" else "") for one in answer["columns"]]
    console.print(table(("column", "role", "state", "evidence", "effect [95 % interval]", *shown), rows))
    word = "drift" if answer["drift"] else "quiet"
    print(paragraph(f"{word}: strongest evidence {answer['score']:.2f} (above 1 is drift) in "
                    f"{counted(answer['events'], 'event')} against {counted(answer['reference_events'], 'reference event')}; "
                    f"{counted(answer['refused'], 'event')} refused{most}."))
    if is_too_small:
        print(paragraph(f"The reference has only {answer['reference_events']} rows: nothing is decided, only distances are "
                        "shown; fit one on more."))
    elif answer["reference_inadequate"]:
        print(paragraph(f"The reference is inadequate: {answer['reference_inadequate']}."))
