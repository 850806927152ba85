"""Vectors become a few numbers: what these are, and that nothing in a column breaks them."""

import json

import numpy as np
import pytest

from detectors.embedding import DIMENSIONS_MAX, Embedding, axis_bits, dimensions, grid_bits, vectors


def cloud(n=4000, dim=40, seed=1):
    """A cloud off the origin, of falling variance along random axes; and these axes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    scores = rng.standard_normal((n, dim)) / np.sqrt(np.arange(1, dim + 1))
    return scores @ axes.T + rng.standard_normal(dim), axes


def halves(n):
    return np.arange(n) // 50 % 2 == 0


def fitted(values):
    return Embedding.fit(values, halves(len(values)))


def row(embedding, values, name):
    return embedding.rows(values)[:, embedding.names.index(name)]


def test_the_rows_are_coordinates_distances_and_length():
    values, _ = cloud()
    embedding = fitted(values)
    assert embedding.names == (*(f"pc{i}" for i in range(1, 13)), "spread", "residual", "norm")
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), row(embedding, values, "norm"), rtol=1e-5)
    rows = embedding.rows(values)[~halves(len(values))]
    assert np.abs(rows[:, :12].mean(axis=0)).max() < 0.1        # 2,000 rows: 4.5 standard errors
    assert np.abs(rows[:, :12].std(axis=0) - 1).max() < 0.1
    assert rows[:, 12].mean() == pytest.approx(1, abs=0.05)


def test_the_rows_are_those_of_an_exact_decomposition():
    values, _ = cloud()
    half = values[halves(len(values))]
    middle = half.mean(axis=0)
    _, scale, axes = np.linalg.svd(half - middle, full_matrices=False)
    scale /= np.sqrt(len(half))
    axes *= np.sign(axes[np.arange(40), np.argmax(np.abs(axes), axis=1)])[:, None]
    scores = (values - middle) @ axes[:32].T
    embedding = fitted(values)
    np.testing.assert_allclose(scores[:, :12] / scale[:12], embedding.rows(values)[:, :12], atol=1e-4)
    np.testing.assert_allclose((scores**2 / scale[:32]**2).mean(axis=1), row(embedding, values, "spread"), rtol=1e-4)
    left = np.sqrt(np.maximum(((values - middle)**2).sum(axis=1) - (scores**2).sum(axis=1), 0))
    np.testing.assert_allclose(left, row(embedding, values, "residual"), atol=2e-3 * np.sqrt((scale**2).sum()))


def test_above_800_dimensions_the_leading_directions_are_found_all_the_same():
    rng = np.random.default_rng(5)
    values = 0.02 * rng.standard_normal((1000, 900))
    values[:, :3] += rng.standard_normal((1000, 3)) * [3.0, 2.0, 1.0]
    axes = Embedding.fit(values, np.ones(1000, bool)).axes / 2.0 ** axis_bits(900)
    np.testing.assert_allclose(np.eye(900)[:, :3], np.abs(axes[:, :3]), atol=0.06)


def test_a_cloud_of_few_dimensions_shows_all_of_them():
    values, _ = cloud(dim=3)
    assert fitted(values).names == ("pc1", "pc2", "pc3", "spread", "norm")
    assert fitted(cloud(dim=20)[0]).directions == 20
    assert fitted(cloud(dim=21)[0]).directions == 12


def test_only_half_a_is_looked_at():
    values, _ = cloud()
    other = values.copy()
    other[~halves(len(values))] *= 7.0
    assert fitted(values).encode() == fitted(other).encode()


def test_the_sign_of_a_direction_is_that_of_its_largest_entry():
    axes = fitted(cloud()[0]).axes
    assert (axes[np.argmax(np.abs(axes), axis=0), np.arange(axes.shape[1])] > 0).all()


@pytest.mark.parametrize("entry", [np.nan, np.inf, -np.inf])
def test_a_vector_with_an_entry_that_is_not_finite_is_missing_and_disturbs_no_other(entry):
    values, _ = cloud(n=500)
    embedding = fitted(values)
    other = values.copy()
    other[7, 3] = entry
    rows = embedding.rows(other)
    assert np.isnan(rows[7]).all()
    rows[7] = embedding.rows(values)[7]
    np.testing.assert_array_equal(embedding.rows(values), rows)


def test_missing_vectors_in_the_reference_are_left_out_of_the_fit():
    values, _ = cloud()
    holes = np.insert(values, [3, 1000, 2000], np.nan, axis=0)
    half = np.insert(halves(len(values)), [3, 1000, 2000], True)
    assert Embedding.fit(values, halves(len(values))).encode() == Embedding.fit(holes, half).encode()


@pytest.mark.parametrize("value", [np.full(5, 2.5), np.zeros(5)])
def test_vectors_that_never_differ_leave_the_length_and_what_is_outside(value):
    embedding = fitted(np.tile(value, (300, 1)))
    assert embedding.names == ("residual", "norm")
    same, other = embedding.rows(value + np.array([[0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]))
    assert same.tolist() == [0.0, pytest.approx(np.linalg.norm(value), rel=1e-6)]
    assert other[0] > 0.9
    assert other[1] > same[1]


@pytest.mark.parametrize("values", [np.full((200, 4), np.nan), np.empty((0, 4))])
def test_a_column_without_vectors_has_the_rows_of_an_empty_cloud(values):
    embedding = Embedding.fit(values, np.ones(len(values), bool))
    assert embedding.names == ("residual", "norm")
    assert np.isfinite(embedding.rows(np.ones((1, 4)))).all()
    assert np.isnan(embedding.rows(np.full((1, 4), np.nan))).all()


def test_a_flat_cloud_shows_what_leaves_its_plane():
    rng = np.random.default_rng(2)
    values = rng.standard_normal((2000, 2)) @ rng.standard_normal((2, 12))
    embedding = fitted(values)
    assert embedding.names == ("pc1", "pc2", "spread", "residual", "norm")
    assert row(embedding, values, "residual").max() <= 0.01
    assert row(embedding, values + 0.5, "residual").min() > 0.3


@pytest.mark.parametrize("size", [1e9, 1e160, 1e308])
def test_one_absurd_vector_spoils_neither_the_fit_nor_the_rows_of_others(size):
    values, axes = cloud()
    spoilt = values.copy()
    spoilt[0] = size
    embedding = fitted(spoilt)
    rows = embedding.rows(spoilt)
    assert np.isfinite(rows).all()
    assert rows[0, embedding.names.index("norm")] > rows[1:, embedding.names.index("norm")].max()
    # Six of seven hundred parts of the variance are the absurd one's; the leading direction still is the cloud's.
    assert np.abs(np.corrcoef(values[1:] @ axes[:, 0], rows[1:, 0])[0, 1]) > 0.9 or np.abs(
        np.corrcoef(values[1:] @ axes[:, 0], rows[1:, 1])[0, 1]) > 0.9


@pytest.mark.parametrize("scale", [1e-140, 1e-30, 1e30, 1e140])
def test_the_unit_of_the_vectors_does_not_matter(scale):
    values, _ = cloud(n=1000)
    plain, scaled = fitted(values).rows(values), fitted(values * scale).rows(values * scale)
    np.testing.assert_allclose(plain[:, :13], scaled[:, :13], atol=1e-2)
    np.testing.assert_allclose(plain[:, -1] * scale, scaled[:, -1], rtol=1e-4)


def test_a_cloud_far_from_the_origin_is_seen_as_sharply():
    values, _ = cloud()
    np.testing.assert_allclose(fitted(values).rows(values)[:, :13], fitted(values + 1e6).rows(values + 1e6)[:, :13], atol=1e-3)


def test_the_file_gives_back_the_same_rows():
    values, _ = cloud(n=300)
    embedding = fitted(values)
    again = Embedding.decode(json.loads(json.dumps(embedding.encode())))
    assert again.encode() == embedding.encode()
    np.testing.assert_array_equal(embedding.rows(values), again.rows(values))


@pytest.mark.parametrize(("key", "value"), [
    ("dim", 41), ("dim", "40"), ("dim", True), ("dim", 0), ("exponent", 10_000), ("directions", 33), ("directions", -1),
    ("directions", 0), ("scale", [1.0]), ("scale", "x"), ("centre", [None] * 32), ("axes", "AAAA"), ("axes", "###"),
    ("origin", ""), ("total", float("nan")), ("total", -1.0), ("total", None)])
def test_a_spoilt_file_is_one_line(key, value):
    item = {**fitted(cloud(n=300)[0]).encode(), key: value}
    with pytest.raises(ValueError, match="embedding: expected a column as it was fitted") as error:
        Embedding.decode(item)
    assert "\n" not in str(error.value)


def test_a_file_without_its_axes_is_one_line():
    item = fitted(cloud(n=300)[0]).encode()
    del item["axes"]
    with pytest.raises(ValueError, match="KeyError"):
        Embedding.decode(item)


def test_another_number_of_dimensions_is_one_line():
    with pytest.raises(ValueError, match=r"embedding: expected values of shape \(events, 40\), got \(3, 39\)"):
        fitted(cloud(n=300)[0]).rows(np.zeros((3, 39)))


@pytest.mark.parametrize("shape", [(10, 0), (10,), (0, DIMENSIONS_MAX + 1)])
def test_columns_that_are_no_vectors_are_one_line(shape):
    with pytest.raises(ValueError, match="embedding: expected vectors of 1 to"):
        Embedding.fit(np.zeros(shape), np.ones(shape[0], bool))


@pytest.mark.parametrize("dim", [1, 2, 3, 63, 64, 65, 768, 1536, 4096, 8191, DIMENSIONS_MAX])
def test_every_sum_of_products_stays_exact(dim):
    """Cauchy: entries up to 2**g and a unit direction of 2**a, each entry half a step off, against 2**53."""
    grid, axis = grid_bits(dim), axis_bits(dim)
    assert dim * 4.0**grid <= 2.0**53
    assert 2.0**grid * (np.sqrt(dim) * 2.0**axis + dim / 2) <= 2.0**53
    assert grid >= 17


def test_vectors_come_as_lists_with_none_for_missing():
    np.testing.assert_array_equal([[1, 2], [np.nan] * 2, [np.nan] * 2], vectors([[1, 2], None, (3.0, np.nan)]))
    assert vectors([None, None]).shape == (2, 0)
    np.testing.assert_array_equal([[np.nan] * 2, [3, 4]], vectors(np.array([[1, np.inf], [3, 4]])))


@pytest.mark.parametrize("values", [[[1, 2], [3]], [[1, 2], 3.0], [["a", "b"]], [[[1], [2]]], np.zeros(3), np.array([["a"]])])
def test_what_is_no_vector_is_one_line(values):
    with pytest.raises(ValueError, match="embedding: expected") as error:
        vectors(values)
    assert "\n" not in str(error.value)


def test_the_lengths_of_the_vectors_are_known_by_column():
    assert dimensions({"e": fitted(cloud(n=300)[0]), "t": object()}) == {"e": 40}
