"""One monitor of the configuration with what was loaded for it: what every stage of the service is built from.

Everything is checked here before anything is opened: the reference's model and version, the schema against its columns, a
shadow's columns, the further detectors, and that all of it together fits into the memory that was allowed.

Invariant: whoever holds a `Watched` need not look at the configuration of it again. Cost: one read of each reference.
Neighbours: `service` builds the stages of it, `sizing` adds up what it keeps, `commands` and `replicas` load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from detectors.embedding import dimensions
from detectors.reference import Column, Reference
from monitor.config import Config, Monitor, Reports, SchemaColumn, budget
from monitor.decide.observe import Asked
from monitor.decide.plan import Plan
from monitor.decide.policy import Knobs
from monitor.errors import ConfigError
from monitor.ingest.schema import StreamSchema
from monitor.retrain.shadow import Watching
from monitor.sizing import sizing
from monitor.state.capture import read_text


@dataclass(frozen=True, slots=True)
class Watched:
    """One monitor of the configuration with what was loaded for it."""

    index: int
    monitor: Monitor
    reference: Reference                            # the configured one
    version: str
    reports: Reports | None = None                  # what is kept for the reports of alarms; None: nothing

    @property
    def where(self) -> str:
        """Its path in the configuration."""
        return f"monitors[{self.index}]"

    def schema(self) -> StreamSchema:
        """How its events are read; a challenger's answers in shadow are read like a label."""
        said, shadow = self.monitor.schema, self.monitor.retrain.shadow if self.monitor.retrain else None
        if shadow is not None and shadow.prediction not in said.columns:
            said = msgspec.structs.replace(said, columns={**said.columns, shadow.prediction: SchemaColumn(role="label")})
        return StreamSchema.resolve(said, self.reference.columns, where=f"{self.where}.schema",
                                    dimensions=dimensions(self.reference.expansions))

    def labels(self) -> list[Column]:
        """Its labels, without a challenger's answers in shadow."""
        shadow = self.monitor.retrain.shadow if self.monitor.retrain else None
        return [Column(label.name, label.kind, "label") for label in self.schema().labels
                if shadow is None or label.name != shadow.prediction]

    def watching(self) -> Watching | None:
        """The columns that a shadow compares, where one is configured; ConfigError where they are not exactly these."""
        shadow, where = self.monitor.retrain.shadow if self.monitor.retrain else None, f"{self.where}.retrain.shadow"
        if shadow is None:
            return None
        if shadow.prediction in {column.name for column in self.reference.columns}:
            raise ConfigError(f"{where}.prediction: expected a column that the reference does not watch, "
                              f"got {shadow.prediction!r}; name the one in which serving logs the challenger's answers")
        labels = [label.name for label in self.labels()]
        predictions = [column.name for column in self.reference.columns if column.role == "prediction"]
        for what, names in (("label", labels), ("prediction", predictions)):
            if len(names) != 1:
                raise ConfigError(f"{where}: expected exactly one {what} column, got {', '.join(names) or 'none'}; "
                                  "give the columns their roles, or remove the shadow")
        return Watching(labels[0], predictions[0], shadow.prediction)

    def knobs(self) -> Knobs:
        """What it asks of its decisions."""
        monitor, retrain = self.monitor, self.monitor.retrain
        return Knobs(
            budget(monitor.alarm.max_false_alarms, f"{self.where}.alarm.max_false_alarms"), float(monitor.pane.seconds),
            monitor.alarm.ignore_below, retrain.above if retrain else 0.3,
            frozenset(retrain.roles if retrain else ("input", "prediction", "score", "path")), monitor.alarm.method,
        )

    def asked(self) -> Asked:
        """Its further detectors, as configured."""
        labels = {label.name: label.kind for label in self.labels()}
        return Asked(self.monitor.detectors, labels, f"{self.where}.detectors")

    def plan(self) -> Plan:
        """What they look at; ConfigError where they do not fit the reference."""
        return self.asked().plan(self.reference)


def watched(config: Config) -> list[Watched]:
    """Load and check every monitor's reference; the first thing that is wrong is one clear line."""
    found = []
    for index, monitor in enumerate(config.monitors):
        where = f"monitors[{index}].reference"
        if "://" not in monitor.reference and not Path(monitor.reference).is_file():
            raise ConfigError(f"{where}: expected a file, found none at {monitor.reference!r}; make it with `tidemark fit`")
        reference = Reference.from_json(read_text(monitor.reference), f"{where} ({monitor.reference})")
        if reference.model != monitor.model:
            raise ConfigError(f"{where}: expected a reference of model {monitor.model!r}, got one of {reference.model!r}")
        if monitor.version is not None and monitor.version != reference.version:
            raise ConfigError(
                f"{where}: expected a reference of version {monitor.version!r}, got {reference.version!r}; "
                "fit one for this version or mend monitors' `version`"
            )
        if len(reference.rows) > config.limits.columns:
            raise ConfigError(f"{where}: expected at most limits.columns = {config.limits.columns}, got {len(reference.rows)}")
        found.append(Watched(index, monitor, reference, reference.version, None if monitor.histograms_only else config.reports))
        found[-1].watching()
        found[-1].schema()
        needy = [one.name for one in found[-1].plan().detectors if one.method.source != "counts"]
        if monitor.histograms_only and needy:
            raise ConfigError(f"monitors[{index}].detectors: expected detectors on counts beside histograms_only, "
                              f"got {needy[0]!r}, which needs rows; remove it")
    sizing(config, found).refuse()
    return found
