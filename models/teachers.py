"""Files of teachers: checkpoint/teacher.<dataset>_<seed>.pt, written by train_teacher.py.

A dict: `teacher`, the float16 state dict of the folded Teacher; size, classes, dataset; acc, its accuracy on the test
images, %; options of its training; sha256, the digest of all other entries.
"""

from pathlib import Path

import torch

from common import UserError, content_digest, first_line
from models.teacher import WIDTHS, Teacher

FOLDER = Path("checkpoint")
SEED = 11111  # of the teachers that come with this repository


def path_of(dataset, seed=SEED):
    return FOLDER / f"teacher.{dataset}_{seed}.pt"


def contents(teacher, dataset, acc, options):
    """The dict to save. teacher: a Teacher on the CPU, which is folded by this."""
    state = {key: value.half() for key, value in teacher.folded().state_dict().items()}
    return {
        "teacher": state,
        "size": teacher.size,
        "classes": teacher.classes,
        "dataset": dataset,
        "acc": acc,
        "options": options,
    }


def load(path):
    """(folded Teacher, float32, in evaluation mode; the file's digest). UserError if it cannot be loaded."""
    if not path.is_file():
        raise UserError(f"{path} is missing: train_teacher.py trains a teacher")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        content = {key: value for key, value in saved.items() if key != "sha256"}
        sound = content_digest(content) == saved["sha256"] and saved["size"] in WIDTHS
    except Exception as error:  # torch.load raises many kinds
        raise UserError(f"{path} is no teacher of train_teacher.py ({first_line(error)})") from None
    if not sound:
        raise UserError(f"{path} is damaged: its content is not what was saved; restore it from a copy")
    return build(saved), saved["sha256"]


def build(content):
    """The folded Teacher, float32, from the dict of contents()."""
    teacher = Teacher(content["size"], content["classes"]).folded()
    teacher.load_state_dict(content["teacher"])
    return teacher.requires_grad_(False)


def check_fits(path, teacher, net):
    """UserError unless a teacher can teach a CNV."""
    if (teacher.size, teacher.classes) != (net.topology.size, net.classes):
        raise UserError(
            f"{path} teaches images of {teacher.size}×{teacher.size} pixels and {teacher.classes} classes, not "
            f"{net.topology.size}×{net.topology.size} and {net.classes}"
        )
