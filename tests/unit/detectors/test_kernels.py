"""MMD, Fourier MMD, the classifier test and the encoding of tables: worked examples, independence of tiles, bad input."""

import importlib
import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from tests.conftest import package

torch = package("torch")

from detectors.classifier import accuracy_test, classifier  # noqa: E402
from detectors.encoding import LEVELS_MAX, Encoding, compare, encode  # noqa: E402
from detectors.kernels import METHODS, FourierMMD, block_rows_for, mmd, smaller_until_it_fits  # noqa: E402


def dense_mmd(x, y, two_s2):
    """MMD2u by its formula, on matrices of all differences."""
    def kernel(a, b):
        return np.exp(-((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2) / two_s2)

    n, m = len(x), len(y)
    within = [(kernel(side, side).sum() - len(side)) / (len(side) * (len(side) - 1)) for side in (x, y)]
    return sum(within) - 2 * kernel(x, y).sum() / (n * m)


def samples(seed, n=80, m=60, width=5, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)), rng.standard_normal((m, width)) + shift


# --- MMD ---------------------------------------------------------------------------------------------------------------


def test_mmd_of_the_worked_example():
    """Ex 19: median 4.0; 0.275986; 6 of all 20 splits reach it."""
    found = mmd([0, 1, 2], [2, 3, 5], seed=0, bandwidth=4.0, device="cpu")
    assert found.statistic == pytest.approx(0.275986, abs=5e-7)
    assert (found.p, found.splits, found.exact, found.state) == (0.3, 20, True, "ok")
    assert mmd([0, 1, 2], [2, 3, 5], seed=0, device="cpu").bandwidth == 4.0
    assert found.score == pytest.approx(-math.log10(0.3))


def test_all_splits_of_a_small_case_agree_with_the_formula():
    x, y = samples(1, n=4, m=3, width=2)
    pooled, two_s2 = np.concatenate([x, y]), 1.7
    every = [dense_mmd(pooled[list(c)], np.delete(pooled, c, axis=0), two_s2) for c in combinations(range(7), 4)]
    found = mmd(x, y, seed=0, bandwidth=two_s2, device="cpu")
    assert found.splits == len(every) == 35
    assert found.p == pytest.approx(np.mean(np.array(every) >= dense_mmd(x, y, two_s2) - 1e-12))


@pytest.mark.parametrize(("block_rows", "n", "m"), [(1, 80, 60), (7, 77, 63), (20, 80, 60)])
def test_tiles_of_any_size_give_the_dense_statistic(block_rows, n, m):
    x, y = samples(2, n=n, m=m)
    whole = mmd(x, y, seed=5, block_rows=block_rows, permutations=99, device="cpu")
    assert whole.statistic == pytest.approx(dense_mmd(x, y, whole.bandwidth), abs=1e-9)
    for tile_bytes in (1, 20_000, 60_000):
        tiled = mmd(x, y, seed=5, block_rows=block_rows, permutations=99, device="cpu", tile_bytes=tile_bytes)
        assert tiled.statistic == pytest.approx(whole.statistic, abs=1e-9)
        assert tiled.p == whole.p


def test_more_permutations_than_one_product_takes_are_all_counted():
    x, y = samples(3, shift=0.15)
    few, many = (mmd(x, y, seed=5, permutations=count, device="cpu") for count in (500, 2_000))
    assert (few.splits, many.splits) == (501, 2_001)
    assert few.p == pytest.approx(many.p, abs=5 * math.sqrt(many.p / 500))


def test_the_median_heuristic_is_the_median_of_squared_distances():
    x, y = samples(4)
    pooled = np.concatenate([x, y])
    squares = [((a - b) ** 2).sum() for a, b in combinations(pooled, 2)]
    assert mmd(x, y, seed=0, permutations=1, device="cpu").bandwidth == pytest.approx(np.median(squares))


def test_the_bandwidth_of_mostly_equal_rows_is_the_mean_squared_distance():
    x, y = np.zeros((50, 1)), np.zeros((50, 1))
    y[:5] = 1.0
    found = mmd(x, y, seed=0, device="cpu")
    assert found.bandwidth == pytest.approx(2 * np.concatenate([x, y]).var(ddof=1))
    assert found.state == "ok"
    assert found.p < 0.1


def test_rows_beyond_the_limit_are_thinned_in_whole_blocks_and_it_is_said():
    x, y = samples(5, n=3_000, m=200)
    found = mmd(x, y, seed=0, rows_max=1_000, block_rows=10, permutations=19, device="cpu")
    assert (found.n, found.m, found.exact) == (800, 200, False)
    assert mmd(x, y, seed=0, rows_max=3_200, block_rows=10, permutations=19, device="cpu").exact
    assert not mmd(x[:45], y, seed=0, block_rows=10, permutations=19, device="cpu").exact      # half a block is left over


@pytest.mark.parametrize("far", [1e6, 1e12, 1e100])
def test_far_outliers_and_far_origins_cost_no_digits(far):
    x, y = samples(6)
    moved = mmd(x + 1e6, y + 1e6, seed=1, bandwidth=9.0, permutations=19, device="cpu")
    assert moved.statistic == pytest.approx(dense_mmd(x, y, 9.0), abs=1e-6)
    x[0] = y[0] = far                                   # two equal rows far out: their kernel value is 1
    wild = mmd(x, y, seed=1, bandwidth=9.0, permutations=19, device="cpu")
    assert wild.statistic == pytest.approx(dense_mmd(x, y, 9.0), abs=1e-9)


def test_the_answer_depends_on_the_seed_and_not_on_global_generators():
    x, y = samples(7, shift=0.1)
    torch.manual_seed(1)
    np.random.seed(1)
    first = mmd(x, y, seed=3, rows_max=100, device="cpu"), classifier(x, y, seed=3, device="cpu")
    torch.manual_seed(2)
    np.random.seed(2)
    assert first == (mmd(x, y, seed=3, rows_max=100, device="cpu"), classifier(x, y, seed=3, device="cpu"))
    assert first[0].statistic != mmd(x, y, seed=4, rows_max=100, device="cpu").statistic


def test_the_inputs_are_left_as_they_were():
    x, y = samples(8)
    before = x.copy(), y.copy()
    mmd(x, y, seed=1, permutations=9, device="cpu")
    classifier(x, y, seed=1, device="cpu")
    assert np.array_equal(before[0], x)
    assert np.array_equal(before[1], y)


def test_mmd_finds_a_mean_shift_in_768_dimensions():
    x, y = samples(9, n=300, m=300, width=768, shift=0.1)
    assert mmd(x, y, seed=1, device="cpu").p == 1 / 500


def correlated(seed, rows, width, r):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, width))
    z[:, 1] = r * z[:, 0] + math.sqrt(1 - r * r) * z[:, 1]
    return z


def test_all_three_find_a_change_of_correlation_between_two_columns():
    x, y = correlated(1, 600, 2, 0.0), correlated(2, 600, 2, 0.7)
    fourier = FourierMMD.fit(x, device="cpu")
    assert mmd(x, y, seed=1, device="cpu").p == 1 / 500
    assert classifier(x, y, seed=1, device="cpu").p < 1e-6
    assert fourier.test(fourier.features(y), seed=1).p == 1 / 500


@pytest.mark.parametrize("far", [0.0, 1e3, 1e9])
def test_float32_tiles_keep_six_digits_of_the_sums(far):
    """The arithmetic of the CUDA path, run on the CPU: near rows, outliers beyond a product's digits, beyond float32's."""
    from detectors.kernels import _kernel_sums

    x, _ = samples(21, n=400, width=64)
    rows = x / math.sqrt(128)
    rows[:2] += far
    labels = np.random.default_rng(1).random((400, 30)) < 0.5
    exact, rounded = (_kernel_sums(torch, "cpu", rows, labels, 1, 1 << 20, single=single) for single in (False, True))
    for one, other in zip(exact, rounded, strict=True):
        assert np.abs(np.asarray(one) - other).max() / 400**2 < 1e-7


# --- classifier --------------------------------------------------------------------------------------------------------


def test_z_and_p_of_the_worked_example():
    """Ex 20: accuracy .56 on 400 rows: z 2.4, p 0.008198; four times as dependent halves z."""
    z, p = accuracy_test(0.56, 400)
    assert (z, p) == (pytest.approx(2.4, abs=5e-7), pytest.approx(0.008198, abs=5e-7))
    assert accuracy_test(0.56, 400, deff=4.0)[0] == pytest.approx(1.2)


@pytest.mark.parametrize(("width", "shift"), [(20, 0.3), (768, 0.08)])
def test_the_classifier_finds_a_shift_from_20_columns_to_768(width, shift):
    x, y = samples(11, n=800, m=800, width=width, shift=shift)
    found = classifier(x, y, seed=1, device="cpu")
    assert found.p < 1e-6
    assert found.auc > 0.6
    assert len(found.importances) == width


def test_the_importances_name_the_columns_that_moved():
    x, y = correlated(1, 1_000, 20, 0.0), correlated(2, 1_000, 20, 0.7)
    y[:, 7] += 0.5
    names = [f"column {at}" for at in range(20)]
    found = classifier(x, y, seed=1, names=names, device="cpu")
    assert set(list(found.importances)[:3]) == {"column 0", "column 1", "column 7"}
    assert list(found.importances.values()) == sorted(found.importances.values(), reverse=True)


def test_equal_names_are_one_column_to_the_importances():
    x, y = samples(12, n=400, m=400, width=4, shift=0.5)
    assert list(classifier(x, y, seed=1, names=["a", "b", "a", "b"], device="cpu").importances) in (["a", "b"], ["b", "a"])


def test_unequal_samples_weigh_the_same():
    """Always saying "the larger sample" is accuracy 0.5, not 0.95; n_test is that of a balanced test."""
    x, y = samples(13, n=3_800, m=200)
    found = classifier(x, y, seed=1, device="cpu")
    assert 0.3 < found.accuracy < 0.7
    assert found.n_test == pytest.approx(4 * found.n * found.m / (found.n + found.m))


def test_no_test_row_is_a_neighbour_of_a_training_row():
    """A column that holds the time: with blocks of 10, every test row is at least 10 rows from a training row."""
    from detectors.classifier import _pieces

    train, test = _pieces(np.arange(1_000.0)[:, None], 10)
    assert np.abs(train - test.T).min() > 10
    assert len(train) == 500
    assert np.all(np.diff(test[:, 0]) > 0)


# --- random Fourier features -------------------------------------------------------------------------------------------


def test_fourier_sums_merge_and_estimate_the_kernel_mmd():
    x, y = samples(14, n=500, m=400, width=3, shift=0.4)
    fitted = FourierMMD.fit(x, features=8_192, bandwidth=6.0, device="cpu")
    halves = fitted.features(y[:150]) + fitted.features(y[150:])
    whole = fitted.features(y)
    assert halves.rows == whole.rows == 400
    assert halves.total == pytest.approx(whole.total, abs=1e-9)
    # The biased estimate keeps the diagonal: (1 - k) / n more per sample, and 1/sqrt(D) of feature noise.
    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / 6.0).mean()
    assert fitted.statistic(whole) == pytest.approx(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y), abs=0.01)


def test_the_same_seed_draws_the_same_features():
    x, y = samples(15)
    one, other, third = (FourierMMD.fit(x, seed=seed, device="cpu") for seed in (1, 1, 2))
    assert one.features(y).total.tolist() == other.features(y).total.tolist()
    assert one.features(y).total.tolist() != third.features(y).total.tolist()


def test_a_window_without_rows_is_a_state():
    fitted = FourierMMD.fit(samples(16)[0], device="cpu")
    empty = fitted.features(np.zeros((0, 5)))
    assert (empty.rows, empty.total.sum()) == (0, 0.0)
    found = fitted.test(empty, seed=1)
    assert found.state == "too_few_rows"
    assert math.isnan(found.p)
    assert math.isnan(found.score)


# --- tables ------------------------------------------------------------------------------------------------------------


def test_numbers_are_standardised_by_the_reference_and_missing_ones_indicated():
    rows = encode({"a": np.array([5.0, np.nan, np.inf, 1.0])}, {"a": "numeric"}, {"a": np.array([1.0, 3.0, np.nan, 5.0])})
    sd = math.sqrt(8 / 3)
    assert rows == pytest.approx(np.array([[2 / sd, 0], [0, 1], [0, 1], [-2 / sd, 0]]))


def test_a_category_column_has_variance_one_and_places_for_rest_unseen_and_missing():
    reference = ["a"] * 60 + ["b"] * 39 + ["c"]
    encoding = Encoding.fit({"k": reference}, {"k": "category"})
    rows = encoding.encode({"k": reference})
    assert rows[:, :-1].var(axis=0).sum() == pytest.approx(1.0)
    places = encoding.encode({"k": ["a", "b", "c", "never", None]})[:, :-1].argmax(axis=1)
    assert places.tolist() == [0, 1, 2, 3, 4]
    assert encoding.names == ["k"] * rows.shape[1]


def test_hundreds_of_levels_take_a_bounded_width_and_a_move_among_the_rare_ones_shows():
    rng = np.random.default_rng(17)
    draw = [f"level {at}" for at in np.minimum(rng.geometric(0.02, 5_000), 300)]
    encoding = Encoding.fit({"k": draw}, {"k": "category"})
    assert len(encoding.names) == LEVELS_MAX + 4
    rare = encoding.encode({"k": draw})[:, -1]
    assert rare.std() == pytest.approx(1.0)
    assert len(set(rare.round(9))) > LEVELS_MAX


@pytest.mark.parametrize("reference", [np.full(30, 7.0), np.full(30, np.nan)])
def test_a_constant_or_all_missing_column_stays_finite(reference):
    rows = encode({"a": np.array([7.0, 8.0, -1e300, np.nan])}, {"a": "numeric"}, {"a": reference})
    assert np.abs(rows).max() == 1.0


def test_numbers_near_the_largest_float_are_encoded():
    rows = encode({"a": np.array([1e300, -1e300])}, {"a": "numeric"}, {"a": np.array([1e300, -1e300, 0.0])})
    assert rows[:, 0] == pytest.approx([math.sqrt(1.5), -math.sqrt(1.5)])


def test_embeddings_pass_as_they_are():
    vectors = np.arange(12.0).reshape(4, 3)
    encoding = Encoding.fit({"e": vectors}, {"e": "embedding"})
    assert encoding.encode({"e": vectors + 1}).tolist() == (vectors + 1).tolist()
    assert encoding.names == ["e[0]", "e[1]", "e[2]"]


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_every_method_compares_mixed_tables_by_name(method):
    rng = np.random.default_rng(18)

    def table(rows, shift):
        numbers = rng.standard_normal(rows) + shift
        numbers[::17] = np.nan
        return {"a": numbers, "k": [None if v > 2 else str(round(v)) for v in rng.standard_normal(rows)],
                "b": [bool(v > 0) for v in rng.standard_normal(rows)], "e": rng.standard_normal((rows, 8))}

    kinds = {"a": "numeric", "k": "category", "b": "boolean", "e": "embedding"}
    reference = table(800, 0.0)
    assert compare(method, reference, table(600, 1.5), kinds, seed=1, device="cpu").score >= -math.log10(1 / 500) - 1e-9
    assert compare(method, reference, table(600, 0.0), kinds, seed=1, device="cpu").score < 2
    assert compare(method, reference, table(1, 0.0), kinds, seed=1, device="cpu").state == "too_few_rows"


# --- bad input ---------------------------------------------------------------------------------------------------------

GOOD, NAN = np.arange(100.0).reshape(50, 2), np.array([[1.0, 2.0], [np.nan, 3.0]])


@pytest.mark.parametrize(("call", "words"), [
    (lambda: mmd(NAN, GOOD, seed=1), "mmd x: expected finite numbers up to 1e150, got others in 1 rows, the first is row 1"),
    (lambda: mmd(GOOD, np.array([[1e200, 1.0]]), seed=1), "mmd y: expected finite numbers"),
    (lambda: mmd(GOOD, GOOD[:, :1], seed=1), "mmd: expected rows of one width, got 2 and 1"),
    (lambda: mmd(GOOD, ["a", "b"], seed=1), "mmd y: expected numbers"),
    (lambda: mmd(GOOD, np.zeros((3, 0)), seed=1), "mmd y: expected shape"),
    (lambda: mmd(GOOD, [[1.0], [1.0, 2.0]], seed=1), "mmd y: expected numbers"),
    (lambda: mmd(GOOD, GOOD, seed=1, rows_max=1_000_000), "mmd rows_max: expected a whole number from 4 to 100000"),
    (lambda: mmd(GOOD, GOOD, seed=1, rows_max=100, block_rows=50), "mmd rows_max: expected a whole number from 200"),
    (lambda: mmd(GOOD, GOOD, seed=1, permutations=0), "mmd permutations"),
    (lambda: mmd(GOOD, GOOD, seed=1, block_rows=0), "mmd block_rows"),
    (lambda: mmd(GOOD, GOOD, seed=1, bandwidth=0.0), "mmd bandwidth"),
    (lambda: mmd(GOOD, GOOD, seed=1, device="tpu"), "mmd device: expected auto, cpu or cuda, got 'tpu'"),
    (lambda: classifier(GOOD, NAN, seed=1), "classifier y: expected finite numbers"),
    (lambda: classifier(GOOD, GOOD, seed=1, names=["a"]), "classifier names: expected 2 names, got 1"),
    (lambda: classifier(GOOD, GOOD, seed=1, deff=0.5), "classifier deff"),
    (lambda: FourierMMD.fit(GOOD[:10]), "FourierMMD reference: expected at least 20 blocks of 1 rows, got 10"),
    (lambda: FourierMMD.fit(np.ones((50, 2))), "FourierMMD bandwidth: expected a finite number > 0, got 0.0"),
    (lambda: FourierMMD.fit(GOOD).features(GOOD[:, :1]), "FourierMMD batch: expected rows of width 2"),
    (lambda: FourierMMD.fit(GOOD).features(GOOD) + FourierMMD.fit(GOOD, features=8).features(GOOD), "FourierSum: expected"),
    (lambda: block_rows_for(math.nan), "deff: expected"),
    (lambda: encode({"a": ["x"]}, {"a": "numeric"}, {"a": [1.0]}), "a: expected numbers"),
    (lambda: encode({"b": [1.0]}, {"a": "numeric"}, {"a": [1.0]}), "encode columns: expected a column 'a', got b"),
    (lambda: encode({"a": [1.0]}, {"a": "text"}, {"a": [1.0]}), "a: expected kind"),
    (lambda: encode({"a": np.zeros((2, 3))}, {"a": "embedding"}, {"a": np.zeros((2, 4))}), "a: expected shape"),
    (lambda: encode({"a": [1.0], "b": [1.0, 2.0]}, {"a": "numeric", "b": "numeric"}, {"a": [1.0], "b": [1.0]}), "one length"),
    (lambda: encode({"a": [["x"]]}, {"a": "category"}, {"a": [["x"]]}), "a: expected one level per row"),
    (lambda: encode({}, {}, {}), "encode kinds: expected at least one column"),
    (lambda: compare("kmmd", {"a": GOOD[:, 0]}, {"a": GOOD[:, 0]}, {"a": "numeric"}, seed=1), "method: expected mmd"),
])
def test_bad_input_is_one_line(call, words):
    with pytest.raises(ValueError) as refused:
        call()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_too_few_rows_are_a_state_and_not_a_number(rows):
    few = np.zeros((rows, 2))
    for found in (mmd(GOOD, few, seed=1, block_rows=2, device="cpu"), classifier(GOOD, few, seed=1, device="cpu")):
        assert found.state == "too_few_rows"
        assert math.isnan(found.p)


def test_rows_that_are_all_the_same_are_a_state_without_drift():
    same = np.full((50, 3), 0.1)
    for found in (mmd(same, same, seed=1, device="cpu"), classifier(same, same, seed=1, device="cpu")):
        assert (found.state, found.p) == ("constant", 1.0)
    moved = mmd(same, same + 1, seed=1, device="cpu")
    assert (moved.state, moved.p) == ("ok", 1 / 500)
    assert classifier(same, same + 1, seed=1, device="cpu").accuracy == 1.0


def test_constant_columns_change_nothing():
    x, y = samples(19, n=200, m=200, shift=0.3)
    wide = [np.concatenate([side, np.full((200, 2), 3.0)], axis=1) for side in (x, y)]
    assert mmd(*wide, seed=1, device="cpu").statistic == pytest.approx(mmd(x, y, seed=1, device="cpu").statistic, abs=1e-12)
    assert classifier(*wide, seed=1, device="cpu").accuracy == classifier(x, y, seed=1, device="cpu").accuracy


def test_a_device_short_of_memory_gets_smaller_tiles_then_one_line():
    asked = []

    def needs(limit):
        def run(rows):
            asked.append(rows)
            if rows > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
            return rows
        return run

    assert smaller_until_it_fits(needs(100), 990, 30) == 60
    assert asked == [990, 480, 240, 120, 60]
    with pytest.raises(ValueError, match=r"lower rows_max$"):
        smaller_until_it_fits(needs(10), 990, 30)
    with pytest.raises(RuntimeError, match="tensor size"):
        smaller_until_it_fits(lambda rows: torch.zeros(2) @ torch.zeros(3), 10, 1)


def test_cuda_where_there_is_none_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^mmd device: expected a CUDA device, got none that torch sees; take device='cpu'"):
        mmd(GOOD, GOOD, seed=1, device="cuda")


def test_the_catalogue_needs_no_torch_and_a_test_without_torch_is_one_line():
    program = ("import sys; sys.modules['torch'] = None\n"
               "from detectors.kernels import METHODS, mmd\n"
               "print([method.name for method in METHODS])\n"
               "try: mmd([1, 2], [1, 2], seed=1)\n"
               "except ValueError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ("['mmd', 'c2st', 'fourier_mmd']\n"
                           "mmd: expected torch, which is not installed; pip install 'tidemark[torch]'\n")
    assert importlib.import_module("detectors.kernels").METHODS == METHODS


# --- on an accelerator -------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("block_rows", [1, 10])
def test_cuda_gives_what_the_cpu_gives(block_rows):
    x, y = samples(20, n=1_500, m=1_200, width=64, shift=0.03)
    x[0] = 1e4                                                       # an outlier must not cost float32 its digits
    ours, theirs = (mmd(x, y, seed=1, block_rows=block_rows, device=device) for device in ("cuda", "cpu"))
    assert ours.statistic == pytest.approx(theirs.statistic, abs=2e-6)
    assert ours.p == pytest.approx(theirs.p, abs=0.01)
    models = [classifier(x, y, seed=1, device=device) for device in ("cuda", "cpu")]
    assert models[0].accuracy == pytest.approx(models[1].accuracy, abs=2e-3)
    sums = [FourierMMD.fit(x, device=device).features(y).total for device in ("cuda", "cpu")]
    assert sums[0] == pytest.approx(sums[1], abs=1e-6)
