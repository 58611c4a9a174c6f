"""Metrics between two rows of the log: means of sums, nothing lost by an interruption, NaN let through nowhere."""

import functools
import json

import jax.numpy as jnp
import pytest

from inception_jax.errors import NonFiniteLoss
from inception_jax.training.train_metrics import CorruptImages, TrainMetrics, explain_left_out


def metrics(loss, count=4, norm=1.0):
    return {
        name: jnp.float32(value)
        for name, value in {"loss": loss * count, "top1_main": count / 2, "count": count, "gradient_norm": norm}.items()
    }


def test_means_per_example_and_per_step():
    window = TrainMetrics()
    window.add(1, metrics(1.0, count=1, norm=2.0))
    window.add(2, metrics(4.0, count=3, norm=4.0))
    assert window.pop_row() == {"loss": pytest.approx(13 / 4), "top1_main": 0.5, "gradient_norm": 3.0}


def test_take_begins_again():
    window = TrainMetrics()
    window.add(1, metrics(1.0))
    window.pop_row()
    window.add(2, metrics(3.0))
    assert window.pop_row()["loss"] == 3.0


def test_an_interrupted_window_goes_on_to_the_same_row():
    losses = [0.1, 0.7, 1 / 3, 2.5]
    whole, first = TrainMetrics(), TrainMetrics()
    for step, loss in enumerate(losses, 1):
        whole.add(step, metrics(loss))
    for step in (1, 2, 3):
        first.add(step, metrics(losses[step - 1]))
    second = TrainMetrics(json.loads(json.dumps(first.state())))
    second.add(4, metrics(losses[3]))
    assert second.pop_row() == whole.pop_row()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(loss):
    window = TrainMetrics()
    window.add(7, metrics(loss))
    with pytest.raises(NonFiniteLoss, match="step 7") as error:
        window.state()
    assert error.value.exit_code == 3


def test_a_gradient_that_is_not_finite_stops_it_too():
    """The loss of that step is still good, but the parameters are gone: they must not be saved."""
    window = TrainMetrics()
    window.add(7, metrics(1.0, norm=float("nan")))
    with pytest.raises(NonFiniteLoss, match="gradient norm nan"):
        window.state()


def test_it_is_found_two_steps_late_at_the_latest():
    window = TrainMetrics()
    window.add(1, metrics(float("nan")))
    window.add(2, metrics(1.0))
    with pytest.raises(NonFiniteLoss, match="step 1"):
        window.add(3, metrics(1.0))


def together(*losses, **others):
    """The metrics of steps that were dispatched together; the program has room for one more."""
    rows = {name: [float(metrics(loss)[name]) for loss in losses] for name in metrics(1.0)} | others
    return {name: jnp.asarray([*row, 0]) for name, row in rows.items()}


def test_steps_dispatched_together_are_those_of_single_calls():
    losses = [0.1, 0.7, 1 / 3, 2.5, 1.25]
    single, several = TrainMetrics(), TrainMetrics()
    for step, loss in enumerate(losses, 1):
        single.add(step, metrics(loss))
    several.add(1, together(*losses[:3]), 3)
    several.add(4, together(*losses[3:]), 2)
    assert several.state() == single.state()


def test_a_bad_step_among_others_is_named_one_call_late_at_the_latest():
    window = TrainMetrics()
    window.add(1, together(1.0, float("nan"), 1.0), 3)
    with pytest.raises(NonFiniteLoss, match="step 2 is not finite"):
        window.add(4, together(1.0), 1)


def test_any_step_of_a_call_requests_to_stop():
    window = TrainMetrics()
    window.add(1, together(1.0, 1.0, stop=[0, 2]), 2)
    assert not window.stop_requested
    window.add(3, together(1.0, 1.0, stop=[0, 0]), 2)
    assert window.stop_requested


def skipped(**others):
    return {
        name: jnp.float32(value)
        for name, value in {"loss": 0, "top1_main": 0, "count": 0, "gradient_norm": 0, "skipped": 1, **others}.items()
    }


def good(loss, **others):
    return metrics(loss) | {name: jnp.float32(value) for name, value in {"skipped": 0, **others}.items()}


def test_skipped_steps_are_counted_and_weigh_nothing():
    window = TrainMetrics(max_skipped=2)
    for step, one in enumerate((good(1.0), skipped(), skipped(), good(3.0)), 1):
        window.add(step, one)
    assert window.pop_row() == {"loss": 2.0, "top1_main": 0.5, "gradient_norm": 1.0, "skipped": 2}
    window.add(5, good(5.0))
    assert window.pop_row()["skipped"] == 0


def test_a_window_of_skipped_steps_still_gives_a_row():
    window = TrainMetrics(max_skipped=2)
    window.add(1, skipped())
    assert window.pop_row() == {"skipped": 1}


def test_too_many_skipped_steps_in_a_row_are_named_across_rows_and_resumes():
    first = TrainMetrics(max_skipped=2, loss_limit=9.0)
    for step, one in enumerate((skipped(), good(1.0), skipped()), 1):
        first.add(step, one)
    first.pop_row()  # a row ends between the skipped steps
    second = TrainMetrics(json.loads(json.dumps(first.state())), max_skipped=2, loss_limit=9.0)
    second.add(4, skipped())
    second.state()
    second.add(5, skipped())
    with pytest.raises(NonFiniteLoss, match=r"^steps 3 to 5 were skipped.*loss_limit = 9.*max_skipped_steps = 2"):
        second.state()


def test_a_good_step_between_them_starts_the_count_again():
    window = TrainMetrics(max_skipped=1)
    for step, one in enumerate((skipped(), good(1.0), skipped(), good(1.0)), 1):
        window.add(step, one)
    assert window.pop_row()["skipped"] == 2


def test_a_loss_above_the_limit_has_diverged():
    window = TrainMetrics(loss_limit=2.5)
    window.add(1, metrics(2.5))
    window.state()
    window.add(2, metrics(2.6))
    with pytest.raises(NonFiniteLoss, match=r"step 2 has diverged: above config.faults.loss_limit = 2.5 \(loss 2.6,"):
        window.state()


def test_the_error_about_corrupt_images_names_them_and_what_is_counted():
    explain = functools.partial(explain_left_out, {"b.png", "a.png", "c.png"})
    window = TrainMetrics(batch_size=6, max_corrupt=1, explain_corrupt=explain)
    window.add(1, good(1.0))
    with pytest.raises(CorruptImages, match=r"max_corrupt = 1; a.png, b.png, c.png: .* counts again whenever"):
        window.state()
    assert "lines on standard error name them" in explain_left_out(())
    assert explain_left_out([f"{n:02}" for n in range(30)]).startswith("; 00, 01, ")
    assert "18, 19, …: replace" in explain_left_out([f"{n:02}" for n in range(30)])


def test_corrupt_images_are_counted_over_the_whole_run():
    options = {"batch_size": 6, "max_corrupt": 5, "max_skipped": 1}
    first = TrainMetrics(**options)
    first.add(1, good(1.0))  # four of six were counted
    first.add(2, skipped())  # of a skipped step nobody knows
    assert first.pop_row() == {"loss": 1.0, "top1_main": 0.5, "gradient_norm": 1.0, "skipped": 1, "corrupt": 2}
    first.add(3, good(1.0))
    second = TrainMetrics(json.loads(json.dumps(first.state())), **options)
    assert second.pop_row()["corrupt"] == 2
    second.add(4, good(1.0))
    with pytest.raises(CorruptImages, match=r"6 images that were drawn by step 4 could not .*max_corrupt = 5$"):
        second.state()


def test_a_wish_to_stop_is_read_two_steps_late_and_is_no_metric():
    window = TrainMetrics()
    for step, stop in enumerate((0, 3, 0), 1):
        window.add(step, metrics(1.0) | {"stop": jnp.float32(stop)})
    assert not window.stop_requested
    window.add(4, metrics(1.0) | {"stop": jnp.float32(0)})
    assert window.stop_requested
    assert "stop" not in window.state()
    assert window.pop_row() == {"loss": 1.0, "top1_main": 0.5, "gradient_norm": 1.0}
