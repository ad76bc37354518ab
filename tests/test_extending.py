"""A data set, net, recipe, loss and repair added as docs/extending.md describes, run through the scripts."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
import recipes
import sweep
import train_smaller
from common import UserError
from datasets import DATASETS, DataSet, folders, read_images
from engine import checkpoints
from faults import Cells, fault_of_cells, get_bit, set_bit
from models import TOPOLOGIES, Topology
from repairs import REPAIRS, Repair, RepairCost, fault_of, with_fault, with_repair

SMALL = Topology(size=32, conv=((8, False), (16, True)), fc=(24,))


@pytest.fixture
def call(run_script):
    """Runs a script in this process; returns the lines it prints, or raises what it complains of."""

    def call(script, *words):
        status, out, err = run_script(script, *words)
        if status:
            raise UserError(err.rstrip())
        return out.splitlines()

    return call


def write_folder(root, size, test="test", count=12):
    """Writes class folders of images, each of one grey level with noise, in several formats. Returns {split: array}."""
    rng = np.random.default_rng(0)
    written = {}
    for split in ("train", test):
        written[split] = []
        for label, name in enumerate(("dark", "light", "medium")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                level = (40, 200, 120)[label]
                pixels = (level + rng.integers(-30, 30, (size, size, 3))).astype(np.uint8)
                kind = ("png", "BMP", "ppm")[i % 3]
                Image.fromarray(pixels).save(root / split / name / f"{i:02}.{kind}")
                written[split].append(pixels)
    (root / "train" / "dark" / "notes.txt").write_text("no image")
    return {split: np.stack(images) for split, images in written.items()}


@pytest.mark.parametrize("size,net,test", [(32, "cifar_smaller", "test"), (64, "tiny_imagenet_smaller", "val")])
def test_class_folders(tmp_path, monkeypatch, call, size, net, test):
    monkeypatch.setitem(TOPOLOGIES, net, SMALL._replace(size=size))
    written = write_folder(tmp_path / "photos", size, test)
    for split in ("train", test):
        images, labels = read_images("folder", "photos", split == "train")
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), written[split])
        assert labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12

    words = ["--data", "photos", "--sess", "photos"]
    small = ["--epochs", "2", "--batch-size", "16", "--no-compile"]
    lines = call(train_smaller, "--train", "--dataset", "folder", *words, *small)
    assert "training on class folders, 36 images" in lines[0]
    state = checkpoints.read_state(checkpoints.path_of("photos", 11111))
    assert state["options"]["classes"] == 3 and state["options"]["net"] == net
    assert state["net"]["linear_features.3.weight"].shape == (3, 24)
    assert call(train_smaller, *words)[-1] == f"Avg. acc.: {state['acc']:.3f}%"
    assert "trained to the end" in call(train_smaller, "--train", "--resume", *words)[-1]
    call(sweep, *words, "--bits", "7", "--repair", "midpoint", "--rate", "--sigma", "--flip", "--runs", "1")
    with open("results/photos_11111/sweep.csv") as file:
        assert [row["dataset"] for row in csv.DictReader(file)] == ["folder"] * 5

    write_folder(tmp_path / "other", 40)
    with pytest.raises(UserError, match=r"images of 40×40 pixels: there are nets for "):
        call(train_smaller, "--train", "--dataset", "folder", "--data", "other", *small)
    with pytest.raises(UserError, match=rf"for images of {size}×{size} pixels and 3 classes: these have 40×40"):
        call(train_smaller, "--data", "other", "--sess", "photos")
    monkeypatch.setitem(TOPOLOGIES, "mine_40", SMALL._replace(size=40))
    assert "36 images" in call(train_smaller, "--train", "--dataset", "folder", "--data", "other", *small)[0]


@pytest.mark.parametrize(
    "damage,complaint",
    [
        (lambda root: (root / "test").rename(root / "rest"), "photos/test is not there"),
        (lambda root: (root / "train").rename(root / "rest"), "photos/train is not there"),
        (lambda root: (root / "test" / "dark").rename(root / "test" / "cat"), "photos/test/cat is a class that"),
        (
            lambda root: [path.unlink() for path in (root / "test" / "dark").iterdir()],
            "photos/test/dark holds no images",
        ),
        (lambda root: (root / "test" / "dark" / "00.png").write_bytes(b"no"), "dark/00.png is no readable image"),
        (
            lambda root: Image.new("RGB", (30, 32)).save(root / "test" / "light" / "00.png"),
            "light/00.png is 30×32 pixels instead of 32×32",
        ),
    ],
)
def test_damaged_class_folders(tmp_path, damage, complaint):
    write_folder(tmp_path / "photos", 32)
    damage(tmp_path / "photos")
    with pytest.raises(UserError, match=complaint) as error:
        folders.read(Path("photos"), False, 2)
    assert "\n" not in str(error.value)


def test_a_row_of_each_table(monkeypatch, call):
    """In these images bits 7, 6 and 5 are equal: the repair reads the broken bit 5 from bits 7 and 6."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 32, (40, 32, 32, 3), dtype=np.uint8) + rng.choice([0, 224], (40, 1, 1, 1)).astype(np.uint8)
    asked = []

    def read_mine(root, train, workers):
        asked.append((str(root), train))
        return images, np.arange(40) % 5

    def my_loss(logits, labels):
        return logits.square().mean() * 0 + 1.25

    def either(images, bit):
        return set_bit(images, bit, get_bit(images, 7) | get_bit(images, 6))

    monkeypatch.setitem(DATASETS, "mine", DataSet("My images", read_mine, 5, "mine_32"))
    monkeypatch.setitem(TOPOLOGIES, "mine_32", SMALL)
    monkeypatch.setitem(recipes.RECIPES["modern"], "mine", replace(recipes.MODERN, epochs=2, batch_size=8))
    monkeypatch.setitem(models.LOSSES, "mine", my_loss)
    monkeypatch.setitem(
        REPAIRS, "either", Repair(either, "1 if bit 7 or 6 is", RepairCost(operations=1), cannot=(7, 6))
    )
    lines = call(train_smaller, "--train", "--dataset", "mine", "--data", "there", "--loss", "mine", "--no-compile")
    assert "My images, 40 images, epoch 1 to 2" in lines[0] and "loss 1.2500" in lines[-1]
    assert asked == [("there", True), ("there", False)]
    assert checkpoints.read_state(checkpoints.path_of("mine_smaller", 11111))["options"]["lr"] == recipes.MODERN.lr
    clean, repaired = (
        call(train_smaller, "--dataset", "mine", "--mem_fault", fault, "--faulty_bit", "5")[-2:]
        for fault in ("baseline", "either")
    )
    assert clean == repaired
    few = ["--rate", "--sigma", "--flip", "--runs", "1"]
    call(sweep, "--sess", "mine_smaller", "--bits", "6", "5", "--repair", "either", *few)
    with open("results/mine_smaller_11111/sweep.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["repair"] == "either"]
    assert [(row["bit"], float(row["recovered"])) for row in rows] == [("5", 1.0)]


@pytest.mark.parametrize(
    "mend,complaint",
    [
        (
            lambda images, bit: images.float(),
            r"returned torch.float32 \(1, 3, 4, 4\): it must .* torch.uint8 \(1, 3, 4, 4\)",
        ),
        (lambda images, bit: images[:, :1], r"returned torch.uint8 \(1, 1, 4, 4\)"),
        (lambda images, bit: images.numpy(), "returned a ndarray"),
        (lambda images, bit: images, "reads the broken bit 6"),
        (lambda images, bit: set_bit(images, bit, get_bit(images.roll(1, -1), bit)), "reads the broken bit 6"),
    ],
)
def test_a_repair_that_is_wrong_is_refused(mend, complaint, monkeypatch):
    monkeypatch.setitem(REPAIRS, "mine", Repair(mend, "something", None, masked=lambda images, broken: images[:1]))
    images = torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4)
    with pytest.raises(UserError, match=f"the repair mine {complaint}"):
        with_fault(images, fault_of("mine", 6, -1), 1)
    cells = with_repair(fault_of_cells(Cells("image", planes=((6, 1.0),)), "inverted", 0.5), "mine", known=True)
    with pytest.raises(UserError, match=r"the repair mine returned torch.uint8 \(1, 3, 4, 4\)"):
        with_fault(images, cells, 1)


def test_a_data_set_without_a_recipe_has_the_first_ones_values():
    torch.manual_seed(0)
    for name, blocks in recipes.RECIPES.items():
        assert recipes.recipe_options(name, "mine", "") == recipes.recipe_options(name, next(iter(blocks)), "")
