"""pytorch-fid's side of score_rate.py: for each line of standard input, computes features and statistics of all files.

    PYTHON pytorch_fid_side.py WEIGHTS.npz FOLDER BATCH_SIZE

Imports nothing of this repository. Prints processor seconds and seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from pytorch_fid import fid_score, inception


def main() -> None:
    """Serves until standard input ends."""
    with np.load(sys.argv[1]) as file:
        state = {name: torch.from_numpy(file[name]) for name in file.files}
    for name in list(state):
        if name.endswith("running_mean"):
            state[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    inception.load_state_dict_from_url = lambda *_, **__: state
    network = inception.InceptionV3([3]).eval()
    files = sorted(map(str, Path(sys.argv[2]).glob("*.png")))

    def compute() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # of its progress bar
            # Without worker processes, whose time is not counted here; PyTorch's kernels have all cores.
            fid_score.calculate_activation_statistics(files, network, int(sys.argv[3]), num_workers=0)

    compute()
    print(json.dumps({name: metadata.version(name) for name in ("torch", "pytorch-fid", "numpy")}), flush=True)
    for _ in sys.stdin:
        begin = time.process_time(), time.perf_counter()
        compute()
        print(json.dumps([time.process_time() - begin[0], time.perf_counter() - begin[1]]), flush=True)


if __name__ == "__main__":
    main()
