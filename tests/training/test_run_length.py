"""The steps between two things that a run does."""

import pytest

from inception_jax.training.run_length import RunLength


@pytest.mark.parametrize(("evaluate", "save", "log"), [(10, 7, 4), (1, 23, 23), (5, 5, 100), (23, 23, 23)])
@pytest.mark.parametrize("limit", [1, 3, 50])
def test_nothing_is_due_within_an_execution(evaluate, save, log, limit):
    length = RunLength(2.5, 23, evaluate, save, log)
    intervals, step, counts = (evaluate, save, log), 0, []
    while step < 23:
        count = length.steps_until_due(step, limit)
        assert 1 <= count <= limit
        assert not any(
            length.is_due(between, every) for between in range(step + 1, step + count) for every in intervals
        )
        step += count
        counts.append(count)
        assert count == limit or any(length.is_due(step, every) for every in intervals)  # no shorter than it must be
    assert step == 23 and max(counts) == length.longest_execution(limit)
