"""From the text of a configuration to its tree, strictly: what the file may not say, and how it is told.

YAML without its surprises: a key is the text that was written (`no` is no truth value there), one that is given twice is
an error, merge keys are unknown, and aliases may not blow up a small file into a large tree. Then the whole tree is
checked against the structs of `config`, side by side; the first thing that is wrong is one line: path, expected, got,
what to do. What stands in environment variables is never shown. Neighbours: `config` is the structs.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Collection
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import Meta, Struct

from monitor.errors import ConfigError

_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_EXPECTED = re.compile(r"^(?P<what>.*?)(?: - at `\$?(?P<path>.*)`)?$", re.DOTALL)
#: A thousand monitors with a hundred columns each; aliases that multiply reach it at once.
VALUES_MAX = 1_000_000
DEPTH_MAX = 50
#: Whole numbers beyond it fit into no integer of the database or of numpy.
_WHOLE_MAX = 2**63 - 1

Positive = Annotated[int, Meta(ge=1)]
Text = Annotated[str, Meta(min_length=1)]
NonNegative = Annotated[float, Meta(ge=0)]
#: What a model or a version may be called: it becomes a label, a folder and a part of other names.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, Meta(pattern=NAME)]

Tree = TypeVar("Tree", bound=Struct)


def read(text: str, kind: type[Tree], where: str, only: Collection[str] = ()) -> Tree:
    """The struct that the text of a configuration holds; `where` names the file in errors, `only` the sections to look at."""
    tree = read_mapping(text, where, "a mapping with `monitors:`")
    if only:
        tree = {key: value for key, value in tree.items() if key in only}
    filled = _with_environment(tree, "")
    _refuse_unknown(filled, kind, "")
    try:
        return msgspec.convert(filled, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(_translated(str(error), tree, filled, kind)) from None


def read_mapping(text: str, where: str, expected: str) -> dict[str, Any]:
    """The mapping that a YAML text holds, as it is written; `expected` names it in errors. Raises ConfigError."""
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}:{line} is not YAML: {problem}; mend it there") from None
    except RecursionError:
        raise ConfigError(f"{where}: expected at most {DEPTH_MAX} levels, got more; mend the brackets") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected {expected}, got {_shown(tree)}; write one")
    _refuse_excess(tree, where)
    return tree


#: Tags that a configuration has a use for, and what each may stand before; PyYAML takes some for what they are not.
_NODES: dict[str, Any] = {"map": yaml.MappingNode, "seq": yaml.SequenceNode, "str": yaml.ScalarNode, "int": yaml.ScalarNode,
          "float": yaml.ScalarNode, "bool": yaml.ScalarNode, "null": yaml.ScalarNode, "timestamp": yaml.ScalarNode}


class _Loader(yaml.SafeLoader):
    """YAML whose keys are the texts as they were written, each given once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "a key that is not a plain word", key_node.start_mark)
            key_node.tag = "tag:yaml.org,2002:str"
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value[:60]!r} is given twice", key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        fits = _NODES.get(node.tag.removeprefix("tag:yaml.org,2002:"))
        if fits is None or type(node) is not fits:
            raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag[-40:]!r} has no place here", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, OverflowError):     # 2024-13-45, !!timestamp x, a number of 5,000 digits
            raise yaml.constructor.ConstructorError(
                None, None, f"{str(node.value)[:60]!r} is not what it looks like", node.start_mark) from None


def _refuse_excess(tree: Any, where: str) -> None:
    """A bound on what aliases can multiply a file to, and on numbers that nothing can hold."""
    values, stack = 0, [("", tree, 1)]
    while stack:
        path, value, depth = stack.pop()
        values += 1
        if values > VALUES_MAX or depth > DEPTH_MAX:
            raise ConfigError(f"{where}: expected at most {VALUES_MAX:,} values in {DEPTH_MAX} levels, got more; "
                              "look for aliases (`*name`)")
        if isinstance(value, dict):
            stack += [(_below(path, key), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            stack += [(f"{path}[{index}]", item, depth + 1) for index, item in enumerate(value)]
        elif type(value) is int and abs(value) > _WHOLE_MAX:
            raise ConfigError(f"{path}: expected a number below 2^63, got a larger one; mend it")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}: expected a finite number, got {value}; mend it")


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _with_environment(value: Any, path: str) -> Any:
    """Replace `${NAME}` in texts by the environment variable; an absent one is an error."""
    if isinstance(value, dict):
        return {key: _with_environment(item, _below(path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_environment(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"{path}: expected the environment variable {match[1]} to be set, got none; export it")
        return os.environ[match[1]]

    return _ENVIRONMENT.sub(replaced, value)


def _refuse_unknown(value: Any, kind: Any, path: str) -> None:
    """Walk file and types side by side; the first key that no struct knows is an error naming the nearest one."""
    plain = _plain(kind)
    if isinstance(value, list):
        inner = next(iter(get_args(plain)), None) if get_origin(plain) is list else None
        for index, item in enumerate(value):
            _refuse_unknown(item, inner, f"{path}[{index}]")
        return
    if not isinstance(value, dict):
        return
    if get_origin(plain) is dict:
        for key, item in value.items():
            _refuse_unknown(item, get_args(plain)[1], _below(path, key))
        return
    struct, known = _struct_of(value, plain, path)
    if struct is None:
        return
    hints = _hints(struct)
    for key, item in value.items():
        here = _below(path, key)
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            mend = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}"
            raise ConfigError(f"{here}: expected a known key, got `{key}`; {mend}")
        if key in hints:
            _refuse_unknown(item, hints[key], here)


def _plain(kind: Any) -> Any:
    """A type without Annotated and without `| None`."""
    if hasattr(kind, "__metadata__"):
        return _plain(get_args(kind)[0])
    options = [arg for arg in get_args(kind) if arg is not type(None)]
    if len(options) == 1 and type(None) in get_args(kind):
        return _plain(options[0])
    return kind


def _struct_of(value: dict[str, Any], kind: Any, path: str) -> tuple[Any, list[str]]:
    """The struct that a mapping is meant to be and its keys; a one-of is told apart by `type:`."""
    options = [arg for arg in (get_args(kind) or (kind,)) if isinstance(arg, type) and issubclass(arg, Struct)]
    if not options:
        return None, []
    if options[0].__struct_config__.tag is None:
        return options[0], list(options[0].__struct_encode_fields__)
    tags = {str(option.__struct_config__.tag): option for option in options}
    given = value.get("type")
    if not isinstance(given, str) or given not in tags:
        raise ConfigError(f"{path}.type: {_choice(sorted(tags), given)}")
    return tags[given], ["type", *tags[given].__struct_encode_fields__]


def _hints(struct: type[Struct]) -> dict[str, Any]:
    """The type of each field by its key in the file, which may be a word that Python keeps for itself (`from`)."""
    hints = get_type_hints(struct, include_extras=True)
    return {key: hints[name] for key, name in zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True)}


def _choice(known: list[str], given: Any) -> str:
    near = difflib.get_close_matches(str(given), known, n=1)
    near = near or [one for one in known if one.lower() == str(given).lower()]
    mend = f"did you mean {near[0]}?" if near else "choose one of them" if len(known) > 1 else f"write {known[0]}"
    return f"expected {'one of ' if len(known) > 1 else ''}{', '.join(known)}, got {_shown(given)}; {mend}"


def _translated(text: str, tree: Any, filled: Any, kind: Any) -> str:
    """msgspec's words as ours: path first, then expected and got.

    tree : the file as it was written, which is what is shown      filled : with the environment's values in it
    """
    match = _EXPECTED.match(text)
    assert match is not None
    path, value, shown, plain = _located((match["path"] or "").lstrip("."), tree, filled, kind)
    what = match["what"].replace("`", "").rstrip(".")
    if what.startswith("Object missing required field"):
        return f"{_below(path, what.rsplit(' ', 1)[-1])}: expected a value, got none; add it"
    if what.startswith("Invalid enum value"):
        return f"{path}: {_choice([str(one) for one in get_args(plain)], shown)}"
    what = re.sub(r", got .*$", "", what[0].lower() + what[1:]).replace(" | null", "")
    what = what.replace("expected str", "expected text").replace("expected int", "expected a whole number")
    what = what.replace("expected float", "expected a number").replace("expected bool", "expected true or false")
    what = what.replace("expected object", "expected a mapping").replace("expected array", "expected a list")
    what = re.sub(r"(\d)\.0$", r"\1", what)
    if "matching regex" in what:
        most = (249, "") if ",249}" in what else (63, " that begin with a letter or a digit")
        what = f"expected at most {most[0]} letters, digits and . _ -{most[1]}"
    mend = "mend it"
    if value is None:
        mend = "remove the key, or give it a value"
    elif "expected text" in what and not isinstance(value, (str, dict, list)):
        mend = "put it in quotes"
    elif "expected a list" in what and not isinstance(value, (list, dict)):
        mend = f"write [{shown}]"
    return f"{path}: {what}, got {_shown(shown)}; {mend}"


def _located(path: str, tree: Any, filled: Any, kind: Any) -> tuple[str, Any, Any, Any]:
    """Where a path of msgspec leads: the path with its keys' names, the value, what was written for it, and its type.

    msgspec writes `[...]` for a key of a mapping; it is the first one whose value does not convert.
    """
    here, value, shown = "", filled, tree
    for step in re.findall(r"[^.\[\]]+|\[\d+\]|\[\.\.\.\]", path):
        plain: Any = _plain(kind)
        if step == "[...]":
            kind = get_args(plain)[1]
            key: Any = next(key for key, item in value.items() if not _converts(item, kind))
            here = _below(here, key)
        elif step.startswith("["):
            kind, key = get_args(plain)[0], int(step[1:-1])
            here += step
        else:
            kind, key = _hints(_struct_of(value, plain, here)[0])[step], step
            here = _below(here, step)
        value, shown = value[key], shown[key]
    return here, value, shown, _plain(kind)


def _converts(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _shown(value: Any) -> str:
    """A value as the error shows it: short, on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, (str, int, float, list, dict)) else repr(str(value))
    return text if len(text) <= 60 else text[:57] + "..."

