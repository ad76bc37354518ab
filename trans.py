#!/usr/bin/env python3
"""Sort Tiny-ImageNet's validation images into class folders. Run once after downloading.

    python trans.py                            # data/tiny-imagenet-200, unzipping data/tiny-imagenet-200.zip if need be
    python trans.py FOLDER

val/images/val_0.JPEG … becomes val/<wnid>/images/val_0.JPEG …, as val/val_annotations.txt says; that file stays.
Images are moved, not copied. Everything is checked before anything moves, and a run that was interrupted is
finished by the next. Any Python will do, no packages are needed.
"""

import os
import shutil
import zipfile
import zlib
from pathlib import Path

from common import Parser, UserError, run

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
FOLDER = "data/tiny-imagenet-200"


def unzip(archive, folder):
    """Unpack the folder of this name from the archive, whole or not at all."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            print(f"unzipping {archive}, {len(file.namelist())} files …", flush=True)
            file.extractall(partial)  # keeps to `partial`, whatever the members' names
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} is truncated or no zip file ({error}): download {URL} again") from None
    if not (partial / "tiny-imagenet-200").is_dir():
        raise UserError(f"{archive} holds no folder tiny-imagenet-200: download {URL} again")
    (partial / "tiny-imagenet-200").rename(folder)
    shutil.rmtree(partial)


def read_annotations(path):
    """The lines of val_annotations.txt -> {file name: wnid}. UserError on a malformed or doubled line."""
    if not path.is_file():
        raise UserError(f"{path} is missing: unzip {URL} again")
    wnids = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
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
    """Check val/ against its annotations. Returns [(from, to)] of what is to be moved, and {file name: wnid}."""
    wnids = read_annotations(val / "val_annotations.txt")
    flat = val / "images"
    waiting = {path.name for path in flat.iterdir()} if flat.is_dir() else set()
    sorted_into = {}
    for path in val.glob("*/images/*"):
        if path.name in sorted_into:
            raise UserError(f"{path} is also in {val / sorted_into[path.name]}: remove one of them")
        sorted_into[path.name] = path.parent.parent.name

    for name in sorted(waiting | sorted_into.keys()):
        where = val / sorted_into[name] / "images" / name if name in sorted_into else flat / name
        if name not in wnids:
            raise UserError(f"{where} has no line in {val / 'val_annotations.txt'}: remove the file or add the line")
        if name in waiting and name in sorted_into:
            raise UserError(f"{where} is also in {flat}: remove one of them")
        if name in sorted_into and sorted_into[name] != wnids[name]:
            raise UserError(f"{where} is in the wrong class folder: {val / 'val_annotations.txt'} says {wnids[name]}")
    for name in wnids:
        if name not in waiting and name not in sorted_into:
            raise UserError(
                f"{flat / name} is missing, though {val / 'val_annotations.txt'} has a line for it: unzip again"
            )
    return [(flat / name, val / wnids[name] / "images" / name) for name in wnids if name in waiting], wnids


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", nargs="?", default=FOLDER, type=Path, help="default %(default)s")
    folder = parser.parse_args().folder
    archive = folder.with_name(f"{folder.name}.zip")
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
    if (val / "images").is_dir():
        (val / "images").rmdir()
    print(
        f"{val}: {len(wnids)} images in {len(set(wnids.values()))} class folders, "
        f"{len(moves)} moved now, {len(wnids) - len(moves)} in place before"
    )


if __name__ == "__main__":
    run(main)
