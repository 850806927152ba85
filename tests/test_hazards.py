"""What must not stand in the tree: ways to run what strangers wrote, and calls that are only safe in one form."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.test_tidy import ROOT, tracked

#: Modules that make objects, or run, out of bytes; XML is here because its readers follow entities.
NEVER_IMPORTED = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "xml", "lxml", "jsonpickle", "pty")
#: Where one of them is the point, and no byte of a stranger comes near.
ALLOWED = {
    "examples/sklearn_trainer/train.py": {"pickle"},          # scikit-learn models have no other common form; it writes only
    "docs/pictures/town.py": {"pickle"},                      # reads what that trainer wrote a moment ago, for a picture
    "tests/unit/trainer/test_trainer_loop.py": {"pickle"},    # a trap that the trainer must not step into
    "tests/unit/detectors/test_streaming.py": {"pickle"},     # that detectors refuse it
}
SHIPPED = ("detectors", "monitor", "dashboards", "deploy")


def python() -> list[Path]:
    return tracked(".py")


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Every call with the dotted name that is called."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def given(call: ast.Call, name: str) -> object:
    return next((keyword.value.value if isinstance(keyword.value, ast.Constant) else "something"
                 for keyword in call.keywords if keyword.arg == name), None)


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in python()}


def test_nothing_imports_what_makes_objects_out_of_bytes(trees):
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                       else [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            found += [f"{name}: {module}" for module in modules if module.split(".")[0] in NEVER_IMPORTED
                      and module.split(".")[0] not in ALLOWED.get(name, ())]
    assert found == []


def test_what_can_read_safely_or_not_is_told_to_read_safely(trees):
    found = []
    for name, tree in trees.items():
        for called, call in calls(tree):
            if called in ("np.load", "numpy.load") and given(call, "allow_pickle") not in (None, False):
                found.append(f"{name}:{call.lineno}: {called} with allow_pickle")
            if called == "torch.load" and given(call, "weights_only") is not True:
                found.append(f"{name}:{call.lineno}: torch.load without weights_only=True")
            if called.endswith(("read_pickle", "to_pickle")) or called in ("yaml.unsafe_load", "yaml.full_load"):
                found.append(f"{name}:{call.lineno}: {called}")
            if called in ("yaml.load", "yaml.load_all") and given(call, "Loader") is None:
                found.append(f"{name}:{call.lineno}: {called} without a Loader")
    assert found == []


def test_every_yaml_loader_of_ours_is_a_safe_one(trees):
    loaders = [f"{name}: {ast.unparse(base)}" for name, tree in trees.items() for node in ast.walk(tree)
               if isinstance(node, ast.ClassDef) for base in node.bases if ast.unparse(base).endswith("Loader")]
    assert loaders
    assert [one for one in loaders if "yaml." in one and "SafeLoader" not in one] == []


def test_what_is_shipped_runs_no_shell_and_evaluates_no_text(trees):
    found = []
    for name, tree in trees.items():
        if name.split("/")[0] not in SHIPPED:
            continue
        for called, call in calls(tree):
            if given(call, "shell") not in (None, False) or called in ("os.system", "os.popen", "eval", "exec", "compile",
                                                                      "subprocess.getoutput", "subprocess.getstatusoutput"):
                found.append(f"{name}:{call.lineno}: {called}")
            if called in ("tempfile.mktemp", "os.tempnam", "os.tmpnam"):
                found.append(f"{name}:{call.lineno}: {called}")
            if called in ("ssl._create_unverified_context", "ssl.wrap_socket") or given(call, "verify") is False:
                found.append(f"{name}:{call.lineno}: {called}")
    assert found == []


def test_no_assertion_of_what_is_shipped_looks_at_a_request(trees):
    """Assertions vanish under -O: none may stand where a stranger's bytes are judged."""
    judges = [f"monitor/expose/{name}.py" for name in ("guard", "tls", "rates")] + ["monitor/retrain/outputs.py"]
    found = [f"{name}:{node.lineno}" for name in judges for node in ast.walk(trees[name]) if isinstance(node, ast.Assert)]
    assert found == []
