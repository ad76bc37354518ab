#!/usr/bin/env python3
"""Train a small float residual net, from which `train_smaller.py --train --teacher FILE` distils a binary net.

    .venv/bin/python train_teacher.py --dataset cifar10  # -> checkpoint/teacher.cifar10_11111.pt

An interrupted training goes on by the same command. Every constant below can be edited.
"""

import math
import os
import time
from datetime import timedelta

import torch
import torch.nn.functional as F

from common import (
    Parser,
    UserError,
    as_path,
    check_writable,
    digest,
    first_line,
    locked,
    processes,
    run,
    within,
    written_whole,
)
from datasets import DATASETS, read_images
from engine import EvalBatches, Processes, TrainBatches, bf16_is_fast, checkpoints, evaluate, to_score
from engine.evaluation import score
from faults import NO_FAULT
from models import teachers
from models.teacher import RESIDUALS, WIDTHS, Teacher

DATASET = "cifar10"
DATA = "data"  # folder of all data sets
SEED = 11111
EPOCHS = 60
BATCH_SIZE = 256
LR = 0.2  # highest learning rate of SGD with Nesterov momentum; a linear rise over WARMUP of the steps, then a cosine
WARMUP = 0.15
MOMENTUM = 0.9
DECAY = 5e-4
PADDING = {32: 4, 64: 8}  # of the random crop, pixels on each side, for each image size
CUTOUT = {32: 12, 64: 24}  # side of the square that is cut out of each image, pixels
WORKERS = os.cpu_count()  # threads that decode images, on first use


def rate_factor(step, steps):
    """Factor on the learning rate at a step, counted from 0."""
    rise = max(1, int(WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def cut_out(images, side, generator):
    """float32 images with a square of `side` pixels set to 0.5, anywhere, for each image anew."""
    n, _, height, width = images.shape
    where = [torch.randint(size, (n, 1), generator=generator, device=images.device) for size in (height, width)]
    rows, columns = (
        (torch.arange(size, device=images.device) - middle + side // 2) for size, middle in zip((height, width), where)
    )
    inside = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
    return torch.where(inside, 0.5, images)


def read(args):
    """(training images, labels, test images, labels), of a size for which there is a teacher."""
    images, labels = read_images(args.dataset, args.data, True, args.workers)
    if images.shape[2] != images.shape[3] or images.shape[3] not in WIDTHS:
        sizes = ", ".join(f"{size}×{size}" for size in WIDTHS)
        raise UserError(f"images of {images.shape[3]}×{images.shape[2]} pixels: there are teachers for {sizes}")
    return images, labels, *read_images(args.dataset, args.data, False, args.workers)


def train(args, path, device):
    """Train from the start, or from the last epoch of an interrupted training, and write the teacher's file."""
    images, labels, test_images, test_labels = read(args)
    size, unfinished = images.shape[-1], path.with_suffix(".unfinished")
    options = {"dataset": args.dataset, "seed": args.seed, "epochs": args.epochs, "batch_size": BATCH_SIZE, "lr": LR}
    options |= {"warmup": WARMUP, "momentum": MOMENTUM, "widths": WIDTHS[size], "residuals": RESIDUALS}
    options |= {
        "bfloat16": bf16_is_fast(device),
        "decay": DECAY,
        "padding": PADDING[size],
        "cutout": CUTOUT[size],
        "images": digest(images, labels),
    }
    torch.manual_seed(args.seed)
    teacher = Teacher(size, int(labels.max()) + 1).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(teacher.parameters(), LR, MOMENTUM, weight_decay=DECAY, nesterov=True)
    batches = TrainBatches(images, labels, BATCH_SIZE, PADDING[size], [(NO_FAULT, None)], args.seed, device)
    first = 0
    if unfinished.is_file():
        try:
            saved = torch.load(unfinished, map_location=device, weights_only=True)
        except Exception as error:  # torch.load raises many kinds
            raise UserError(f"{unfinished} is damaged ({first_line(error)}): remove it to train anew") from None
        if saved["options"] != options:
            raise UserError(f"{unfinished} is of another training: finish that one, or remove the file")
        teacher.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"]
    tests = EvalBatches(test_images, test_labels, device)
    print(
        f"{path}: teacher for {DATASETS[args.dataset].title}, {sum(p.numel() for p in teacher.parameters())} weights, "
        f"epoch {first + 1} to {args.epochs} on {device.type}",
        flush=True,
    )
    began = time.monotonic()
    for epoch in range(first, args.epochs):
        trained = to_score(one_epoch(teacher, optimizer, batches, epoch, args, CUTOUT[size]))
        tested = evaluate(teacher, tests)
        if not math.isfinite(trained.loss):
            raise UserError(f"the loss became {trained.loss} in epoch {epoch + 1}: a smaller LR may help")
        with written_whole(unfinished) as partial:
            state = {"net": teacher.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "epoch": epoch + 1, "options": options}, partial)
        left = (time.monotonic() - began) / (epoch + 1 - first) * (args.epochs - epoch - 1)
        print(
            f"epoch {epoch + 1}/{args.epochs}  train {trained.top1:.2f} %  test {tested.top1:.2f} %  "
            f"left {timedelta(seconds=round(left))}",
            flush=True,
        )
    content = teachers.contents(teacher.cpu(), args.dataset, 0.0, options)
    content["acc"] = evaluate(teachers.build(content).to(device), tests).top1
    with written_whole(path) as partial:
        checkpoints.write(partial, content)
    unfinished.unlink()
    print(f"{path}: {content['acc']:.2f} % of the test images, {path.stat().st_size / 1e6:.1f} MB")


def one_epoch(teacher, optimizer, batches, epoch, args, side):
    """One pass. Returns the sums of score() over all images."""
    device = batches.device
    generator = torch.Generator(device).manual_seed(args.seed + epoch)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device))
    steps, sums = len(batches), 0
    teacher.train()
    for step, (images, labels, _) in enumerate(batches.epoch(epoch)):
        optimizer.param_groups[0]["lr"] = LR * rate_factor(epoch * steps + step, args.epochs * steps)
        images = cut_out(images, side, generator).contiguous(memory_format=torch.channels_last)
        with autocast:
            logits = teacher(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        sums = sums + score(logits.detach().float(), labels)
    return sums


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, default=DATASET, help="default %(default)s")
    parser.add_argument("--data", default=DATA, help="folder of all data sets, default %(default)s")
    parser.add_argument(
        "--seed", type=within(int, 0, 2**62), default=SEED, help="seed of everything random, default %(default)s"
    )
    parser.add_argument("--epochs", type=within(int, 1, 10**6), default=EPOCHS, help="default %(default)s")
    parser.add_argument(
        "--workers", type=within(int, 1, 1000), default=WORKERS, help="decoding threads, default %(default)s"
    )
    args = parser.parse_args()
    if processes() > 1:
        raise UserError("a teacher is trained by one process: start it without torchrun")
    path = as_path(teachers.path_of(args.dataset, args.seed))
    check_writable(path)
    try:
        with locked(path, str(path)):
            train(args, path, Processes().device)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on after the last finished epoch") from None


if __name__ == "__main__":
    run(main)
