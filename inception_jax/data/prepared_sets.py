"""Finds the data sets that TFDS has prepared on disk, in any file format, or says how to prepare them.

TFDS's own `builder_from_files` and `builder_from_directory` find and describe them; they import no TensorFlow.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_jax.data import huggingface_files, storage
from inception_jax.data.names import printable
from inception_jax.errors import UserError, nearest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# The data sets that `data.prepare` makes by name, and the arguments it needs.
PREPARABLE = {
    "digits": "",
    "fashion_mnist": " --source=FOLDER_OF_THE_FOUR_FILES (Debian has them: apt-get install dataset-fashion-mnist)",
    "imagenet2012": " --source=FOLDER_OF_THE_TWO_TARS",
}
# What people call them, without regard to case, dashes and underscores.
_OTHER_NAMES = {
    "imagenet2012": ("imagenet", "imagenet1k", "ilsvrc", "ilsvrc2012", "ilsvrc12"),
    "fashion_mnist": ("fashionmnist", "fmnist"),
}
# The kinds of data sets that are named with a path: what stands for it, and what people call them.
KINDS_WITH_PATH = {
    "folder": ("PATH", ("imagefolder", "images", "dir", "path")),
    "list": ("FILE", ("csv", "tsv", "parquet")),
    "webdataset": ("PATTERN", ("wds", "tar", "tars")),
    "huggingface": ("PATH", ("hf", "hub", "datasets", "arrow")),
}


def default_data_dir(data_dir: str | os.PathLike | None = None) -> Path:
    """The folder of prepared data sets: as given, else TFDS_DATA_DIR, else ~/tensorflow_datasets (as in TFDS)."""
    if data_dir is not None and storage.is_remote(data_dir):
        raise UserError(
            f"data.data_dir = {os.fspath(data_dir)!r}: prepared data sets are read from a file system; mount the "
            "storage as one, or use class folders (data.name=folder:gs://…)"
        )
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(name: str, data_dir: Path, others: Sequence[str] = ()) -> tfds.core.DatasetBuilder:
    """Finds a prepared data set.

    Args:
      name: of the data set.
      data_dir: folder of prepared data sets.
      others: names of further data sets, for the message.

    Raises:
      UserError: there is none; with the remedy.
    """
    from tensorflow_datasets.core import naming, read_only_builder, registered

    if not name.strip():
        raise UserError("data set '': no name; is a variable of the shell unset?")
    _refuse_other_kind(name)
    try:
        base = naming.parse_builder_name_kwargs(name)[0].name
    except ValueError:
        _refuse_path(name)
        _refuse_other_name(name)
        raise UserError(
            f"data set {name!r}: not a name, and there is no such path; a prepared data set is NAME, NAME/CONFIG or "
            f"NAME:1.2.3, files are {', '.join(_kinds())}{_of_the_hub(name)}"
        ) from None
    try:
        return read_only_builder.builder_from_files(name, data_dir=os.fspath(data_dir))
    except registered.DatasetNotFoundError:
        _refuse_other_name(name)
    configs = sorted({path.parent.parent.name for path in data_dir.glob(f"{base}/*/*/dataset_info.json")})
    if configs:
        raise UserError(f"data set {name!r}: {data_dir} has {', '.join(f'{base}/{config}' for config in configs)}")
    if base in PREPARABLE:
        command = f"python -m inception_jax.data.prepare {base} --data_dir={data_dir}{PREPARABLE[base]}"
        raise UserError(f"data set {name!r} is not prepared in {data_dir}; run: {command}")
    _refuse_path(name)
    stock = load_tfds().list_builders(with_community_datasets=False)
    if base in stock:
        # Not `tfds build`: that of TFDS 4.9.10 does not start without Apache Beam.
        call = f"tfds.builder({name!r}, data_dir={os.fspath(data_dir)!r}).download_and_prepare()"
        raise UserError(
            f"data set {name!r} is not prepared in {data_dir}; run once, with tensorflow-cpu (pip install "
            f"'inception_jax[tf]'): python -c \"import tensorflow_datasets as tfds; {call}\""
        )
    here = sorted(
        path.parent.parent.relative_to(data_dir).as_posix()
        for depth in ("*/*", "*/*/*")
        for path in data_dir.glob(f"{depth}/dataset_info.json")
    )
    names = [*PREPARABLE, *_kinds(), "synthetic", *others, *here]
    raise UserError(
        f"unknown data set {name!r}{nearest(base, [*names, *stock])}{_of_the_hub(name)}; data sets: "
        f"{', '.join(dict.fromkeys(names))}, or any of TFDS's prepared in {data_dir}"
    )


def choose_format(builder: tfds.core.DatasetBuilder, readable: Sequence[str]) -> str:
    """Chooses the files to read: the set's own format, or else another that `tfds convert_format` has added.

    Args:
      builder: of a prepared data set; its splits then name the files of the chosen format.
      readable: the formats that can be read.

    Raises:
      UserError: none of its formats can be read.
    """
    info = builder.info
    own = info.file_format.file_suffix
    formats = [own, *(other.file_suffix for other in info.alternative_file_formats)]
    known = [name for name in formats if name in readable]
    if not known:
        raise UserError(
            f"{builder.data_dir}: prepared as {' and '.join(formats)}; {', '.join(readable)} can be read: move it away "
            "and prepare it again with --file_format=array_record"
        )

    def has_files(name: str) -> bool:
        for split in info.splits.values():
            files = split.filename_template.replace(filetype_suffix=name).sharded_filepaths(split.num_shards)
            if any(file.exists() for file in files):
                return True
        return False

    chosen = next(filter(has_files, known), known[0])
    if chosen != own:
        info.set_file_format(chosen, override=True, override_if_initialized=True)
    return chosen


def _of_the_hub(name: str) -> str:
    """How ORGANIZATION/NAME is written, which Hugging Face's hub has; "" for other names."""
    parts = name.split("/")
    return f"; on Hugging Face's hub? Then huggingface:{name}" if len(parts) == 2 and all(parts) else ""


def _refuse_path(name: str) -> None:
    """Raises `UserError` for a name that is a path: the kind of the data set is missing before it."""
    path = Path(name).expanduser()
    if path.is_dir() and huggingface_files.is_data_set(path):
        raise UserError(f"data set {name!r}: a Hugging Face data set; name it huggingface:{name}")
    missing = "" if glob.has_magic(name) or path.exists() else f" {printable(str(path))} is not there;"
    if path.suffix in (".csv", ".tsv", ".parquet"):
        raise UserError(f"data set {name!r}:{missing} a list of images is named with its kind: list:{name}")
    if path.suffix == ".tar":
        raise UserError(f"data set {name!r}:{missing} tars are named with their kind: webdataset:{name}")
    if any(path.glob("*.tar")):
        raise UserError(f"data set {name!r}: a folder of tars; name it webdataset:{path / '*.tar'}")
    if path.is_dir():
        raise UserError(f"data set {name!r}: a folder; class folders are named with their kind: folder:{name}")
    if name.startswith(("/", "./", "../", "~")):
        raise UserError(
            f"data set {name!r}: {printable(str(path))} is not there; class folders are named folder:PATH, prepared "
            "data sets NAME, NAME/CONFIG or NAME:1.2.3"
        )


def _kinds() -> list[str]:
    return [f"{kind}:{what}" for kind, (what, _) in KINDS_WITH_PATH.items()]


def _refuse_other_kind(name: str) -> None:
    """Raises `UserError` for KIND:PATH of an unknown kind; what TFDS has after a colon is a version, such as 1.2.3."""
    kind, colon, path = name.partition(":")
    if not colon or re.fullmatch(r"[\d*]+(\.[\d*]+)*|experimental_latest", path):
        return
    if storage.is_remote(name):
        own = "the copy on this machine: huggingface:PATH" if kind == "hf" else f"their kind: folder:{name}"
        what = "a data set of Hugging Face's hub is read from" if kind == "hf" else "class folders are named with"
        raise UserError(f"data set {name!r}: an address; {what} {own}")
    plain = kind.lower().replace("-", "").replace("_", "").replace(" ", "")
    meant = next((own for own, (_, others) in KINDS_WITH_PATH.items() if plain in (own, *others)), None)
    near = f"; did you mean {f'{meant}:{path}'!r}?" if meant else nearest(plain, KINDS_WITH_PATH, 0.7)
    near = near or "; after a colon stands a version, such as 1.2.3; a split is config.data.eval_split"
    raise UserError(f"data set {name!r}: unknown kind {kind!r}{near}; kinds: {', '.join(_kinds())}, synthetic:CLASSES")


def _refuse_other_name(name: str) -> None:
    """Raises `UserError` for a name that people use for a data set that has another one here."""
    for own, others in _OTHER_NAMES.items():
        if name != own and name.lower().replace("-", "").replace("_", "") in others:
            raise UserError(f"unknown data set {name!r}; did you mean {own!r}?")


def load_tfds() -> Any:
    """Imports TFDS, for the data sets that need it: it takes two thirds of a second, which the digits do without."""
    import tensorflow_datasets

    return tensorflow_datasets
