"""Whatever a training job leaves that cannot be used: a failed launch with its reason, and nobody hears of it.

Each defect goes through `Retraining.advance` with every type of promotion that there is: a file that must not change, a
webhook's receiver that must hear nothing, and an API server that nobody may even ask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from detectors.reference import Column, Reference
from monitor import config
from monitor.flow import JobStatus, Launch
from monitor.retrain.launch import Retraining
from monitor.retrain.ledger import Ledger
from monitor.retrain.limits import useless_row
from tests.contract_server import ContractServer, closed_port
from tests.unit.retrain.rest_servers import Receiver

COLUMN = Column("age", "numeric", "input")


class Done:
    """A launcher whose jobs have always succeeded."""

    name = "local"

    def start(self, launch: Launch) -> str:
        return "job"

    def status(self, launch: Launch) -> JobStatus:
        return JobStatus("succeeded")

    def cancel(self, launch: Launch) -> None:
        """Nothing runs."""


def reference(column: Column = COLUMN, events: int = 500) -> Reference:
    return Reference.fit({column.name: np.random.default_rng(1).normal(0, 1, events)}, [column], model="churn", version="8")


def holdout(n: int = 400) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, n)
    return {"id": np.arange(n), "label": label, "challenger_prediction": label.astype(float),
            "champion_prediction": np.where(rng.random(n) < 0.8, label, 1 - label).astype(float)}


def leave(folder: Path, *, result: Any = None, columns: dict[str, Any] | None = None, new: Reference | None = None) -> None:
    """A good output, but for what is given."""
    folder.mkdir(parents=True)
    text = {"model_uri": "s3://m/new", "reference_uri": "reference.json", "metrics": {}} if result is None else result
    (folder / "result.json").write_text(text if isinstance(text, str) else json.dumps(text))
    parquet.write_table(pa.table(columns if columns is not None else holdout()), folder / "holdout.parquet")
    (new or reference()).save(folder / "reference.json")


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in holdout().items() if key != name}


def nan_prediction() -> dict[str, Any]:
    columns = holdout()
    columns["challenger_prediction"][3] = np.nan
    return columns


def lacking(name: str) -> Callable[[Path], None]:
    def leave_without(folder: Path) -> None:
        leave(folder)
        (folder / name).unlink()

    return leave_without


DEFECTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing at all": (lambda folder: folder.mkdir(parents=True), "expected the trainer's result, got nothing"),
    "result.json cut off": (lambda folder: leave(folder, result='{"model_uri": "s3://m'),
                            "result.json: expected JSON with model_uri"),
    "result.json of another shape": (lambda folder: leave(folder, result=[1, 2]), "result.json: expected JSON with model_uri"),
    "no model": (lambda folder: leave(folder, result={"reference_uri": "r"}), "result.json: expected JSON with model_uri"),
    "NaN metrics": (lambda folder: leave(folder, result='{"model_uri": "m", "reference_uri": "r", "metrics": {"loss": NaN}}'),
                    "result.json: expected JSON"),
    "no holdout": (lacking("holdout.parquet"), "expected the held-back events, got nothing"),
    "holdout without labels": (lambda folder: leave(folder, columns=without("label")), "add label"),
    "a prediction that is NaN": (lambda folder: leave(folder, columns=nan_prediction()), "expected finite numbers"),
    "no reference": (lacking("reference.json"), "expected the new reference, got nothing"),
    "another column": (lambda folder: leave(folder, new=reference(Column("income", "numeric", "input"))),
                       "its reference does not fit"),
    "another kind": (lambda folder: leave(folder, new=Reference.fit(
        {"age": ["a", "b"] * 250}, [Column("age", "category", "input")], model="churn", version="8")),
        "its reference does not fit"),
    "too small a reference": (lambda folder: leave(folder, new=reference(events=50)), "has 50 events, too few"),
}


@pytest.fixture(params=["file", "webhook", "kserve"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Callable[[], object]]]:
    """A promotion, and what serving knows: it must not change."""
    if request.param == "file":
        path = tmp_path / "champion.json"
        path.write_text('{"version": "7"}')
        yield config.FilePromotion(path=str(path)), path.read_bytes
    elif request.param == "webhook":
        with ContractServer(Receiver()) as server:
            yield config.WebhookPromotion(url=f"{server.url}/hook"), lambda: len(server.asked)
    else:
        kubeconfig = tmp_path / "kubeconfig"        # of a server that is not there: being asked would be seen as a failed call
        kubeconfig.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{closed_port()}"}}],
            "users": [{"name": "it", "user": {}}], "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}]}))
        yield config.KServePromotion(name="churn", kubeconfig=str(kubeconfig)), lambda: None


def carried(folder: Path, promote: Any) -> tuple[Launch, Ledger]:
    """The launch at its end, and the ledger, stored as it is."""
    launch = Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "approved", "{}", (("proposed", 1.0), ("approved", 1.0)))
    ledger = Ledger([launch])
    retraining = Retraining(
        {"churn": config.Retrain(launcher=config.LocalLauncher(command=["x"]), collect_events=0, promote=promote)}, ledger,
        {"churn": Done()}, save=lambda _: None, snapshot=lambda _: str(folder / "data"),
        reference=lambda _: reference(), version=lambda _: "7", poll_seconds=0.0)
    for now in range(2, 12):
        retraining.advance(float(now), lambda _: 10)
    return ledger.launches[launch.id], ledger


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_cannot_be_used_is_a_failed_launch_with_its_reason_and_the_champion_stays(
        target: tuple[Any, Callable[[], object]], tmp_path: Path, defect: str) -> None:
    (promote, serving), (spoil, words) = target, DEFECTS[defect]
    before = serving()
    spoil(tmp_path / "output")
    launch, ledger = carried(tmp_path, promote)
    assert launch.state == "failed", launch
    assert words in launch.detail
    assert "\n" not in launch.detail
    assert launch.attempts == 0
    assert serving() == before
    assert useless_row(ledger.of_model("churn"), "7") == [launch], "it counts toward the breaker"


@pytest.mark.parametrize("right", [0.2, 0.5])
def test_a_challenger_that_is_not_better_is_refused_counts_and_leaves_all_as_it_was(
        target: tuple[Any, Callable[[], object]], tmp_path: Path, right: float) -> None:
    promote, serving = target
    before, columns = serving(), holdout()
    rng = np.random.default_rng(7)
    for name in ("challenger_prediction", "champion_prediction"):
        share = right if name.startswith("challenger") else 0.5
        columns[name] = np.where(rng.random(400) < share, columns["label"], 1 - columns["label"]).astype(float)
    leave(tmp_path / "output", columns=columns)
    launch, ledger = carried(tmp_path, promote)
    assert (launch.state, launch.verdict) == ("refused", "worse" if right == 0.2 else "not yet known")
    assert serving() == before
    assert useless_row(ledger.of_model("churn"), "7") == [launch]


def test_a_challenger_made_to_replace_a_champion_that_is_gone_is_refused(tmp_path: Path) -> None:
    leave(tmp_path / "output")
    launch = Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "succeeded", "{}", (("succeeded", 1.0),),
                    output_uri=str(tmp_path / "output"))
    ledger = Ledger([launch])
    promote = config.FilePromotion(path=str(tmp_path / "champion.json"))
    retraining = Retraining(
        {"churn": config.Retrain(launcher=config.LocalLauncher(command=["x"]), promote=promote)}, ledger, {"churn": Done()},
        save=lambda _: None, snapshot=lambda _: "", reference=lambda _: reference(), version=lambda _: "6", poll_seconds=0.0)
    for now in range(2, 6):
        retraining.advance(float(now), lambda _: 10)
    end = ledger.launches[launch.id]
    assert (end.state, end.detail) == ("refused", "it was made to replace version 7, but the champion is version 6 now")
    assert not Path(promote.path).exists()


def test_a_promotion_waits_while_another_of_the_model_is_under_way(tmp_path: Path) -> None:
    leave(tmp_path / "output")
    launch = Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "judged", "{}", (("judged", 1.0),), verdict="better",
                    output_uri=str(tmp_path / "output"), new_version="8", model_uri="s3://m/new",
                    reference_uri=str(tmp_path / "output" / "reference.json"))
    other = replace(launch, id="000000000000", state="promoted", steps=(("promoted", 1.0),), cut_over_at=0.0)
    ledger = Ledger([other, launch])
    promote = config.FilePromotion(path=str(tmp_path / "champion.json"))
    retraining = Retraining(
        {"churn": config.Retrain(launcher=config.LocalLauncher(command=["x"]), promote=promote)}, ledger, {"churn": Done()},
        save=lambda _: None, snapshot=lambda _: "", reference=lambda _: reference(), version=lambda _: "7", poll_seconds=0.0)
    retraining.advance(2.0, lambda _: 10)
    assert ledger.launches[launch.id].state == "judged"
    ledger.cut_over(other, 5.0)
    retraining.advance(3.0, lambda _: 10)
    assert ledger.launches[launch.id].state == "promoted"
