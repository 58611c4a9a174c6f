"""`python -m inception_jax.predict`: what it prints and writes, and its messages; the network is a fake."""

import contextlib
import csv
import dataclasses
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from inception_jax import command_line, predict, standard_streams
from inception_jax.evaluation import prediction_writer
from inception_jax.evaluation.prediction import Prediction
from inception_jax.features import explanation
from inception_jax.runs import contact_sheet

from .evaluation.fake_network import FakeNetwork
from .evaluation.test_prediction import COLOURS, write


@pytest.fixture
def network(monkeypatch):
    network = FakeNetwork()
    monkeypatch.setattr(predict, "_of_run", lambda flags: network)
    return network


@pytest.fixture
def run(network, tmp_path, monkeypatch, capsys):
    """Runs the command on the working directory's files; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict", "--workdir=run", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command_line.run(predict.main)
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def photos(tmp_path):
    """Three images and a broken one in a folder."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("b.png", "green"), ("deep/c.png", "blue")):
        write(tmp_path / "photos" / name, colour)
    (tmp_path / "photos" / "b2.jpg").write_bytes(b"")
    return ["photos/a.png", "photos/b.png", "photos/b2.jpg", "photos/deep/c.png"]


def table_of(path):
    return list(csv.reader(Path(path).read_text().splitlines(keepends=True)))


def test_text_and_what_is_skipped(run, photos):
    Path("list").write_text("absent.png\nphotos/deep/../a.png\n")
    code, out, err = run("--top_k=2", "--files=list", "photos", "photos/deep/*.png")
    assert code == 2
    lines = out.splitlines()
    assert lines[:3] == ["photos/a.png", "   78.43 %  red", "    0.00 %  green"]
    assert lines[::3] == ["photos/a.png", "photos/b.png", "photos/deep/c.png"]  # each file once
    assert err.splitlines() == [
        "warning: skipped photos/b2.jpg: an empty file",
        "warning: skipped absent.png: No such file or directory",
        "error: 2 of 5 images were skipped: photos/b2.jpg, absent.png",
    ]
    code, out, err = run("photos/a.png")
    assert (code, err, len(out.splitlines())) == (0, "", 4)  # all three classes


def test_flags_among_the_files_and_a_limit_of_pixels(run, photos, network):
    code, out, err = run("photos/a.png", "--top_k=1", "photos/b.png", "--json", "--", "photos/deep/c.png")
    assert (code, err) == (0, "")
    assert [json.loads(line)["picture"] for line in out.splitlines()] == [photos[0], photos[1], photos[3]]
    code, _, err = run("photos/a.png", "--max_pixels=2")
    assert code == 2 and "skipped photos/a.png: an image of " in err and "limit of 2 pixels" in err
    assert run("--top_k", "photos/a.png")[::2] == (2, "error: --top_k=photos/a.png: not a whole number\n")
    assert "unknown argument '--top'" not in run("photos/a.png", "--top=1")[2]
    assert run("photos/a.png", "--tip_k=1", "b.png")[2].startswith("error: unknown argument '--tip_k'; did you mean")
    assert run("photos/a.png", "--csv=", "b.png")[2].startswith("error: --csv: its value is empty")


def test_json_lines_and_csv(run, photos):
    code, out, _ = run("--json", "photos", "--top=2")
    assert code == 2
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["picture"] for row in rows] == photos
    assert rows[1]["classes"][0] == {"name": "green", "probability": pytest.approx(200 / 255), "index": 1}
    assert rows[2] == {"picture": photos[2], "classes": [], "error": "an empty file"}
    code, text, _ = run("photos", "--csv=out/table.csv", "--json=out/rows.jsonl", "--top_k=2")
    assert Path("out/rows.jsonl").read_text() == out and text.startswith("photos/a.png\n   78.43 %  red\n")
    table = table_of("out/table.csv")
    assert table[0] == ["file", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert table[1] == ["photos/a.png", "red", "0.784314", "green", "0", ""]
    assert table[3] == [photos[2], "", "", "", "", "an empty file"] and len(table) == 5
    assert run("photos/a.png", "--csv=-", "--top_k=1")[1] == (
        "file,class_1,probability_1,error\nphotos/a.png,red,0.784314,\n"
    )


def test_results_are_written_as_they_come(run, network, photos, monkeypatch):
    """After an interrupt they are there, and nothing is replaced by a sheet of a part."""
    add = prediction_writer.PredictionWriter.add

    def interrupt(self, prediction):
        if self.total == 1:
            assert (
                len(Path("t.csv").read_text().splitlines()) == 2 and len(Path("r.json").read_text().splitlines()) == 1
            )
            raise KeyboardInterrupt
        add(self, prediction)

    monkeypatch.setattr(prediction_writer.PredictionWriter, "add", interrupt)
    code, out, err = run("photos", "--csv=t.csv", "--json=r.json", "--sheet=s.png", "--batch_size=1")
    assert (code, err) == (130, "error: interrupted\n") and out.startswith("photos/a.png")
    assert not os.path.exists("s.png")


def test_a_list_of_files(run, photos):
    Path("list.txt").write_text("photos/deep/c.png\nphotos\n")
    code, out, err = run("--files=list.txt", "--json", "photos/a.png", "--top_k=1")
    assert [json.loads(line)["classes"] != [] for line in out.splitlines()] == [True, True, False]
    assert code == 2 and "skipped photos: Is a directory" in err
    Path("list.txt").write_text("")
    assert run("--files=list.txt")[::2] == (2, "error: --files=list.txt: no name in this list\n")


def test_names_that_are_no_text(run, tmp_path):
    name = os.fsdecode(b"caf\xe9\n.png")
    write(tmp_path / "a.png", "red")
    os.rename("a.png", name)
    code, out, err = run(".", "--csv=t.csv", "--json=r.json", "--sheet=s.png")
    assert code == 0 and out.splitlines()[0] == r"./caf\xe9\n.png", err
    assert json.loads(Path("r.json").read_text())["picture"] == os.path.join(".", name)
    assert table_of("t.csv")[1][0] == "./caf\\xe9\n.png"


def test_a_class_is_one_line_of_the_text(capsys):
    with prediction_writer.PredictionWriter(1) as writer:
        writer.add(Prediction("a.png", ("a\nb\x1b[31m",), np.zeros(1, np.int32), np.ones(1)))
    assert capsys.readouterr().out == "a.png\n  100.00 %  a\\nb\\x1b[31m\n"


def test_sheet_and_explanations(run, photos, monkeypatch):
    """A second run into the same folder does not take the sheet for an image."""

    def explain(network, predictions, *, batch_size):
        for one in predictions:
            yield one if one.image is None else dataclasses.replace(one, saliency=np.eye(32, dtype=np.float32))

    monkeypatch.setattr(explanation, "explain", explain)
    drawn = []
    draw = contact_sheet.contact_sheet
    monkeypatch.setattr(contact_sheet, "contact_sheet", lambda *a, **k: drawn.append((a, k)) or draw(*a, **k))
    monkeypatch.setattr(prediction_writer, "MAX_IMAGES", 2)
    for maps in ("photos/maps", "photos/deep/maps"):
        code, out, err = run("photos", "--sheet=photos/sheet.png", f"--explain={maps}", "--json")
        rows = [json.loads(line) for line in out.splitlines()]
        written = sorted(os.listdir(maps))
        assert written == ["000001_a.png", "000002_b.png", "000004_c.png"]
        assert [row.get("explanation") for row in rows] == [
            f"{maps}/{written[0]}",
            f"{maps}/{written[1]}",
            None,
            f"{maps}/{written[2]}",
        ]
        assert code == 2 and "photos/sheet.png: the first 2 of 3 images" in err and f"{maps}: 3 saliency maps" in err
        (thumbnails, path), options = drawn.pop()
        assert str(path) == "photos/sheet.png" and options["title"] == "inception_v1, run: the first 2 of 3 images"
        assert [(one.name, one.prediction) for one in thumbnails] == [(photos[0], "red"), (photos[1], "green")]
        assert cv2.imread("photos/sheet.png").shape[1] > 600
        pair = cv2.imread(f"{maps}/000001_a.png")
        assert pair.shape == (224, 452, 3)  # enlarged; the image, a border, the map
        assert pair[0, 0].tolist() == [0, 0, 200] and pair[0, 228].tolist() == [255] * 3 and not pair[0, 451].any()
        for name in written:
            os.remove(f"{maps}/{name}")
        os.rmdir(maps)
    code, _, err = run("photos/a.png", "--sheet=one.png", "--explain")
    assert code == 0 and "one.png: 1 image\n" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no image: name files, folders or patterns, a list of them with --files=LIST, or a data"),
        (["empty"], r"empty: no image in this folder (it is empty)"),
        (["photos", "absent.png"], "absent.png: No such file or directory"),
        (["photos/*.tif"], "photos/*.tif: no such file, and as a pattern it matches no image"),
        (["--files=absent", "photos"], "--files=absent: No such file or directory"),
        (["--top_k=4", "photos"], "--top_k=4: the network has 3 classes; give 3 or less"),
        (["--top_k=0", "photos"], "--top_k=0: it must be at least 1"),
        (["--batch_size=0", "photos"], "--batch_size=0: it must be at least 1"),
        (["--explain", "photos"], "--explain: the saliency maps need a place; add --sheet=FILE.png"),
        (["--explain=photos", "photos"], "--explain=photos: exists and is not empty; name a new folder"),
        (["--explain=file/maps", "photos"], "cannot write file/maps: Not a directory"),
        (["--csv=file/t.csv", "photos"], "cannot write file/t.csv: Not a directory"),
        (["--json=empty", "photos"], "cannot write empty: Is a directory"),
        (["--csv", "photos/a.png", "photos"], "--csv=photos/a.png: is the name of an image; name the file to write"),
        (["--sheet", "photos/a.png", "photos"], "--sheet=photos/a.png: exists and is no contact sheet"),
        (["--sheet=a.pdf", "photos"], "--sheet=a.pdf: name a PNG file, --sheet=FILE.png"),
        (["--sheet=file/a.png", "photos"], "cannot write file/a.png: Not a directory"),
        (["--data=digits", "photos"], "--data: not allowed with image files; name a data set or files"),
        (["--split=test", "--files=list"], "--split: not allowed with image files; name a data set or files"),
        (["--data=digit", "--split=test"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["--json", "--csv=-", "photos"], "--json and --csv=-: only one of them can go to standard output"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_the_first_image_is_decoded(arguments, message, run, network, photos):
    os.mkdir("empty")
    Path("file").write_text("")
    before = Path("photos/a.png").read_bytes()
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"error: {message}"), err
    assert network.batches == [] and Path("photos/a.png").read_bytes() == before


@contextlib.contextmanager
def unread():
    """Standard output is a pipe whose reader has gone, as in `| head`."""
    read, write_end = os.pipe()
    os.close(read)
    with pytest.MonkeyPatch.context() as patch, open(write_end, "w") as stream:
        patch.setattr(sys, "stdout", standard_streams.RecordingStream(stream))
        yield
        assert isinstance(sys.stdout.failure, BrokenPipeError)


@pytest.mark.parametrize("flags", [["--csv=t.csv"], ["--csv=-", "--json=t.csv"], ["--json"], ["--json", "--csv=t.csv"]])
def test_files_are_finished_where_nobody_reads_standard_output(flags, run, network, photos):
    """Where there is no file, nothing more is computed."""
    with unread():
        code, _, err = run("photos/a.png", "photos/b.png", "photos/deep", "--batch_size=1", *flags)
    if "t.csv" not in str(flags):
        assert (code, err, network.batches) == (0, "", [1])
        return
    assert (code, network.batches) == (0, [1, 1, 1])
    assert len(Path("t.csv").read_text().splitlines()) == 3 + ("--csv=t.csv" in flags)
    with unread():
        code, _, err = run("photos", "--sheet=s.png", *flags)
    assert (code, err.count("s.png: 3 images"), err.count("error: 1 of 4 images was skipped")) == (2, 1, 1)


def test_an_output_that_cannot_be_written_any_more(run, photos):
    """/dev/full is a disk without space."""
    code, _, err = run("photos/a.png", "--csv=/dev/full")
    assert code == 6 and err.startswith("error: cannot write /dev/full: No space left on device"), err


def test_images_of_a_data_set_that_has_no_labels(run, network, photos):
    files = [Path(photos[place]).read_bytes() for place in (0, 1, 3)]
    images = [{"bytes": content, "path": f"{place}.png"} for place, content in enumerate([*files[:2], b"no", files[2]])]
    os.mkdir("set")
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), "set/test.parquet")
    code, out, err = run("--data=huggingface:set", "--split=test", "--top_k=1", "--csv=found.csv", "--json=j")
    assert code == 2 and err.endswith("error: 1 of 4 images was skipped: 2.png\n"), err
    assert [line for line in out.splitlines() if not line.startswith(" ")] == ["0.png", "1.png", "3.png"]
    rows = table_of("found.csv")[1:]
    assert [row[:2] for row in rows] == [["0.png", "red"], ["1.png", "green"], ["2.png", ""], ["3.png", "blue"]]
    assert rows[2][-1].startswith("huggingface:set [test], '2.png', row 2 of set/test.parquet: not a readable image")
    assert [json.loads(line)["picture"] for line in Path("j").read_text().splitlines()] == [row[0] for row in rows]
    code, out, err = run("--data=huggingface:set", "--split=test[3:]", "--sheet=sheet.png", "--batch_size=2")
    assert (code, network.batches[-1]) == (0, 1) and out.splitlines()[0] == "3.png" and Path("sheet.png").exists()
    code, out, err = run("--split=test[:3]", "--json")  # of the run's data set
    assert code == 0 and len(out.splitlines()) == 3, err


def test_images_of_all_kinds_are_predicted(run, tmp_path):
    from PIL import Image

    red = Image.fromarray(np.full((30, 20, 3), (200, 0, 0), np.uint8))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg")
    red.quantize(4).save(tmp_path / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(tmp_path / "rotated.jpg", exif=exif)
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((30, 20, 3), (0, 0, 50000), np.uint16))
    cv2.imwrite(str(tmp_path / "alpha.png"), np.full((30, 20, 4), (0, 0, 200, 9), np.uint8))
    cv2.imwrite(str(tmp_path / "a.webp"), np.full((30, 20, 3), (0, 0, 200), np.uint8))
    code, out, err = run("--json", "--top_k=1", ".")
    assert code == 0, err
    found = {row["picture"]: row["classes"][0]["name"] for row in map(json.loads, out.splitlines())}
    assert len(found) == 6 and set(found.values()) == {COLOURS[0]}


def test_a_sheet_says_what_its_maps_are(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    for saliency, expected in ((None, False), (np.ones((8, 8)), True)):
        thumbnail = contact_sheet.Thumbnail(image, "a.png", "red", 0.5, saliency)
        figure = contact_sheet.contact_sheet([thumbnail], tmp_path / "sheet.png", title="mine")
        assert any("saliency map" in text.get_text() for text in figure.texts) is expected
