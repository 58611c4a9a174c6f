"""Reads files one after the other in a process whose address space may grow by so many MB, and tells what it took.

    python tests/weight_files/read_limited.py MB FILE…

prints a line of JSON for each: what came of it, and the seconds of processor time, those of its own processes included.
"""

import json
import os
import resource
import sys
from pathlib import Path

from inception_jax.errors import UserError
from inception_jax.weight_files import read_weights


def main() -> None:
    """Reads the files of the command line."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + (int(sys.argv[1]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    for path in sys.argv[2:]:
        before = sum(os.times()[:4])
        try:
            outcome = f"read {sum(array.size for array in read_weights(path).arrays.values())} numbers"
        except UserError as error:
            outcome = str(error)
        print(json.dumps({"outcome": outcome, "seconds": sum(os.times()[:4]) - before}), flush=True)


if __name__ == "__main__":
    main()
