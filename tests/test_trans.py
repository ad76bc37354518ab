"""trans.py as a user runs it, on a small made tree: sorting, running twice, interruption, unzipping, bad input."""

import os
import shutil
import subprocess
import sys

import pytest

import trans
from common import UserError, locked

WNIDS = {f"val_{i}.JPEG": f"n0000000{i % 3}" for i in range(7)}


def lines(wnids):
    return "".join(f"{name}\t{wnid}\t0\t0\t62\t61\n" for name, wnid in wnids.items())


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    for name in WNIDS:
        (folder / "val" / "images" / name).write_text(f"pixels of {name}")
    (folder / "val" / "val_annotations.txt").write_text(lines(WNIDS))
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def expected():
    images = {f"val/{wnid}/images/{name}": f"pixels of {name}" for name, wnid in WNIDS.items()}
    return {"val/val_annotations.txt": lines(WNIDS), **images}


def call(root, *words):
    result = subprocess.run([sys.executable, root / "trans.py", *words], capture_output=True, text=True)
    return result.returncode, result.stdout, result.stderr


def test_sorts_and_runs_twice(folder, root):
    inodes = {path.name: path.stat().st_ino for path in (folder / "val" / "images").iterdir()}
    code, out, err = call(root, folder)
    assert (code, err) == (0, "")
    assert out == f"{folder}/val: 7 images in 3 class folders, 7 moved now, 0 in place before\n"
    assert files(folder) == expected()
    assert not (folder / "val" / "images").exists()
    assert {path.name: path.stat().st_ino for path in folder.glob("val/*/images/*")} == inodes  # moved, not copied

    code, out, err = call(root, folder)
    assert (code, err) == (0, "")
    assert out == f"{folder}/val: 7 images in 3 class folders, 0 moved now, 7 in place before\n"
    assert files(folder) == expected()


def test_default_folder(folder, root):
    os.mkdir("data")
    folder.rename("data/tiny-imagenet-200")
    code, out, _ = call(root)
    assert code == 0 and "7 images in 3 class folders" in out


def test_interrupted_half_way(folder, monkeypatch, capsys):
    moved = []

    def rename(source, target):
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(source)
        os.replace(source, target)

    monkeypatch.setattr(sys, "argv", ["trans.py", str(folder)])
    with monkeypatch.context() as patch:
        patch.setattr(trans.os, "rename", rename)
        with pytest.raises(KeyboardInterrupt, match="run it again"):
            trans.main()
    assert len(list(folder.glob("val/n*/images/*"))) == 3
    trans.main()
    assert "7 images in 3 class folders, 4 moved now, 3 in place before" in capsys.readouterr().out
    assert files(folder) == expected()


def test_unzips(folder, root):
    shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    shutil.rmtree(folder)
    (folder.parent / "tiny-imagenet-200.partial" / "tiny-imagenet-200").mkdir(parents=True)  # from an interrupted run
    code, out, err = call(root, folder)
    assert (code, err) == (0, "")
    assert "unzipping" in out and "7 images in 3 class folders" in out
    assert files(folder) == expected()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]


def test_damaged_zip(folder, monkeypatch):
    shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    shutil.rmtree(folder)
    archive = folder.with_name("tiny-imagenet-200.zip")
    whole = archive.read_bytes()
    monkeypatch.setattr(sys, "argv", ["trans.py", str(folder)])
    for place in range(0, len(whole), 37):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            trans.main()
        except UserError:
            continue
        shutil.rmtree(folder)  # unzipped all the same: this byte does not matter


@pytest.mark.parametrize("content", (b"", b"PK\x03\x04 cut off"))
def test_bad_zip(tmp_path, root, content):
    (tmp_path / "tiny.zip").write_bytes(content)
    code, out, err = call(root, tmp_path / "tiny")
    assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1
    assert "tiny.zip is truncated or no zip file" in err and not (tmp_path / "tiny").exists()


def test_neither_folder_nor_zip(tmp_path, root):
    code, out, err = call(root, tmp_path / "tiny")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert "neither" in err and "download http" in err


def without(name):
    return lines({key: wnid for key, wnid in WNIDS.items() if key != name})


@pytest.mark.parametrize(
    "annotations,word",
    [
        (without("val_3.JPEG"), "val_3.JPEG has no line"),
        (lines({**WNIDS, "val_9.JPEG": "n00000001"}), "val_9.JPEG is missing"),
        (lines(WNIDS) + "val_2.JPEG\tn00000002\t0\t0\t62\t61\n", "line 8: a second line for val_2.JPEG"),
        (without("val_3.JPEG") + "../../val_3.JPEG\tn00000001\t0\t0\t62\t61\n", "line 7"),
        (without("val_3.JPEG") + "val_3.JPEG\t../..\t0\t0\t62\t61\n", "line 7"),
        (without("val_3.JPEG") + "val_3.JPEG\t/tmp\t0\t0\t62\t61\n", "line 7"),
        (without("val_3.JPEG") + "val_3.JPEG\timages\t0\t0\t62\t61\n", "line 7"),
        (without("val_3.JPEG") + "val_3.JPEG\t\t0\t0\t62\t61\n", "line 7"),
        (without("val_3.JPEG") + "val_3.JPEG n00000001\n", "line 7"),
        (None, "val_annotations.txt is missing"),
    ],
)
def test_bad_annotations_move_nothing(folder, monkeypatch, annotations, word):
    path = folder / "val" / "val_annotations.txt"
    path.unlink() if annotations is None else path.write_text(annotations)
    before = files(folder)
    monkeypatch.setattr(sys, "argv", ["trans.py", str(folder)])
    with pytest.raises(UserError) as error:
        trans.main()
    assert word in str(error.value) and "\n" not in str(error.value)
    assert files(folder) == before


@pytest.mark.parametrize(
    "place,word", [("n00000000", "is also in"), ("n00000001", "is also in"), (None, "in the wrong class folder")]
)
def test_images_in_two_places_or_a_wrong_one(folder, monkeypatch, place, word):
    target = folder / "val" / (place or "n00000002") / "images"
    target.mkdir(parents=True)
    (shutil.copy if place else shutil.move)(folder / "val" / "images" / "val_0.JPEG", target)
    before = files(folder)
    monkeypatch.setattr(sys, "argv", ["trans.py", str(folder)])
    with pytest.raises(UserError, match=word):
        trans.main()
    assert files(folder) == before


def test_what_systems_leave_behind_is_skipped(folder, root):
    """Files of macOS and Windows, a byte order mark, and images that lie in class folders inside val/images."""
    flat = folder / "val" / "images"
    for name in (".DS_Store", "._val_0.JPEG", "Thumbs.db"):
        (flat / name).write_text("junk")
    (flat / "n00000001" / "images").mkdir(parents=True)
    (flat / "val_1.JPEG").rename(flat / "n00000001" / "val_1.JPEG")
    (flat / "val_4.JPEG").rename(flat / "n00000001" / "images" / "val_4.JPEG")
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    code, out, err = call(root, folder)
    assert (code, err) == (0, "") and "7 moved now" in out
    assert {path.name for path in folder.glob("val/*/images/*")} == set(WNIDS)
    assert not flat.exists()


def test_images_in_class_folders_themselves_stay(folder, root):
    for name, wnid in WNIDS.items():
        (folder / "val" / wnid).mkdir(exist_ok=True)
        (folder / "val" / "images" / name).rename(folder / "val" / wnid / name)
    code, out, err = call(root, folder)
    assert (code, err) == (0, "") and "0 moved now, 7 in place before" in out


@pytest.mark.parametrize("given", [".", "tiny-imagenet-200/", "tiny-imagenet-200.zip", "outer"])
def test_where_it_lies_is_understood(folder, root, given):
    os.chdir(folder.parent)
    if given == ".":
        os.chdir(folder)
    elif given == "outer":  # a folder in a folder of the same name
        folder.rename("inner")
        folder.mkdir()
        os.rename("inner", folder / folder.name)
        given, folder = folder.name, folder / folder.name
    elif given.endswith(".zip"):
        shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
        shutil.rmtree(folder)
        folder.mkdir()  # an empty folder beside it
    code, out, err = call(root, given)
    assert (code, err) == (0, "") and "7 moved now" in out
    assert {path.name for path in folder.glob("val/*/images/*")} == set(WNIDS)


def test_a_zip_of_something_else_leaves_nothing(tmp_path, root):
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("text")
    shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path, "else")
    code, _, err = call(root, tmp_path / "tiny")
    assert code == 1 and "holds no folder tiny-imagenet-200" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["else", "tiny.zip"]


def test_one_at_a_time(folder, root):
    with locked(folder, "it"):
        code, out, err = call(root, folder)
    assert (code, out) == (1, "") and "is being written by process" in err and err.count("\n") == 1


def test_a_terminal_that_cannot_show_every_sign(folder, root):
    shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    shutil.rmtree(folder)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(
        [sys.executable, root / "trans.py", folder], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0 and "files ?" in result.stdout, result.stderr
