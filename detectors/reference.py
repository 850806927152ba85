"""A reference: what "no drift" means for one model version, fitted once and never changed.

Idea: fitting turns the rows that a model was accepted on into bins, counts, directions and design effects; after that a
stream is only ever compared with these numbers, never with the rows. The reference knows how much it is worth itself:
a short or dependent one is declared inadequate, still raises alarms and starts no retraining.

Invariant: a reference is a pure function of its rows, their order and the columns' kinds and roles; its digest names
exactly that. The false-alarm budget and the tolerances are not in it, they may change without a new fit.

Cost: fitting is 0.3 us per value and 10 ms per row for the simulated bands. Memory: 10 to 30 kB per row, and 140 x 8
bytes per column for the joint rows. Counting, the hot path, stands in `counting`.

Neighbours: `rows` fits one column, `derived` the joint rows, `reference_file` is the file, `scan` the decision.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from detectors.arrays import Arrays
from detectors.counting import Batch, Counting, scores_of
from detectors.dependence import BLOCK_ROWS, BLOCKS_MIN, DesignEffect, design_effect_of_panes
from detectors.derived import ROWS_MIN as JOINT_ROWS_MIN
from detectors.derived import Joint, even_blocks, score_of_bins
from detectors.expansions import EXPANDED, Expansion
from detectors.profile import Profile, ReferenceMismatch
from detectors.proposal import Proposal, propose
from detectors.reference_file import Content, decode, digest_of, encode
from detectors.rows import UNWATCHED, Bools, Column, Floats, Ints, Row, Values, fit_row
from detectors.tables import Table, as_kind, batch_of, columns_of, is_ready

__all__ = ["Arrays", "Column", "Proposal", "Reference", "ReferenceMismatch"]

#: Below this many rows there is no decision, only distances.
ROWS_MIN = 200
#: Below this many effective rows a reference may alarm but not start a retraining (extrapolated from simulations).
EFFECTIVE_ROWS_MIN = 300
#: Fewer cycles of a season than this cannot tell it from a change (from simulations: 12 times the asked false alarms).
CYCLES_MIN = 3.0
#: Rows that are kept as they are, for detectors that need raw values: this many, fewer where rows are wide.
SAMPLE_ROWS, SAMPLE_NUMBERS = 1000, 200_000
#: Characters of a text in the sample.
SAMPLE_TEXT = 2000
_SAMPLE_SEED = 20_240_502


@dataclass(frozen=True, eq=False)
class Reference:
    """What a stream is compared with.

    columns    : the watched columns (neither labels nor ignored ones), in schema order
    records    : the J rows: one or, for embeddings and texts, several per column in schema order, then the joint rows
    joint      : how joint rows are computed; None below two plain columns or 200 rows
    expansions : how embeddings and texts become rows, by column
    cycles     : cycles of the declared season that the rows span; None where no season was declared
    sample     : some of the reference's own events, in time order, as columns; None where none were to be kept
    events     : reference rows      ordered : whether they were in time order
    span       : time of the first and the last of them, seconds since 1970, where known
    digest     : sha256 of all of this, 64 hex digits
    """

    model: str
    version: str
    events: int
    ordered: bool
    span: tuple[float, float] | None
    columns: tuple[Column, ...]
    records: tuple[Row, ...] = field(repr=False)
    joint: Joint | None = field(repr=False)
    expansions: Mapping[str, Expansion] = field(repr=False)
    sample: Mapping[str, Floats | list[str | None]] | None = field(repr=False)
    cycles: float | None
    digest: str

    @classmethod
    def fit(cls, data: Table, columns: Sequence[Column] | None = None, *, model: str = "model",
            version: str = "1", ordered: bool = True, span: tuple[float, float] | None = None,
            cycles: float | None = None, sample_rows: int = SAMPLE_ROWS,
            progress: Callable[[int, int], None] | None = None) -> Reference:
        """The reference of `data`: a dict of arrays or lists, a pandas DataFrame, or a pyarrow Table.

        columns     : the schema; labels and ignored columns are left out. As `propose` proposes it, where not given
        ordered     : rows are in time order; if not, their dependence cannot be measured and the reference is inadequate
        cycles      : cycles of a season (a day, a week) that the rows span; under 3 the reference is inadequate
        sample_rows : rows to keep as they are, for detectors that need raw values; 0 keeps none
        progress    : called with (columns done, columns in all) after every column
        raises      : ReferenceMismatch, one line, for an absent column, unequal lengths, no rows or no columns
        """
        where = f"reference of {model} {version}"
        data = columns_of(data, where)
        if columns is None:
            columns = tuple(proposal.column for proposal in propose(data))
        watched = tuple(column for column in columns if column.role not in UNWATCHED)
        events = _events(data, watched, where)
        halves = even_blocks(0, events)
        if events < JOINT_ROWS_MIN:                             # too few to learn on one half and count on the other
            halves = np.ones(events, bool)
        rows: list[Row] = []
        prepared: dict[str, Floats | list[str | None]] = {}
        expansions: dict[str, Expansion] = {}
        for done, column in enumerate(watched, start=1):        # turns: the columns
            try:
                prepared[column.name] = values = as_kind(column, data[column.name], strict=True)
                if column.kind in EXPANDED:
                    expansions[column.name] = expansion = EXPANDED[column.kind].fit(values, halves)
                    rows += _fit_expanded(column, expansion, values, ordered, halves)
                else:
                    rows.append(fit_row(column, values, ordered=ordered))
            except ValueError as error:
                raise ReferenceMismatch(f"{where}: expected {column.kind} values in column {column.name!r}, got {error}; "
                                        "correct the column's kind or the data") from error
            if progress is not None:
                progress(done, len(watched))
        plain = [(row, prepared[row.name]) for row in rows if row.name in prepared and row.name not in expansions]
        joint = None
        if len(plain) > 1 and events >= JOINT_ROWS_MIN:
            joint = _fit_joint(rows, plain, ordered, halves)
        sample = _sample(prepared, events, sample_rows)
        return cls._of(Content(model, version, events, ordered, span, watched, tuple(rows), joint, expansions, sample,
                               cycles))

    @classmethod
    def _of(cls, content: Content, digest: str | None = None) -> Reference:
        return cls(content.model, content.version, content.events, content.ordered, content.span, content.columns,
                   content.rows, content.joint, content.expansions, content.sample, content.cycles,
                   digest or digest_of(encode(content)))

    @staticmethod
    def propose(data: Table) -> tuple[Proposal, ...]:
        """Kinds and roles for raw data, each with its reason; see `proposal.propose`."""
        return propose(columns_of(data, "proposal"))

    # ---- the file -------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The reference's file as text; the digest stands first."""
        content = Content(self.model, self.version, self.events, self.ordered, self.span, self.columns, self.records,
                          self.joint, self.expansions, self.sample, self.cycles)
        return json.dumps({"digest": self.digest, **encode(content)}) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "reference") -> Reference:
        """The reference in `text`; ReferenceMismatch that starts with `where` if it is not exactly what was saved."""
        return cls._of(*decode(text, where))

    def save(self, path: str | Path) -> None:
        """Write the file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read and verify the file; ReferenceMismatch for a defect of it, OSError where it cannot be read."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ReferenceMismatch(f"{path}: expected UTF-8 text, got {error}; restore the file") from None
        return cls.from_json(text, str(path))

    # ---- what it is worth -----------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Names of the J rows: the columns, then the joint rows."""
        return tuple(row.name for row in self.records)

    @cached_property
    def column_of_row(self) -> tuple[Column | None, ...]:
        """The column that each of the J rows is made of; None for joint rows, which are made of all."""
        owners: list[Column | None] = []
        for column in self.columns:                             # turns: the columns
            expansion = self.expansions.get(column.name)
            owners += [column] * (1 if expansion is None else len(expansion.names))
        return (*owners, *[None] * (len(self.records) - len(owners)))

    @cached_property
    def is_plain(self) -> Bools:
        """Which of the J rows are a column as it is, neither part of an embedding or text nor joint, (J,)."""
        return np.array([column is not None and column.name not in self.expansions for column in self.column_of_row])

    @cached_property
    def deff(self) -> Floats:
        """Design effect of every row, shape (J,): N events carry the information of N / deff."""
        return np.array([row.deff for row in self.records])

    @cached_property
    def m_eff(self) -> float:
        """Effective reference rows: the least of rows / design effect over the columns."""
        return float((self.arrays.m / self.deff).min())

    def with_dependence(self, panes: Ints) -> Reference:
        """This reference with the design effects of a live stream, for one whose rows are in no order.

        panes : int64 (panes, J, fine bins), the counts of consecutive panes. The digest stays: the bins are the same
        """
        rows = []
        for j, row in enumerate(self.records):                  # turns: the rows, once per stream
            scan = np.add.reduceat(panes[:, j, : row.binning.bins], np.flatnonzero(
                np.diff(row.binning.scan_of_fine, prepend=-1)), axis=1)
            p = row.c0 / row.c0.sum()
            rows.append(replace(row, effect=design_effect_of_panes(scan, row.weights, p, row.c0)))
        return self.with_effects([row.effect for row in rows])

    def with_effects(self, effects: Sequence[DesignEffect]) -> Reference:
        """This reference with other design effects, as if its rows had been in order."""
        records = tuple(replace(row, effect=effect) for row, effect in zip(self.records, effects, strict=True))
        return replace(self, records=records, ordered=True)

    @property
    def independent_events(self) -> float:
        """How many independent rows this reference is worth in its most dependent row."""
        return self.events / float(self.deff.max())

    @property
    def too_small(self) -> bool:
        """Whether there are too few rows for any decision."""
        return self.events < ROWS_MIN

    @cached_property
    def inadequate(self) -> str:
        """Why this reference may not start a retraining; empty if it may."""
        if self.events < BLOCK_ROWS * BLOCKS_MIN:
            return f"{self.events} rows, {BLOCK_ROWS * BLOCKS_MIN} are needed to measure how dependent events are"
        if not self.ordered:
            return "rows are not in time order, so that how dependent events are is not known"
        if self.cycles is not None and self.cycles < CYCLES_MIN:
            return (f"the rows span {self.cycles:.1f} cycles of the declared season, {CYCLES_MIN:g} are needed to tell a season "
                    "from a change")
        if self.m_eff < EFFECTIVE_ROWS_MIN:
            worst = self.rows[int(np.argmin(self.arrays.m / self.deff))]
            return (f"{self.events} rows are worth {self.m_eff:.0f} independent ones in column {worst}, "
                    f"{EFFECTIVE_ROWS_MIN} are needed: too dependent or too short")
        return ""

    # ---- counting -------------------------------------------------------------------------------------------------

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and fine bins of every profile under this reference."""
        return len(self.records), max(row.binning.bins for row in self.records)

    @cached_property
    def _counting(self) -> Counting:
        return Counting(self.columns, self.records, self.expansions, self.joint, self.digest)

    def profile(self, batch: Batch | Table, n: int | None = None) -> Profile:
        """The counts of a batch: any table that `fit` takes, or, at no cost, what `Counting.profile` takes.

        n      : events, needed only where no column may be present; an absent column is missing in all of them
        raises : ReferenceMismatch, one line, for values of another kind and for a table with none of the columns
        """
        if is_ready(batch, self.columns, n):
            # A level that is no text comes to light where it is looked up: then the batch is converted after all.
            with contextlib.suppress(TypeError):
                return self._counting.profile(batch, n)  # type: ignore[arg-type]
        return self._counting.profile(*batch_of(batch, self.columns, n, f"batch for {self.model} {self.version}"))

    def profiles(self, columns: Batch, group: Ints, groups: int) -> Iterator[Profile]:
        """The counts of each of several sets of events; see `Counting.profiles`."""
        return self._counting.profiles(columns, group, groups)

    def bin_labels(self, row: int) -> list[str]:
        """The fine bins of a row in words: "missing", "below 3.1", "[3.1, 4)", level names, "rest", "unseen"."""
        return self.records[row].binning.labels()

    def compare(self, columns: Sequence[Column]) -> list[str]:
        """What differs between a schema's watched columns and this reference's, in words; empty for nothing."""
        own = {column.name: column for column in self.columns}
        other = {column.name: column for column in columns if column.role not in UNWATCHED}
        return [
            *(f"column {column} is not in the schema" for name, column in own.items() if name not in other),
            *(f"column {column} is not in the reference" for name, column in other.items() if name not in own),
            *(f"column {own[name]} is {column.kind}, {column.role} in the schema"
              for name, column in other.items() if name in own and own[name] != column),
        ]

    def require(self, columns: Sequence[Column]) -> None:
        """Refuse another schema than the one this reference was fitted for, naming what differs."""
        differences = self.compare(columns)
        if differences:
            raise ReferenceMismatch(f"reference of {self.model} {self.version}: expected the columns it was fitted on, "
                                    f"got another schema ({'; '.join(differences)}); fit it again or correct the schema")

    @cached_property
    def arrays(self) -> Arrays:
        """The rows as padded matrices."""
        return Arrays.of(self.records)


def _events(data: Mapping[str, Values], watched: Sequence[Column], where: str) -> int:
    """Rows of the data; ReferenceMismatch where a column is absent or of another length, or nothing is to be watched."""
    if not watched:
        raise ReferenceMismatch(f"{where}: expected a column to watch, got none; name inputs or predictions")
    absent = [column.name for column in watched if column.name not in data]
    if absent:
        raise ReferenceMismatch(f"{where}: expected column {absent[0]!r}, got {', '.join(map(repr, data))[:300]}; "
                                "correct the schema or the data")
    names = [column.name for column in watched]
    if len(set(names)) < len(names):
        raise ReferenceMismatch(f"{where}: expected every column once, got {max(names, key=names.count)!r} "
                                f"{max(map(names.count, names))} times; name it once in the schema")
    lengths = {column.name: len(data[column.name]) for column in watched}
    events = lengths[watched[0].name]
    if not events or set(lengths.values()) != {events}:
        raise ReferenceMismatch(f"{where}: expected columns of one length above 0, got {lengths}; check the data")
    return events


def _fit_expanded(column: Column, expansion: Expansion, values: Floats | list[str | None], ordered: bool,
                  halves: Bools) -> list[Row]:
    """The rows of an embedding or a text, counted on the half that its axes were not learnt on."""
    counted = None if halves.all() else ~halves
    return [fit_row(Column(f"{column.name}[{name}]", "numeric"), numbers, ordered=ordered, counted=counted)
            for name, numbers in zip(expansion.names, expansion.rows(values).T, strict=True)]


def _fit_joint(rows: list[Row], plain: Sequence[tuple[Row, Floats | list[str | None]]], ordered: bool,
               halves: Bools) -> Joint:
    """Learn the joint rows, count them and put them behind the others."""
    members, values = [row for row, _ in plain], [values for _, values in plain]
    scores = [score_of_bins(row) for row in members]
    joint = Joint.fit(members, scores_of(members, values, scores, len(halves)))
    found = np.concatenate([joint.values(chunk) for _, chunk in scores_of(members, values, scores, len(halves))], axis=1)
    taken = {row.name for row in rows}
    for name, numbers in zip(joint.names, found, strict=True):  # at most 13 turns
        while name in taken:                                    # a column of that name: labels must differ
            name += "'"
        rows.append(fit_row(Column(name, "numeric"), numbers, ordered=ordered, counted=~halves))
    return joint


def _sample(prepared: Mapping[str, Floats | list[str | None]], events: int,
            rows: int) -> dict[str, Floats | list[str | None]] | None:
    """Some rows in time order, chosen by a fixed seed; fewer of wide rows, so that the file stays small."""
    width = sum(values.shape[1] if isinstance(values, np.ndarray) and values.ndim == 2 else 1 for values in prepared.values())
    rows = min(rows, events, max(SAMPLE_NUMBERS // width, 100))
    if rows <= 0:
        return None
    chosen = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(events, rows, replace=False))
    return {name: values[chosen] if isinstance(values, np.ndarray)
            else [level if level is None else level[:SAMPLE_TEXT] for level in map(values.__getitem__, chosen.tolist())]
            for name, values in prepared.items()}
