"""Records the data of a study in its directory, and refuses to continue the study with other data.

The record has the form of a run's (`runs.data_record`): class names, number of examples, and a digest of the records'
names, sizes and labels. Its trials record theirs, too; the report says where they differ from each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from inception_jax.data import datasets
from inception_jax.errors import UserError
from inception_jax.runs import data_record, manifest
from inception_jax.sweeps.study_config import MAY_CHANGE, StudyConfig

# Fields that do not choose examples.
_READING = (*MAY_CHANGE, "data.decode", "data.image_size", "data.max_pixels", "data.normalization", "data.sampling")


def record(directory: Path, study_config: StudyConfig, log: Callable[[str], None]) -> None:
    """Writes `data.json` of a study, or compares the data with it.

    A study that chooses its data by trial has no record.

    Args:
      directory: of the study.
      study_config: of the study.
      log: takes a line for the user.

    Raises:
      UserError: the data cannot be opened, or has changed since the study began.
    """
    tried = {field for trial in study_config.listed for field in trial}
    tried |= set(study_config.space.parameters if study_config.space else ())
    if any(field.startswith("data.") and not field.startswith(_READING) for field in tried):
        return
    fields = study_config.config["data"]
    splits = datasets.load_splits(
        fields["name"],
        (fields["train_split"], fields["eval_split"]),
        fields["data_dir"],
        fields["class_names"],
        fields.get("image_key"),
        fields.get("label_key"),
        fields.get("labels", "single"),
    )
    identity = data_record.describe(*splits)
    before = manifest.read_json_object(directory / data_record.FILE, "remove it: the next start records the data")
    if before is None:
        manifest.replace_text(directory / data_record.FILE, json.dumps(identity, indent=2) + "\n")
        train, evaluation = (identity[role] for role in ("train_split", "eval_split"))
        log(
            f"data {identity['dataset']}: {len(identity['classes']):,} classes, {train['examples']:,} training and "
            f"{evaluation['examples']:,} evaluation examples; recorded in {data_record.FILE}"
        )
    elif difference := data_record.find_difference(before, identity):
        raise UserError(
            f"--study={directory}: the data {identity['dataset']} has changed since this study began: {difference}; "
            "put it back as it was, or begin another study"
        )
