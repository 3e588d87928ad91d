"""All pairs from sketches: what comes out exact, what stays unknown, and that the norms chosen are the better ones."""

import math

import numpy as np
import pytest

from fastgeom.analysis import sketch_cosine, sketch_gram

NAN, INF = math.nan, math.inf


def count_sketch(vectors: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """Every element to a random bucket with a random sign, the same for all vectors."""
    n = vectors.shape[1]
    where, sign = rng.integers(0, m, n), rng.choice([-1.0, 1.0], n)
    return np.stack([np.bincount(where, sign * vector, m) for vector in vectors])


def test_parallel_and_opposite_sketches_are_exact_in_float32_too() -> None:
    sketch = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    cosine, error = sketch_cosine(np.stack([sketch, -2 * sketch, 4 * sketch]))
    np.testing.assert_allclose(cosine, [[1, -1, 1], [-1, 1, -1], [1, -1, 1]], rtol=1e-15)
    assert (np.abs(cosine) <= 1.0).all() and (np.diagonal(cosine) == 1.0).all()
    assert (error >= 0).all() and error.max() < 1e-15


def test_every_step_agrees_with_itself_exactly() -> None:
    cosine, error = sketch_cosine(np.random.default_rng(4).standard_normal((200, 7)))
    assert (np.diagonal(cosine) == 1.0).all() and (np.diagonal(error) == 0.0).all()


def test_error_is_that_of_m_buckets() -> None:
    root = math.sqrt(0.75)
    cosine, error = sketch_cosine([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.5, root, 0.0, 0.0]])
    np.testing.assert_allclose(cosine, [[1, 0, 0.5], [0, 1, root], [0.5, root, 1]], atol=1e-15)
    np.testing.assert_allclose(error, (1 - cosine**2) / 2, atol=1e-15)


@pytest.mark.parametrize("c", [-0.99, -0.9, 0.0, 0.9])
def test_own_norms_have_the_error_that_is_stated_and_exact_norms_a_larger_one(c: float) -> None:
    rng = np.random.default_rng(7)
    x, y = np.linalg.qr(rng.standard_normal((4096, 2)))[0].T
    pair = np.stack([x, c * x + math.sqrt(1 - c**2) * y])
    m, draws = 256, 400
    sketches = [count_sketch(pair, m, rng) for _ in range(draws)]
    deviation = np.std([sketch_cosine(s).cosine[0, 1] - c for s in sketches])
    exact = np.std([sketch_gram(s)[0, 1] - c for s in sketches])
    assert deviation == pytest.approx((1 - c**2) / math.sqrt(m), rel=5 / math.sqrt(2 * draws))
    assert exact == pytest.approx(math.sqrt((1 + c**2) / m), rel=5 / math.sqrt(2 * draws))
    stated = np.mean([sketch_cosine(s).error[0, 1] for s in sketches])
    assert stated == pytest.approx((1 - c**2) / math.sqrt(m), rel=0.02)


def test_gram_with_norms_is_the_cosine_scaled_and_exact_on_the_diagonal() -> None:
    sketches = np.random.default_rng(1).standard_normal((6, 32))
    grad_sq = np.array([4.0, 9.0, 0.1, 0.7, 1e-20, 1e20])
    gram = sketch_gram(sketches, grad_sq)
    norm = np.sqrt(grad_sq)
    np.testing.assert_allclose(gram, sketch_cosine(sketches).cosine * np.outer(norm, norm), rtol=1e-12)
    np.testing.assert_array_equal(np.diagonal(gram), grad_sq)
    np.testing.assert_array_equal(gram, gram.T)


def test_gram_without_norms_is_that_of_the_sketches_in_float64() -> None:
    """Opposite to 1e-6, of which float32 products would leave no digit."""
    first = np.random.default_rng(2).standard_normal(4096).astype(np.float32)
    second = -first * np.float32(1 + 2.0**-20)
    rows = np.stack([first, second])
    gram = sketch_gram(rows)
    total = math.fsum((first.astype(np.float64) + second) ** 2)
    assert gram[0, 0] + 2 * gram[0, 1] + gram[1, 1] == pytest.approx(total, rel=1e-2)


def test_unknown_steps_are_rows_and_columns_of_nan() -> None:
    sketches = np.random.default_rng(3).standard_normal((4, 8))
    sketches[1, 3], sketches[2, 0] = NAN, -INF
    unknown = np.zeros((4, 4), dtype=bool)
    unknown[1:3] = unknown[:, 1:3] = True
    for result in (*sketch_cosine(sketches), sketch_gram(sketches), sketch_gram(sketches, [0.0, 1.0, 1.0, 1.0])):
        np.testing.assert_array_equal(np.isnan(result), unknown)
    np.testing.assert_array_equal(np.isnan(sketch_gram(np.ones((4, 8)), [1.0, NAN, INF, 1.0])), unknown)


def test_zero_gradient_has_no_direction_but_a_product() -> None:
    sketches = [[1.0, 0.0], [0.0, 0.0]]
    np.testing.assert_array_equal(sketch_cosine(sketches).cosine, [[1, NAN], [NAN, NAN]])
    np.testing.assert_array_equal(sketch_gram(sketches), [[1, 0], [0, 0]])
    np.testing.assert_array_equal(sketch_gram(sketches, [4.0, 0.0]), [[4, 0], [0, 0]])


def test_no_steps_and_nothing_known() -> None:
    assert sketch_cosine(np.zeros((0, 4))).cosine.shape == sketch_gram(np.zeros((0, 4)), []).shape == (0, 0)
    assert np.isnan(sketch_cosine(np.full((2, 4), NAN)).cosine).all()


def test_bad_input_is_named() -> None:
    for function in (sketch_cosine, sketch_gram):
        for bad, shape in ((np.zeros(4), r"\(4,\)"), (np.zeros((4, 0)), r"\(4, 0\)")):
            with pytest.raises(ValueError, match=rf"sketches: expected shape \(step, m\).* got shape {shape}"):
                function(bad)
    with pytest.raises(ValueError, match=r"grad_sq: expected one value for each of the 3 sketches, got 2"):
        sketch_gram(np.ones((3, 4)), [1.0, 1.0])
    with pytest.raises(ValueError, match=r"grad_sq: expected .* got shape \(3, 1\)"):
        sketch_gram(np.ones((3, 4)), np.ones((3, 1)))
