"""The repository reads itself: docstrings, links, words, orphans, and one list of dependencies."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("detectors", "monitor", "dashboards")
#: Words that style says are not used for our own things, as whole words of a public name.
UNUSED_WORDS = {"baseline", "chunk", "anomaly", "incident", "notification", "utils", "helpers", "manager", "misc"}


def tracked(*suffixes: str) -> list[Path]:
    """Files that git knows or would take."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in listed if name.endswith(suffixes) and (ROOT / name).is_file()]


def sources() -> list[Path]:
    return [path for path in tracked(".py") if path.relative_to(ROOT).parts[0] in PACKAGES]


def test_every_module_has_a_docstring():
    bare = [str(path.relative_to(ROOT)) for path in tracked(".py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert bare == []


def test_every_todo_names_an_issue():
    found = [f"{path.relative_to(ROOT)}:{number}" for path in tracked(".py", ".sh", ".yaml") if path != Path(__file__)
             for number, line in enumerate(path.read_text().splitlines(), 1)
             if re.search(r"\b(TODO|FIXME|XXX|HACK)\b(?!.*#\d+)", line)]
    assert found == []


def test_no_public_name_uses_a_word_that_we_do_not_use():
    found = []
    for path in sources():
        names = [node.name for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) and not node.name.startswith("_")]
        for name in [*names, path.stem]:
            words = set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))
            found += [f"{path.relative_to(ROOT)}: {name}"] if words & UNUSED_WORDS else []
    assert found == []


def test_every_module_is_imported_by_somebody():
    everything = "\n".join(path.read_text() for path in tracked(".py", ".toml", "Makefile"))
    orphans = []
    for path in sources():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name in ("__init__.py", "__main__.py", "cli.py"):
            continue
        package, _, name = module.rpartition(".")
        pattern = rf"{re.escape(module)}\b|from {re.escape(package)} import [^\n]*\b{name}\b"
        if not re.search(pattern, everything):
            orphans.append(module)
    assert orphans == []


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in tracked(".md")])
def test_links_of_pages_resolve(page):
    text = (ROOT / page).read_text()
    broken = [target for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text)
              if not (ROOT / page).parent.joinpath(target).exists()]
    assert broken == []


def test_no_file_names_a_path_of_one_machine():
    # Put together from pieces, so that this file does not find itself.
    pattern = re.compile("/" + "(work|home)/[a-z]+/")
    found = [str(path.relative_to(ROOT)) for path in tracked(".py", ".md", ".sh", ".yaml", ".toml", ".json", "Makefile", "run")
             if pattern.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert found == []


def test_requirements_repeat_the_projects_own_lists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("grafana", "kubernetes", "torch", "report", "river", "fast", "demo", "dev")
    wanted = {need for name in names for need in extras[name]}
    wanted = {need for need in wanted | set(project["dependencies"]) if not need.startswith(("tidemark", "torch"))}
    listed = {line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")}
    wanted.add("hatchling>=1.27")                   # builds the project itself
    assert listed == wanted


def test_every_requirement_is_pinned_and_nothing_of_cuda_is():
    pins = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    names = {re.split(r"[\[<>=~]", line)[0].lower() for line in (ROOT / "requirements.txt").read_text().splitlines()
             if line and not line.startswith("#")}
    assert names - pins == set()
    assert not {pin for pin in pins if pin.startswith(("nvidia", "cuda", "triton", "torch"))}


def test_the_readme_begins_with_the_two_commands_that_ci_uses():
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme[:2500]
    assert "make test" in readme[:2500]
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_service_wakes_no_threads_of_the_linear_algebra_that_would_only_spin():
    told = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    code = "import monitor, os; print(os.environ['OPENBLAS_NUM_THREADS'])"
    for given, expected in (({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=told | given, capture_output=True, text=True,
                              check=True)
        assert done.stdout.strip() == expected
