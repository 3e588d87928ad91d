"""Quantities of a window's Gram matrix on matrices whose spectrum is known."""

import math

import numpy as np
import pytest

from fastgeom import analysis
from fastgeom.analysis import (
    coherence,
    dc_energy,
    effective_rank,
    nyquist_energy,
    participation_ratio,
    spectral_gap,
    two_cycle_index,
)

NAN, INF = math.nan, math.inf
ALL = (coherence, dc_energy, effective_rank, nyquist_energy, participation_ratio, spectral_gap, two_cycle_index)
each = pytest.mark.parametrize("function", ALL, ids=lambda function: function.__name__)


def with_spectrum(eigenvalues: list[float], seed: int = 0) -> np.ndarray:
    """A matrix of these eigenvalues whose eigenvectors lie anywhere."""
    m = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((m, m)))
    gram = q * np.array(eigenvalues) @ q.T
    return (gram + gram.T) / 2


def gram_of(*gradients: tuple[float, ...]) -> np.ndarray:
    rows = np.array(gradients)
    return rows @ rows.T


def test_spectral_quantities_of_a_known_spectrum() -> None:
    gram = with_spectrum([6.0, 3.0, 1.0, 0.0])
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    assert effective_rank(gram).item() == pytest.approx(math.exp(entropy), rel=1e-12)
    assert participation_ratio(gram).item() == pytest.approx(100 / 46, rel=1e-12)
    assert spectral_gap(gram).item() == pytest.approx(0.5, rel=1e-12)


def test_participation_ratio_is_never_above_the_effective_rank() -> None:
    for seed in range(20):
        gram = with_spectrum(np.random.default_rng(seed).exponential(size=6).tolist(), seed)
        assert 1 <= participation_ratio(gram) <= effective_rank(gram) <= 6


def test_energies_by_hand() -> None:
    """g = (1, 0), (2, 1), (0, 2): sum (3, 3), alternating sum (1 - 2 + 0, -1 + 2) = (-1, 1), squares 1 + 5 + 4."""
    gram = gram_of((1, 0), (2, 1), (0, 2))
    assert coherence(gram).item() == pytest.approx(18 / 10)
    assert dc_energy(gram).item() == pytest.approx(18 / 30)
    assert nyquist_energy(gram).item() == pytest.approx(2 / 30)


def test_two_cycle_index_by_hand() -> None:
    """Lag 1: (2 + 2) / 2; lag 2: 0 / 1; diagonal 10 / 3."""
    assert two_cycle_index(gram_of((1, 0), (2, 1), (0, 2))).item() == pytest.approx((0 - 2) / (10 / 3) / 2)


def test_energies_of_all_frequencies_add_up_to_one() -> None:
    """With m = 4 the constant, the alternating and two quarter-turn directions are all of time."""
    gradients = np.random.default_rng(1).standard_normal((4, 6))
    quarter = np.abs(np.array([1, 1j, -1, -1j]) @ gradients) ** 2
    rest = 2 * quarter.sum() / (4 * (gradients**2).sum())
    gram = gradients @ gradients.T
    assert (dc_energy(gram) + nyquist_energy(gram)).item() + rest == pytest.approx(1.0)


def test_one_lone_reversal_is_no_two_cycle() -> None:
    reversal = np.array([1.0, 1, 1, 1, -1, -1, -1, -1])
    assert two_cycle_index(np.outer(reversal, reversal)) < 0
    zigzag = np.array([1.0, -1] * 4)
    assert two_cycle_index(np.outer(zigzag, zigzag)).item() == pytest.approx(1.0)


@each
def test_a_stack_is_measured_one_by_one(function) -> None:
    stack = np.stack([with_spectrum([4, 2, 1, 0.5], seed) for seed in range(6)]).reshape(2, 3, 4, 4)
    result = function(stack)
    assert result.shape == (2, 3) and result.dtype == np.float64
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(result[index], function(stack[index]), rtol=1e-12)


@each
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scale_does_not_matter(function, scale: float) -> None:
    gram = with_spectrum([4, 2, 1, 0.5])
    np.testing.assert_allclose(function(scale * gram), function(gram), rtol=1e-12)


@each
@pytest.mark.parametrize("unknown", [NAN, INF, -INF])
def test_one_unknown_entry_makes_its_matrix_unknown_and_no_other(function, unknown: float) -> None:
    stack = np.stack([with_spectrum([4, 2, 1, 0.5])] * 3)
    stack[1, 0, 3] = stack[1, 3, 0] = unknown
    assert np.isnan(function(stack)).tolist() == [False, True, False]


@each
def test_all_nan_zero_and_empty_give_no_warning(function) -> None:
    assert np.isnan(function(np.full((3, 3), NAN)))
    assert np.isnan(function(np.zeros((3, 3))))
    assert function(np.zeros((0, 3, 3))).shape == (0,)


def test_bounds_hold_under_rounding() -> None:
    """Gradients along one line, of norms that no square root gives back."""
    scale = np.geomspace(1e-3, 1e3, 33) * 0.1
    gram = np.outer(scale, scale)
    assert 1.0 <= effective_rank(gram) < 1 + 1e-12
    assert 0.0 <= 1 - spectral_gap(gram) < 1e-12
    equal = np.full((7, 7), 0.1)
    assert dc_energy(equal) <= 1.0 and coherence(equal) <= 7.0
    assert dc_energy(np.outer((-1.0) ** np.arange(8), (-1.0) ** np.arange(8)) * 0.1) >= 0.0


def test_eigenvalues_below_zero_count_as_zero() -> None:
    """Of eigenvalues 3 and -1, as only an estimate can have."""
    assert effective_rank([[1.0, 2.0], [2.0, 1.0]]).item() == pytest.approx(1.0)
    assert spectral_gap([[1.0, 2.0], [2.0, 1.0]]) == 1.0


def test_one_step_alone() -> None:
    assert coherence([[4.0]]) == dc_energy([[4.0]]) == nyquist_energy([[4.0]]) == 1.0
    assert effective_rank([[4.0]]) == participation_ratio([[4.0]]) == 1.0


@each
def test_bad_input_is_named(function) -> None:
    for bad, shape in ((np.zeros(3), r"\(3,\)"), (np.zeros((3, 4)), r"\(3, 4\)"), (np.zeros((0, 0)), r"\(0, 0\)")):
        with pytest.raises(ValueError, match=rf"gram: expected shape \(\.\.\., m, m\).* got shape {shape}"):
            function(bad)
    with pytest.raises(ValueError, match=r"gram: expected symmetric matrices, got at least one that is not"):
        function([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    with pytest.raises(ValueError, match=r"gram: expected squared norms on the diagonal, got .* negative"):
        function([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]])


def test_too_few_steps_are_named() -> None:
    with pytest.raises(ValueError, match=r"m at least 3, got shape \(2, 2\)"):
        two_cycle_index(np.eye(2))
    with pytest.raises(ValueError, match=r"m at least 2, got shape \(1, 1\)"):
        spectral_gap(np.eye(1))


def test_a_trace_of_a_list_is_taken_as_well() -> None:
    assert analysis.coherence([[1.0, 1.0], [1.0, 1.0]]) == 2.0
