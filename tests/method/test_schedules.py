import math

import numpy as np
import pytest

from dino_lib.schedules import cosine_schedule, half_life, linear_warmup


def plain_cosine(base, final, total_steps, warmup_steps, start):
    """The definition, one value at a time."""
    values = []
    for step in range(total_steps):
        if step < warmup_steps:
            values.append(start + (base - start) * step / max(warmup_steps - 1, 1))
        else:
            i, n = step - warmup_steps, total_steps - warmup_steps
            values.append(final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / n)))
    return values


@pytest.mark.parametrize(
    ("base", "final", "total_steps", "warmup_steps", "start"),
    [
        (5e-4, 1e-6, 100, 10, 0.0),
        (0.04, 0.4, 77, 0, 0.0),
        (0.996, 1.0, 50, 0, 0.0),
        (1.0, 0.1, 20, 1, 0.3),
        (1.0, 0.1, 20, 19, 0.2),
        (1.0, 0.1, 5, 5, 0.2),
    ],
)
def test_cosine_is_the_definition(base, final, total_steps, warmup_steps, start):
    schedule = cosine_schedule(base, final, total_steps, warmup_steps=warmup_steps, start=start)
    assert schedule.shape == (total_steps,) and schedule.dtype == np.float64
    np.testing.assert_allclose(
        schedule, plain_cosine(base, final, total_steps, warmup_steps, start), rtol=1e-12
    )


def test_cosine_starts_at_base_passes_the_middle_and_stops_short_of_final():
    schedule = cosine_schedule(2.0, 1.0, 100)
    assert schedule[0] == 2.0
    assert schedule[50] == pytest.approx(1.5)
    assert schedule[-1] > 1.0 and schedule[-1] == pytest.approx(1.0, abs=1e-3)
    assert (np.diff(schedule) < 0).all()


def test_warmup_is_linspace_and_then_base_comes_twice():
    schedule = cosine_schedule(0.8, 0.0, 30, warmup_steps=7, start=0.1)
    np.testing.assert_array_equal(schedule[:7], np.linspace(0.1, 0.8, 7))
    assert schedule[6] == schedule[7] == 0.8  # the warm-up's last value, the cosine's first


def test_warmup_starts_at_zero_unless_told():
    assert cosine_schedule(1.0, 0.0, 10, warmup_steps=4)[0] == 0.0


def test_warmup_of_the_whole_run_ends_at_base():
    np.testing.assert_array_equal(
        cosine_schedule(1.0, 0.0, 4, warmup_steps=4), np.linspace(0, 1, 4)
    )


@pytest.mark.parametrize("warmup_steps", [-1, 11])
def test_wrong_warmup_is_refused(warmup_steps):
    with pytest.raises(ValueError, match=f"warmup_steps={warmup_steps} .*total_steps=10"):
        cosine_schedule(1.0, 0.0, 10, warmup_steps=warmup_steps)


def test_linear_warmup_then_constant():
    schedule = linear_warmup(0.04, 0.07, 10, 4)
    assert schedule.shape == (10,) and schedule.dtype == np.float64
    np.testing.assert_allclose(schedule, [0.04, 0.05, 0.06, 0.07] + [0.07] * 6, rtol=1e-12)


@pytest.mark.parametrize(
    ("warmup_steps", "expected"),
    [
        (0, [7.0, 7.0, 7.0]),
        (1, [4.0, 7.0, 7.0]),
        (3, [4.0, 5.5, 7.0]),
        (7, [4.0, 4.5, 5.0]),  # longer than the run: cut off, not squeezed
    ],
)
def test_linear_warmup_edges(warmup_steps, expected):
    np.testing.assert_allclose(linear_warmup(4, 7, 3, warmup_steps), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("momentum", "steps"), [(0.99, 69), (0.996, 173), (0.9995, 1386), (0.5, 1)]
)
def test_half_life_published(momentum, steps):
    assert round(half_life(momentum)) == steps
    assert momentum ** half_life(momentum) == pytest.approx(0.5)


def test_half_life_at_the_ends():
    assert half_life(1) == math.inf
    for momentum in (0, -0.1, 1.001):
        with pytest.raises(ValueError, match=f"momentum={momentum}"):
            half_life(momentum)
