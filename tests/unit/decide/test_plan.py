"""What a configuration may say of further detectors, and the one line that each mistake is answered with."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.reference import Column, Reference
from monitor.config import Detector
from monitor.decide import plan as planning
from monitor.decide.plan import JOINT, plan, series, standardised
from monitor.errors import ConfigError
from tests.conftest import package

COLUMNS = (Column("age", "numeric"), Column("latency", "numeric"), Column("constant", "numeric"), Column("city", "category"),
           Column("vip", "boolean"), Column("y", "category", "prediction"))
WHERE = "monitors[0].detectors"


def fitted(columns=COLUMNS, rows=600, **options):
    rng = np.random.default_rng(2)
    values = {"age": rng.normal(40, 10, rows), "latency": rng.exponential(2.0, rows), "constant": np.full(rows, 3.0),
              "city": [("Oslo", "Rome", "Kyiv")[i] for i in rng.integers(0, 3, rows)],
              "vip": [("true", "false")[i] for i in rng.integers(0, 2, rows)],
              "y": [("0", "1")[i] for i in rng.integers(0, 2, rows)], "price": rng.normal(size=rows)}
    return Reference.fit(values, columns, model="m", version="1", **options)


REFERENCE = fitted()
LABELS = {"truth": "category"}


def planned(*said, reference=REFERENCE, labels=LABELS):
    return plan([Detector(**one) for one in said], reference, labels, WHERE)


def refusal(*said, **options):
    with pytest.raises(ConfigError) as refused:
        planned(*said, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(("said", "line"), [
    ({"name": "psii"}, f"{WHERE}[0].name: expected a known name, got 'psii'; did you mean 'psi'?"),
    ({"name": "evidently:PSI"}, f"{WHERE}[0].name: expected a known name, got 'evidently:PSI'; did you mean 'evidently:psi'?"),
    ({"name": "psi", "columns": ["age", "citty"]},
     f"{WHERE}[0].columns[1]: expected a column of the reference, got 'citty'; did you mean 'city'?"),
    ({"name": "ks", "columns": ["city"]},
     f"{WHERE}[0].columns[0]: expected a column of kind numeric for ks, got 'city' of kind category; "
     "name another column, or another detector for it"),
    ({"name": "river:DDM", "columns": ["age"]},
     f"{WHERE}[0].columns[0]: expected a column of kind boolean for river:DDM, got 'age' of kind numeric; "
     "name another column, or another detector for it"),
    ({"name": "evidently:chisquare", "columns": ["age"]},
     f"{WHERE}[0].columns[0]: expected a column of kind boolean or category for evidently:chisquare, got 'age' of kind numeric; "
     "name another column, or another detector for it"),
    ({"name": "cusum", "columns": ["constant"]},
     f"{WHERE}[0].columns[0]: expected a column that cusum is defined for by what the reference holds of it, got 'constant' "
     "(constant, empty, or of more than two levels); name another one"),
    ({"name": "fisher", "columns": ["city"]},
     f"{WHERE}[0].columns[0]: expected a column that fisher is defined for by what the reference holds of it, got 'city' "
     "(constant, empty, or of more than two levels); name another one"),
    ({"name": "psi", "options": {"bins": 10}}, f"{WHERE}[0].options.bins: expected no parameters for psi, got `bins`; remove it"),
    ({"name": "cusum", "columns": ["age"], "options": {"kk": 1}},
     f"{WHERE}[0].options.kk: expected one of the options mean, sd, k, h, values_per_false_alarm, two_sided, got an unknown one"
     "; did you mean k?"),
    ({"name": "cusum", "columns": ["age"], "options": {"k": -1}},
     f"{WHERE}[0].options.k: expected a number above 0, got -1"),
    ({"name": "cusum", "columns": ["age"], "options": {"h": 4, "values_per_false_alarm": 1000}},
     f"{WHERE}[0].options: cusum: expected h or values_per_false_alarm, got both; leave one out"),
    ({"name": "cusum", "columns": ["age"], "threshold": 5},
     f"{WHERE}[0].threshold: expected none for cusum, got 5; it decides by its own parameters, set them in options"),
    ({"name": "cusum", "columns": ["age"], "every_panes": 2},
     f"{WHERE}[0].every_panes: expected 1 for cusum, which takes every value, got 2; remove it"),
    ({"name": "cusum", "columns": ["error"]},
     f"{WHERE}[0].options: expected mean and sd of the errors, of which the reference knows nothing, got none; give both"),
    ({"name": "psi", "columns": ["error"]},
     f"{WHERE}[0].columns[0]: expected a detector of a series for the errors, got psi; name a column, or take cusum, ewma or a "
     "river: detector"),
])
def test_each_mistake_is_one_line_with_its_path(said, line):
    assert refusal(said) == line


def test_errors_need_one_prediction_one_label_and_their_kinds_alike():
    ewma = {"name": "ewma", "columns": ["error"], "options": {"mean": 0.1, "sd": 0.3}}
    assert refusal(ewma, labels={}) == (
        f"{WHERE}[0].columns[0]: expected one prediction and one label to make errors of, got 1 and 0; give the monitor's schema "
        "one column of role label, or name a column")
    assert refusal(ewma, labels={"truth": "numeric"}) == (
        f"{WHERE}[0].columns[0]: expected a label of the prediction's kind, got numeric for category; set "
        "schema.columns.truth.kind")
    numbers = fitted((Column("age", "numeric"), Column("price", "numeric", "prediction")))
    assert planned(ewma, reference=numbers, labels={"truth": "numeric"}).errors == ("price", "truth", True)
    package("river")
    assert "got absolute differences of numbers" in refusal(
        {"name": "river:DDM", "columns": ["error"]}, reference=numbers, labels={"truth": "numeric"})


def test_a_reference_without_rows_must_be_fitted_again_for_detectors_on_rows_only():
    bare = fitted(sample_rows=0)
    assert planned({"name": "psi"}, {"name": "cusum"}, reference=bare).rows == 200
    assert refusal({"name": "evidently:psi"}, reference=bare) == (
        f"{WHERE}[0].name: expected a reference that keeps some of its rows for evidently:psi, got one without; fit it again "
        "with `tidemark fit`")


@pytest.mark.parametrize(("name", "package", "extra"), [
    ("evidently:psi", "evidently", "report"), ("river:ADWIN", "river", "river"), ("mmd", "torch", "torch")])
def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch, name, package, extra):
    monkeypatch.setattr(planning, "find_spec", lambda wanted: None)
    assert refusal({"name": name}) == (
        f"{WHERE}[0].name: expected the package {package} for {name}, got none; pip install 'tidemark[{extra}]'")


def test_without_columns_a_detector_takes_all_that_it_fits_and_no_joint_rows():
    def columns(name):
        return [target.column for target in planned({"name": name}).detectors[0].targets]

    assert columns("psi") == ["age", "latency", "constant", "city", "vip", "y"]
    assert columns("ks") == ["age", "latency", "constant"]
    assert columns("fisher") == ["constant", "vip", "y"]
    assert columns("cusum") == ["age", "latency"]
    levels_only = fitted((Column("city", "category"), Column("y", "category", "prediction")))
    assert refusal({"name": "ks"}, reference=levels_only) == (
        f"{WHERE}[0].name: expected a column of kind numeric for ks, got none in the reference; remove the detector")


def test_rows_are_kept_only_of_the_columns_that_are_looked_at():
    assert planned({"name": "psi"}).names == ()
    assert planned({"name": "psi"}).rows == 0
    package("torch")
    found = planned({"name": "cusum", "columns": ["age"], "sample_rows": 20, "window_panes": 7},
                    {"name": "ewma", "columns": ["error"], "options": {"mean": 0, "sd": 1}},
                    {"name": "mmd", "columns": ["latency", "city"], "sample_rows": 300})
    assert set(found.names) == {"age", "y", "truth", "latency", "city"}
    assert (found.rows, found.panes) == (300, 16)
    joint = found.detectors[2]
    assert ([target.column for target in joint.targets], joint.members) == ([JOINT], ("latency", "city"))


def test_a_series_is_standardised_with_the_references_own_mean_and_deviation_unless_options_say_otherwise():
    (one,) = planned({"name": "cusum", "columns": ["latency"]}).detectors
    (target,) = one.targets
    values = np.random.default_rng(2)
    values.normal(40, 10, 600)
    latency = values.exponential(2.0, 600)
    assert target.mean == pytest.approx(latency.mean(), rel=1e-9)
    assert target.sd == pytest.approx(latency.std(), rel=1e-9)
    assert (series(one.said, target).mean, series(one.said, target).sd) == (target.mean, target.sd)
    own = Detector("cusum", ["latency"], options={"mean": 1.0, "sd": 2.0})
    assert (series(own, target).mean, series(own, target).sd) == (1.0, 2.0)
    assert standardised(one.said, target, latency) is latency
    page_hinkley = Detector("river:PageHinkley", ["latency"])
    assert standardised(page_hinkley, target, latency).std() == pytest.approx(1.0)


def test_the_threshold_is_the_configured_one_or_the_authors_and_for_a_series_what_it_compares_with():
    def threshold(**said):
        return planned(said).detectors[0].threshold

    assert threshold(name="psi") == 0.25
    assert threshold(name="psi", threshold=0.1) == 0.1
    assert threshold(name="ks") is None
    assert threshold(name="cusum", columns=["age"]) == 5.0
    assert threshold(name="cusum", columns=["age"], options={"h": 8}) == 8.0
    package("river")
    assert threshold(name="river:PageHinkley", columns=["age"]) == 50.0
    assert threshold(name="river:PageHinkley", columns=["age"], options={"threshold": 20}) is None


@pytest.mark.parametrize(("every", "pane", "before", "due"), [(1, 5, 4, True), (4, 8, 7, True), (4, 9, 8, False),
                                                              (4, 13, 7, True), (4, 11, 8, False)])
def test_a_detector_is_due_once_in_every_so_many_panes_of_time_also_across_empty_ones(every, pane, before, due):
    (one,) = planned({"name": "psi", "every_panes": every}).detectors
    assert one.is_due(pane, before) is due
