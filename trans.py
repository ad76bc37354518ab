#!/usr/bin/env python3
"""Sort Tiny-ImageNet's validation images into class folders. Run once after downloading.

    python3 trans.py                            # data/tiny-imagenet-200, unzips data/tiny-imagenet-200.zip if needed
    python3 trans.py FOLDER

val/images/val_0.JPEG … becomes val/<wnid>/images/val_0.JPEG …, as val/val_annotations.txt says; that file stays.
Images are moved, not copied. Everything is checked before the first image moves. If a run is interrupted, the next
one finishes its work. Any Python works; no packages are needed.
"""

import os
import shutil
import zipfile
import zlib

from common import Parser, UserError, as_path, locked, run

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
NAME = "tiny-imagenet-200"
FOLDER = f"data/{NAME}"


def unzip(archive, folder):
    """Unpack the folder of this name from the archive, whole or not at all."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            print(f"unzipping {archive}, {len(file.namelist())} files …", flush=True)
            file.extractall(partial)  # never writes outside of `partial`, whatever the members' names
        if not (partial / NAME).is_dir():
            raise UserError(f"{archive} holds no folder {NAME}: download {URL} again")
        (partial / NAME).rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} is truncated or no zip file ({error}): download {URL} again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def locate(given):
    """(folder of the data set, its archive). given: either of them, from the command line."""
    path = as_path(given).absolute() if as_path(given).name in ("", "..") else as_path(given)
    if not path.name:
        raise UserError(f"{path} is no folder of a data set")
    if path.suffix == ".zip":
        return path.with_suffix(""), path
    if not (path / "val").is_dir() and (path / path.name / "val").is_dir():  # some programs unzip this way
        return path / path.name, path.with_name(f"{path.name}.zip")
    return path, path.with_name(f"{path.name}.zip")


def is_junk(path):
    """True if the file is of the operating system, not of the data set."""
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini")


def read_annotations(path):
    """{file name: wnid} from the lines of val_annotations.txt. UserError for a malformed or repeated line."""
    if not path.is_file():
        raise UserError(f"{path} is missing: unzip {URL} again")
    wnids = {}
    for number, line in enumerate(path.read_text("utf-8-sig", "replace").splitlines(), 1):
        name, wnid, *_box = line.split("\t") if line.count("\t") == 5 else ("",) * 2
        for word in (name, wnid):
            if word in ("", ".", "..") or "/" in word or "\\" in word or "\0" in word:
                raise UserError(
                    f"{path}, line {number}: not a file name, a wnid and a box, separated by tabs: {line!r}"
                )
        if wnid == "images":
            raise UserError(f"{path}, line {number}: 'images' is no wnid")
        if name in wnids:
            raise UserError(f"{path}, line {number}: a second line for {name}")
        wnids[name] = wnid
    return wnids


def plan(val):
    """Check val/ against its annotations. Returns [(from, to)] of the files to move, and {file name: wnid}."""
    wnids = read_annotations(val / "val_annotations.txt")
    waiting, sorted_into = {}, {}  # {file name: its path}
    for path in val.glob("*/**/*"):
        if path.is_dir() or is_junk(path):
            continue
        found = waiting if path.relative_to(val).parts[0] == "images" else sorted_into
        if path.name in found:
            raise UserError(f"{path} is also in {found[path.name].parent}: remove one of them")
        found[path.name] = path

    flat = val / "images"
    for name in sorted(waiting.keys() | sorted_into.keys()):
        where = sorted_into.get(name) or waiting[name]
        if name not in wnids:
            raise UserError(f"{where} has no line in {val / 'val_annotations.txt'}: remove the file or add the line")
        if name in waiting and name in sorted_into:
            raise UserError(f"{where} is also in {waiting[name].parent}: remove one of them")
        if name in sorted_into and where.relative_to(val).parts[0] != wnids[name]:
            raise UserError(f"{where} is in the wrong class folder: {val / 'val_annotations.txt'} says {wnids[name]}")
    for name in wnids:
        if name not in waiting and name not in sorted_into:
            raise UserError(
                f"{flat / name} is missing, though {val / 'val_annotations.txt'} has a line for it: unzip again"
            )
    return [(waiting[name], val / wnids[name] / "images" / name) for name in wnids if name in waiting], wnids


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", nargs="?", default=FOLDER, help="or its zip file; default %(default)s")
    folder, archive = locate(parser.parse_args().folder)
    with locked(folder, str(folder)):
        prepare(folder, archive)


def prepare(folder, archive):
    """Unzip the archive if needed, and sort the validation images."""
    if folder.is_dir() and all(map(is_junk, folder.iterdir())) and archive.is_file():
        shutil.rmtree(folder)
    if not folder.is_dir():
        if not archive.is_file():
            raise UserError(f"neither {folder} nor {archive} is there: download {URL} to {archive} and run this again")
        unzip(archive, folder)
    val = folder / "val"
    moves, wnids = plan(val)
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(source, target)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run it again to finish") from None
    remove_emptied(val / "images")
    print(
        f"{val}: {len(wnids)} images in {len(set(wnids.values()))} class folders, "
        f"{len(moves)} moved now, {len(wnids) - len(moves)} in place before"
    )


def remove_emptied(folder):
    """Remove a folder that holds only empty folders and files of the operating system."""
    if folder.is_dir():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()


if __name__ == "__main__":
    run(main)
