"""Levels of the joint tests, by seeded simulation; each test states what chance alone may do to it. In all half a minute."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import kstest

from detectors.classifier import classifier
from detectors.kernels import FourierMMD, block_rows_for, mmd
from tests.conftest import package

package("torch")

MEMORY = 0.9
DEFF = (1 + MEMORY) / (1 - MEMORY)


def autoregressive(rng, rows, width=1):
    """A first-order autoregression of unit variance, in its stationary state."""
    noise = rng.standard_normal((rows + 200, width)) * math.sqrt(1 - MEMORY**2)
    return lfilter([1.0], [1.0, -MEMORY], noise, axis=0)[200:]


def below(level, found):
    return sum(result.p <= level for result in found)


def test_p_is_uniform_without_drift():
    """200 pairs; the Kolmogorov distance that one run in a thousand passes is 1.95/sqrt(200), and p has steps of 0.01."""
    p = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((50, 3)), rng.standard_normal((35, 3))
        p.append(mmd(x, y, seed=seed, permutations=99, device="cpu").p)
    assert kstest(p, "uniform").statistic < 1.95 / math.sqrt(200) + 0.01
    assert min(p) >= 0.01


def test_blocks_hold_the_level_on_autocorrelated_rows_where_single_rows_do_not():
    """40 pairs of AR(1) 0.9 at level 0.1: 4 alarms expected by blocks, more than 11 in one run of 2,000."""
    plain, blocks = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = autoregressive(rng, 1_000), autoregressive(rng, 1_000)
        plain.append(mmd(x, y, seed=seed, permutations=99, device="cpu"))
        blocks.append(mmd(x, y, seed=seed, permutations=99, block_rows=block_rows_for(DEFF), device="cpu"))
    assert below(0.1, plain) >= 20
    assert below(0.1, blocks) <= 11


def test_blocks_still_see_a_shift_of_autocorrelated_rows():
    """1.5 s.d. on 26 blocks: every one of ten pairs."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, y = autoregressive(rng, 2_000), autoregressive(rng, 2_000) + 1.5
        assert mmd(x, y, seed=seed, permutations=99, block_rows=block_rows_for(DEFF), device="cpu").p <= 0.05


def test_the_classifier_holds_its_level_with_and_without_dependence():
    """60 pairs each at level 0.1: 6 expected at most, more than 15 in one run of 2,000; AR(1) taken as independent fails."""
    independent, dependent, mistaken = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((2, 400, 5))
        independent.append(classifier(x, y, seed=seed, device="cpu"))
        x, y = autoregressive(rng, 2_500, 3), autoregressive(rng, 2_500, 3)
        dependent.append(classifier(x, y, seed=seed, block_rows=block_rows_for(DEFF), deff=DEFF, device="cpu"))
        mistaken.append(classifier(x, y, seed=seed, device="cpu"))
    assert below(0.1, independent) <= 15
    assert below(0.1, dependent) <= 15
    assert below(0.1, mistaken) >= 20


@pytest.mark.parametrize("window", [100, 600])
def test_fourier_mmd_holds_its_level_for_windows_smaller_and_larger_than_the_reference(window):
    """100 pairs at level 0.1: 10 expected, more than 22 or fewer than 2 in one run of 4,000."""
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        fitted = FourierMMD.fit(rng.standard_normal((300, 4)), seed=seed, features=64, device="cpu")
        found.append(fitted.test(fitted.features(rng.standard_normal((window, 4))), seed=seed, resamples=99))
    assert 2 <= below(0.1, found) <= 22


def test_fourier_mmd_holds_its_level_on_autocorrelated_rows():
    """40 pairs at level 0.1; a bootstrap of 20 blocks is a little too bold: at most 12, where single rows give most."""
    by_blocks, by_rows = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = autoregressive(rng, 6_000), autoregressive(rng, 1_000)
        for found, block_rows in ((by_blocks, block_rows_for(DEFF)), (by_rows, 1)):
            fitted = FourierMMD.fit(x, seed=seed, features=64, block_rows=block_rows, device="cpu")
            found.append(fitted.test(fitted.features(y), seed=seed, resamples=99))
    assert below(0.1, by_blocks) <= 12
    assert below(0.1, by_rows) >= 20
