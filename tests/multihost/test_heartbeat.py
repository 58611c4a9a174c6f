"""What becomes of the others when a process of a run falls silent, fails, or has simply nothing left to do."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inception_jax.multihost.heartbeat import Signs, Watch

SCENARIOS = Path(__file__).with_name("heartbeat_scenarios.py")


@pytest.fixture
def start_pair(request, tmp_path):
    def start(*deeds):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "PYTHONPATH": str(request.config.rootpath), "JAX_PLATFORMS": "cpu"}
        pair = []
        for index, deed in enumerate(deeds):
            with open(tmp_path / f"{index}.err", "w") as err, open(tmp_path / f"{index}.out", "w") as out:
                pair.append(
                    subprocess.Popen(
                        [sys.executable, str(SCENARIOS), str(port), str(index), *map(str, deed)],
                        stdout=out,
                        stderr=err,
                        env=environment,
                    )
                )
            request.addfinalizer(lambda process=pair[-1]: (process.kill(), process.wait()))
        return pair

    return start


def said(tmp_path, index):
    return (tmp_path / f"{index}.err").read_text()


def wait_until_joined(tmp_path, index):
    deadline = time.monotonic() + 60
    while "joined" not in (tmp_path / f"{index}.out").read_text():
        assert time.monotonic() < deadline, said(tmp_path, index)
        time.sleep(0.05)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_one_falls_silent(start_pair, tmp_path, blow):
    first, second = start_pair(["work", 300], ["work", 300])
    wait_until_joined(tmp_path, 0)
    wait_until_joined(tmp_path, 1)
    second.send_signal(blow)
    assert first.wait(timeout=60) == 8, said(tmp_path, 0)
    assert "error: process 1 of this run has given no sign of life for " in said(tmp_path, 0)
    assert "start all of them again" in said(tmp_path, 0)


def test_where_all_meet_falls_silent(start_pair, tmp_path):
    first, second = start_pair(["work", 300], ["work", 300])
    wait_until_joined(tmp_path, 0)
    wait_until_joined(tmp_path, 1)
    first.send_signal(signal.SIGSTOP)
    assert second.wait(timeout=60) == 8, said(tmp_path, 1)
    assert "error: process 0 of this run, where the others meet, has not answered for " in said(tmp_path, 1)


@pytest.mark.parametrize("who", [0, 1])
def test_one_fails(start_pair, tmp_path, who):
    deeds = [["work", 300], ["work", 300]]
    deeds[who] = ["fail"]
    pair = start_pair(*deeds)
    wait_until_joined(tmp_path, 1 - who)
    start = time.monotonic()
    assert pair[1 - who].wait(timeout=60) == 8, said(tmp_path, 1 - who)
    assert f"error: process {who} of this run has ended with an error; start all of them" in said(tmp_path, 1 - who)
    assert pair[who].wait(timeout=60) == 2
    assert said(tmp_path, who).endswith("error: the milk is sour\n")
    assert time.monotonic() - start < 30


def test_both_fail_alike_at_once(start_pair, tmp_path):
    pair = start_pair(["fail"], ["fail"])
    assert [process.wait(timeout=60) for process in pair] == [2, 2]
    assert all(
        "the milk is sour" in said(tmp_path, index) and "this run" not in said(tmp_path, index) for index in range(2)
    )


@pytest.mark.parametrize("deeds", [[["work", 0], ["work", 9]], [["work", 9], ["work", 0]]])
def test_one_has_done_its_work_long_before_the_other(start_pair, tmp_path, deeds):
    pair = start_pair(*deeds)
    assert [process.wait(timeout=90) for process in pair] == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    assert all((tmp_path / f"{index}.out").read_text().endswith("done\n") for index in range(2))


def test_signs():
    signs = Signs([0, 2], patience=10, now=0)
    assert signs.lost({0: "1", 2: "1"}, now=8) is None
    assert signs.lost({0: "2", 2: "1"}, now=17) is None
    assert "process 2 of this run has given no sign of life for 11 s" == signs.lost({0: "3", 2: "1"}, now=19)
    assert signs.lost({0: "4", 2: "2"}, now=20) is None
    assert signs.lost({0: "done", 2: "3"}, now=21) is None
    assert signs.lost({0: "done", 2: "4"}, now=40) is None
    assert not signs.all_left({0: "done", 2: "4"}) and signs.all_left({0: "done", 2: "failed"})
    assert "process 2 of this run has ended with an error" == signs.lost({0: "done", 2: "failed"}, now=41)


def test_a_process_that_never_gave_a_sign():
    signs = Signs([1], patience=10, now=0)
    assert signs.lost({}, now=10) is None
    assert "process 1" in signs.lost({}, now=10.5)


class Shelf(dict):
    """A store of this process."""

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        self[key] = value

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.items() if key.startswith(prefix)]


def watch(store, process, patience=0.5):  # and so looks every tenth of a second
    return Watch(store, process, 2, patience=patience, exit_code=8, advice="begin again")


def test_process_0_stays_until_the_others_have_heard_that_it_failed():
    """They need 4 looks: to hear it, to look, and two of grace."""
    store = Shelf()
    first = watch(store, 0, patience=5)
    first.start()
    store["inception_jax/signs_of_life/1"] = "1"
    begun = time.monotonic()
    heard = threading.Timer(4.5, store.__setitem__, ["inception_jax/signs_of_life/1", "failed"])
    heard.start()
    first.end(failed=True, stay=True)
    assert 4.5 <= time.monotonic() - begun < 8 and store["inception_jax/signs_of_life/0"] == "failed"


@pytest.mark.parametrize("stay", [False, True])
def test_who_hears_of_nobody_does_not_stay_for_ever(stay):
    store = Shelf()
    first = watch(store, 0)
    first.start()
    store["inception_jax/signs_of_life/1"] = "1"
    begun = time.monotonic()
    first.end(failed=True, stay=stay)
    assert time.monotonic() - begun > 0.7 * stay and not first._talking.is_alive()


@pytest.mark.parametrize(("after_the_grace", "ends"), [(None, False), ("process 0 of this run is silent", True)])
def test_who_speaks_within_the_grace_is_not_lost(monkeypatch, capsys, after_the_grace, ends):
    second = watch(Shelf(), 1)
    looks = iter(["process 0 of this run is silent", after_the_grace])

    def lost():
        try:
            return next(looks)
        except StopIteration:
            second._ended.set()

    codes = []
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), second._ended.set()))
    monkeypatch.setattr(second, "_lost", lost)
    second._judge()
    assert codes == [8] * ends
    assert capsys.readouterr().err == "error: process 0 of this run is silent; begin again\n" * ends


def test_a_store_that_keeps_its_callers_waiting():
    waiting = threading.Event()

    class Silent(Shelf):
        def key_value_set(self, key, value, allow_overwrite=False):
            waiting.wait(60)

    second = watch(Silent(), 1, patience=50)
    second._talking.start()
    try:
        assert second._lost() is None
        second._answered -= 60
        assert second._lost().startswith("process 0 of this run, where the others meet, has not answered for 6")
    finally:
        waiting.set()
