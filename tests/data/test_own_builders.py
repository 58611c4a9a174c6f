"""Builders of the user's own: prepared without TensorFlow, arrays too."""

import subprocess
import sys

import numpy as np
import pytest

from inception_jax.data import images
from inception_jax.data.datasets import load

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class OwnSquares(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(None, None, 3)),
                "views": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 1))),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for number in range(count):
            image = np.random.default_rng(number).integers(0, 256, (5, 7, 3), np.uint8)
            yield number, {"image": image, "views": [image[..., :1]], "label": number % 2}
"""


def test_arrays_become_png_without_tensorflow(tmp_path):
    """In a process of its own: a builder is registered once."""
    file = tmp_path / "own_squares.py"
    file.write_text(BUILDER)
    code = (
        "import os, sys\n"
        "from inception_jax.data import own_builders, prepare\n"
        f"arguments = ['own_squares', '--import={file}', '--data_dir={tmp_path}']\n"
        "if not os.fork():\n"
        "    code = prepare.main(arguments)\n"
        "    os._exit(code + 10 * len({'tensorflow', 'jax'} & set(sys.modules)))\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 0\n"
        "assert prepare.main(arguments) == 0\n"
        "assert prepare.main(['own_square', *arguments[1:]]) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again = (line for line in done.stderr.splitlines() if line.startswith(f"{tmp_path}/own_squares/2.0.0: "))
    assert first.endswith(": prepared")
    assert again.endswith(": already prepared; remove this folder to prepare it again")
    data = load("own_squares", "train", str(tmp_path))
    expected = {np.random.default_rng(i).integers(0, 256, (5, 7, 3), np.uint8).tobytes(): i % 2 for i in range(6)}
    found = {images.decode(data.record(i)[0]).tobytes(): data.record(i)[1] for i in range(6)}
    assert found == expected and data.class_names == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["other", "--import={file}"], "x = 1", "defines no builder, not 'other'"),
        (["other", "--import={file}"], "import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        (["other", "--import=none_of_this_name"], "", "--import=none_of_this_name: ModuleNotFoundError"),
        (["digits", "--import={file}"], "", "--import: not with 'digits'"),
        (["other", "--import={file}", "--threads=2"], "", "--threads: has no effect with --import"),
        (["other", "more", "--import={file}"], "", "'more': has no effect with --import"),
        (
            ["own_jpegs", "--import={file}"],
            BUILDER.replace("OwnSquares", "OwnJpegs").replace(
                "(None, None, 3)", "(None, None, 3), encoding_format='jpeg'"
            ),
            "only PNG is written; give the bytes of a JPEG",
        ),
        (
            ["own_floats", "--import={file}"],
            BUILDER.replace("OwnSquares", "OwnFloats").replace('"image": image,', '"image": image / 255.0,'),
            r"an image float64[5, 7, 3]; uint8 [height, width, 1, 3 or 4] is needed",
        ),
        (
            ["own_sizes", "--import={file}"],
            BUILDER.replace("OwnSquares", "OwnSizes").replace("(None, None, 3)", "(5, 8, 3)"),
            "an image uint8[5, 7, 3]; the feature is uint8[5, 8, 3]",
        ),
        (
            ["own_channels", "--import={file}"],
            BUILDER.replace("OwnSquares", "OwnChannels").replace("[image[..., :1]]", "[image]"),
            "an image uint8[5, 7, 3]; the feature is uint8[None, None, 1]",
        ),
        (
            ["own_depths", "--import={file}"],
            BUILDER.replace("OwnSquares", "OwnDepths").replace("(None, None, 3)", "(None, None, 3), dtype=np.uint16"),
            "an image uint8[5, 7, 3]; the feature is uint16[None, None, 3]",
        ),
    ],
)
def test_what_is_wrong_is_one_line(arguments, text, message, tmp_path, run, capsys):
    file = tmp_path / "builder.py"
    file.write_text(text)
    assert run(*(argument.format(file=file) for argument in arguments), f"--data_dir={tmp_path}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_an_interrupted_builder_begins_anew(tmp_path, run, capsys):
    file = tmp_path / "builder.py"
    file.write_text("raise KeyboardInterrupt")
    assert run("other", f"--import={file}", f"--data_dir={tmp_path}") == 130
    assert capsys.readouterr().err == "\ninterrupted; the same command begins anew\n"
