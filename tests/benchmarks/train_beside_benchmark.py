"""Trains, and after every row of the log runs a block of the benchmark's steps. Prints both speeds of each pair.

    python tests/benchmarks/train_beside_benchmark.py WORKDIR

A process of its own, for its own XLA flags. In turn within one process, for a machine's speed drifts: `train` and
`benchmark` one after the other differed by up to a fifth, either way.
"""

import json
import sys
import time

from inception_jax import recipe_files
from inception_jax.benchmarks import steps, workload
from inception_jax.training import loop

RECIPE = [
    "--config=configs/digits.py",
    "--config.data.name=synthetic:10:64",
    "--config.data.eval_split=test[:32]",
    "--config.model.width_multiplier=0.5",
    "--config.num_steps=80",
    "--config.evaluation.every_epochs=9.0",
    "--config.checkpoint.every_epochs=9.0",
    "--config.logging.pictures=False",
    "--config.parallel.devices=1",
]


def main(workdir):
    recipe, _ = recipe_files.load_config(RECIPE)
    bench = steps.Bench(workload.build_setup(recipe))
    bench.compile("train")
    bench.run("train", 3)
    pairs, take_steps = [], loop._take_steps

    def in_turn(run, state, start):
        write_timing, every = run.output.writer.write_timing, run.setup.length.log_every

        def write_and_measure(row):
            write_timing(row)
            began = time.perf_counter()
            bench.run("train", every)
            pairs.append([row["images_per_second"], recipe.batch_size * every / (time.perf_counter() - began)])
            run.output.clock.start_lap()  # the block is no part of the run

        run.output.writer.write_timing = write_and_measure
        return take_steps(run, state, start)

    loop._take_steps = in_turn
    _, code = loop.train(recipe, workdir)
    print(json.dumps(pairs))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
