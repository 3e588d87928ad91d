"""Which step each row of a ring holds, counted by hand."""

import pytest
import torch

from fastgeom.engines.cpu.ring_index import RingIndex
from tests.support import assert_same_bits


def index_after(*steps, n_rows=3, window=3):
    """The index after these steps, each with its own number as the norm."""
    index = RingIndex(n_rows, window, (1,))
    for step in steps:
        index.evict_oldest()
        index.commit(step, torch.tensor([0.0 if step is None else step]))
    return index


@pytest.mark.parametrize(
    ("steps", "now", "lags"),
    [
        ((), 0, []),
        ((0,), 1, [1]),
        ((0, 1), 2, [1, 2]),
        ((0, 1, 2, 3), 4, [1, 2, 3]),
        ((0, 1, 2, 3), 5, [2, 3]),
        ((0, 2, 5), 6, [1]),
        ((0, 2, 5), 8, [3]),
        ((0, 1, 2), 9, []),
        ((0, None, 2), 3, [1, 3]),
        ((0, 1, None), 3, [2, 3]),
    ],
)
def test_lags_are_steps_within_the_window_the_nearest_first(steps, now, lags) -> None:
    result = index_after(*steps).lags(now)
    assert result.lags == lags
    assert_same_bits(result.norms, torch.tensor([[float(now - lag) for lag in lags]], dtype=torch.float64))
    assert (result.previous is None) == (lags[:1] != [1])


def test_a_ring_longer_than_the_window_knows_lags_of_earlier_steps_too() -> None:
    index = index_after(0, 1, 2, 3, 4, n_rows=5, window=2)
    assert [index.lags(step).lags for step in range(7)] == [[], [1], [1, 2], [1, 2], [1, 2], [1, 2], [2]]


def test_x() -> None:
    index = index_after(0, 1, 2)
    first = index.lags(3).rows[-1]
    assert index.evict_oldest() == first
    assert index.lags(3).lags == [1, 2]
    assert index.evict_oldest() == first, "a pass that failed is done again"
    index.commit(3, torch.ones(1))
    assert index.lags(4).lags == [1, 2, 3] and index.lags(4).previous == first
    assert len(set(index.lags(4).rows)) == 3


def test_values_are_spread_over_the_window_with_nan_between() -> None:
    nan = torch.nan
    values = torch.arange(4.0, dtype=torch.float64).reshape(2, 2)
    spread = index_after(0, 2).lags(3).spread(values)
    assert_same_bits(spread, torch.tensor([[0, nan, 1], [2, nan, 3]], dtype=torch.float64))
    assert index_after(0, 1, 2).lags(3).spread(values) is values
    assert index_after().lags(0).spread(torch.empty(2, 0)).isnan().sum() == 6
