"""Render what is made from the catalogue and the configuration's types, and check what is checked in.

    python -m dashboards.render             writes the files         python -m dashboards.render --check    1 if one differs

`pages` is the list of everything that is rendered: path -> text, a pure function of the code. Writing and checking only
compare it with the files, so the two cannot drift apart. Lines end with \\n and nothing depends on the machine or the
time: rendering twice gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT, Struct

from dashboards import rules_files
from monitor import config, metrics
from monitor.config_reference import FIELDS
from monitor.metrics import CATALOGUE

_GENERATED = "<!-- Rendered by `make render` from {source}; change it there. -->"
_NAMES: Mapping[object, str] = {
    str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "none", Any: "any value"}


def pages() -> dict[str, str]:
    """Everything that is rendered: path from the repository's root -> text."""
    from dashboards import publish  # needs the SDK, which whoever only wants the types does not have

    return {"docs/metrics.md": metrics_page(), "docs/configuration.md": configuration_page(),
            **rules_files.pages(), **publish.pages()}


def render(root: Path) -> list[Path]:
    """Write every page below `root`; the paths that changed."""
    changed = []
    for path, text in pages().items():
        target = root / path
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
            changed.append(target)
    return changed


def differing(root: Path) -> list[str]:
    """Paths whose file below `root` is not what would be rendered, or is absent."""
    return [path for path, text in pages().items()
            if not (root / path).exists() or (root / path).read_text(encoding="utf-8") != text]


# ---- docs/metrics.md --------------------------------------------------------------------------------------------------

def metrics_page() -> str:
    """The catalogue as a page: every metric, every label, every closed list."""
    lines = ["# Metrics", _GENERATED.format(source="monitor/metrics.py"), "",
             "Everything that `/metrics` shows and whose name starts with `tidemark_`. Higher is more drift, whatever the "
             "detector. Names that start with "
             + " or ".join(f"`{prefix}`" for prefix in metrics.FOREIGN_PREFIXES)
             + " come from the Prometheus client library and describe the process. A scraper that accepts OpenMetrics gets the "
             "same series in that format, where `tidemark_alarms_total` names the latest alarm as its exemplar `alarm` (its "
             "report is at `/reports/{alarm}`), and `tidemark_launches_total` the latest launch as `launch`.", ""]
    lines += table(("name", "type", "labels", "unit", "meaning"), [
        (f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels) or "none",
         metric.unit or "none", metric.help) for metric in CATALOGUE.values()])
    lines += ["", "An `info` metric is a gauge that is always 1: its labels are what it says.", ""]
    lines += ["## Labels", "", "Every label is bounded by the configuration or by a closed list, never by the data.", ""]
    lines += table(("label", "values"), [(f"`{name}`", text) for name, text in metrics.LABELS.items()])
    for title, values in (("Detectors", metrics.DETECTORS), ("States of a stream", metrics.STATES),
                          ("Outcomes of an event", metrics.OUTCOMES), ("Outcomes of a report", metrics.REPORT_OUTCOMES)):
        lines += ["", f"## {title}", "", *table(("value", "meaning"), [(f"`{name}`", text) for name, text in values.items()])]
    lines += ["", "## Other closed lists", ""]
    lines += table(("label", "of", "values"), [
        ("`reason`", f"`{metrics.EVENTS.name}`", _codes(("none", "retention", *metrics.REFUSALS))),
        ("`kind`", f"`{metrics.ALARMS.name}`", _codes(metrics.ALARM_KINDS)),
        ("`state`", f"`{metrics.ALARMS.name}`", _codes(metrics.ALARM_STATES)),
        ("`cause`", f"`{metrics.ALARM_OPEN.name}`", _codes(list(metrics.ALARM_CAUSES))),
        ("`state`", f"`{metrics.ALARM_OPEN.name}`", _codes(metrics.ALARM_OPEN.values)),
        ("`state`", f"`{metrics.LAUNCH_STATE.name}`", _codes(metrics.LAUNCH_STATES)),
        ("`outcome`", f"`{metrics.LAUNCHES.name}`", _codes(metrics.LAUNCH_OUTCOMES)),
        ("`outcome`", f"`{metrics.DEAD_LETTERS.name}`", _codes(metrics.DEAD_LETTERS.values)),
        ("`outcome`", f"`{metrics.ALERT_POSTS.name}`", _codes(metrics.ALERT_POSTS.values)),
        ("`le`", f"`{metrics.EVALUATION.name}`", _codes([*map(repr, metrics.EVALUATION.buckets), "+Inf"])),
    ])
    return "\n".join([*lines, ""])


# ---- docs/configuration.md --------------------------------------------------------------------------------------------

def configuration_page() -> str:
    """Every struct of the configuration as a table, in the order in which the file nests them."""
    lines = ["# Configuration", _GENERATED.format(source="monitor/config.py and monitor/config_reference.py"), "",
             "One YAML file, one tree. An unknown key is an error that names the nearest known one; every error says where, "
             "what was expected, what was found and what to do. `${NAME}` is replaced by that environment variable. "
             "`tidemark check-config -c FILE` says in sentences what a file will do.", ""]
    for path, struct in structs(config.Config):
        name = struct.__name__
        lines += [f"## `{path}`" if path else "## The file", "", _first_line(struct), ""]
        tag = struct.__struct_config__.tag
        if tag is not None:
            lines += [f"Chosen by `{struct.__struct_config__.tag_field}: {tag}`.", ""]
        hints = get_type_hints(struct, include_extras=True)
        rows = []
        for field in msgspec.structs.fields(struct):
            unit, text = FIELDS[name][field.name]
            rows.append((f"`{field.encode_name}`", type_words(hints[field.name]), default_words(field), unit, text))
        lines += [*table(("field", "type", "default", "unit", "what it is, and why the default"), rows), ""]
    return "\n".join(lines)


def structs(root: type[Struct], path: str = "") -> Iterator[tuple[str, type[Struct]]]:
    """The struct and all below it with their paths in the file, each once, depth first."""
    yield path, root
    hints = get_type_hints(root)
    for field in msgspec.structs.fields(root):
        for below, suffix in _structs_in(hints[field.name]):
            yield from structs(below, f"{path}.{field.encode_name}{suffix}".removeprefix("."))


def _structs_in(kind: Any, suffix: str = "") -> Iterator[tuple[type[Struct], str]]:
    """The structs that a type mentions, with what stands between the field and them: `[]` for lists, `.*` for maps."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        yield kind, suffix
        return
    origin = get_origin(kind)
    between = suffix + {list: "[]", dict: ".*"}.get(origin, "")
    for part in get_args(kind) if origin is not Literal else ():
        yield from _structs_in(part, between)


def type_words(kind: Any) -> str:
    """A type in words, with its bounds: `whole number, 1 to 100000`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return ", ".join([type_words(parts[0]), *filter(None, (_bounds(meta) for meta in parts[1:]))])
    if origin is Literal:
        return _codes(parts, " or ")
    if origin in (Union, types.UnionType):
        inner = [part for part in parts if part is not type(None)]
        return " or ".join(map(type_words, inner)) + (", or none" if len(inner) < len(parts) else "")
    if origin is list:
        return f"list of {type_words(parts[0])}"
    if origin is dict:
        return f"map of text to {type_words(parts[1])}"
    if isinstance(kind, type) and issubclass(kind, Struct):
        tag = kind.__struct_config__.tag
        return f"section `{kind.__struct_config__.tag_field}: {tag}`" if tag is not None else "section"
    return _NAMES[kind]


def _bounds(meta: object) -> str:
    if not isinstance(meta, msgspec.Meta):
        return ""
    words = [f"{word} {bound}" for word, bound in (
        ("at least", meta.ge), ("above", meta.gt), ("at most", meta.le), ("below", meta.lt)) if bound is not None]
    words += [f"at least {meta.min_length}"] if meta.min_length is not None else []
    words += [f"matching `{meta.pattern}`".replace("|", "\\|")] if meta.pattern is not None else []
    return ", ".join(words)


def default_words(field: Any) -> str:
    """A field's default as it would stand in the file."""
    if field.default_factory is not NODEFAULT:
        value = field.default_factory()
    elif field.default is not NODEFAULT:
        value = field.default
    else:
        return "**required**"
    if isinstance(value, Struct):
        return "as below"
    if value is None or value == "":
        return "none"
    return f"`{value}`" if isinstance(value, str) else f"`{msgspec.json.encode(value).decode()}`"


# ---- Markdown ---------------------------------------------------------------------------------------------------------

def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; a bar within a cell must be escaped by the caller where it is code."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _codes(values: Sequence[object], between: str = ", ") -> str:
    return between.join(f"`{value}`" for value in values)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 if all is well, 1 if a file that is checked in is not what would be rendered."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.render", description="Render pages from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the repository")
    options = parser.parse_args(argv)
    if options.check:
        found = differing(options.root)
        for path in found:
            print(f"{path}: expected what the code renders, got something else; run `make render`", file=sys.stderr)
        return 1 if found else 0
    for target in render(options.root):
        print(f"rendered {target.relative_to(options.root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
