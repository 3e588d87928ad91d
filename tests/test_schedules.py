"""Which steps the schedules choose."""

import numpy as np
import pytest

from fastgeom import bursts, every


@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_n_chooses_the_multiples_of_n(n) -> None:
    assert [step for step in range(50) if every(n)(step)] == list(range(0, 50, n))


@pytest.mark.parametrize(("period", "length"), [(10, 1), (10, 3), (10, 10), (1, 1)])
def test_bursts_choose_adjacent_steps_at_the_start_of_each_period(period, length) -> None:
    chosen = [step for step in range(50) if bursts(period, length)(step)]
    assert chosen == [start + i for start in range(0, 50, period) for i in range(length)]


def test_a_schedule_s_answer_is_a_bool_and_does_not_depend_on_what_was_asked_before() -> None:
    for schedule in (every(3), bursts(every=6, length=2)):
        answers = {step: schedule(step) for step in (12, 0, 7, 10**12)}
        assert all(type(answer) is bool for answer in answers.values())
        assert {step: schedule(step) for step in sorted(answers)} == answers


@pytest.mark.parametrize("n", [0, -1, 1.0, "2", True, None])
def test_a_period_that_is_no_integer_of_at_least_one_is_refused_by_name(n) -> None:
    with pytest.raises(ValueError, match=r"^n: expected an integer of at least 1, got "):
        every(n)
    with pytest.raises(ValueError, match=r"^every: expected an integer of at least 1, got "):
        bursts(every=n, length=1)
    with pytest.raises(ValueError, match=r"^length: expected an integer of at least 1, got "):
        bursts(every=4, length=n)


def test_periods_may_be_numpys_integers() -> None:
    assert repr(every(np.int64(3))) == "every(3)"
    schedule = bursts(every=np.int32(6), length=np.uint8(2))
    assert repr(schedule) == "bursts(every=6, length=2)"
    assert [step for step in range(12) if schedule(step)] == [0, 1, 6, 7]
    assert type(schedule(0)) is bool


def test_a_burst_longer_than_its_period_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^length: expected at most every = 4, got 5$"):
        bursts(every=4, length=5)
