"""Properties of a schedule: where it begins and ends, that it has no jumps, and that it stays where it ended."""

import itertools

import pytest

from launch.training.schedules import cosine, linear, one_cycle, step, warm_up

FALLING = {"linear": linear, "cosine": cosine}
POINTS = [point / 100 for point in range(401)]


@pytest.mark.parametrize("name", FALLING)
@pytest.mark.parametrize("end", [0.0, 0.2])
@pytest.mark.parametrize("epochs", [1, 4, 2.5])
def test_falls_from_1_to_its_end_and_stays_there(name, end, epochs):
    """A recipe may train on, as a sweep's last epoch or a rounded number of steps does."""
    factor = FALLING[name](epochs, end=end)
    values = [factor(epochs * point) for point in POINTS]
    assert (values[0], values[50]) == (pytest.approx(1), pytest.approx((1 + end) / 2))
    assert values[100:] == pytest.approx([end] * 301)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values))
    assert FALLING[name](epochs)(epochs) == pytest.approx(0)


def test_cosine_is_flat_at_both_ends():
    factor = cosine(10)
    assert 1 - factor(0.5) < 0.01
    assert factor(9.5) < 0.01
    assert linear(10)(0.5) == pytest.approx(0.95)  # control


def test_steps_are_whole_numbers_of_epochs():
    """Just before the second epoch ends the rate is the first; at its end it is a tenth."""
    factor = step(2)
    assert [factor(epoch) for epoch in (0, 1, 1.5, 1.999)] == [1] * 4
    assert [factor(epoch) for epoch in (2, 3.999, 4, 9)] == pytest.approx([0.1, 0.1, 0.01, 1e-4])
    assert step(0.5, factor=0.25)(1.1) == pytest.approx(1 / 16)


def test_one_cycle_rises_for_its_part_then_falls_and_stays():
    factor = one_cycle(10, up=0.3, start=0.1, end=0.01)
    values = [factor(10 * point) for point in POINTS]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == pytest.approx(1)
    assert values.index(max(values)) == 30
    assert all(later >= earlier for earlier, later in itertools.pairwise(values[:31]))
    assert all(later <= earlier for earlier, later in itertools.pairwise(values[30:]))
    assert values[100:] == pytest.approx([0.001] * 301)
    assert one_cycle(10)(0) == pytest.approx(1 / 25)
    assert one_cycle(10)(10) == pytest.approx(1e-4 / 25)


def test_warm_up_begins_low_meets_the_other_where_it_begins_and_shifts_it():
    factor = warm_up(2, cosine(8))
    assert factor(0) == pytest.approx(0.01)
    assert factor(1) == pytest.approx((0.01 + 1) / 2)
    assert factor(2 - 1e-9) == pytest.approx(factor(2), abs=1e-6)
    assert factor(2) == pytest.approx(1)
    assert [factor(2 + epoch) for epoch in (1, 4, 8, 9)] == pytest.approx([cosine(8)(epoch) for epoch in (1, 4, 8, 9)])
    assert warm_up(2, step(1), start=0.5)(0) == pytest.approx(0.5)


def test_no_warm_up_is_the_other_schedule():
    assert [warm_up(0, cosine(3))(epoch) for epoch in (0, 1, 3)] == [cosine(3)(epoch) for epoch in (0, 1, 3)]


@pytest.mark.parametrize("made", [linear(3), cosine(3), one_cycle(3), warm_up(1, cosine(2)), warm_up(1, linear(2, end=0.1))])
def test_a_rate_never_jumps_nor_is_negative(made):
    values = [made(point / 100) for point in range(500)]
    assert min(values) >= 0
    assert max(abs(later - earlier) for earlier, later in itertools.pairwise(values)) < 0.03
