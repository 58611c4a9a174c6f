"""What the other processes do when one of a run stops answering, fails, or finishes early."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from inception_jax.multihost.heartbeat import HeartbeatMonitor, PeerHeartbeats

SCENARIOS = Path(__file__).with_name("heartbeat_scenarios.py")


@pytest.fixture
def start_pair(start_command):
    started = []

    def start(*actions):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started.extend(start_command(SCENARIOS, port, index, *action) for index, action in enumerate(actions))
        return started[-2:]

    yield start
    for process in started:
        process.kill()


def said(process):
    return process.written()[1]


def wait_until_joined(process):
    deadline = time.monotonic() + 60
    while "joined" not in process.written()[0]:
        assert time.monotonic() < deadline, said(process)
        time.sleep(0.05)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_stops_answering(start_pair, signal_number):
    first, second = start_pair(["work", 300], ["work", 300])
    wait_until_joined(first)
    wait_until_joined(second)
    second.send_signal(signal_number)
    assert first.wait(timeout=60) == 8, said(first)
    assert "error: process 1 of this run has sent no heartbeat for " in said(first)
    assert "start all of them again" in said(first)


def test_the_coordinator_stops_answering(start_pair):
    first, second = start_pair(["work", 300], ["work", 300])
    wait_until_joined(first)
    wait_until_joined(second)
    first.send_signal(signal.SIGSTOP)
    assert second.wait(timeout=60) == 8, said(second)
    assert "error: process 0 of this run, the coordinator, has not answered for " in said(second)


def test_the_coordinator_is_killed(start_pair):
    """JAX's client in the other process aborts at once (134 in a shell), before our heartbeat can act."""
    first, second = start_pair(["work", 300], ["work", 300])
    wait_until_joined(first)
    wait_until_joined(second)
    first.kill()
    assert second.wait(timeout=60) == -signal.SIGABRT, said(second)


@pytest.mark.parametrize("who", [0, 1])
def test_one_fails(start_pair, who):
    actions = [["work", 300], ["work", 300]]
    actions[who] = ["fail"]
    pair = start_pair(*actions)
    wait_until_joined(pair[1 - who])
    start = time.monotonic()
    assert pair[1 - who].wait(timeout=60) == 8, said(pair[1 - who])
    assert f"error: process {who} of this run has ended with an error; start all of them" in said(pair[1 - who])
    assert pair[who].wait(timeout=60) == 2
    assert said(pair[who]).endswith("error: the input is bad\n")
    assert time.monotonic() - start < 30


def test_both_fail_alike_at_once(start_pair):
    pair = start_pair(["fail"], ["fail"])
    assert [process.wait(timeout=60) for process in pair] == [2, 2]
    assert all("the input is bad" in said(process) and "this run" not in said(process) for process in pair)


@pytest.mark.parametrize("actions", [[["work", 0], ["work", 9]], [["work", 9], ["work", 0]]])
def test_one_has_done_its_work_long_before_the_other(start_pair, actions):
    pair = start_pair(*actions)
    assert [process.wait(timeout=90) for process in pair] == [0, 0], said(pair[0]) + said(pair[1])
    assert all(process.written()[0].endswith("done\n") for process in pair)


def test_peer_heartbeats():
    peers = PeerHeartbeats([0, 2], timeout=10, now=0)
    assert peers.find_lost({0: "1", 2: "1"}, now=8) is None
    assert peers.find_lost({0: "2", 2: "1"}, now=17) is None
    assert "process 2 of this run has sent no heartbeat for 11 s" == peers.find_lost({0: "3", 2: "1"}, now=19)
    assert peers.find_lost({0: "4", 2: "2"}, now=20) is None
    assert peers.find_lost({0: "done 5", 2: "3"}, now=21) is None
    assert peers.find_lost({0: "done 5", 2: "4"}, now=40) is None
    assert not peers.all_gone({0: "done 6", 2: "gone"}, now=41, silence=5)  # it waits for process 0
    assert not peers.all_gone({0: "gone", 2: "failed"}, now=42, silence=5)  # it may still print its error
    assert not peers.all_gone({0: "gone", 2: "failed"}, now=47, silence=5)
    assert peers.all_gone({0: "gone", 2: "failed"}, now=47.5, silence=5)
    assert "process 2 of this run has ended with an error" == peers.find_lost({0: "done 6", 2: "failed"}, now=48)


def test_a_process_that_never_sent_a_heartbeat():
    peers = PeerHeartbeats([1], timeout=10, now=0)
    assert peers.find_lost({}, now=10) is None
    assert "process 1" in peers.find_lost({}, now=10.5)


class InMemoryStore(dict):
    """A store of this process."""

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        self[key] = value

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.items() if key.startswith(prefix)]


def make_monitor(store, process, timeout=0.5):  # it then checks every tenth of a second
    return HeartbeatMonitor(store, process, 2, timeout=timeout, exit_code=8, advice="begin again")


def test_process_0_waits_until_the_others_have_read_that_it_failed():
    """They need 4 intervals: to read it, to check, and two of grace."""
    store = InMemoryStore()
    first = make_monitor(store, 0, timeout=5)
    first.start()
    store["inception_jax/heartbeats/1"] = "1"
    begun = time.monotonic()
    other = make_monitor(store, 1, timeout=5)
    threading.Timer(1, store.__setitem__, ["inception_jax/heartbeats/1", "failed"]).start()
    threading.Timer(4.5, other.leave).start()
    first.stop(failed=True, wait_for_others=True)
    assert 4.5 <= time.monotonic() - begun < 8 and store["inception_jax/heartbeats/0"] == "failed"


@pytest.mark.parametrize("stay", [False, True])
def test_process_0_does_not_wait_for_ever(stay):
    store = InMemoryStore()
    first = make_monitor(store, 0)
    first.start()
    store["inception_jax/heartbeats/1"] = "1"
    begun = time.monotonic()
    first.stop(failed=True, wait_for_others=stay)
    assert time.monotonic() - begun > 0.4 * stay and not first._exchanger.is_alive()


@pytest.mark.parametrize(("after_the_grace", "ends"), [(None, False), ("process 0 of this run is silent", True)])
def test_who_answers_within_the_grace_is_not_lost(monkeypatch, capsys, after_the_grace, ends):
    second = make_monitor(InMemoryStore(), 1)
    looks = iter(["process 0 of this run is silent", after_the_grace])

    def lost():
        try:
            return next(looks)
        except StopIteration:
            second._done.set()

    codes = []
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), second._done.set()))
    monkeypatch.setattr(second, "_find_lost", lost)
    second._check_loop()
    assert codes == [8] * ends
    assert capsys.readouterr().err == "error: process 0 of this run is silent; begin again\n" * ends


def test_a_store_that_blocks_its_callers():
    waiting = threading.Event()

    class Silent(InMemoryStore):
        def key_value_set(self, key, value, allow_overwrite=False):
            waiting.wait(60)

    second = make_monitor(Silent(), 1, timeout=50)
    second._exchanger.start()
    try:
        assert second._find_lost() is None
        second._answered -= 60
        assert second._find_lost().startswith("process 0 of this run, the coordinator, has not answered for 6")
    finally:
        waiting.set()
