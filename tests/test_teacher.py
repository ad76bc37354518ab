"""Distillation: the loss against NumPy, what the teacher sees, its file, and train_teacher.py as a user runs it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import write_cifar10
from torch import nn

import train_smaller
import train_teacher
from common import UserError
from datasets import read_images
from engine import checkpoints
from models import TOPOLOGIES, Topology, distillation, teachers
from models.teacher import WIDTHS, Teacher
from repairs import REPAIRS, is_learned, learned_state, made_by

FILE = Path("checkpoint/teacher.cifar10_11111.pt")
TRAIN = ["--train", "--data", ".", "--batch-size", "16", "--no-compile", "--epochs", "1", "--teacher", str(FILE)]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", Topology(size=32, conv=((8, False), (16, True)), fc=(24,)))
    monkeypatch.setitem(WIDTHS, 32, (4, 8, 8, 8))
    write_cifar10(tmp_path, rows=20)


def with_statistics(teacher):
    """The teacher with batch norms as after some training."""
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
            module.bias.data.normal_()
    return teacher.eval()


@pytest.fixture
def teacher():
    """A random teacher, and its file."""
    made = with_statistics(Teacher(32, 10))
    write(made)
    return made


def write(teacher, path=FILE):
    copy = Teacher(teacher.size, teacher.classes)
    copy.load_state_dict(teacher.state_dict())
    path.parent.mkdir(exist_ok=True)
    checkpoints.write(path, teachers.contents(copy, "cifar10", 10.0, {}))


def test_loss_against_numpy():
    logits, taught = torch.randn(2, 7, 5).mul(3)
    own, wanted = (np.exp(each.double().numpy() / 2) for each in (logits, taught))
    own, wanted = (each / each.sum(1, keepdims=True) for each in (own, wanted))
    expected = 4 * (wanted * np.log(wanted / own)).sum(1).mean()
    assert distillation(logits, taught, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert distillation(taught, taught, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_forward_pass_against_plain_convolutions():
    teacher = with_statistics(Teacher(64, 7))
    images = torch.rand(3, 3, 64, 64)

    def layer(x, conv, norm, stride=1):
        x = nn.functional.conv2d(x, conv.weight, stride=stride, padding=1)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    with torch.no_grad():
        x = layer(4 * images - 2, *teacher.stem, stride=2).clamp(min=0)
        for stage, residuals in zip(teacher.stages, teacher.residuals):
            x = nn.functional.max_pool2d(layer(x, *stage), 2).clamp(min=0)
            for residual in residuals:
                x = x + layer(x, *residual).clamp(min=0)
        expected = x.flatten(2).max(2)[0] @ teacher.last.weight.T + teacher.last.bias
        plain = teacher(images)
        folded = teacher.folded()(images)
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-3)


def test_the_teacher_sees_clean_images_and_the_net_faulty_ones(teacher, run_script, monkeypatch):
    seen = []
    made = train_smaller.make_loss

    def make_loss(options):
        compute_loss = made(options)
        return lambda *given: seen.append(given) or compute_loss(*given)

    shown = []
    lessons = train_smaller.lessons
    monkeypatch.setattr(train_smaller, "make_loss", make_loss)
    monkeypatch.setattr(
        train_smaller, "lessons", lambda *given: (teach := lessons(*given)) and (lambda x: shown.append(x) or teach(x))
    )
    status, _, err = run_script(train_smaller, *TRAIN, "--mem_fault", "constant_1", "--faulty_bit", "7", "--no-bf16")
    assert status == 0, err
    assert any((images < 128).any() for images in shown)  # bit 7 is 1 in all faulty images
    for images, (logits, _, taught) in zip(shown, seen, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(taught, teacher(images.float() / 255), rtol=0.02, atol=0.02)
        assert logits.shape == taught.shape
    state = torch.load("checkpoint/ckpt.t7.cifar10_smaller_11111.pth")
    assert state["options"]["teacher"] == str(FILE)


def test_a_perfect_teacher_leaves_the_share_of_the_labels():
    options = {"loss": "ce", "smoothing": 0.0, "margin": 0.0, "teacher": "some file"}
    logits, labels = torch.randn(6, 10), torch.arange(6)
    plain = train_smaller.make_loss({**options, "teacher": ""})(logits, labels, None)
    taught = train_smaller.make_loss(options)(logits, labels, logits)
    assert taught.item() == pytest.approx(0.1 * plain.item(), rel=1e-5)


def fails(run_script, script, *words):
    status, _, err = run_script(script, *words)
    assert status == 1 and err.count("\n") == 1, err
    return err


def test_bad_teachers_get_one_line(run_script, teacher):
    FILE.write_bytes(FILE.read_bytes()[:-100])
    assert "is no teacher of train_teacher.py" in fails(run_script, train_smaller, *TRAIN)
    FILE.unlink()
    assert "is missing: train_teacher.py trains a teacher" in fails(run_script, train_smaller, *TRAIN)
    torch.save({"net": {}}, FILE)
    assert "is no teacher" in fails(run_script, train_smaller, *TRAIN)
    write(Teacher(64, 200).eval())
    assert "64×64 pixels and 200 classes, not 32×32 and 10" in fails(run_script, train_smaller, *TRAIN)
    write(teacher)
    content = torch.load(FILE)
    content["teacher"]["last.bias"] += 1
    torch.save(content, FILE)
    assert "is damaged" in fails(run_script, train_smaller, *TRAIN)
    assert "--teacher is for --train" in fails(run_script, train_smaller, "--teacher", str(FILE))


def test_a_training_does_not_go_on_with_another_teacher(run_script, teacher):
    words = [word if word != "1" else "2" for word in TRAIN]
    status, _, err = run_script(train_smaller, *words)
    assert status == 0, err
    state = torch.load("checkpoint/ckpt.t7.cifar10_smaller_11111.pth")
    state["epoch"] = 1
    checkpoints.write(Path("checkpoint/ckpt.t7.cifar10_smaller_11111.pth"), state)
    write(with_statistics(Teacher(32, 10)))
    assert "was trained with another teacher" in fails(run_script, train_smaller, *words, "--resume")


def test_cut_out_against_numpy():
    images = torch.rand(50, 3, 9, 12)
    cut = train_teacher.cut_out(images, 4, torch.Generator().manual_seed(1)).numpy()
    sizes = set()
    for before, after in zip(images.numpy(), cut):
        rows, columns = np.nonzero((before != after).all(0))
        box = before[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        sizes.add(box.shape[1:])
        rest = before.copy()
        rest[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 0.5
        assert np.array_equal(rest, after)
    assert (4, 4) in sizes and all(height <= 4 and width <= 4 for height, width in sizes) and len(sizes) > 1


def test_an_interrupted_training_goes_on(run_script, monkeypatch):
    words = ["--data", ".", "--epochs", "3"]
    status, out, err = run_script(train_teacher, *words)
    assert status == 0 and "epoch 3/3" in out, err
    whole = torch.load(FILE)
    FILE.unlink()

    passes = train_teacher.one_epoch
    monkeypatch.setattr(
        train_teacher, "one_epoch", lambda *given: fail() if given[3] == 1 else passes(*given)
    )  # in the second epoch

    def fail():
        raise KeyboardInterrupt

    status, _, err = run_script(train_teacher, *words)
    assert status == 130 and not FILE.exists()
    assert err.strip() == "interrupted: the same command goes on after the last finished epoch"
    monkeypatch.setattr(train_teacher, "one_epoch", passes)
    unfinished = FILE.with_suffix(".unfinished")
    whole_state = unfinished.read_bytes()
    unfinished.write_bytes(whole_state[:-100])
    assert "is damaged" in fails(run_script, train_teacher, *words)
    unfinished.write_bytes(whole_state)
    assert "is of another training" in fails(run_script, train_teacher, "--data", ".", "--epochs", "4")
    with monkeypatch.context() as patch:
        patch.setattr(train_teacher, "MOMENTUM", 0.8)
        assert "is of another training" in fails(run_script, train_teacher, *words)
    status, out, _ = run_script(train_teacher, *words)
    assert status == 0 and "epoch 2 to 3" in out
    again = torch.load(FILE)
    assert all(torch.equal(again["teacher"][key], whole["teacher"][key]) for key in whole["teacher"])
    assert again["acc"] == whole["acc"] and not FILE.with_suffix(".unfinished").exists()


_given = []  # to `teach` below; in a test it would count as code that learns, and be learned anew


def test_a_repair_that_learns_with_the_teacher(teacher, monkeypatch):
    """What it learns is kept for this teacher's file."""
    row, images = REPAIRS["taught"]._replace(starts_from=None), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    given = _given
    given.clear()

    def teach(images, bit, teacher):
        _given.append(teacher(torch.ones(1, 3, 32, 32)))
        return {"weight": torch.full((2,), bit + 1.0)}

    monkeypatch.setitem(REPAIRS, "taught", row._replace(learn=teach))

    def found():
        return learned_state("taught", 6, "cifar10", "digest", lambda: images)["weight"].tolist()

    assert found() == found() == [7, 7] and len(given) == 1
    with torch.no_grad():
        torch.testing.assert_close(given[0], teacher(torch.ones(1, 3, 32, 32)), rtol=0.02, atol=0.02)
    made = made_by("taught", "cifar10", "digest")
    write(with_statistics(Teacher(32, 10)))
    assert made_by("taught", "cifar10", "digest") != made
    assert found() == [7, 7] and len(given) == 2
    write(Teacher(64, 10).eval())
    with pytest.raises(UserError, match="is for images of 64×64 pixels"):
        found()
    FILE.unlink()
    with pytest.raises(UserError, match="is missing: train_teacher"):
        found()
    assert not is_learned("taught", 6, "cifar10", "digest")


def test_it_learns(run_script, monkeypatch, tmp_path):
    """Images of one grey level for each class, which a net that learns tells apart."""
    images, labels = read_images("cifar10", ".", True)
    levels = (25 * labels).to(torch.uint8)[:, None, None, None].expand_as(images).contiguous()
    monkeypatch.setattr(train_teacher, "read", lambda args: (levels, labels, levels, labels))
    monkeypatch.setattr(train_teacher, "BATCH_SIZE", 20)
    monkeypatch.setattr(train_teacher, "LR", 0.05)
    status, out, err = run_script(train_teacher, "--data", ".", "--epochs", "12")
    assert status == 0 and float(torch.load(FILE)["acc"]) > 60, out + err
