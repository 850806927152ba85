"""The schema joins configuration and reference, and refuses what contradicts."""

from typing import NamedTuple

import pytest

from monitor.config import Schema, SchemaColumn
from monitor.errors import ConfigError
from monitor.ingest.schema import StreamSchema, parse_path


class Column(NamedTuple):
    name: str
    kind: str
    role: str = "input"


REFERENCE = [Column("age", "numeric"), Column("sex", "category"), Column("answer", "category", "prediction")]


def resolve(**schema):
    return StreamSchema.resolve(Schema(**schema), REFERENCE, "monitors[0].schema")


def test_without_configuration_every_column_is_a_top_level_key():
    schema = resolve()
    assert [(c.name, c.kind, c.role, c.paths) for c in schema.columns] == [
        ("age", "numeric", "input", (("age",),)), ("sex", "category", "input", (("sex",),)),
        ("answer", "category", "prediction", (("answer",),))]


@pytest.mark.parametrize("prefix", ["request.features", "request.features."])
def test_the_prefix_stands_before_every_column_without_a_path(prefix):
    schema = resolve(prefix=prefix, columns={"answer": SchemaColumn(path="out")})
    assert [c.paths[0] for c in schema.columns] == [
        ("request", "features", "age"), ("request", "features", "sex"), ("out",)]


def test_a_label_takes_the_prediction_s_kind():
    (label,) = resolve(columns={"truth": SchemaColumn(role="label")}).labels
    assert (label.kind, label.role, label.paths) == ("category", "label", (("truth",),))


@pytest.mark.parametrize(("schema", "where", "words"), [
    ({"columns": {"age": SchemaColumn(kind="category")}}, "monitors[0].schema.columns.age.kind", "expected numeric"),
    ({"columns": {"age": SchemaColumn(kind="boolean")}}, "monitors[0].schema.columns.age.kind", "expected numeric"),
    ({"columns": {"age": SchemaColumn(role="score")}}, "monitors[0].schema.columns.age.role", "expected input"),
    ({"columns": {"agee": SchemaColumn()}}, "monitors[0].schema.columns.agee", "did you mean 'age'?"),
    ({"columns": {"zzz": SchemaColumn(role="input")}}, "monitors[0].schema.columns.zzz", "column of the reference"),
    ({"columns": {"age": SchemaColumn(path="a..b")}}, "monitors[0].schema.columns.age.path", "single dots"),
    ({"columns": {"age": SchemaColumn(path='a"b')}}, "monitors[0].schema.columns.age.path", "without quotes"),
    ({"columns": {"age": SchemaColumn(aliases=["x", ".b"])}}, "monitors[0].schema.columns.age.aliases[1]", "dots"),
    ({"timestamp": "a."}, "monitors[0].schema.timestamp", "single dots"),
    ({"prefix": "a..b"}, "monitors[0].schema.prefix", "single dots"),
    ({"timestamp": "age"}, "monitors[0].schema.timestamp", "one kind of value at age"),
    ({"columns": {"age": SchemaColumn(path="sex")}}, "monitors[0].schema.columns.sex", "one kind of value"),
    ({"columns": {"age": SchemaColumn(path="sex.x")}}, "monitors[0].schema.columns.age", "an object at sex"),
])
def test_a_contradiction_names_its_key(schema, where, words):
    with pytest.raises(ConfigError) as error:
        resolve(**schema)
    assert str(error.value).startswith(where + ": ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_label_without_a_kind_needs_one_kind_of_prediction():
    with pytest.raises(ConfigError, match=r"schema.columns.truth.kind: expected numeric, category or boolean"):
        StreamSchema.resolve(Schema(columns={"truth": SchemaColumn(role="label")}), REFERENCE[:2])


def test_a_backslash_keeps_a_dot_inside_its_key():
    assert parse_path(r"a\.b.c") == ("a.b", "c")
