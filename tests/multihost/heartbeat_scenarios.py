"""One process of a run of test_heartbeat.py: `python heartbeat_scenarios.py PORT ID ACTION…`."""

import argparse
import dataclasses
import sys
import time

from inception_jax.command_line import add_processes
from inception_jax.errors import UserError
from inception_jax.multihost import processes


def main():
    port, process, *action = sys.argv[1:]
    arguments = argparse.ArgumentParser()
    add_processes(arguments)
    flags = arguments.parse_args(
        [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={process}"]
    )
    # Below the flag's minimum, to keep the tests short.
    launch = dataclasses.replace(processes.find_launch(flags), heartbeat_timeout_seconds=5)
    try:
        with processes.initialize(launch):
            print("joined", flush=True)
            if action[0] == "work":  # as one that waits in a collective which notices nothing
                time.sleep(float(action[1]))
            elif action[0] == "fail":
                raise UserError("the input is bad")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print("done", flush=True)


if __name__ == "__main__":
    main()
