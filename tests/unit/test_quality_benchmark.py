"""The proof of the detectors: its peers are what their authors mean, its runs are seeded, its page says what was counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.quality import libraries, ours, pictures, runs, tables
from benchmarks.quality.encode import Encoder
from benchmarks.quality.joint import Mmd, Pca
from benchmarks.quality.streams import CHANGES, PANE_EVENTS, QUIET, seed_of
from benchmarks.quality.windows import WindowPeers
from detectors.reference import Reference
from detectors.synthetic import Quantity, Stream

ROOT = Path(__file__).resolve().parents[2]
PAGE, COUNTS = ROOT / "docs" / "detection-quality.md", ROOT / "docs" / "figures" / "quality.json"


@pytest.fixture(scope="module")
def committed():
    return json.loads(COUNTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def numeric():
    """Encoder of a stream of three numbers, its reference, and ten panes with a shift of half an s.d."""
    stream = Stream(91, (Quantity(), Quantity("lognormal"), Quantity("missing")))
    first = stream.rows(5000)
    encoder = Encoder(first)
    stream.start(mean=0.5)
    return encoder, first, encoder(stream.rows(10 * PANE_EVENTS))


# ---- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_says_exactly_what_was_counted(committed):
    text = PAGE.read_text(encoding="utf-8")
    assert tables.filled(text, committed) == text


def test_the_pictures_are_those_of_the_counts(committed, tmp_path):
    pictures.draw(committed, tmp_path)
    for name in ("quality-delay.svg", "quality-knob.svg"):
        assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "figures" / name).read_bytes(), f"{name}: draw it again"


def test_the_page_rests_on_at_least_three_million_events_and_a_seed_of_its_own(committed):
    assert sum(committed["quiet"][quiet.name]["scan"][1] for quiet in QUIET) >= 3_000_000
    assert committed["seed"] > 1_000                        # tests use small seeds


def test_a_page_without_a_marker_is_refused_in_one_line(committed):
    with pytest.raises(ValueError, match=r"^docs/detection-quality.md: expected the markers .* put them back$"):
        tables.filled("<!-- run -->\n<!-- end of run -->", committed)


def test_the_tables_of_an_earlier_run_are_shown_without_running_anything(tmp_path):
    again = tmp_path / "again.json"
    done = subprocess.run([sys.executable, "-m", "benchmarks.quality", "--from", str(COUNTS), "--json", str(again)], cwd=ROOT,
                          capture_output=True, text=True, check=True, timeout=120)
    assert "| all ten" in done.stdout.replace("**", "")
    assert again.read_text(encoding="utf-8") == COUNTS.read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--from", "nowhere.json"]])
def test_a_wrong_command_line_is_refused_in_one_line(arguments):
    done = subprocess.run([sys.executable, "-m", "benchmarks.quality", *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


# ---- intervals and matching --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alarms", "low", "high"), [(0, 0.0, 3.688879), (1, 0.025318, 5.571643), (10, 4.795389, 18.390356)])
def test_poisson_intervals_are_those_of_the_tables(alarms, low, high):
    """Garwood 1936; the figures are the usual ones of epidemiology."""
    assert tables.poisson_interval(alarms) == pytest.approx((low, high), abs=1e-6)


def test_the_interval_of_a_median_of_eleven_runs_leaves_one_run_out_on_each_side():
    assert tables.median_interval([*range(1, 11), None]) == (2, 10)


def test_the_matched_threshold_lets_one_run_in_seven_and_a_half_pass():
    peaks = [float(peak) for peak in range(30)]              # 1.2 million events, so four alarms
    level = runs.matched_level(peaks)
    assert sum(peak > level for peak in peaks) == 4


def test_episodes_leave_a_window_time_to_fill_again():
    assert runs._episodes(np.array([0, 2, 2, 2, 2, 2, 0, 2.0]), 1.0, window=4) == 2
    assert runs._episodes(np.array([0, 2, 2, 2, 2, 2, 0, 2.0]), 1.0, window=1) == 6


def test_every_run_has_a_seed_of_its_own_and_the_same_one_each_time():
    seeds = [seed_of(7, part, place, run) for part in (1, 2) for place in range(10) for run in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == seed_of(7, 1, 0, 0) > 2**31
    assert seed_of(8, 1, 0, 0) != seeds[0]


def test_equal_seeds_give_equal_counts_and_unequal_ones_other_peaks(monkeypatch):
    monkeypatch.setattr(runs, "RUN_EVENTS", 10 * PANE_EVENTS)
    sizes = runs.Sizes(1, 1, 1, 0, 0, 0)
    monkeypatch.setattr(runs, "_evidently_defaults", lambda first, batch: {})      # seconds, and tested below
    one, other = runs.quiet_run(1234, 8, 1, sizes), runs.quiet_run(1234, 8, 1, sizes)
    assert one == other
    assert one["counts"]["scan"] == (0, 2500)


def test_a_large_change_is_found_in_the_first_pane_and_no_change_is_found_late(monkeypatch):
    wanted = [change for change in CHANGES if change.name == "mean +1"]
    monkeypatch.setattr(runs, "CHANGES", [*wanted, runs.Change("none", {}, panes=20)])
    names = [*(own.name for own in ours.OURS), *WindowPeers.families, "Page-Hinkley"]
    levels = dict.fromkeys((f"{name}, {window:,}" for name in (*WindowPeers.families, "PCA reconstruction")
                            for window in (250, 1000, 5000)), 30.0)
    levels |= dict.fromkeys(names, 1.0) | {"Page-Hinkley": 500.0}
    found = runs.delay_run(1234, 0, levels, runs.Sizes(1, 1, 1, 0, 0, 0))
    assert [found["mean +1"][own.name] for own in ours.OURS] == [250] * 4
    assert found["mean +1"]["mean shift, 250"] == 250        # counted from the change, not from the warm panes before it
    assert [found["none"][own.name] for own in ours.OURS] == [None] * 4


@pytest.mark.parametrize("own", ours.STRICT, ids=lambda own: own.name)
def test_an_episode_ends_with_the_change_because_the_state_is_emptied(own):
    stream = Stream(97, (Quantity(),) * 3)
    reference = Reference.fit(stream.rows(5000), stream.columns, model="m", version="1")
    quiet = ours.profiles(reference, stream.rows(5 * PANE_EVENTS))
    stream.start(mean=2.0)
    panes = [*ours.profiles(reference, stream.rows(PANE_EVENTS)), *quiet]
    assert ours.episodes(own(reference, 1_000_000), panes) == 1


# ---- the peers are what their authors mean -----------------------------------------------------------------------------


def test_windowed_ks_is_scipys_within_the_grid(numeric):
    encoder, _, seen = numeric
    own = WindowPeers(encoder.reference).statistics(seen, (1000,))["KS + χ², 1,000"]
    theirs = [max(-np.log10(stats.ks_2samp(a[~np.isnan(a)], b[~np.isnan(b)], method="asymp").pvalue)
                  for a, b in zip(encoder.reference.numbers.T, seen.numbers[start : start + 1000].T, strict=True))
              for start in range(0, 1501, 250)]
    assert np.isneginf(own[:3]).all()
    assert own[3:] == pytest.approx(theirs, rel=0.05)


def test_windowed_chi_square_is_scipys(numeric):
    stream = Stream(92, (Quantity(levels=10),))
    encoder = Encoder(stream.rows(3000))
    seen = encoder(stream.rows(1000))
    own = WindowPeers(encoder.reference).statistics(seen, (1000,))["χ², 1,000"][3]
    table = np.array([np.bincount(side.levels[:, 0], minlength=encoder.width) for side in (encoder.reference, seen)])
    theirs = stats.chi2_contingency(table[:, table.sum(axis=0) > 0], correction=False).pvalue
    assert own == pytest.approx(-np.log10(theirs), rel=1e-9)


def test_windowed_mean_shift_is_welchs(numeric):
    encoder, first, _ = numeric
    seen = encoder({name: values[1000:2000] for name, values in first.items()})
    own = WindowPeers(encoder.reference).statistics(seen, (1000,))["mean shift, 1,000"][3]
    theirs = min(stats.ttest_ind(a, b, equal_var=False, nan_policy="omit").pvalue
                 for a, b in zip(encoder.reference.numbers.T, seen.numbers[:1000].T, strict=True))
    assert own == pytest.approx(-np.log10(theirs), rel=0.05)  # normal tails for a t of a thousand degrees


def test_page_hinkley_is_rivers():
    from river import drift

    x = np.random.default_rng(93).normal(size=2000)
    x[1000:] += 0.5
    own = libraries.page_hinkley(x[:, None])
    for pane in (0, 3, 7):
        for factor, found in ((0.999, True), (1.001, False)):
            theirs, values = drift.PageHinkley(threshold=own[: pane + 1].max() * factor), x[: (pane + 1) * PANE_EVENTS]
            assert any((theirs.update(value), theirs.drift_detected)[1] for value in values.tolist()) == found


def test_evidentlys_tests_are_chosen_as_it_chooses():
    stream = Stream(94, (Quantity(), Quantity("poisson"), Quantity(levels=3)))
    for rows, names in ((2000, ["wasserstein", "wasserstein", "jensenshannon"]), (1000, ["ks", "ks", "chisquare"])):
        peer = libraries.Evidently(stream.rows(rows))
        assert [peer._tests[name][0].name for name in ("c0", "c1", "c2")] == names
    quiet = peer.statistic(stream.rows(1000), ["c0"])
    stream.start(mean=1.0)
    assert quiet[0] < 3 < peer.statistic(stream.rows(1000), ["c0"])[0]


def test_mmd_is_the_unbiased_one_of_the_pairs():
    stream = Stream(95, (Quantity(), Quantity()))
    encoder = Encoder(stream.rows(2000))
    peer = Mmd(encoder, np.random.default_rng(0))
    seen = encoder(stream.rows(500))
    x, y = peer._sample.astype(float), encoder.matrix(seen)

    def mean(a, b):
        return np.exp(-((a[:, None] - b) ** 2).sum(axis=2) * peer._scale)

    inside = [(mean(z, z).sum() - len(z)) / (len(z) * (len(z) - 1)) for z in (x, y)]
    assert peer.statistics(seen)[1] == pytest.approx(sum(inside) - 2 * mean(x, y).mean(), abs=1e-5)
    stream.start(mean=1.0)
    assert peer.statistics(encoder(stream.rows(500)))[1] > 5 * peer.default > 0


def test_pca_leaves_over_what_scikit_learns_does():
    from sklearn.decomposition import PCA

    encoder = Encoder(Stream(98, (Quantity(),) * 6).rows(4000))
    rows = encoder.matrix(encoder.reference)
    theirs = PCA(n_components=0.65, svd_solver="full").fit(rows)
    left = np.linalg.norm(rows - rows.mean(axis=0) - (theirs.transform(rows) @ theirs.components_), axis=1)
    assert Pca(encoder)._lengths(rows - rows.mean(axis=0)) == pytest.approx(left, rel=1e-9)


def test_pca_reconstruction_sees_a_broken_correlation_and_not_its_own_reference():
    stream = Stream(96, (Quantity(),) * 6)
    encoder = Encoder(stream.rows(10_000))
    peer = Pca(encoder)
    assert peer.statistics(encoder.reference)["PCA reconstruction, 1,000"][3:].max() < 6
    stream.start(joint=True)
    assert peer.statistics(encoder(stream.rows(2000)))["PCA reconstruction, 1,000"][-1] > 6
