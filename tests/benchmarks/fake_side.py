"""A side without a network: it answers what its command line, as JSON, says, and fails in a chosen way.

{"prepared": {…}, "seconds": {kind: [of each block, in order]}, "losses": [of each step], "fault": name,
 "before": "prepare" or the number of a block, "path": of a file, "allocated": [bytes in each block, freed at its end],
 "taken": [steps of each block, if others than asked for]}
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from inception_jax.benchmarks import worker
from inception_jax.errors import UserError

ERRORS = {
    "memory": MemoryError(),
    "xla": RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes."),
    "cuda": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu_allocator": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    "disk": RuntimeError("RESOURCE_EXHAUSTED: tempfile; No space left on device"),
    "unavailable": worker.Unavailable("no torch here"),
    "user": UserError("batch_size = -1"),
    "bug": ValueError("\n  the first line\nthe second"),
    "silent_bug": AssertionError(),
}
# Runs until the file is there.
WAITER = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)"


class FakeSide:
    def __init__(self, script):
        self.script, self.blocks, self.steps, self.counts = script, 0, 0, {}

    def prepare(self, workload):
        self._act("prepare")
        answer = {"prepare_seconds": 0.0, "pictures": "ab", "parameters": 7, "task": workload}
        return answer | self.script.get("prepared", {})

    def block(self, kind, steps):
        self._act(self.blocks)
        number = self.counts.get(kind, 0)
        self.blocks, self.counts[kind] = self.blocks + 1, number + 1
        answer = {"seconds": steps * self.script["seconds"][kind][number], "cpu_seconds": 2.0 * steps}
        if kind == "train" and "losses" in self.script:
            answer["losses"] = self.script["losses"][self.steps : self.steps + steps]
            self.steps += steps
        if kind == "inference":
            answer["finite"] = self.script.get("finite", True)
        if "taken" in self.script:
            answer["steps"] = self.script["taken"][number]
        if "allocated" in self.script:
            len(b"1" * self.script["allocated"][number])
        if "path" in self.script:
            with open(self.script["path"], "a") as file:
                file.write(f"{self.script['name']} {kind}\n")
        return answer

    def _act(self, moment):
        fault = self.script.get("fault")
        if fault is None or self.script.get("before", 0) != moment:
            return
        if fault in ERRORS:
            raise ERRORS[fault]
        getattr(self, fault)()

    def print_everywhere(self):
        print('{"seconds": "not an answer"}')
        os.write(1, b"raw\n")
        subprocess.run(["echo", "a child's"], check=True)
        assert sys.stdin.readline() == ""  # the requests are not to be taken away, either

    def die(self):
        print("first words\nlast words", file=sys.stderr)
        os._exit(3)

    def be_killed(self):
        os.kill(os.getpid(), 9)

    def hang(self):
        Path(self.script["path"]).write_text(str(os.getpid()))
        time.sleep(600)

    def leave_a_child(self):
        subprocess.Popen([sys.executable, "-c", WAITER, self.script["path"]], close_fds=False)
        os._exit(4)

    def say_no_json(self):
        self.script["prepared"] = {"device": object()}


if __name__ == "__main__":
    script = json.loads(sys.argv[1])
    print("printed before anything else")
    worker.serve(FakeSide(script))
    if script.get("fault") == "end_normally":
        Path(script["path"]).write_text("ended")
