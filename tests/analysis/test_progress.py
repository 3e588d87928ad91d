"""The four progress shares on loss curves small enough to add up by hand."""

import math

import numpy as np
import pytest

from fastgeom.analysis import THETAS, ProgressShares, classify, progress_sensitivity, progress_shares

NAN, INF = math.nan, math.inf
DEFINITIONS = ("net", "gross", "log_loss", "segment")


def assert_shares(shares: ProgressShares, **expected: tuple[float, float, float]) -> None:
    for definition, values in expected.items():
        np.testing.assert_allclose(getattr(shares, definition), values, rtol=1e-12, atol=1e-15, err_msg=definition)


def test_every_definition_by_hand() -> None:
    """Losses 16 8 4 2 4 1; two smooth steps, one mixed, two zigzag, the last row without a successor.

    Changes 8, 4 (smooth), 2 (mixed), -2, 3 (zigzag); f_0 - f_T = 15, decreases 17, ln ratio ln 16.
    Segments: smooth 16 - 8 (rows 0, 1); zigzag rows 3, 4, 5: 2 - 1; mixed one row: 0.
    """
    shares = progress_shares([16, 8, 4, 2, 4, 1], [1, 1, 0, -1, -1, -1])
    assert_shares(
        shares,
        net=(12 / 15, 2 / 15, 1 / 15),
        gross=(12 / 17, 2 / 17, 3 / 17),
        log_loss=(2 / 4, 1 / 4, 1 / 4),
        segment=(8 / 15, 0, 1 / 15),
    )


def test_definitions_disagree_in_sign() -> None:
    """Two zigzag stretches of which each ends above its start, while the steps that leave them fall far."""
    loss = [10, 9, 9.5, 11, 6, 6.5, 8, 2]
    shares = progress_shares(loss, [0, -1, -1, -1, 0, -1, -1, 0])
    assert shares.segment.zigzag == pytest.approx((9 - 11 + 6.5 - 8) / 8)
    assert shares.net.zigzag == pytest.approx((9 - 6 + 6.5 - 2) / 8)
    assert shares.segment.zigzag < 0 < shares.net.zigzag


def test_net_can_be_negative_where_gross_is_not() -> None:
    shares = progress_shares([10, 5, 9, 8, 1], [0, -1, -1, 0, 0])
    assert_shares(shares, net=(0, 12 / 9, -3 / 9), gross=(0, 12 / 13, 1 / 13))


def test_change_belongs_to_the_step_that_makes_it() -> None:
    """Only step 1 is smooth, and only f_1 - f_2 is not 0."""
    assert progress_shares([3, 3, 1, 1], [0, 1, 0, 0]).net == (1, 0, 0)
    assert progress_shares([3, 3, 1, 1], [1, 0, 1, 1]).net == (0, 1, 0)


def test_label_of_the_last_row_changes_nothing_but_segments() -> None:
    for last in (-1, 0, 1):
        assert_shares(progress_shares([4, 2, 1], [1, -1, last]), net=(2 / 3, 0, 1 / 3), gross=(2 / 3, 0, 1 / 3))


def test_shares_add_up_to_one_where_all_is_known() -> None:
    rng = np.random.default_rng(3)
    loss = np.exp(np.linspace(1, -2, 200) + 0.3 * rng.standard_normal(200))
    shares = progress_shares(loss, rng.integers(-1, 2, 200))
    for definition in ("net", "gross", "log_loss"):
        assert sum(getattr(shares, definition)) == pytest.approx(1.0), definition


def test_a_gap_belongs_to_no_regime() -> None:
    """Steps 0 1 | 5 6: the fall of 4 over the gap stays in f_0 - f_T and in no sum."""
    shares = progress_shares([10, 8, 4, 2], [1, 1, -1, -1], step=[0, 1, 5, 6])
    assert_shares(shares, net=(2 / 8, 0, 2 / 8), gross=(1 / 2, 0, 1 / 2))
    assert shares.log_loss.smooth == pytest.approx(math.log(10 / 8) / math.log(5))


@pytest.mark.parametrize("unknown", [NAN, INF])
def test_a_loss_that_is_not_finite_makes_both_its_changes_unknown(unknown: float) -> None:
    shares = progress_shares([10, 8, unknown, 4, 2], [1, 1, -1, -1, 0])
    assert_shares(shares, net=(2 / 8, 0, 2 / 8), segment=(2 / 8, 0, 0))


def test_a_diverged_run_counts_up_to_its_last_finite_loss() -> None:
    shares = progress_shares([8, 4, 2, INF, NAN], [1, 1, 1, 0, 0])
    assert_shares(shares, net=(1, 0, 0), gross=(1, 0, 0), log_loss=(1, 0, 0), segment=(1, 0, 0))


def test_no_progress_is_nothing_to_share() -> None:
    rising = progress_shares([1, 2, 3], [1, 1, 1])
    assert all(np.isnan(getattr(rising, definition)).all() for definition in DEFINITIONS)
    up_and_down = progress_shares([2, 3, 2], [1, -1, 0])
    assert np.isnan(up_and_down.net).all()
    assert up_and_down.gross == (0, 0, 1)


def test_log_loss_needs_positive_losses() -> None:
    for loss in ([2, 1, 0], [2, 1, -1]):
        shares = progress_shares(loss, [1, 1, 1])
        assert np.isnan(shares.log_loss).all()
        assert shares.net == (1, 0, 0)


@pytest.mark.parametrize("loss", [[], [1.0], [NAN, NAN, NAN], [INF, INF]])
def test_too_little_is_nan_without_a_warning(loss: list[float]) -> None:
    shares = progress_shares(loss, [0] * len(loss))
    assert all(np.isnan(getattr(shares, definition)).all() for definition in DEFINITIONS)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"labels: expected shape \(3,\), that of loss, got \(2,\)"):
        progress_shares([3, 2, 1], [1, 1])
    with pytest.raises(ValueError, match=r"labels: expected only \[-1, 0, 1\], got \[0, 2\]"):
        progress_shares([3, 2, 1], [0, 2, 0])
    with pytest.raises(ValueError, match=r"loss: expected .* got shape \(1, 3\)"):
        progress_shares([[3, 2, 1]], [0, 0, 0])
    with pytest.raises(ValueError, match=r"step: expected strictly increasing"):
        progress_shares([3, 2, 1], [0, 0, 0], step=[0, 2, 2])
    with pytest.raises(ValueError, match=r"step: expected one number for each of the 3 rows"):
        progress_shares([3, 2, 1], [0, 0, 0], step=[0, 1])
    with pytest.raises(ValueError, match=r"step: expected integers, got dtype float64"):
        progress_shares([3, 2, 1], [0, 0, 0], step=[0.0, 1.0, 2.0])


def test_sensitivity_is_the_shares_at_each_threshold() -> None:
    rng = np.random.default_rng(4)
    loss = np.exp(np.linspace(1, -2, 300) + 0.1 * rng.standard_normal(300))
    cosine, step = np.sin(np.linspace(0, 40, 300)), np.arange(300) + (np.arange(300) > 150)
    shares = progress_sensitivity(loss, cosine, step, min_run=3)
    assert shares == tuple(progress_shares(loss, classify(cosine, theta, 3), step) for theta in THETAS)
    assert shares[0].net.zigzag != shares[-1].net.zigzag
    assert progress_sensitivity(loss, cosine, step, thetas=(0.7,), min_run=3) == (
        progress_shares(loss, classify(cosine, 0.7, 3), step),
    )


def test_bad_input_of_the_sensitivity_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected arrays of one shape, got loss \(3,\), adjacent_cosine \(2,\)"):
        progress_sensitivity([3, 2, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"theta: expected a number between 0 and 1.*got 1.5"):
        progress_sensitivity([3, 2], [0.5, 0.5], thetas=(0.5, 1.5))
    nothing = progress_sensitivity([3, 2], [NAN, NAN])
    assert all(shares.net == (0, 1, 0) for shares in nothing)
