#!/usr/bin/env python3
"""Train a binarised CNV, or evaluate its checkpoint once under one fault setting.

    python train_smaller.py --train                              # -> checkpoint/ckpt.t7.cifar10_smaller_11111.pth
    python train_smaller.py --mem_fault faulty --faulty_bit 5      # -> Avg. acc.: ..%
    torchrun --nproc_per_node=2 train_smaller.py --train           # two processes, one GPU each where there are GPUs

Every constant below can be edited; an option of the same name overrides it.
"""

import copy
import functools
import json
import math
import os
import statistics
import time
from argparse import BooleanOptionalAction
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import checkpoints
import CIFARDataset
import export_finn
from cli import Parser, UserError, run, within
from evaluate import evaluate, score, to_score
from faults import MSB, REPAIRS, Fault, ImpossibleRepair, weight_noise
from files import write_whole
from loader import DATASETS, EvalBatches, TrainBatches, fitter, load, split, with_fault
from models import LOSSES, shortfall
from models.costs import costs, table
from models.folded import Folded
from processes import Processes
from training_faults import TrainingFaults

# what
DATASET = "cifar10"  # a row of loader.DATASETS
DATA = "data"  # folder in which all data sets lie
SESS = ""  # name of the checkpoint; empty: <dataset>_smaller, with WSCONV <dataset>_smaller_wsconv
SEED = 11111
WSCONV = False  # weight standardisation in the convolutions
PAD = 0  # padding value of the hidden convolutions: 0, or -1, which fits into a 1-bit activation

# faults
MEM_FAULT = "baseline"
NOISE = 0.0  # sigma_val of the weight noise in evaluation; its standard deviation is sigma_val²
NOISE_RUNS = 10  # evaluations with fresh noise
TRAIN_FLIP = 0.0  # probability that a binary weight has the other sign in a forward pass of training
TRAIN_NOISE = 0.0  # standard deviation of noise on the latent weights in it, in units of each layer's RMS weight

# training; a dict gives one value for each data set
HOLDOUT = 0  # training images, always the same, that are tested on instead of the test set: to try out recipes
RECIPE = "modern"
RECIPES = {
    "modern": {
        "optimizer": "adam",
        "amsgrad": False,
        "lr": 0.01,
        "init": 0.05,
        "schedule": "cosine",
        "cycles": {"cifar10": 1, "cifar100": 1, "tiny_imagenet": 2, "demo": 1},
        "batch_size": {"cifar10": 128, "cifar100": 128, "tiny_imagenet": 128, "demo": 64},
        "epochs": {"cifar10": 40, "cifar100": 40, "tiny_imagenet": 44, "demo": 6},
        "duplicate": 1,
        "padding": {
            "cifar10": 4,
            "cifar100": 4,
            "tiny_imagenet": 0,
            "demo": 0,
        },  # of the random crop, pixels; 0: no crop
        "soften": {"cifar10": 0.0, "cifar100": 0.0, "tiny_imagenet": 0.6, "demo": 0.0},
        "soften_weights": {"cifar10": 0.0, "cifar100": 0.0, "tiny_imagenet": 0.9, "demo": 0.0},
        "norm_momentum": {"cifar10": 0.1, "cifar100": 0.1, "tiny_imagenet": 0.01, "demo": 0.1},
        "smoothing": 0.0,
        "clip": math.inf,
    },
    "reference": {
        "optimizer": "adam",
        "amsgrad": True,
        "lr": 0.02,
        "init": 1.0,
        "schedule": "step",
        "cycles": 1,
        "batch_size": 2048,
        "epochs": 600,
        "duplicate": {"cifar10": 10, "cifar100": 10, "tiny_imagenet": 3, "demo": 10},
        "padding": {"cifar10": 4, "cifar100": 4, "tiny_imagenet": 0, "demo": 0},
        "soften": 0.0,
        "soften_weights": 0.0,
        "norm_momentum": 0.1,
        "smoothing": 0.0,
        "clip": math.inf,
    },
}
# what differs for a net that was trained before
RECIPES_PRETRAINED = {"modern": {"lr": 0.001, "cycles": 1, "soften": 0.0, "soften_weights": 0.0}, "reference": {}}
PRETRAINED = (
    ""  # checkpoint, packed or not, whose binary weights and statistics training starts from; empty: random ones
)
LOSS = "ce"
MARGIN = 0.0  # required logit margin, in standard deviations of the logits; 0: no such term in the loss
DECAY = 0.0  # weight decay
BETAS = (0.9, 0.999)  # Adam
MOMENTUM = 0.9  # SGD
WARMUP = 200  # steps of the cosine schedule, at most a tenth of its cycle's
LATER_LR = 0.03  # the learning rate of the cycles after the first, times this
STEP = (80, 0.2, 480)  # of the step schedule: every so many epochs, times this, not after
STEP_WSCONV = (60, 0.5, math.inf)

SHAPES = 64  # for so many sizes of activations torch.compile makes a function of its own (models/fused.py)

# of checkpoints from before these were options
OLDER = {
    "holdout": 0,
    "pad": 0,
    "train_flip": 0.0,
    "train_noise": 0.0,
    "pretrained": "",
    "cycles": 1,
    "padding": RECIPES["reference"]["padding"],
    "soften": 0.0,
    "soften_weights": 0.0,
    "norm_momentum": 0.1,
    "smoothing": 0.0,
    "clip": math.inf,
    "margin": 0.0,
}

# machine
WORKERS = os.cpu_count()  # threads that decode Tiny-ImageNet, the first time


def bit_or_any(text):
    return text if text == "any" else int(text)


bit_or_any.__name__ = "bit"  # what argparse calls it


def parse():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--train", action="store_true", help="train; without it a checkpoint is evaluated")
    parser.add_argument("--resume", action="store_true", help="with --train: continue where the checkpoint stands")
    parser.add_argument("--dataset", choices=DATASETS, help=f"default {DATASET}, or the checkpoint's")
    parser.add_argument("--data", default=DATA, help="folder in which all data sets lie, default %(default)s")
    parser.add_argument("--sess", default=SESS, help="checkpoint name, default <dataset>_smaller[_wsconv]")
    parser.add_argument(
        "--seed", type=within(int, 0, 2**62), default=SEED, help="of everything random, default %(default)s"
    )
    parser.add_argument(
        "--wsconv",
        action=BooleanOptionalAction,
        help=f"weight standardisation, default {WSCONV}, in evaluation as trained",
    )
    parser.add_argument(
        "--pad",
        type=int,
        choices=(0, -1),
        help=f"with --train: value that the hidden convolutions pad with (--padding: of the crop), default {PAD}",
    )
    parser.add_argument("--result", metavar="FILE", help="also write what an evaluation found to a JSON file")
    parser.add_argument("--export_finn", action="store_true", help="afterwards write the QONNX file (export_finn.py)")

    group = parser.add_argument_group("faults")
    group.add_argument("--mem_fault", help=f"baseline, faulty, {', '.join(REPAIRS)}; default {MEM_FAULT}")
    group.add_argument(
        "--faulty_bit",
        type=bit_or_any,
        help=f"0 (LSB) to 7 (MSB), default {CIFARDataset.FAULTY_BIT}; with --train also any: drawn per batch, none too",
    )
    group.add_argument(
        "--neighbor_offset", type=int, help=f"repaired_n copies from here, default {CIFARDataset.NEIGHBOR_OFFSET}"
    )
    group.add_argument(
        "--noise",
        type=within(float, 0),
        default=NOISE,
        help=f"sigma_val of weight noise in evaluation, mean of {NOISE_RUNS} runs; default %(default)s",
    )

    group.add_argument(
        "--train_flip",
        type=within(float, 0, 0.5),
        help=f"share of weights flipped in each step of training, default {TRAIN_FLIP}",
    )
    group.add_argument(
        "--train_noise",
        type=within(float, 0),
        help=f"noise in each step of training, in RMS weights, default {TRAIN_NOISE}",
    )

    group = parser.add_argument_group("training")
    group.add_argument("--recipe", choices=RECIPES, help=f"defaults of the options below, default {RECIPE}")
    group.add_argument("--optimizer", choices=("adam", "sgd"))
    group.add_argument("--amsgrad", action=BooleanOptionalAction, help="of Adam")
    group.add_argument("--lr", type=within(float, 0, open_low=True), help="learning rate for one process")
    group.add_argument("--init", type=within(float, 0, open_low=True), help="latent weights start in ± this")
    group.add_argument(
        "--pretrained", help="checkpoint whose signs and statistics to start from, latent weights at ± --init"
    )
    group.add_argument("--schedule", choices=("cosine", "step"), help="of the learning rate")
    group.add_argument(
        "--cycles",
        type=within(int, 1),
        help="of the cosine; each goes on from the signs of the last, latent weights at ± --init",
    )
    group.add_argument("--batch-size", type=within(int, 2), help="images per process")
    group.add_argument("--epochs", type=within(int, 1))
    group.add_argument("--duplicate", type=within(int, 1), help="times each image comes in one pass; counts as epochs")
    group.add_argument("--loss", choices=LOSSES, help=f"cross-entropy or squared hinge, default {LOSS}")
    group.add_argument("--padding", type=within(int, 0), help="of the random crop, pixels on each side; 0: no crop")
    group.add_argument(
        "--soften",
        type=within(float, 0, 1),
        help="share of the first cycle in which activations go from hard tanh to binary",
    )
    group.add_argument(
        "--soften_weights",
        type=within(float, 0, 1),
        help="share of the first cycle in which weights go from real to binary",
    )
    group.add_argument(
        "--norm_momentum",
        type=within(float, 0, 1, open_low=True),
        help="weight of each batch in the running statistics",
    )
    group.add_argument("--smoothing", type=within(float, 0, 1), help="label smoothing of the cross-entropy")
    group.add_argument(
        "--margin",
        type=within(float, 0),
        help=f"by which labels should lead, in standard deviations of the logits, default {MARGIN}",
    )
    group.add_argument("--clip", type=within(float, 0, open_low=True), help="latent weights stay in ± this")
    group.add_argument("--decay", type=within(float, 0), help=f"weight decay, default {DECAY}")
    group.add_argument(
        "--holdout",
        type=within(int, 0),
        help=f"evaluate on N held-out training images instead of the test set, default {HOLDOUT}",
    )

    group = parser.add_argument_group("machine")
    group.add_argument("--workers", type=within(int, 1), default=WORKERS, help="decoding threads, default %(default)s")
    group.add_argument("--compile", action=BooleanOptionalAction, default=True, help="torch.compile the training step")
    group.add_argument(
        "--bf16", action=BooleanOptionalAction, default=None, help="train in bfloat16, default where it is fast"
    )
    group.add_argument("--channels_last", action=BooleanOptionalAction, default=True)
    group.add_argument(
        "--fold",
        action=BooleanOptionalAction,
        default=True,
        help="evaluate the folded net (models/folded.py), not Brevitas' own",
    )
    return parser.parse_args()


def for_dataset(values, dataset):
    """The values, of those given for each data set this one's."""
    return {name: value[dataset] if isinstance(value, dict) else value for name, value in values.items()}


def settle(args, processes):
    """Everything that decides a training's result, each as given, else from the recipe, else from the constants."""
    dataset = args.dataset or DATASET
    recipe = args.recipe or RECIPE
    wsconv = WSCONV if args.wsconv is None else args.wsconv
    pretrained = PRETRAINED if args.pretrained is None else args.pretrained
    values = {
        **RECIPES[recipe],
        **(RECIPES_PRETRAINED[recipe] if pretrained else {}),
    }
    defaults = {
        "wsconv": wsconv,
        "pad": PAD,
        "mem_fault": MEM_FAULT,
        "faulty_bit": CIFARDataset.FAULTY_BIT,
        "neighbor_offset": CIFARDataset.NEIGHBOR_OFFSET,
        "train_flip": TRAIN_FLIP,
        "train_noise": TRAIN_NOISE,
        "pretrained": pretrained,
        "loss": LOSS,
        "margin": MARGIN,
        "decay": DECAY,
        "holdout": HOLDOUT,
        **for_dataset(values, dataset),
    }
    given = {name: getattr(args, name) for name in defaults if getattr(args, name) is not None}
    options = {"dataset": dataset, "seed": args.seed, "recipe": recipe, **defaults, **given, "processes": processes}
    if args.cycles is None and options["schedule"] == "step":
        options["cycles"] = 1
    if options["cycles"] > 1 and options["schedule"] != "cosine":
        raise UserError(f"--cycles is of the cosine schedule: 1 with --schedule {options['schedule']}")
    if options["epochs"] % (options["duplicate"] * options["cycles"]):
        raise UserError(
            f"--epochs {options['epochs']} is no multiple of --duplicate {options['duplicate']} "
            f"times --cycles {options['cycles']}: set one of them"
        )
    if options["smoothing"] and options["loss"] != "ce":
        raise UserError(f"--smoothing is of the cross-entropy: 0 with --loss {options['loss']}")
    return options


def resumed_options(path, saved, args, processes):
    """The options of the training to be continued, those of today added. UserError if one that was given differs."""
    if saved is None:
        raise UserError(f"{path} is an original checkpoint, without what resuming needs: it can only be evaluated")
    if saved["wsconv"] and "pad" not in saved:
        raise UserError(
            f"{path} is from when weight standardisation replaced the latent weights: it can be evaluated, "
            "not resumed; --pretrained starts from its signs"
        )
    saved = saved | {name: value for name, value in for_dataset(OLDER, saved["dataset"]).items() if name not in saved}
    given = {name: getattr(args, name, None) for name in saved} | {"processes": processes}
    for name, value in given.items():
        if value is not None and value != saved[name]:
            raise UserError(
                f"{path} was trained with {name} {saved[name]}, not {value}: "
                "leave the option out to continue it, or --resume to train anew"
            )
    return saved


def steps_of_cycle(steps_per_pass, options):
    """Number of steps in each cycle of the training."""
    return options["epochs"] // options["duplicate"] // options["cycles"] * steps_per_pass


def learning_rate(step, steps_per_pass, options):
    """Factor on the learning rate at a step, counted from 0 over the whole training."""
    if options["schedule"] == "cosine":
        steps = steps_of_cycle(steps_per_pass, options)
        warmup = min(WARMUP, steps // 10)
        cycle, step = divmod(step, steps)
        height = LATER_LR if cycle else 1
        if step < warmup:
            return height * (step + 1) / (warmup + 1)
        return height * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    every, factor, last = STEP_WSCONV if options["wsconv"] else STEP
    epoch = step // steps_per_pass * options["duplicate"]
    return factor ** (min(epoch, last) // every)


def softness(step, total, share):
    """Falls linearly from 1 at step 0 to 0 after a share of the steps; 0 from the start if the share is 0."""
    return max(0.0, 1 - step / (share * total)) if share else 0.0


def make_loss(options):
    """(logits, labels) -> scalar, as the options say."""
    compute_loss = LOSSES[options["loss"]]
    if options["smoothing"]:
        compute_loss = functools.partial(compute_loss, label_smoothing=options["smoothing"])
    if options["margin"]:
        return lambda logits, labels: compute_loss(logits, labels) + shortfall(logits, labels, options["margin"])
    return compute_loss


def make_optimizer(net, options):
    lr = options["lr"] * options["processes"]
    decay, amsgrad = options["decay"], options["amsgrad"]
    if options["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr, momentum=MOMENTUM, weight_decay=decay)
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr, BETAS, weight_decay=decay, amsgrad=amsgrad, fused=True)
    if options["clip"] < math.inf:
        latent = [layer.weight.data for layer in net.binary_layers()]
        optimizer.register_step_post_hook(lambda *_: [w.clamp_(-options["clip"], options["clip"]) for w in latent])
    return optimizer


def bf16_is_fast(device):
    """Has the device bfloat16 arithmetic, so that it beats float32?"""
    return torch.cuda.is_bf16_supported(False) if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


def compiled(net, batch_size, size, device, autocast, layout, say=print):
    """torch.compile(net), tried on a batch that leaves no trace; `net` itself where that cannot run."""
    torch.compiler.reset()  # or what was compiled before in this process would have a say in how this net is
    torch._dynamo.config.recompile_limit = SHAPES
    fast = torch.compile(net)
    before = copy.deepcopy(net.state_dict())
    images = torch.zeros(batch_size, 3, size, size, device=device).contiguous(memory_format=layout)
    try:
        with autocast:
            fast(images).sum().backward()
    except Exception as error:  # no C++ compiler, an unsupported system, a fault of the compiler
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"torch.compile cannot run here, so training goes on without it ({reason})")
        fast = net
    net.load_state_dict(before)
    net.zero_grad()
    return fast


class Training(NamedTuple):
    """What a step of a training works with."""

    model: nn.Module  # the net, compiled, over all processes
    batch_size: (
        int  # images of the batches that run compiled: another size would be compiled once more, for one step of a pass
    )
    layout: torch.memory_format
    autocast: torch.autocast
    compute_loss: Callable  # (logits, labels) -> scalar
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    faults: TrainingFaults
    soften: Callable  # (step) -> None: makes the net as soft as it is to be in a step, counted from 0


def train_pass(training, batches):
    """One optimiser step per batch. Returns score() and loss summed over the images, as tensors, and the last lr."""
    model, optimizer, scheduler = training.model, training.optimizer, training.scheduler
    sums = loss_sum = 0
    model.train()
    for images, labels in batches:
        images = images.contiguous(memory_format=training.layout)
        training.soften(scheduler.last_epoch)
        with training.faults.at(scheduler.last_epoch):
            stance = "default" if len(images) == training.batch_size else "force_eager"
            with training.autocast, torch.compiler.set_stance(stance):
                logits = model(images)
                loss = training.compute_loss(logits, labels)
            optimizer.zero_grad()
            loss.backward()
        lr = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        sums = sums + score(logits.detach(), labels)
        loss_sum = loss_sum + loss.detach() * len(labels)
    return sums, loss_sum, lr


def image_faults(options, fitted):
    """The faults that the batches are trained with: one, or of --faulty_bit any one for each batch, none among them."""
    what, offset = options["mem_fault"], options["neighbor_offset"]
    if options["faulty_bit"] != "any":
        return [Fault.of(what, options["faulty_bit"], offset, fitted)]
    if what == "baseline":
        raise UserError("--faulty_bit any needs a fault: --mem_fault faulty, or a repair")
    faults = [Fault.of("baseline", 0, 0)]
    for bit in range(MSB + 1):
        try:
            faults.append(Fault.of(what, bit, offset, fitted))
        except ImpossibleRepair as error:
            impossible = error
    if len(faults) == 1:
        raise impossible
    return faults


def held_out(images, labels, number):
    """Split off `number` training images for validation: (images, labels) to train on, (images, labels) held out."""
    if number >= len(labels):
        raise UserError(f"{number} of {len(labels)} training images held out leave none to train on")
    return [(images[part], labels[part]) for part in split(len(labels), number)]


def make_batches(args, options, processes):
    """The training batches, and this process's share of the test batches, with the fault of `options`.

    With faults of more than one bit the test images are clean.
    """
    name, seed, device = options["dataset"], options["seed"], processes.device
    with processes.first_alone():  # the others then find what it downloads, makes or caches
        faults = image_faults(options, fitter(name, args.data, args.workers))
        images, labels = load(name, args.data, True, args.workers)
        if options["holdout"]:
            (images, labels), (test_images, test_labels) = held_out(images, labels, options["holdout"])
        else:
            test_images, test_labels = load(name, args.data, False, args.workers)
    batches = TrainBatches(
        images,
        labels,
        batch_size=options["batch_size"],
        padding=options["padding"],
        faults=faults,
        seed=seed,
        device=device,
        duplicate=options["duplicate"],
        rank=processes.rank,
        world=processes.number,
    )
    if len(faults) == 1:
        test_images = with_fault(test_images, faults[0], seed)
    return batches, EvalBatches(processes.share(test_images), processes.share(test_labels), device)


def train(args, processes):
    """Train from the start, or on from the checkpoint; save after every pass."""
    path = checkpoints.path_of(args.sess, args.seed)
    saved = checkpoints.load(path) if args.resume else None
    if saved:
        options = resumed_options(path, saved.get("options"), args, processes.number)
    else:
        options = settle(args, processes.number)
    if saved and saved["epoch"] >= options["epochs"]:
        processes.print(f"{path} is trained to the end, {saved['epoch']} epochs")
        return
    device, epochs = processes.device, options["epochs"]
    batches, test_batches = make_batches(args, options, processes)

    torch.manual_seed(options["seed"])
    if options["pretrained"] and not saved:
        net = checkpoints.restart_net(
            Path(options["pretrained"]), options["dataset"], options["wsconv"], options["init"], options["pad"]
        )
    else:
        net = checkpoints.build_net(options["dataset"], options["wsconv"], options["init"], options["pad"])
    if saved:
        net = checkpoints.restore_net(path, saved, options["dataset"], options["wsconv"], options["pad"])
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    for norm in net.norms():
        norm.momentum = options["norm_momentum"]
    net.to(device, memory_format=layout)
    optimizer = make_optimizer(net, options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, len(batches), options))
    faults = TrainingFaults(net, options["train_flip"], options["train_noise"], options["seed"])
    cycle_steps = steps_of_cycle(len(batches), options)

    def soften(step):
        net.soften(*(softness(step, cycle_steps, options[name]) for name in ("soften", "soften_weights")))

    log, epoch = [], 0
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        torch.set_rng_state(saved["rng_state"])
        if device.type == "cuda" and saved["cuda_rng_state"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng_state"])
        log, epoch = saved["log"], saved["epoch"]

    bf16 = bf16_is_fast(device) if args.bf16 is None else args.bf16
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    processes.print(
        f"{path}: training on {DATASETS[options['dataset']].title}, {len(batches.labels)} images, "
        f"epoch {epoch + 1} to {epochs}, on {processes.number} × {device.type} in {'bfloat16' if bf16 else 'float32'}"
    )
    model = net
    if args.compile:
        model = compiled(net, options["batch_size"], batches.size, device, autocast, layout, processes.print)
    if processes.number > 1:
        model = nn.parallel.DistributedDataParallel(model)
    training = Training(
        model, options["batch_size"], layout, autocast, make_loss(options), optimizer, scheduler, faults, soften
    )

    if not saved:
        processes.print(table(costs(net.topology, net.classes)))
        if processes.rank == 0:
            checkpoints.keep_old(path)
    began, passes = time.monotonic(), 0
    try:
        while epoch < epochs:
            start = time.monotonic()
            cycle, step = divmod(scheduler.last_epoch, cycle_steps)
            if cycle and not step:  # with nothing of the cycle before but what its net computes
                processes.print(f"cycle {cycle + 1} of {options['cycles']} starts from the signs of the last")
                net.take_signs(net.eval(), options["init"])
                optimizer.state.clear()
            bar = processes.bar(batches.epoch(epoch), f"epoch {epoch + options['duplicate']}", len(batches))
            sums, loss_sum, lr = train_pass(training, bar)
            trained = to_score(processes.sum(sums))
            loss = processes.sum(loss_sum).item() / trained.n
            rate = trained.n / (time.monotonic() - start)

            processes.same_buffers(net)
            tester = Folded(net) if args.fold else net
            tested = processes.total(evaluate(tester, processes.bar(test_batches, "testing", len(test_batches))))
            passes += 1
            log.append(
                {
                    "epoch": epoch + options["duplicate"],
                    "loss": loss,
                    "train_top1": trained.top1,
                    "train_top5": trained.top5,
                    "test_loss": tested.loss,
                    "test_top1": tested.top1,
                    "test_top5": tested.top5,
                    "lr": lr,
                    "images_per_s": rate,
                    "seconds": time.monotonic() - start,
                }
            )
            if processes.rank == 0:
                state = {
                    "net": net.state_dict(),
                    "acc": tested.top1,
                    "epoch": log[-1]["epoch"],
                    "rng_state": torch.get_rng_state(),
                    "cuda_rng_state": torch.cuda.get_rng_state() if device.type == "cuda" else None,
                    "options": options,
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "log": log,
                }
                checkpoints.save(path, state)
            epoch = log[-1]["epoch"]
            left = (time.monotonic() - began) / passes * (epochs - epoch) / options["duplicate"]
            processes.print(
                f"epoch {epoch}/{epochs}  loss {loss:.4f}  "
                f"train {trained.top1:.2f}/{trained.top5:.2f} %  test {tested.top1:.2f}/{tested.top5:.2f} %  "
                f"lr {lr:.2e}  {rate:.0f} images/s  left {timedelta(seconds=round(left))}"
            )
    except KeyboardInterrupt:
        kept = f"{path} holds epoch {epoch}, --resume goes on from there" if epoch else "no epoch was finished"
        raise KeyboardInterrupt(kept) from None


def test(args, processes):
    """Evaluate the checkpoint once under one fault setting; under weight noise, NOISE_RUNS times."""
    if args.pad is not None:
        raise UserError("--pad is for --train: a checkpoint says how its net pads")
    path = checkpoints.find(args.sess, args.seed)
    name, net, state = checkpoints.load_net(path, args.dataset, args.wsconv)
    if "signs" in state:
        processes.print(
            f"no trained {checkpoints.path_of(args.sess, args.seed)} here: "
            "using the packed net, signs and statistics only"
        )
        if args.noise:
            raise checkpoints.NoLatentWeights(
                f"weight noise needs latent weights, and {path} holds signs only: train it with --train"
            )
    if args.faulty_bit == "any":
        raise UserError("--faulty_bit any is for --train: an evaluation is of one bit, and sweep.py measures all")
    holdout = HOLDOUT if args.holdout is None else args.holdout
    with processes.first_alone():
        fault = Fault.of(
            args.mem_fault or MEM_FAULT,
            CIFARDataset.FAULTY_BIT if args.faulty_bit is None else args.faulty_bit,
            CIFARDataset.NEIGHBOR_OFFSET if args.neighbor_offset is None else args.neighbor_offset,
            fitter(name, args.data, args.workers),
        )
        if holdout:
            _, (images, labels) = held_out(*load(name, args.data, True, args.workers), holdout)
        else:
            images, labels = load(name, args.data, False, args.workers)
    faulty = with_fault(images, fault, args.seed)
    batches = EvalBatches(processes.share(faulty), processes.share(labels), processes.device)
    net.to(processes.device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    which = f"{len(labels)} {'held-out' if holdout else 'test'} images"
    trained = checkpoints.trained_as(path, state)["wsconv"]
    if net.wsconv != trained:
        words = ("without", "with")
        which = f"{words[net.wsconv]} weight standardisation (trained {words[trained]}), {which}"
    processes.print(f"{path} (epoch {state['epoch']}), {DATASETS[name].title}, {which}: {fault}")

    scores, flips = trials(args, processes, net, batches)
    result = {
        "checkpoint": str(path),
        "epoch": state["epoch"],
        "dataset": name,
        "images": len(labels),
        "setting": f"{fault}, noise sigma_val {args.noise:g}" if args.noise else str(fault),
        "runs": len(scores),
        "top1": statistics.mean(score.top1 for score in scores),
        "top5": statistics.mean(score.top5 for score in scores),
        "loss": statistics.mean(score.loss for score in scores),
        "signs_flipped": statistics.mean(flips) if args.noise else 0.0,
    }
    if args.noise:
        processes.print(
            f"weight noise, sigma_val {args.noise:g} (standard deviation {args.noise**2:g}): {NOISE_RUNS} runs, "
            f"standard deviation {statistics.stdev(score.top1 for score in scores):.3f}, "
            f"{100 * result['signs_flipped']:.2f} % of weight signs flipped"
        )
    processes.print(f"Avg. top-5 acc.: {result['top5']:.3f}%")
    processes.print(f"Avg. acc.: {result['top1']:.3f}%")
    if args.result and processes.rank == 0:
        write_whole(Path(args.result), lambda file: file.write(json.dumps(result, indent=1).encode() + b"\n"))


def trials(args, processes, net, batches):
    """The Score of each evaluation and the share of weight signs flipped in it: one, or NOISE_RUNS under noise."""
    tester = Folded(net) if args.fold else net
    scores, flips = [], []
    for trial in range(NOISE_RUNS if args.noise else 1):
        with weight_noise(net, args.noise, args.seed + trial) if args.noise else nullcontext() as flipped:
            if args.noise and args.fold:
                tester.take_weights()
            bar = processes.bar(batches, f"run {trial + 1}" if args.noise else "testing", len(batches))
            scores.append(processes.total(evaluate(tester, bar)))
            flips.append(flipped)
    return scores, flips


def main():
    args = parse()
    wsconv = WSCONV if args.wsconv is None else args.wsconv
    args.sess = args.sess or f"{args.dataset or DATASET}_smaller{'_wsconv' if wsconv else ''}"
    processes = Processes()
    try:
        if args.train and args.result:
            raise UserError("--result is for an evaluation: a training writes a CSV file beside its checkpoint")
        if args.export_finn:
            if not args.train and args.wsconv is not None:
                raise UserError("--export_finn writes the net as it was trained: leave --wsconv and --no-wsconv out")
            export_finn.check_packages()  # before hours of training
        (train if args.train else test)(args, processes)
        if args.export_finn and processes.rank == 0:
            export_finn.export(args.sess, args.seed, args.data)
    finally:
        processes.close()


if __name__ == "__main__":
    run(main)
