"""Finding image files in folders, by patterns and in lists; what is read, and what is no single image."""

import io
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from inception_jax.data import image_files
from inception_jax.data.animation import is_animated
from inception_jax.data.image_files import Unreadable
from inception_jax.errors import UserError

from ..conftest import ROOT


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A function that makes empty files and links {path: target} below the working directory."""
    monkeypatch.chdir(tmp_path)

    def make(*files, links=()):
        for path in files:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            open(path, "wb").close()
        for path, target in dict(links).items():
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            os.symlink(target, path)

    return make


def test_a_folder_is_walked_in_order_and_each_real_file_is_visited_once(tree):
    tree(
        *("p/b.JPG", "p/a.png", "p/z/1.webp", "p/c/2.tif", "p/c/notes.txt", "p/.hidden/1.png", "p/__MACOSX/1.png"),
        *("p/._a.png", "other/9.png", "other/8.png"),
        links={
            "p/loop": "..", "p/c/up": "../z", "p/again.png": "a.png", "p/outside": "../other",
            "p/in.png": "../other/9.png", "p/far.png": "../far", "p/twice.png": "../far", "p/gone.png": "nowhere",
            "p/self.png": "self.png",
        },
    )  # fmt: skip
    open("far", "wb").close()
    found = list(image_files.find(["p"]))
    own = ["p/a.png", "p/b.JPG", "p/c/2.tif", "p/z/1.webp"]
    assert found == [*own, "p/outside/8.png", "p/outside/9.png", "p/far.png", "p/gone.png", "p/self.png"]
    assert list(image_files.find(["p/"])) == found
    named = ["other/9.png", "other", "./other/../other/*.png", "p/in.png"]  # each real file once, at its first place
    assert list(image_files.find(named)) == ["other/9.png", "other/8.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["1.png"]),
        ("./*.png", ["./1.png"]),
        ("a/*", ["a/2.png", "a/3.jpg"]),
        ("a/**", ["a/2.png", "a/3.jpg", "a/b/4.png", "a/b/c/5.png"]),
        ("**/*.png", ["1.png", "a/2.png", "a/b/4.png", "a/b/c/5.png"]),
        ("**/b/**/*.png", ["a/b/4.png", "a/b/c/5.png"]),
        ("a/*/?.png", ["a/b/4.png"]),
        ("[ab]/[!2].*", ["a/3.jpg"]),
    ],
)
def test_patterns(pattern, expected, tree):
    tree("1.png", "a/2.png", "a/3.jpg", "a/n.txt", "a/b/4.png", "a/b/c/5.png", links={"a/b/loop": "../.."})
    assert list(image_files.find([pattern])) == expected
    absolute = [os.path.abspath(path) for path in expected]
    assert list(image_files.find([os.path.join(os.getcwd(), pattern.removeprefix("./"))])) == absolute


def test_a_file_whose_name_is_a_pattern(tree):
    tree("a[1].png", "a1.png")
    assert list(image_files.find(["a[1].png", "a[0-9].png"])) == ["a[1].png", "a1.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", r"empty: no image in this folder \(it is empty\)"),
        ("texts", r"texts: no image in this folder \(left out: 2 .txt, 1 hidden\)"),
        (
            "texts/*.jpg",
            r"texts/\*.jpg: no such file, and as a pattern it matches no image .*2 .txt.*; \*\* stands for",
        ),
        ("images/*.jpg", r"matches no image \(left out: 1 other images\)"),
        ("images/absent.png", "^images/absent.png: No such file or directory$"),
        ("images/a.png/b.png", "^images/a.png/b.png: Not a directory$"),
        ("nowhere/*.jpg", "nowhere/.*.jpg: no such file, and as a pattern it has no folder nowhere/"),
    ],
)
def test_nothing_found_is_an_error_before_anything_is_read(name, message, tree):
    tree("texts/a.txt", "texts/b.txt", "texts/.c.jpg", "images/a.png")
    os.mkdir("empty")
    with pytest.raises(UserError, match=message):
        image_files.find(["images", name])  # not iterated


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_found(tree, monkeypatch):
    tree("p/a.png", "p/shut/b.png", "p/z/c.png")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path.rstrip("/")) == "shut":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list(image_files.find(["p"])) == ["p/a.png", Unreadable("p/shut", "Permission denied"), "p/z/c.png"]
    with pytest.raises(UserError, match=r"^p/shut: Permission denied$"):
        image_files.find(["p/shut"])


def test_what_is_written_meanwhile_is_left_out(tree):
    tree("p/a.png", "p/sheet.png", "p/maps/1.png", "p/other/sheet.png")
    assert list(image_files.find(["p"], exclude=["p/sheet.png", "p/maps", "p/absent"])) == [
        "p/a.png",
        "p/other/sheet.png",
    ]


@pytest.mark.parametrize(
    "content",
    [b"a.png\n\n b c.png \ncaf\xe9.png", b"a.png\r\n b c.png \r\ncaf\xe9.png\r\n", b"a.png\0 b c.png \0caf\xe9.png\0"],
)
def test_lists(content, tmp_path):
    (tmp_path / "list").write_bytes(content)
    assert list(image_files.read_list(str(tmp_path / "list"))) == ["a.png", " b c.png ", os.fsdecode(b"caf\xe9.png")]


def test_a_list_of_names_with_line_breaks_and_one_that_is_not_there(tmp_path):
    (tmp_path / "list").write_bytes(b"a\nb.png\0c.png")
    assert list(image_files.read_list(str(tmp_path / "list"))) == ["a\nb.png", "c.png"]
    with pytest.raises(UserError, match=r"^--files=.*absent: No such file or directory$"):
        image_files.read_list(str(tmp_path / "absent"))


def encoded(kind, frames):
    images = [Image.fromarray(np.random.RandomState(k).randint(0, 255, (9, 8, 3), np.uint8)) for k in range(frames)]
    file = io.BytesIO()
    images[0].save(file, kind, **({"save_all": True, "append_images": images[1:]} if frames > 1 else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations(kind):
    assert is_animated(encoded(kind, 3)) and not is_animated(encoded(kind, 1))
    for end in (3, 12, 20, 40):
        assert not is_animated(encoded(kind, 3)[:end]) or kind == "WEBP"


def test_two_pages_are_no_animation_and_an_avif_sequence_is():
    assert not is_animated(encoded("TIFF", 2))
    assert is_animated(b"\0\0\0\x20ftypavis") and not is_animated(b"\0\0\0\x20ftypavif")


def test_what_cannot_be_read_has_a_reason(tmp_path):
    image = np.random.RandomState(0).randint(0, 255, (40, 30, 3), np.uint8)
    whole = cv2.imencode(".png", image)[1].tobytes()
    for content, reason in (
        (b"", "an empty file"),
        (encoded("GIF", 2), "an animation: which of its frames is meant"),
        (b"no image", r"not a readable image \(8 bytes\)"),
        (whole[:200], "not a readable image"),
    ):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match=f"^{reason}"):
            image_files.read_image(tmp_path / "a.png")
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "absent", "No such file"),
        ("a\0b", "embedded null"),
    ):
        with pytest.raises(UserError, match=f"^{reason}"):
            image_files.read_image(path)
    (tmp_path / "a.png").write_bytes(whole)
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "a.png"), image[..., ::-1])


def test_a_torn_image_has_one_line_of_ours_and_none_of_opencv(tmp_path):
    """capfd would do, were the level not that of the whole process: here nothing has set it before."""
    whole = cv2.imencode(".png", np.random.RandomState(0).randint(0, 255, (40, 30, 3), np.uint8))[1].tobytes()
    (tmp_path / "a.png").write_bytes(whole[:200])
    code = "import sys; from inception_jax.data import image_files; image_files.read_image(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_LOG_LEVEL"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "UserError: not a readable image" in done.stderr
    assert "WARN" not in done.stderr and "grfmt" not in done.stderr
