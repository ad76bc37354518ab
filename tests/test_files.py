"""Files written whole, kept, and locked; digests of content and of code."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import UserError, check_writable, code_digest, content_digest, keep_old, locked, write_text, written_whole


def gone_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_whole_or_not_at_all():
    path = Path("folder/file")
    write_text(path, "first")
    with pytest.raises(RuntimeError), written_whole(path) as partial:
        partial.write_text("half of the sec")
        raise RuntimeError
    assert path.read_text() == "first" and os.listdir("folder") == ["file"]
    with written_whole(Path("folder/inner")) as partial:
        partial.mkdir()
        (partial / "a").write_text("a")
    assert (Path("folder/inner") / "a").read_text() == "a"


def test_what_killed_processes_leave_is_removed():
    path = Path("file")
    left, others = Path(f".file.{gone_process()}.partial"), Path(f".file.{os.getppid()}.partial")
    for each in (left, others):
        each.write_text("half")
    Path(".another.1.partial").write_text("not of this file")
    write_text(path, "whole")
    assert not left.exists() and others.exists() and Path(".another.1.partial").exists()


@pytest.mark.parametrize("place", ["taken/file", "a" * 250])
def test_a_place_that_cannot_be_written(place):
    Path("taken").write_text("a file")
    for attempt in (lambda path: write_text(path, "text"), check_writable):
        with pytest.raises(UserError, match="cannot be written"):
            attempt(Path(place))


@pytest.mark.parametrize("place", [".", "", "/"])
def test_a_folder_in_place_of_a_file(place):
    with pytest.raises(UserError, match="is a folder: name a file in it"):
        write_text(Path(place), "text")


def test_a_full_disk(monkeypatch):
    def full(self, text, encoding):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"^file cannot be written \(No space left on device\)$"):
        write_text(Path("file"), "text")
    assert os.listdir() == []


def test_writable_leaves_no_trace():
    Path("file").write_text("old")
    check_writable(Path("file"))
    check_writable(Path("new"))
    assert os.listdir() == ["file"] and Path("file").read_text() == "old"


def test_old_ones_are_numbered():
    for text in ("a", "b", "c"):
        write_text(Path("net.pth"), text)
        keep_old(Path("net.pth"))
    assert {path.name: path.read_text() for path in Path().iterdir()} == {
        "net.pth.old": "c",
        "net.pth.old2": "b",
        "net.pth.old3": "a",
    }


HOLD = """
import sys
from pathlib import Path
from common import locked
with locked(Path("net.pth"), "net.pth", wait={wait}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_at_a_time(root):
    def start(wait):
        return subprocess.Popen(
            [sys.executable, "-c", HOLD.format(wait=wait)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    holder = start(wait=False)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"^net\.pth is being written by process {holder.pid} on "):
        with locked(Path("net.pth"), "net.pth"):
            pass
    waiting = start(wait=True)
    assert waiting.stdout.readline().startswith(f"net.pth is being written by process {holder.pid} on ")
    holder.kill()  # the lock goes with the process
    assert waiting.stdout.readline() == "held\n"
    waiting.kill()
    for process in (holder, waiting):
        process.wait()
    with locked(Path("net.pth"), "net.pth"):
        assert os.listdir() == [".net.pth.lock"]
    assert os.listdir() == []


def test_content_digest_sees_every_bit():
    content = {"net": {"weight": torch.arange(6.0).view(2, 3)}, "acc": 1.5, "log": [{"epoch": 1}], "name": "a"}
    digest = content_digest(content)
    assert digest == content_digest({**content, "net": {"weight": torch.arange(6.0).view(2, 3)}})
    other = torch.arange(6.0).view(2, 3)
    other.view(torch.int32)[1, 2] ^= 1
    for change in (
        {"net": {"weight": other}},
        {"net": {"weight": torch.arange(6.0).view(3, 2)}},
        {"net": {"weight": torch.arange(6.0).double().view(2, 3)}},
        {"acc": 1.25},
        {"log": [{"epoch": 2}]},
        {"name": "b"},
    ):
        assert content_digest({**content, **change}) != digest


MODULE = """
import math
STEPS = {steps}

def inner(x):
    {doc}
    return x {operator} STEPS * math.pi


class Unused:
    pass


def outer(x):
    return inner(x)
"""


def test_code_digest_sees_what_a_function_does(monkeypatch, tmp_path):
    def digest(number, **parts):
        path = tmp_path / f"{number}.py"
        path.write_text(MODULE.format(**parts))
        spec = importlib.util.spec_from_file_location("its_module", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "its_module", module)
        spec.loader.exec_module(module)
        return code_digest(module.outer)

    same = digest(1, steps=3, doc='"""What it does."""', operator="+")
    assert digest(2, steps=3, doc="# another comment", operator="+") == same
    assert digest(3, steps=4, doc="# another comment", operator="+") != same  # a constant
    assert digest(4, steps=3, doc="# another comment", operator="-") != same  # a function that it calls


def make(number):
    def repair(images, bit):
        return images + number

    return repair


class Adder:
    def __init__(self, number):
        self.number = number

    def __call__(self, images, bit):
        return images + self.number

    def method(self, images, bit):
        return images + self.number


LIST, DICT, TENSOR = [1], {"a": 1}, torch.ones(2)
_cache = {}
TABLE = {
    "a": (
        lambda images, bit: images + 1
    ),
    "b": (
        lambda images, bit: images + 2
    ),
}  # fmt: skip


def uses_constants(images, bit):
    return images + LIST[0] + DICT["a"] + TENSOR.sum() + _cache.setdefault("a", 0)


def test_code_digest_sees_what_code_is_given(monkeypatch):
    assert code_digest(make(1)) == code_digest(make(1)) != code_digest(make(2))
    assert code_digest(Adder(1)) == code_digest(Adder(1)) != code_digest(Adder(2))
    assert code_digest(Adder(1).method) == code_digest(Adder(1).method) != code_digest(Adder(2).method)
    assert code_digest(functools.partial(make, 1)) != code_digest(functools.partial(make, 2))
    assert code_digest(TABLE["a"]) == code_digest(TABLE["a"]) != code_digest(TABLE["b"])
    before = code_digest(uses_constants)
    for name, value in (("LIST", [2]), ("DICT", {"a": 2}), ("TENSOR", torch.zeros(2))):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[__name__], name, value)
            assert code_digest(uses_constants) != before
    uses_constants(1, 2)  # which fills the cache
    assert code_digest(uses_constants) == before


def has_local_names(images, bit):
    above = [left + LIST[0] for left in images]
    return (lambda right: right)(above)


def test_a_local_name_is_not_the_global_of_that_name(monkeypatch):
    before = code_digest(has_local_names)
    for name in ("above", "left", "right", "images"):
        monkeypatch.setattr(sys.modules[__name__], name, make, raising=False)
    assert code_digest(has_local_names) == before
    monkeypatch.setattr(sys.modules[__name__], "LIST", [2])
    assert code_digest(has_local_names) != before
