"""Studies without training: the files of a sweep, with values from a formula."""

import json
import math

import numpy as np

from inception_jax.config import Config, default
from inception_jax.runs import manifest, metric_files
from inception_jax.sweeps.space import Space, choice, integer, real

SPACE = {
    "optimizer.name": choice("sgd", "rmsprop"),
    "optimizer.learning_rate": real(1e-4, 0.3, log=True),
    "optimizer.momentum": real(0.8, 0.99, when={"optimizer.name": "sgd"}),
    "batch_size": integer(16, 128, log=True),
    "loss.aux_weights": choice((0.3, 0.3), (0.0, 0.0), None),
}
COUNT = 360


def base_config():
    """What all trials start from."""
    recipe = default()
    recipe.num_epochs = 4.0
    recipe.data.image_size = 32
    return recipe


def config_with(values):
    """The base config with fields set, as config.json holds it."""
    recipe = base_config()
    for field, value in values.items():
        *sections, name = field.split(".")
        section = recipe
        for part in sections:
            section = section[part]
        if value is not None:
            section[name] = value
    return Config(recipe).to_json()


def sample(space, random):
    """Values of the parameters whose condition holds."""
    values = {}
    for field, one in space.parameters.items():
        if not space.is_active(field, values):
            continue
        if one.kind == "choice":
            values[field] = one.values[random.integers(len(one.values))]
            continue
        low, high = (math.log(end) if one.log else end for end in (one.low, one.high))
        value = random.uniform(low, high)
        value = math.exp(value) if one.log else value
        values[field] = round(value) if one.kind == "integer" else value
    return values


def accuracy(values, epoch):
    """Best near a learning rate of 0.01; right answers of 360."""
    distance = math.log10(values["optimizer.learning_rate"]) + 2
    return round(COUNT * (1 - 0.01 * math.exp(distance**2)) * (1 - math.exp(-1.5 * epoch)))


class MadeStudy:
    """A study in a directory; `add` makes its trials."""

    def __init__(self, path, space=None, **fields):
        self.path, self.space = path, Space(SPACE if space is None else space)
        (path / "trials").mkdir(parents=True)
        content = {
            "name": path.name, "recipe": "configs/digits.py", "overrides": {"num_epochs": 4.0},
            "config": json.loads(config_with({})), "space": self.space.to_json(), "listed": [], "sampler": "tpe",
            "seed": 0, "pruner": "halving", "min_evaluations": 2, "reduction_factor": 3, "metric": "top1",
            "weights": "raw", "objective": "final", "direction": "maximize", "storage": None,
            "created": "2026-01-01T00:00:00+0000",
            "command": ["/usr/bin/python3", "-m", "inception_jax.sweep", f"--study={path}"], "versions": {}, **fields,
        }  # fmt: skip
        (path / "study.json").write_text(json.dumps(content))
        self.metric, self.number = content["metric"], 0

    def add(self, status="finished", values=None, right=None, epochs=4, with_run=True, **fields):
        """One more trial.

        Args:
          status: of trial.json.
          values: of the parameters; drawn where None.
          right: right answers at each evaluation; by `accuracy` where None.
          epochs: evaluations, where `right` is None.
          with_run: whether its run's own files are there.
          fields: further fields of trial.json.
        """
        number, self.number = self.number, self.number + 1
        values = sample(self.space, np.random.default_rng(number)) if values is None else values
        right = [accuracy(values, epoch) for epoch in range(1, epochs + 1)] if right is None else right
        workdir = self.path / "trials" / f"{number:04d}"
        workdir.mkdir()
        shown = [1 - n / COUNT if self.metric == "loss" else n / COUNT for n in right]
        if with_run:
            manifest.write(workdir, config_with({**fields.get("overrides", {}), **values}), command=["python", "train"])
            with metric_files.MetricWriter(workdir, tensorboard=False) as writer:
                for epoch, (count, value) in enumerate(zip(right, shown, strict=True), 1):
                    writer.write(
                        {
                            "kind": "evaluation",
                            "step": 45 * epoch,
                            "epoch": float(epoch),
                            "split": "test",
                            "weights": "raw",
                            "loss": 1 - count / COUNT,
                            "top1": count / COUNT,
                            "top5": 1.0,
                            "count": COUNT,
                            self.metric: value,
                        }
                    )
        content = {
            "number": number, "status": status, "params": values, "overrides": {}, "message": "",
            "value": shown[-1] if status == "finished" else None,
            "pruned_at": len(right) if status == "pruned" else None,
            "starts": [{"time": 0.0, "host": "here", "pid": 1, "slot": "0", "ended": 100.0, "exit": 0}],
            "evaluations": [{"index": epoch, "epoch": float(epoch), "step": 45 * epoch, "value": value}
                            for epoch, value in enumerate(shown, 1)],
            "seconds": 25.0 * len(right), **fields,
        }  # fmt: skip
        (workdir / "trial.json").write_text(json.dumps(content))
        return workdir

    def fill(self, count, with_run=True):
        """Adds trials of all kinds."""
        for place in range(count):
            status = {3: "pruned", 5: "diverged", 7: "failed", 8: "pruned"}.get(place % 10, "finished")
            message = {"diverged": "step 77 has diverged", "failed": "no batch came"}.get(status, "")
            self.add(
                status,
                epochs={"pruned": 2, "diverged": 1, "failed": 0}.get(status, 4),
                message=message,
                with_run=with_run,
            )
