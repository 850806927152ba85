"""The plain values that the stages hand to one another, and the seams between them.

    Part, Batch      records as a source gave them, with their offsets           ingest  -> decode
    Rows             decoded events of one monitor as columns                    decode  -> state
    Window           a closed pane, ready to be judged                           state   -> decide
    Sample           some rows of a pane, for detectors that take rows           state   -> decide
    Reading          what a detector that only observes says                     decide  -> expose
    ColumnReason     why a column is quiet, or is not                            decide  -> expose
    Alarm            our decision, raised or cleared                             decide  -> retrain, expose
    Launch           one training job and its life                               retrain -> state, expose

The stages import these and never one another; only `pipeline` and `commands` know them all. Values are frozen; arrays
inside them are not written to after they were made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.profile import Profile
from detectors.scan import Scores

TopicPartition = tuple[str, int]
#: Values by column: float64 with NaN for missing, or texts with None for missing.
Columns = Mapping[str, NDArray[np.float64] | Sequence[str | None]]

#: Why an event was refused: the whole, closed list, so that `reason` is a bounded label.
REASONS = (
    "tombstone",      # a record without a value
    "too_large",      # more bytes than `limits.message_bytes`
    "json",           # not one well-formed JSON document (truncated, trailing bytes, Infinity, 1e400)
    "arrow",          # not one readable Arrow IPC stream (truncated, damaged, of another format)
    "encoding",       # not UTF-8, a byte order mark, a lone surrogate
    "depth",          # nested deeper than the parser allows
    "type",           # a value of another kind than the schema says
    "timestamp",      # no event time, one before 1970, or more than a day ahead of us
)


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive records of one topic partition, as they came.

    values  : the records' bytes (None for a tombstone); or a pyarrow table for columnar files
    offsets : int64, shape (n,), rising; compacted topics and transactions leave gaps
    times   : int64, shape (n,), milliseconds since 1970: the records' own timestamps (-1 where there is none)
    next_offset : where reading goes on after this part
    """

    topic: str
    partition: int
    values: Any
    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    next_offset: int

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one turn of a source brought: parts of several partitions, perhaps nothing.

    assigned : every partition that the source reads now; a partition that is assigned but silent holds the watermark back
    caught_up : the partitions of which nothing more was waiting when this batch was taken
    ended    : a bounded source has no more; the pipeline closes every pane and returns
    lost     : records that retention removed before they were read, per partition
    away     : why the source cannot read at the moment, in one line; empty while all is well
    topic_ids : topic -> the id of what is read under its name, as Kafka's tools show it; absent where there is none
    """

    parts: tuple[Part, ...] = ()
    assigned: frozenset[TopicPartition] = frozenset()
    caught_up: frozenset[TopicPartition] = frozenset()
    ended: bool = False
    lost: Mapping[TopicPartition, int] = field(default_factory=dict)
    away: str = ""
    topic_ids: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)


class Source(Protocol):
    """Where batches come from: Kafka, files, memory. Iterating it yields a batch at least once a second, even empty."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches, at least one a second."""

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on from these offsets; partitions that are not named start at the source's own default."""

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Read no further from these for now, and from all others go on: the slower partitions must catch up first."""

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell the outside (Kafka's group offsets, for lag tools only) what is safely stored."""

    def lag(self) -> Mapping[TopicPartition, int]:
        """Events not yet read, per partition."""

    def close(self) -> None:
        """Leave; nothing is committed."""


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """One record that could not be used, or one row of it, on its way to the dead letters.

    row    : of a record of many events, the row that was refused; None: the record as a whole
    events : how many events are refused with it
    """

    topic: str
    partition: int
    offset: int
    reason: str                                     # one of REASONS
    detail: str                                     # the parser's words, at most 200 characters
    value: bytes | None
    row: int | None = None
    events: int = 1


@dataclass(frozen=True, slots=True)
class Rows:
    """Decoded events of one monitor from one partition, in stream order.

    offsets : int64 (n,) of the good events      times : int64 (n,), milliseconds since 1970, event time
    within  : int64 (n,), the row of each event in its record; None where a record is one event
    columns : per schema column float64 (n,) with NaN for missing, or str | None as a list or a `detectors.coded.Coded`
    others  : values that are kept but not watched: `id` (list of str | None) and label columns, when the schema has them
    read    : events read, good and refused; `next_offset` is where this partition goes on
    """

    model: str
    topic: str
    partition: int
    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float64] | Sequence[str | None]]
    next_offset: int
    read: int
    others: Mapping[str, NDArray[np.float64] | Sequence[str | None]] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    retried: int = 0                                # events read a second time because they held a NaN literal
    within: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.offsets)


#: Events that one record may hold, as a power of two: an event's row in its record fits behind the offset.
ROW_BITS = 20


def place_of(offset: int, row: int) -> int:
    """The place of an event in a partition, from its record's offset and its row in it; places rise as both do."""
    return offset << ROW_BITS | row


def places_of(offsets: NDArray[np.int64], within: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The place of each event in its partition: the offset itself where a record is one event."""
    return offsets if within is None else offsets << ROW_BITS | within


#: Longest text that is kept of one value in a sample: telling categories apart takes less.
TEXT_CHARACTERS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Some rows of one pane, drawn by a hash of their place in the topic (`state.sample`).

    keys : uint64 (n,), the hashes      partitions, offsets, times : int64 (n,); of records of many events, `places_of` them
    columns : values of the watched columns and labels that a detector asked for, each of length n
    """

    keys: NDArray[np.uint64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    columns: Columns

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Window:
    """A pane that event time has passed: decided once, never again.

    pane       : its number, floor(event time / pane seconds)     start, end : seconds since 1970
    profile    : counts of the pane (empty panes have zero counts)
    skipped    : empty panes between the previous one and this
    sample     : some of its rows in the order of (time, partition, offset); None where no detector asks for rows
    refused    : records that were refused while this pane was open, by reason (tombstones are no fault and not among them)
    in_a_row   : the most of them in one partition without a readable record between
    unseen     : of each category column, up to 20 levels that the reference has never seen, with their events
    """

    model: str
    version: str
    segment: str
    pane: int
    start: float
    end: float
    profile: Profile
    skipped: int = 0
    sample: Sample | None = None
    refused: Mapping[str, int] = field(default_factory=dict)
    in_a_row: int = 0
    unseen: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


AlarmState = Literal["raised", "severe", "cleared"]
AlarmKind = Literal["drift", "quality"]


@dataclass(frozen=True, slots=True)
class Mover:
    """One column that moved, as an alarm names it: how far, how sure, in which way."""

    column: str
    role: str
    effect: float                                   # reference standard deviations (or share of events, see `unit`)
    lower: float
    upper: float
    evidence: float                                 # z over threshold: 1 is an alarm
    what: str                                       # "mean", "spread", "shape", "bin [3.1, 4.0)", "missing", "unseen" ...
    unit: Literal["sd", "share"] = "sd"
    words: str = ""                                 # of a fault of the data: what broke, in one sentence


def effect_text(what: str, effect: float, lower: float, upper: float, unit: str) -> str:
    """An effect with its unit and 95 % interval.

    >>> effect_text("mean", 0.9, 0.85, 0.95, "sd")
    'mean +0.900 s.d. [+0.850, +0.950]'
    """
    return f"{what} {effect:+.3f} {'s.d.' if unit == 'sd' else 'of events'} [{lower:+.3f}, {upper:+.3f}]"


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change of our decision about one stream: raised, severe (worth a retraining) or cleared.

    episode : number of the alarm of this model and version, rising; raised, severe and cleared share it
    kind    : `drift`, or `quality` (missing, unseen, out of range, constant, another unit), which never starts a retraining;
              each has its own episodes, so that a fault which stands hides no drift
    since   : start of the shortest window that shows it, seconds since 1970
    at      : end of the pane that decided, seconds since 1970
    cause   : of an alarm that rests on no column: `wrong_type` (records refused) or `volume`, each with its own episodes;
              empty where columns moved
    words   : what happened, in one sentence, where `cause` is given
    """

    model: str
    version: str
    segment: str
    episode: int
    state: AlarmState
    kind: AlarmKind
    score: float                                    # 1 = alarm threshold
    severe_score: float                             # 1 = retraining threshold
    since: float
    at: float
    pane: int
    window_panes: int
    window_events: int
    movers: tuple[Mover, ...] = ()
    reference_adequate: bool = True
    reason: str = ""                                # of a clearing: "quiet", "new reference"
    cause: str = ""
    words: str = ""


LaunchState = Literal[
    "proposed", "approved", "submitted", "running", "succeeded", "failed", "timed_out", "judged", "promoted", "refused",
]
#: States in which nothing more happens.
FINAL_STATES: frozenset[str] = frozenset({"failed", "timed_out", "promoted", "refused"})


@dataclass(frozen=True, slots=True)
class Launch:
    """One training job from the decision to the verdict; the outbox stores it whole after every step.

    id      : 12 hex digits of sha256(model, version, episode or key): asking twice is one job
    episode : number of the alarm; 0 of a launch that somebody asked for while no severe alarm was open
    steps   : (state, seconds since 1970 by the clock as it was set when the launch began) in the order they happened
    columns : JSON, name, kind and role of every watched column and label: what the trainer works on
    offsets : next offset per partition when the launch was decided: the data reaches up to there
    """

    id: str
    model: str
    version: str
    episode: int
    launcher: str
    state: LaunchState
    reason: str                                     # JSON: columns, effects, window; goes to the trainer
    steps: tuple[tuple[str, float], ...]
    offsets: Mapping[str, int] = field(default_factory=dict)    # "topic:partition" -> next offset
    external: str = ""                              # the launcher's own name: a process id, a Job's name
    detail: str = ""                                # why it failed, or what the verdict rests on
    attempts: int = 0                               # calls of the launcher that failed and may be tried again
    retry_at: float = 0.0                           # not before this time
    data_uri: str = ""
    output_uri: str = ""
    columns: str = ""
    champion: float | None = None                   # quality on the held-back events
    challenger: float | None = None
    difference: float | None = None                 # challenger - champion, with its interval
    difference_lower: float | None = None
    difference_upper: float | None = None
    verdict: str = ""                               # "better", "worse", "not yet known"
    new_version: str = ""
    model_uri: str = ""
    reference_uri: str = ""
    progress: str = ""                              # the job's last progress line
    queued_since: float = 0.0                       # when the job that waits now was first seen waiting; 0: it does not wait
    queued_seconds: float = 0.0                     # earlier waits of the job, together
    decided_at: float = 0.0                         # event time of the alarm that asked for it: cooldown and budget
    cut_over_at: float = 0.0                        # event time from which the new reference judges; 0: not (yet)
    key: str = ""                                   # of a launch that somebody asked for: the same key never launches again
    by: str = ""                                    # who asked; empty where an alarm did
    why: str = ""                                   # the words that came with it
    gpus: int = 0                                   # of all its pods together, as configured when it was decided
    deadline_hours: float = 0.0                     # as configured when it was decided
    shadow_at: float = 0.0                          # its own time when the challenger began to answer in shadow; 0: it did not
    shadow_since: float = 0.0                       # event time behind which its answers in shadow are compared
    shadow_verdict: str = ""                        # how that ended; empty before
    forgiven: bool = False                          # a person has taken it out of the row of useless ones
    previous_model_uri: str = ""                    # of the champion that a promotion ended, where it is known
    previous_digest: str = ""                       # of the reference that judged it: what a roll-back goes back to
    clock_set: float = 0.0                          # what the clock had been set by when it began: its times count from there


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a launcher knows of a job; `output_uri` where it leaves its output, when the launcher gave it another folder."""

    state: Literal["queued", "running", "succeeded", "failed", "unknown"]
    detail: str = ""
    progress: str = ""
    output_uri: str = ""


class Launcher(Protocol):
    """A back end that trains. `start` of the same launch twice is one job; errors are LaunchFailed."""

    name: str

    def start(self, launch: Launch) -> str:
        """Start the job, or find it where it was started before; return the launcher's own name of it."""

    def status(self, launch: Launch) -> JobStatus:
        """How the job stands."""

    def cancel(self, launch: Launch) -> None:
        """End the job; one that is gone is no error."""


class Clock(Protocol):
    """Wall-clock time, so that tests can move it."""

    def __call__(self) -> float:
        """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one further detector last said of one column: shown, and nothing else.

    column    : the column, or what stands for several (`__joint__`) or for the errors (`error`)
    pane, end : the pane that it belongs to, and its end in seconds since 1970
    score     : higher is more drift, in the detector's own unit; NaN where it could not be told
    drift     : its own verdict; None where neither it nor the configuration has a threshold
    null      : 95 % point of the score without drift at the window's size, where that is known
    corrected : the score with its mean without drift taken off, for distances on counts
    """

    detector: str
    column: str
    role: str
    pane: int
    end: float
    score: float
    drift: bool | None = None
    threshold: float | None = None
    null: float | None = None
    corrected: float | None = None


@dataclass(frozen=True, slots=True)
class ColumnReason:
    """One column's answer.

    evidence : strongest z over the threshold; 1 is an alarm         effect : in `unit`, with its interval
    visible  : smallest shift that the longest window can show now, reference standard deviations
    """

    column: str
    role: str
    state: str
    evidence: float
    effect: float
    lower: float
    upper: float
    unit: str
    what: str
    window_panes: int
    window_events: int
    visible: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One decided pane with everything that was decided on it: what is shown, exported and explained."""

    window: Window
    scores: Scores
    alarms: tuple[Alarm, ...]
    state: str                                      # learning, insufficient_data, reference_inadequate, quiet, warning, drift
    episode: int
    since: float | None                             # start of the open episode
