"""The exporter: one truth, in the catalogue's words, within the series budget."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import flow, metrics
from monitor.expose.exporter import Exporter
from monitor.expose.exposition import Histogram, Series
from monitor.expose.judged import distinct
from monitor.expose.snapshot import ServiceSnapshot
from monitor.expose.streams import share_out
from monitor.metrics import CATALOGUE, OTHER
from tests.catalogue import differences, series_of
from tests.unit.expose.shown import EVENTS, POSTS, World, launch, snapshot, status


def scraped(exporter: Exporter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return series_of(exporter.scrape().decode())


def values(exporter: Exporter, name: str, **labels: str) -> list[float]:
    """Values of the series of this name that carry these labels."""
    return [value for (found, pairs), value in scraped(exporter).items()
            if found == name and labels.items() <= dict(pairs).items()]


def columns_shown(exporter: Exporter, model: str = "loans") -> set[str]:
    return {dict(pairs)["column"] for (name, pairs) in scraped(exporter)
            if name == "tidemark_effect" and dict(pairs)["model"] == model}


# ---- the catalogue -------------------------------------------------------------------------------------------------

def test_names_types_help_and_labels_of_a_scrape_equal_the_catalogue_both_ways():
    exporter = Exporter(10_000)
    World().show(exporter, shift=1.0)
    exporter.observe(("loans", "1", "all"), [flow.Reading("hellinger", "city", "prediction", 0, 60.0, 0.3, True, 0.2, 0.1, 0.2)])
    exporter.alert_posts = lambda: POSTS
    exporter.reported("loans", 14.0)
    exporter.service(snapshot(status(skipped={"mmd": 0}, failed={"mmd": 0})))
    assert differences(exporter.scrape().decode(), complete=True) == []


def test_a_service_that_has_seen_nothing_shows_every_name_already():
    found = differences(Exporter(10_000).scrape().decode())
    assert [line for line in found if not line.endswith("has no series")] == []


def test_closed_lists_of_the_catalogue_are_those_that_the_stages_use():
    assert metrics.REFUSALS == flow.REASONS
    assert set(metrics.LAUNCH_STATES) == set(flow.LaunchState.__args__)
    assert set(metrics.LAUNCH_OUTCOMES) == flow.FINAL_STATES
    assert set(metrics.ALARM_STATES) == set(flow.AlarmState.__args__)


def test_only_counters_end_in_total_and_every_label_says_what_bounds_it():
    for metric in CATALOGUE.values():
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.name.endswith("_info") == (metric.kind == "info"), metric.name
        assert set(metric.labels) <= set(metrics.LABELS), metric.name
    assert {label for metric in CATALOGUE.values() for label in metric.labels} == set(metrics.LABELS)


# ---- what is shown -------------------------------------------------------------------------------------------------

def test_scores_shown_are_those_of_the_evaluation():
    exporter, world = Exporter(10_000), World()
    scores = world.show(exporter, shift=1.0).scores
    exporter.service(snapshot())
    for row, name in enumerate(world.reference.rows):
        score = scores.z[row].max() / scores.threshold
        assert values(exporter, "tidemark_score", column=name, detector="scan") == [score]
    assert values(exporter, "tidemark_score", column="column_0", detector="scan")[0] > 1
    assert values(exporter, "tidemark_effect", column="column_0") == [pytest.approx(1.0, abs=0.2)]
    assert math.isnan(values(exporter, "tidemark_score", column="city", detector="ks")[0])
    assert values(exporter, "tidemark_state", state="quiet") == [1.0]
    assert sum(values(exporter, "tidemark_state")) == 1.0


def test_an_effect_in_a_bin_is_shown_on_the_scale_of_the_tolerance():
    exporter, world = Exporter(10_000), World()
    rows = world.rows(EVENTS, 0.0)
    rows["city"][:100] = [None] * 100                                   # a third of all events lack the city
    profile = world.reference.profile(rows, EVENTS)
    world.ring.push(profile)
    scores = world.scan(world.ring)
    row = world.reference.rows.index("city")
    assert (scores.unit[row], scores.what[row]) == ("share", "missing")
    window = flow.Window("loans", "1", "all", 0, 0.0, 60.0, profile)
    exporter.show(flow.Evaluation(window, scores, (), "warning", 1, 0.0), world.reference)
    exporter.service(snapshot())
    pooled = 100 / (EVENTS + world.reference.arrays.m[row])
    effect = (1 / 3) / math.sqrt(pooled * (1 - pooled))
    assert values(exporter, "tidemark_effect", column="city") == [pytest.approx(effect)]


def test_a_pane_with_too_few_events_has_no_score_rather_than_none_to_worry_about():
    exporter, world = Exporter(10_000), World()
    world.show(exporter, n=5, state="insufficient_data")
    exporter.service(snapshot())
    assert all(math.isnan(value) for value in values(exporter, "tidemark_score", detector="scan"))
    assert all(math.isnan(value) for value in values(exporter, "tidemark_effect"))


def test_bin_shares_of_reference_and_window_each_add_up_to_one():
    exporter, world = Exporter(10_000), World()
    world.show(exporter, shift=1.0)
    exporter.service(snapshot())
    for of in ("reference", "window"):
        columns = {dict(pairs)["column"] for name, pairs in scraped(exporter) if name == "tidemark_bin_share"}
        assert "column_0" in columns
        for column in columns:
            assert sum(values(exporter, "tidemark_bin_share", column=column, of=of)) == pytest.approx(1.0)


def test_an_event_is_in_exactly_one_outcome_and_known_series_start_at_zero():
    exporter = Exporter(10_000)
    events = {("counted", "none"): 5, ("refused", "json"): 2, ("lost", "retention"): 3}
    exporter.service(snapshot(status(events=events)))
    assert sum(values(exporter, "tidemark_events_total", model="loans")) == 10
    assert values(exporter, "tidemark_events_total", reason="tombstone") == [0.0]


def test_nothing_is_visible_before_service_and_everything_after():
    exporter, world = Exporter(10_000), World()
    world.show(exporter)
    assert values(exporter, "tidemark_state") == []
    assert not exporter.published.judged
    exporter.service(snapshot())
    assert len(values(exporter, "tidemark_state")) == len(metrics.STATES)
    assert len(exporter.published.judged) == 1


def test_forgetting_a_version_removes_its_series_and_no_others():
    exporter = Exporter(10_000)
    World(version="1").show(exporter)
    World(version="2", seed=2).show(exporter)
    exporter.service(snapshot())
    assert values(exporter, "tidemark_score", version="1")
    exporter.forget("loans", "1")
    exporter.service(snapshot(status(version="2"), alarm_counts={("loans", "1", "all", "drift", "raised"): 1}))
    left = {dict(pairs).get("version") for (name, pairs) in scraped(exporter) if name != "tidemark_build_info"}
    assert left == {None, "2"}


def test_a_model_that_left_the_configuration_leaves_the_scrape():
    exporter = Exporter(10_000)
    World(model="old").show(exporter)
    World(model="loans", seed=2).show(exporter)
    exporter.service(snapshot(status("old"), status("loans")))
    assert values(exporter, "tidemark_state", model="old")
    exporter.service(ServiceSnapshot(False, "reading the configuration again"))
    assert values(exporter, "tidemark_state", model="old")              # not ready: nothing is known to have gone
    exporter.service(snapshot(status("loans")))
    assert {dict(pairs).get("model") for _, pairs in scraped(exporter)} == {None, "loans"}


def test_the_latest_launch_has_one_state_and_ended_launches_are_counted_once():
    exporter = Exporter(10_000)
    exporter.service(snapshot(launches=(launch("refused"), launch("promoted"), launch("running", champion=None))))
    assert sum(values(exporter, "tidemark_launch_state", model="loans")) == 1
    assert values(exporter, "tidemark_launch_state", state="running") == [1.0]
    assert sum(values(exporter, "tidemark_launches_total", model="loans")) == 2
    assert values(exporter, "tidemark_champion_quality") == [0.8]


def test_labels_with_quotes_newlines_percents_and_surrogates_come_back_as_they_were():
    series = Series(metrics.LAG, [('a"b\\c\nd', "0"), ("100 %d %%", "1"), ("\ud800", "2")])
    topics = {dict(pairs)["topic"] for _, pairs in series_of(series.text([1, 2, 3]))}
    assert topics == {'a"b\\c\nd', "100 %d %%", "?"}


def test_a_column_called_like_the_folded_rest_does_not_break_the_scrape():
    exporter = Exporter(140)
    World(names=[OTHER, "a", "b", "c", "d", "e"]).show(exporter, shift=3.0)
    exporter.service(snapshot())
    assert {OTHER, f"{OTHER}#2"} <= columns_shown(exporter)             # the folded rest, and the column that moved


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_counts_every_value_in_one_bucket(seconds):
    histogram = Histogram(metrics.EVALUATION, ("loans",))
    for value in seconds:
        histogram.observe(value)
    series = {(name, dict(pairs).get("le")): value for (name, pairs), value in series_of(histogram.text()).items()}
    assert series["tidemark_evaluation_seconds_count", None] == len(seconds)
    assert series["tidemark_evaluation_seconds_bucket", "+Inf"] == len(seconds)
    for bound in metrics.EVALUATION.buckets:
        assert series["tidemark_evaluation_seconds_bucket", repr(bound)] == sum(value <= bound for value in seconds)


# ---- the budget ----------------------------------------------------------------------------------------------------

def test_beyond_the_limit_the_highest_scores_are_shown_and_the_rest_is_one():
    exporter, world = Exporter(150), World(40)
    scores = world.show(exporter, shift=1.0).scores
    exporter.service(snapshot())
    shown = columns_shown(exporter)
    assert "column_0" in shown                                          # the one that moved
    assert OTHER in shown
    hidden = values(exporter, "tidemark_columns_hidden")[0]
    assert hidden == len(world.reference.rows) - (len(shown) - 1) > 0
    lowest = min(scores.z[world.reference.rows.index(name)].max() for name in shown - {OTHER})
    rest = [scores.z[row].max() for row, name in enumerate(world.reference.rows) if name not in shown]
    assert max(rest) <= lowest
    assert values(exporter, "tidemark_score", column=OTHER, detector="scan") == [max(rest) / scores.threshold]


@settings(deadline=None, max_examples=60)                               # the first world of each size is fitted
@given(limit=st.integers(1, 600), columns=st.sampled_from([2, 5, 12, 30]))
def test_the_series_gauge_counts_what_is_shown_and_stays_within_the_limit(limit, columns):
    exporter = Exporter(limit)
    world = WORLDS.setdefault(columns, World(columns))
    world.show(exporter)
    exporter.service(snapshot())
    series = scraped(exporter)
    assert values(exporter, "tidemark_series") == [len(series)]
    of_columns = sum("column" in dict(pairs) for _, pairs in series)
    assert len(series) <= limit or of_columns == 0
    assert len(columns_shown(exporter) - {OTHER}) + values(exporter, "tidemark_columns_hidden")[0] == len(world.reference.rows)


WORLDS: dict[int, World] = {}


@given(st.integers(-10, 500), st.lists(st.integers(0, 200), max_size=12))
def test_a_room_is_shared_out_without_being_exceeded_or_left_unused(room, needs):
    given_out = share_out(room, needs)
    assert all(0 <= got <= need for got, need in zip(given_out, needs, strict=True))
    assert sum(given_out) <= max(room, 0)
    assert sum(given_out) == sum(needs) or sum(given_out) > max(room, 0) - len(needs)
    short = [got for got, need in zip(given_out, needs, strict=True) if got < need]
    assert not short or max(short) - min(short) <= len(needs)           # nobody starves beside somebody who is fed


def test_noise_does_not_make_columns_come_and_go():
    exporter, world = Exporter(250), World(40)
    world.show(exporter)
    exporter.service(snapshot())
    before, changed, highest, without = columns_shown(exporter), 0, set(), 0
    for _ in range(10):
        scores = world.show(exporter).scores
        exporter.service(snapshot())
        changed += len(columns_shown(exporter) - before)
        before = columns_shown(exporter)
        top = set(np.argsort(-scores.z.max(axis=1), kind="stable")[:len(before) - 1].tolist())
        without += len(top - highest) if highest else 0
        highest = top
    assert changed < without * 0.8, "a column leaves as soon as another one is a little higher"


@given(st.lists(st.sampled_from(["a", "b", "a#2", "x" * 200, "x" * 201]), max_size=12))
def test_distinct_names_are_distinct_short_and_keep_their_order(names):
    unique = distinct(names)
    assert len(set(unique)) == len(names)
    assert all(new.split("#")[0] == old[:127] + "…" * (len(old) > 128) or new == old or new.startswith(old)
               for old, new in zip(names, unique, strict=True))


# ---- threads -------------------------------------------------------------------------------------------------------

def test_a_reader_never_sees_half_a_snapshot():
    """One thread scrapes while the loop goes on: events and lag are written together, so they are read together."""
    exporter, done, torn = Exporter(10_000), threading.Event(), []

    def read() -> None:
        while not done.is_set():
            series = series_of(exporter.published.text.decode())
            lag = [value for (name, _), value in series.items() if name == "tidemark_lag_events"]
            counted = [value for (name, pairs), value in series.items()
                       if name == "tidemark_events_total" and ("outcome", "counted") in pairs]
            if lag != counted:
                torn.append((lag, counted))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(200):
        exporter.service(ServiceSnapshot(True, "", (status(events={("counted", "none"): n}),), {("t", 0): n}))
    done.set()
    reader.join()
    assert torn == []


def test_values_are_written_so_that_they_read_back_equal():
    numbers = np.array([0.1 + 0.2, 1e-300, 1e300, -0.0, 12345678901234567.0, np.inf, -np.inf])
    series = Series(metrics.LAG, [("t", str(i)) for i in range(len(numbers))])
    assert list(series_of(series.text(numbers)).values()) == numbers.tolist()
