"""The steps of a run by execution: what is drawn, dispatched, named, logged and saved. Step and files are simulated."""

from types import SimpleNamespace

import pytest

from inception_jax.training import loop
from inception_jax.training.device_prefetch import InputStalled
from inception_jax.training.run_length import RunLength


class Run:
    """A run of 20 steps, up to 4 per execution; its batches are 1, 2, …, and its state is the newest one used.

    Attributes:
      calls: the batches of each execution.
      added: (first step, number of steps) of each execution, as the metrics got them.
      done: ("log", "evaluate" or "save", step), in order.
    """

    def __init__(self, monkeypatch, *, process_count=1, stalls_at=None, signal_at=None, silent_from=None):
        self.drawn, self.calls, self.added, self.done = 0, [], [], []
        self.stalls_at, self.signal_at, self.silent_from = stalls_at, signal_at, silent_from
        self.setup = SimpleNamespace(
            length=RunLength(10.0, 20, evaluate_every=13, save_every=9, log_every=7),
            steps_per_execution=4,
            devices=SimpleNamespace(process_count=process_count, flag=lambda requested: requested),
            logging=SimpleNamespace(pictures=False),
        )
        self.best = SimpleNamespace(metric=SimpleNamespace(name="top1"), add=lambda *_: None)
        self.target = SimpleNamespace(ends_run=False, add=lambda *_: False)
        self.ends_early = False
        clock = SimpleNamespace(start_lap=lambda: None, add=lambda *_: None)
        progress = SimpleNamespace(advance=lambda step: None)
        self.output = SimpleNamespace(clock=clock, progress=progress)
        self.batches = SimpleNamespace(next_batch=self.next_batch, pop_wait_seconds=lambda: 0.0)
        self.interrupts = SimpleNamespace(requested=self.requested)
        self.metrics = SimpleNamespace(
            stop_requested=False, add=lambda step, _, count: self.added.append((step, count))
        )
        self.steps = SimpleNamespace(train=self.train)
        monkeypatch.setattr(loop, "_log", lambda run, step, logged: self.done.append(("log", step)))
        monkeypatch.setattr(loop, "_evaluate", lambda run, state: self.done.append(("evaluate", state)) or {})
        monkeypatch.setattr(loop, "_save", lambda run, step, state, _: self.done.append(("save", step, state)))
        monkeypatch.setattr(loop.results, "metric_rows", lambda *_: [])
        monkeypatch.setattr(loop.results, "counted_metrics", lambda _: {"top1": 0.5})

    def next_batch(self):
        if self.drawn + 1 == self.silent_from:
            return None  # the wait for it was ended by a signal
        if self.drawn + 1 == self.stalls_at:
            raise InputStalled("no batch")
        self.drawn += 1
        return self.drawn if self.setup.devices.process_count == 1 else {"number": self.drawn}

    def requested(self):
        came = self.signal_at if self.silent_from is None else self.silent_from - 1
        return "SIGTERM" if came is not None and self.drawn >= came else None

    def train(self, state, batches):
        self.calls.append(batches)
        return self.drawn, {}

    def take_steps(self, start=0):
        self.drawn = start
        return loop._take_steps(self, start, start)


def test_the_steps_of_a_run(monkeypatch):
    run = Run(monkeypatch)
    assert run.take_steps() == (20, {}, None)
    assert [len(call) for call in run.calls] == [4, 3, 2, 4, 1, 4, 2]  # 7 log, 9 save, 13 evaluate, 14 log, 18 save
    assert [batch for call in run.calls for batch in call] == list(range(1, 21))
    assert run.added == [(call[0], len(call)) for call in run.calls]
    due = [("log", 7), ("save", 9, 9), ("evaluate", 13), ("log", 14), ("save", 18, 18)]
    assert run.done == [*due, ("log", 20), ("evaluate", 20), ("save", 20, 20)]


def test_a_continued_run_ends_its_executions_at_the_same_steps(monkeypatch):
    run = Run(monkeypatch)
    assert run.take_steps(9) == (20, {}, None)
    assert run.added == [(10, 4), (14, 1), (15, 4), (19, 2)]


def test_a_signal_ends_the_drawing_of_batches(monkeypatch):
    """The steps of those that are there are taken and saved, in place of waiting for the others."""
    run = Run(monkeypatch, signal_at=6)
    assert run.take_steps() == (6, {}, "SIGTERM")
    assert run.added == [(1, 4), (5, 2)] and run.done == [("save", 6, 6)]


def test_a_signal_while_no_batch_comes(monkeypatch):
    for silent_from, added in ((7, [(1, 4), (5, 2)]), (5, [(1, 4)])):
        run = Run(monkeypatch, silent_from=silent_from)
        assert run.take_steps() == (silent_from - 1, {}, "SIGTERM")
        assert run.added == added and run.done == [("save", silent_from - 1, silent_from - 1)]


def test_a_stalled_input_loses_no_batch_that_came(monkeypatch):
    for stalls_at, added in ((7, [(1, 4), (5, 2)]), (5, [(1, 4)])):
        run = Run(monkeypatch, stalls_at=stalls_at)
        with pytest.raises(InputStalled):
            run.take_steps()
        assert run.added == added and run.done == [("save", stalls_at - 1, stalls_at - 1)]


def test_several_processes_wait_for_all_batches_and_save_nothing_where_one_stalls(monkeypatch):
    """The others may be waiting inside the steps, with all of their batches."""
    run = Run(monkeypatch, process_count=2, stalls_at=7)
    with pytest.raises(InputStalled):
        run.take_steps()
    assert run.added == [(1, 4)] and run.done == []
    run = Run(monkeypatch, process_count=2, signal_at=6)
    run.take_steps()  # here no process reads that one asked to stop
    assert [len(call) for call in run.calls] == [4, 3, 2, 4, 1, 4, 2]
    assert [batch["stop"] for call in run.calls for batch in call] == [False] * 4 + [True] * 16
