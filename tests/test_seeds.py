"""report/seeds.py against the mean and standard deviation of the accuracies in the sweep.csv files."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from made import TINY, save_checkpoint, trained_net, write_cifar10

import sweep
from engine import checkpoints
from models import TOPOLOGIES

SEEDS = 3, 20, 100
WORDS = ["--data", ".", "--rate", "--sigma", "--runs", "2"]


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """Three nets with the same session name, and one with another; 40 test images."""
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", TINY)
    write_cifar10(tmp_path, rows=40)
    for seed in SEEDS:
        save_checkpoint(trained_net("cifar10"), "net", "cifar10", False, seed)
    save_checkpoint(trained_net("cifar10"), "net_other", "cifar10", False, 3)


def accuracies(sess="net"):
    """{(fault, bit, repair, level): [accuracy of each net, mean of its runs]} from the files."""
    found = {}
    for seed in SEEDS:
        runs = {}
        with open(f"results/{sess}_{seed}/sweep.csv") as file:
            for row in csv.DictReader(file):
                what = row["fault"], row["bit"], row["repair"], row["level"]
                runs.setdefault(what, []).append(100 * int(row["correct"]) / int(row["n"]))
        for what, values in runs.items():
            found.setdefault(what, []).append(np.mean(values))
    return found


def both(values, clean):
    values = np.array(values)
    lost = values - np.array(clean)
    mean, spread = values.mean(), values.std(ddof=1)
    return f"{mean:.2f} ± {spread:.2f} ({lost.mean():+.2f} ± {lost.std(ddof=1):.2f})"


def table(text, title):
    """{label of a row: its other cells} of a table."""
    block = text.split(f"### {title}\n")[1].split("###")[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block]
    return {row[0]: row[1:] for row in rows if not row[0].startswith("---")}


def test_figures(nets, run_script):
    status, out, err = run_script(
        sweep, *WORDS, "--sess", "net", "net_other", "--seed", "3", "--bits", "6", "--repair", "median", "--flip", "0.1"
    )
    assert status == 0, err
    assert "_seeds.md" not in out and not list(Path("results").glob("*_seeds.md"))

    seeds = [str(seed) for seed in SEEDS]
    few = ["--bits", "6", "--repair", "median", "--flip", "0.1", "--sess", "net", "--seed"]
    status, out, err = run_script(sweep, *WORDS, *few, *seeds)
    assert status == 0, err
    assert "results/net_seeds.md: nets of several seeds\n" in out
    assert [path.name for path in Path("results").glob("*_seeds.md")] == ["net_seeds.md"]

    text = Path("results/net_seeds.md").read_text()
    found = accuracies()
    clean = found["none", "", "", ""]
    assert len(set(clean)) > 1 and "seeds 3, 20, 100." in text
    bits, flips = table(text, "Broken bit planes"), table(text, "Weight bit errors")
    alone = f"{np.mean(clean):.2f} ± {np.std(clean, ddof=1):.2f}"
    assert bits["accuracy (%)"] == ["no fault", "bit 6"]
    assert bits["faulty (random)"] == [alone, both(found["random", "6", "", "1.0"], clean)]
    assert bits["median"] == ["–", both(found["random", "6", "median", "1.0"], clean)]
    assert flips["accuracy (%)"] == [alone, both(found["flips", "", "", "0.1"], clean)]
    assert len(re.findall("^###", text, re.M)) == 2

    # a fault that one net lacks is left out; a copy of a folder does not count twice
    shutil.copytree("results/net_20", "results/net_20_copy")
    status, out, err = run_script(sweep, *WORDS, "--bits", "5", "--repair", "--sess", "net", "--seed", "3")
    assert status == 0, err
    assert Path("results/net_seeds.md").read_text() == text and "_seeds.md" not in out


@pytest.mark.parametrize(
    "options, words",
    [
        ({"ber": 0.3, "faulty_bit": 2}, "The trainings differ in the seed only."),  # without effect
        ({"epochs": 7}, "**The trainings differ in more than the seed:** epochs –, 7, –."),
        ({"memory": "image", "ber": 0.3}, "**The trainings differ in more than the seed:** ber –, 0.3, –; "),
    ],
)
def test_trainings_are_compared(nets, run_script, options, words):
    path = checkpoints.path_of("net", 20)
    state = checkpoints.read_state(path)
    checkpoints.save(path, {**state, "options": state["options"] | options})
    seeds = [str(seed) for seed in SEEDS]
    assert run_script(sweep, *WORDS, "--bits", "--sess", "net", "--seed", *seeds)[0] == 0
    assert words in Path("results/net_seeds.md").read_text()
    path.unlink()
    Path("results/net_3/tables.md").unlink()
    assert run_script(sweep, *WORDS, "--bits", "--sess", "net", "--seed", "3")[0] == 0
    assert "no checkpoint is at hand of 20." in Path("results/net_seeds.md").read_text()
