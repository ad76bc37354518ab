import os
import sys
from pathlib import Path

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # results are equal to the bit on the CPU only

import torch

import sweep
import train_smaller
from engine import training_digest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = ("test_run_sh.py", "test_train.py", "test_sweep.py")


def pytest_collection_modifyitems(items):
    """The longest tests come first, so that at the end no core waits for one that runs on another."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Every test works in an empty folder, so that none reads or writes a checkpoint of the project."""
    monkeypatch.chdir(tmp_path)
    training_digest.cache_clear()  # it goes by the path, which is the same in all tests
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _sweeps_draw_nothing(request, monkeypatch):
    """A sweep in this process makes no plots and no page, most of its time on small data, unless @pytest.mark.plots."""
    if not request.node.get_closest_marker("plots"):
        for name in ("write_plots", "write_pictures"):
            monkeypatch.setattr(sweep, name, lambda *_: None)
        monkeypatch.setattr(sweep, "write_page", lambda results, *_: (results / "index.html", []))


@pytest.fixture
def root():
    return ROOT


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Runs a script in this process. Returns its exit status, and what it printed except the data's warning."""

    def run_script(script, *words):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *words])
        capsys.readouterr()
        status = 0
        try:
            script.run(script.main)
        except SystemExit as exit:
            status = exit.code
        out, err = capsys.readouterr()
        return status, out, "".join(line for line in err.splitlines(True) if not line.startswith("warning: "))

    return run_script


@pytest.fixture
def succeed(run_script):
    """Runs train_smaller.py in this process, which saves the import; returns the lines it prints."""

    def call(*words):
        status, out, err = run_script(train_smaller, *words)
        assert status == 0, err
        return out.splitlines()

    return call
