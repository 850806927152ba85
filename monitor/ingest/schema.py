"""Where each column of a monitor sits in an event, and what it is: the configuration joined with the reference.

The reference says which columns are watched, with kind and role; the configuration may say where they are found
(`path`, `aliases`), may repeat kind and role, and may add label columns. What the two say must agree: a contradiction
is a ConfigError that names the key of the configuration, because a column read as another kind would drift at once.

Paths. A path names keys from the outermost object inwards, separated by dots: `features.age`. A key that itself holds
a dot is written with a backslash before it: `features.sepal\\.length`. A column without a path stands at
`schema.prefix` followed by its name as *one* key, so a column called `sepal.length` needs nothing. Aliases are further
paths, tried in order where the ones before them are missing; they are for fields that were renamed.

Vectors. An `embedding` column is a list of numbers whose length the reference knows; a list of another length is refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from detectors.reference import Column
from monitor.config import Schema, SchemaColumn
from monitor.errors import ConfigError

Kind = Literal["numeric", "category", "boolean", "embedding", "text"]
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StreamColumn:
    """One column of the stream.

    paths : where its value stands: the path, then the aliases, each a tuple of keys
    dim   : numbers in a vector of an embedding column; 0 for all other kinds
    """

    name: str
    kind: Kind
    role: str
    paths: tuple[Path, ...]
    dim: int = 0


@dataclass(frozen=True, slots=True)
class StreamSchema:
    """Everything that the decoder must know of a monitor's events.

    columns   : the watched columns, in the reference's order
    labels    : columns that are kept but not watched (role `label`)
    timestamp : path of the event time; None takes the Kafka record's own
    id        : path of the event's id, or None
    """

    columns: tuple[StreamColumn, ...]
    labels: tuple[StreamColumn, ...] = ()
    timestamp: Path | None = None
    timestamp_unit: Literal["seconds", "milliseconds", "iso8601"] = "milliseconds"
    id: Path | None = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the label columns."""
        return tuple(column.name for column in self.labels)

    @property
    def other_names(self) -> tuple[str, ...]:
        """The keys of `Rows.others`: the labels, and `id` where the events have one."""
        return (*self.label_names, *(("id",) if self.id else ()))

    @classmethod
    def resolve(cls, schema: Schema, columns: Sequence[Column], where: str = "schema",
                dimensions: Mapping[str, int] | None = None) -> StreamSchema:
        """Join a monitor's `schema` with its reference's columns.

        where : the schema's path, for messages      dimensions : lengths of the reference's vectors, by embedding column
        """
        known = {column.name: column for column in columns}
        watched: list[StreamColumn] = []
        labels: list[StreamColumn] = []
        for column in columns:
            resolved = _agree(column, schema, f"{where}.columns.{column.name}", (dimensions or {}).get(column.name, 0))
            (labels if column.role == "label" else watched).append(resolved)
        for name, said in schema.columns.items():
            if name in known:
                continue
            if said.role != "label":
                raise _unknown(name, known, f"{where}.columns.{name}")
            if name == "id" and schema.id:
                raise ConfigError(f"{where}.columns.id: expected a label of another name beside schema.id, got 'id'; "
                                  "rename the label and give it a path")
            labels.append(_label(name, said, schema, watched, f"{where}.columns.{name}"))
        resolved_schema = cls(
            columns=tuple(watched), labels=tuple(labels), timestamp_unit=schema.timestamp_unit,
            timestamp=parse_path(schema.timestamp, f"{where}.timestamp") if schema.timestamp else None,
            id=parse_path(schema.id, f"{where}.id") if schema.id else None)
        _refuse_collisions(resolved_schema, where)
        return resolved_schema


def parse_path(text: str, where: str = "path") -> Path:
    r"""The keys that a dotted path names; `\.` is a dot inside a key.

    >>> parse_path(r"features.sepal\.length")
    ('features', 'sepal.length')
    """
    keys = tuple(re.sub(r"\\([.\\])", r"\1", key) for key in re.findall(r"(?:\\[.\\]|[^.])+", text))
    if not keys or re.search(r"(^|[^\\])\.\.|^\.|[^\\]\.$", text):
        raise ConfigError(f"{where}: expected keys separated by single dots, got {text!r}; "
                          r"write \. for a dot that belongs to a key")
    for key in keys:
        if re.search(r'["\\\x00-\x1f]', key):
            raise ConfigError(f"{where}: expected keys without quotes, backslashes and control characters, "
                              f"got {key!r}; such a key cannot be watched")
    return keys


def _default_path(schema: Schema, name: str, where: str) -> Path:
    prefix = schema.prefix.removesuffix(".")
    head = parse_path(prefix, where.split(".columns.", maxsplit=1)[0] + ".prefix") if prefix else ()
    if re.search(r'["\\\x00-\x1f]', name):
        raise ConfigError(f"{where}: expected a column name without quotes, backslashes and control characters, "
                          f"got {name!r}; give its place with `path`, or rename it in the reference")
    return (*head, name)


def _paths(said: SchemaColumn | None, schema: Schema, name: str, where: str) -> tuple[Path, ...]:
    if said is None:
        return (_default_path(schema, name, where),)
    first = parse_path(said.path, f"{where}.path") if said.path else _default_path(schema, name, where)
    aliases = [parse_path(alias, f"{where}.aliases[{i}]") for i, alias in enumerate(said.aliases)]
    return tuple(dict.fromkeys([first, *aliases]))


def _agree(column: Column, schema: Schema, where: str, dim: int) -> StreamColumn:
    """The column as the reference has it, at the place that the configuration says."""
    said = schema.columns.get(column.name)
    kind = column.kind
    if kind not in get_args(Kind):
        raise ConfigError(f"{where}.kind: expected one of {', '.join(get_args(Kind))} in the reference, got {kind!r}; "
                          "make the reference anew with `tidemark fit`")
    if kind == "embedding" and dim < 1:
        raise ConfigError(f"{where}.kind: expected the length of its vectors from the reference, got none; "
                          "make the reference anew with `tidemark fit`")
    if said is not None and said.kind is not None and said.kind != kind:
        if not (kind == "category" and said.kind == "boolean"):     # a boolean is a category with two levels
            raise ConfigError(f"{where}.kind: expected {kind}, as in the reference, got {said.kind}; "
                              "remove it here or make the reference anew with this kind")
        kind = said.kind
    if said is not None and said.role is not None and said.role != column.role:
        raise ConfigError(f"{where}.role: expected {column.role}, as in the reference, got {said.role}; "
                          "remove it here or make the reference anew with this role")
    return StreamColumn(column.name, kind, column.role, _paths(said, schema, column.name, where),
                        dim if kind == "embedding" else 0)


def _label(name: str, said: SchemaColumn, schema: Schema, watched: Iterable[StreamColumn], where: str) -> StreamColumn:
    """A label column; without a kind it has that of the one prediction."""
    kinds = {column.kind for column in watched if column.role == "prediction"}
    kind = said.kind or (kinds.pop() if len(kinds) == 1 else None)
    if kind == "text":
        kind = "category"                           # a label is compared with the prediction, whatever its length
    if kind is None or kind == "embedding":
        raise ConfigError(f"{where}.kind: expected numeric, category or boolean for this label, got {kind or 'nothing'}; "
                          "say it, since the reference has not exactly one kind of prediction to take it from")
    return StreamColumn(name, kind, "label", _paths(said, schema, name, where))


def _unknown(name: str, known: Iterable[str], where: str) -> ConfigError:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "remove it, or make the reference anew with this column"
    return ConfigError(f"{where}: expected a column of the reference (or role: label), got {name!r}; {hint}")


def _kind_in_words(column: StreamColumn) -> str:
    return f"embedding of {column.dim} numbers" if column.dim else column.kind


def _refuse_collisions(schema: StreamSchema, where: str) -> None:
    """One place holds one kind of value, and either a value or an object."""
    uses: dict[Path, tuple[str, str]] = {}
    places: list[tuple[Path, str, str]] = [(path, _kind_in_words(column), f"{where}.columns.{column.name}")
                                           for column in (*schema.columns, *schema.labels) for path in column.paths]
    if schema.timestamp:
        places.append((schema.timestamp, "a time", f"{where}.timestamp"))
    if schema.id:
        places.append((schema.id, "category", f"{where}.id"))
    for path, kind, key in places:
        other = uses.setdefault(path, (kind, key))
        if other[0] != kind:
            raise ConfigError(f"{key}: expected one kind of value at {'.'.join(path)}, got {kind} here and "
                              f"{other[0]} at {other[1]}; give one of them another path")
    for path, (_kind, key) in uses.items():
        for length in range(1, len(path)):
            if path[:length] in uses:
                raise ConfigError(f"{key}: expected an object at {'.'.join(path[:length])}, got a value there by "
                                  f"{uses[path[:length]][1]}; give one of them another path")
