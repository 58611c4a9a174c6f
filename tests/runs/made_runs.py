"""Workdirs without training: what a run of the digits recipe leaves, written by the code that a run writes it with."""

import json

from inception_jax.config import Config, default
from inception_jax.runs import manifest, metric_files, result

PER_EPOCH = 45  # steps
COUNT = 360  # test digits


def make_config(**fields):
    """The defaults with these fields; two underscores stand for a dot. As plain values, and 4 epochs long."""
    recipe = default()
    recipe.num_epochs = 4.0
    for path, value in fields.items():
        *sections, name = path.split("__")
        section = recipe
        for part in sections:
            section = section[part]
        section[name] = value
    return Config(recipe)


def make_run(
    workdir,
    *,
    right=(100, 200, 300, 350),
    ema=None,
    losses=None,
    status="finished",
    fingerprint="ab" * 32,
    split="test",
    outcome=None,
    **fields,
):
    """Makes a run that evaluated at the end of each epoch.

    Args:
      workdir: of it.
      right: right answers of the raw weights, of 360, at each evaluation.
      ema: those of the EMA weights; None: the run has no EMA.
      losses: training losses, one per half epoch; None: halved from row to row.
      status: of result.json; None: there is none, as after a kill.
      fingerprint: of a finished run.
      split: that was evaluated.
      outcome: more fields of result.json.
      fields: of the config.
    """
    workdir.mkdir(parents=True)
    manifest.write(workdir, make_config(**fields).to_json(), devices=["1 cpu device"], command=["python", "train"])
    (workdir / "lock").write_text("")
    (workdir / "train.log").write_text(
        "2026-01-01T00:00:00+00:00 inception_v1 (a paper)\n2026-01-01T00:00:00+00:00 13,378,280 parameters, two heads\n"
    )
    losses = [2.0 * 0.5**row for row in range(2 * len(right))] if losses is None else losses
    step = 0
    with metric_files.MetricWriter(workdir, tensorboard=False) as writer:
        for row, loss in enumerate(losses, 1):
            step = row * PER_EPOCH // 2
            place = {"step": step, "epoch": step / PER_EPOCH}
            writer.write(
                {
                    "kind": "train",
                    **place,
                    "learning_rate": 0.01,
                    "loss": loss,
                    "loss_main": 0.8 * loss,
                    "loss_aux1": 0.7 * loss,
                    "top1_main": 0.5,
                }
            )
            writer.write_timing(
                {
                    "step": step,
                    "step_seconds": 0.1,
                    "images_per_second": 90.0 + row,
                    "data_wait_fraction": 0.0,
                    "wall_seconds": 10.0 * row,
                }
            )
            if row % 2 == 0 and row // 2 <= len(right):
                for weights, counts in (("raw", right), ("ema", ema)):
                    if counts:
                        correct = counts[row // 2 - 1]
                        writer.write(
                            {
                                "kind": "evaluation",
                                **place,
                                "split": split,
                                "weights": weights,
                                "loss": 0.1 + (COUNT - correct) / COUNT,
                                "top1": correct / COUNT,
                                "top5": 1.0,
                                "count": COUNT,
                            }
                        )
    if status:
        content = {"status": status, "model": "inception_v1", "metrics": {"train": {"step": step}}}
        if status in ("finished", "interrupted"):
            content |= {
                "steps": step,
                "epochs": step / PER_EPOCH,
                "wall_seconds": 81.0,
                "compile_seconds": 30.0,
                "data_wait_seconds": 2.0,
                "fingerprint": fingerprint,
            }
        result.write_result(workdir, content | (outcome or {}))
    return workdir


def make_trial(workdir, **said):
    """Makes a run a trial of a sweep."""
    (workdir / "trial.json").write_text(json.dumps({"number": int(workdir.name), **said}))
    return workdir
