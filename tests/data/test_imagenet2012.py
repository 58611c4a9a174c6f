"""ImageNet from its two tars: small ones of the same form, and ones that are damaged."""

import io
import tarfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from inception_jax.data import imagenet2012, raw_files, records
from inception_jax.data.datasets import load


def tar(path: Path, members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


@pytest.fixture
def imagenet(tmp_path, encoded_image, monkeypatch):
    """Two tars of ImageNet's form: 3 + 2 images of two synsets, and 4 for validation, not in order of their names."""
    folder = tmp_path / "tars"
    folder.mkdir()
    images = {}
    inner = []
    for synset, count in (("n01443537", 3), ("n01440764", 2)):
        members = [(f"{synset}_{i}.JPEG", encoded_image(len(images) + i, suffix=".jpg")) for i in range(count)]
        images.update(members)
        inner.append((f"{synset}.tar", tar(folder / "inner", members)))
    (folder / "inner").unlink()
    tar(folder / "ILSVRC2012_img_train.tar", inner)
    validation = [(f"ILSVRC2012_val_{i:08d}.JPEG", encoded_image(100 + i, suffix=".jpg")) for i in (3, 1, 2, 4)]
    tar(folder / "ILSVRC2012_img_val.tar", validation)
    monkeypatch.setattr(imagenet2012.Imagenet2012, "EXPECTED", {"train": 5, "validation": 4})
    synsets = ["n01751748", "n09193705", "n02105855", "n04263257"]  # the first lines of TFDS's file
    assert imagenet2012._read_tfds_file("validation_labels.txt")[:4] == synsets
    monkeypatch.setattr(imagenet2012.Imagenet2012, "validation_labels", lambda self: synsets)
    return folder, images | dict(validation), synsets


def test_imagenet_from_its_tars(imagenet, tmp_path, run):
    folder, images, synsets = imagenet
    arguments = ["imagenet2012", f"--source={folder}", f"--data_dir={tmp_path}", "--num_shards=2", "--check=counts"]
    assert run(*arguments) == 0
    for split, count in (("train", 5), ("validation", 4)):
        data = load("imagenet2012", split, str(tmp_path))
        assert data.num_classes == 1000 and data.class_names[:2] == ["n01440764", "n01443537"]
        builder = tfds.builder_from_directory(tmp_path / "imagenet2012" / "5.1.0")
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        names = [source[i]["file_name"].decode() for i in range(count)]
        # By these names lists of images find them, also in a part of the split.
        assert [data.source.file_name(i) for i in range(count)] == names
        part = load("imagenet2012", f"{split}[1:]", str(tmp_path)).source
        assert [records.file_name(part, i) for i in range(count - 1)] == names[1:]
        assert sorted(names) == sorted(n for n in images if n.startswith("n0" if split == "train" else "ILSVRC"))
        for i, name in enumerate(names):
            encoded, label = data.record(i)
            assert encoded == images[name]
            number = int(name[-13:-5]) - 1 if split == "validation" else None
            assert data.class_names[label] == (name.split("_")[0] if number is None else synsets[number])


def test_imagenet_order_is_tfds_own(imagenet, tmp_path, run):
    folder, _, _ = imagenet
    assert run("imagenet2012", f"--source={folder}", f"--data_dir={tmp_path / 'ours'}", "--check=counts") == 0
    builder = imagenet2012.Imagenet2012(source=folder, data_dir=tmp_path / "theirs", file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    for split in ("train", "validation"):
        ours, theirs = (load("imagenet2012", split, str(tmp_path / side)) for side in ("ours", "theirs"))
        assert [ours.record(i) for i in range(ours.num_examples)] == [
            theirs.record(i) for i in range(theirs.num_examples)
        ]


def test_imagenet_checks_its_tars(imagenet, tmp_path, capsys, run):
    folder, _, _ = imagenet
    arguments = ["imagenet2012", f"--source={folder}", f"--data_dir={tmp_path}"]
    assert run(*arguments) == 2
    assert "ILSVRC2012_img_train.tar: SHA-256" in capsys.readouterr().err
    path = folder / "ILSVRC2012_img_train.tar"
    content = path.read_bytes()
    for size in (len(content) // 2, 700, 100):
        path.write_bytes(content[:size])
        assert run(*arguments) == 2
        assert "ILSVRC2012_img_train.tar: " in capsys.readouterr().err
    inner = tar(folder / "inner", [("n01440764_0.JPEG", bytes(5000))])
    tar(path, [("n01440764.tar", inner[:3000]), ("n01443537.tar", inner)])
    assert run(*arguments) == 2
    assert "ILSVRC2012_img_train.tar: truncated inside n01440764_0.JPEG" in capsys.readouterr().err
    tar(path, [("images.tar", b"")])
    assert run(*arguments) == 2
    assert "a tar per synset" in capsys.readouterr().err


def test_tar_members_do_not_leave_the_tar(tmp_path):
    """Nothing is extracted, names are cut to their last part, links and folders are passed over."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for name, kind in (("../../b.JPEG", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    assert [member.name for member in raw_files.tar_members(path)] == ["b.JPEG"]
