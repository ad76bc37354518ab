#!/usr/bin/env python3
"""Train a binarised CNV, or evaluate its checkpoint once under one fault setting.

    .venv/bin/python train_smaller.py --train  # -> checkpoint/ckpt.t7.cifar10_smaller_11111.pth
    .venv/bin/python train_smaller.py --mem_fault faulty --faulty_bit 5      # -> Avg. acc.: ..%
    .venv/bin/torchrun --nproc_per_node=2 train_smaller.py --train  # two processes, one GPU each where there are GPUs

Every constant below can be edited; an option of the same name overrides it. Those of a recipe are in recipes.py.
"""

import json
import math
import os
import statistics
import time
from argparse import BooleanOptionalAction
from contextlib import nullcontext
from datetime import timedelta
from itertools import count, islice

import torch
from torch import nn

import CIFARDataset
from common import (
    Parser,
    UserError,
    as_path,
    bit_or_any,
    check_writable,
    digest,
    locked,
    run,
    within,
    write_text,
)
from datasets import DATASETS, hold_out, read_images
from engine import (
    EvalBatches,
    Processes,
    TrainBatches,
    Training,
    bf16_is_fast,
    calibrated_on,
    calibration_of,
    check_export_packages,
    checkpoints,
    compiled,
    evaluate,
    export,
    lessons,
    measure,
    resuming,
    state_of,
    take_norms_anew,
    to_score,
    train_pass,
)
from faults import (
    MEMORIES,
    MSB,
    NO_FAULT,
    Fault,
    TrainingFaults,
    TrainingMaps,
    add_cell_options,
    check_folded,
    check_layers,
    fault_of_options,
    recalibrated,
)
from models import LOSSES, teachers
from models.costs import costs, table
from models.folded import Folded
from recipes import RECIPES, make_loss, make_optimizer, rate_factor, recipe_options, softness, steps_of_cycle
from repairs import REPAIRS, ImpossibleRepair, fault_of, repaired_cells_of, with_fault

# what
DATASET = "cifar10"  # a row of datasets.DATASETS
DATA = "data"  # folder of all data sets; with --dataset folder, the folder of the data set itself
SESS = ""  # name of the checkpoint; empty: <dataset>_smaller, or with WSCONV <dataset>_smaller_wsconv
SEED = 11111
WSCONV = False  # weight standardisation in the convolutions
PAD = 0  # padding value of the hidden convolutions: 0, or -1, which fits into a 1-bit activation

# faults
MEM_FAULT = "baseline"
BER = 0.01  # bit error rate of the memory in --memory
READING = "inverted"  # what its broken cells read
NOISE = 0.0  # sigma_val of the weight noise in evaluation; its standard deviation is sigma_val²
NOISE_RUNS = 10  # number of evaluations, each with new noise
TRAIN_FLIP = 0.0  # probability that a binary weight has the other sign in a forward pass of training
TRAIN_NOISE = 0.0  # standard deviation of noise on the latent weights in it, in RMS weights of each layer

# training
RECIPE = "modern"  # a row of recipes.RECIPES
HOLDOUT = 0  # evaluate on N held-out training images, always the same, instead of the test set: to compare recipes
PRETRAINED = ""  # checkpoint, packed or not, whose signs and statistics training starts from; empty: random weights
TEACHER = ""  # file of train_teacher.py whose net teaches this one; empty: no teacher
LOSS = "ce"
MARGIN = 0.0  # required logit margin, in standard deviations of the logits; 0: no such term in the loss
DECAY = 0.0  # weight decay
PRECISE_NORMS = 0  # batches on which the norms' statistics are taken anew after the last step; 0: the running ones stay

# options that an evaluation does not use
TRAINING_ONLY = (
    *("resume", "recipe", "optimizer", "amsgrad", "lr", "init", "pretrained", "schedule", "cycles", "batch_size"),
    *("epochs", "duplicate", "loss", "padding", "soften", "soften_weights", "norm_momentum", "smoothing", "margin"),
    *("teacher", "clip", "decay", "precise_norms", "train_flip", "train_noise", "bf16", "compile"),
)

# defaults of the options that go with --memory
CELL_OPTIONS = {"ber": BER, "reading": READING, "p01": None, "p10": None, "planes": (), "layers": [], "lines": None}
CELL_OPTIONS |= {"array": None, "transient": False, "known": None}

LARGE = 10**6  # upper limit of options that need no larger values

# machine
WORKERS = os.cpu_count()  # threads that decode images, on first use


def parse():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--train", action="store_true", help="train; without it a checkpoint is evaluated")
    parser.add_argument("--resume", action="store_true", help="with --train: continue where the checkpoint stands")
    parser.add_argument("--dataset", choices=DATASETS, help=f"default {DATASET}, or the checkpoint's")
    parser.add_argument(
        "--data",
        default=DATA,
        help="folder of all data sets; with --dataset folder, the folder of the data set itself; default %(default)s",
    )
    parser.add_argument("--sess", default=SESS, help="checkpoint name, default <dataset>_smaller[_wsconv]")
    parser.add_argument(
        "--seed", type=within(int, 0, 2**62), default=SEED, help="seed of everything random, default %(default)s"
    )
    parser.add_argument(
        "--wsconv",
        action=BooleanOptionalAction,
        help=f"weight standardisation, default {WSCONV}; in evaluation, as trained",
    )
    parser.add_argument(
        "--pad",
        type=int,
        choices=(0, -1),
        help=f"with --train: padding value of the hidden convolutions (--padding is for the crop), default {PAD}",
    )
    parser.add_argument("--result", metavar="FILE", help="also write the result of an evaluation to a JSON file")
    parser.add_argument("--export_finn", action="store_true", help="afterwards write the QONNX file (export_finn.py)")

    group = parser.add_argument_group("faults")
    group.add_argument("--mem_fault", help=f"baseline, faulty, {', '.join(REPAIRS)}; default {MEM_FAULT}")
    group.add_argument(
        "--faulty_bit",
        type=bit_or_any,
        help=f"0 (LSB) to 7 (MSB), default {CIFARDataset.FAULTY_BIT}; with --train also any: per batch a bit or none",
    )
    group.add_argument(
        "--neighbor_offset",
        type=int,
        help=f"repaired_n copies bit faulty_bit + this; default {CIFARDataset.NEIGHBOR_OFFSET}",
    )
    group.add_argument("--memory", choices=MEMORIES, help="this memory has broken cells, in place of the other faults")
    add_cell_options(group, BER, READING)
    group.add_argument(
        "--transient",
        action="store_true",
        default=None,
        help="other cells for each image, in training on faulty weights for each step; without it always the same",
    )
    group.add_argument(
        "--known",
        action=BooleanOptionalAction,
        help="whether a repair of --memory image, named by --mem_fault, is told which cells are broken; "
        "default: if they are persistent",
    )
    group.add_argument(
        "--recalibrate",
        action="store_true",
        help="set the thresholds anew under --noise, or under persistent faults of --memory weights or activations",
    )
    group.add_argument(
        "--noise",
        type=within(float, 0, LARGE),
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
        type=within(float, 0, LARGE),
        help=f"weight noise in each step of training, in RMS weights, default {TRAIN_NOISE}",
    )

    group = parser.add_argument_group("training")
    group.add_argument("--recipe", choices=RECIPES, help=f"sets the defaults of the options below, default {RECIPE}")
    group.add_argument("--optimizer", choices=("adam", "sgd"))
    group.add_argument("--amsgrad", action=BooleanOptionalAction, help="AMSGrad variant of Adam")
    group.add_argument("--lr", type=within(float, 0, open_low=True), help="learning rate for one process")
    group.add_argument(
        "--init", type=within(float, 0, LARGE, open_low=True), help="latent weights start uniform in ± this"
    )
    group.add_argument(
        "--pretrained", help="start from the signs and statistics of this checkpoint, latent weights at ± --init"
    )
    group.add_argument("--teacher", metavar="FILE", help="teach the net what this net of train_teacher.py predicts")
    group.add_argument("--schedule", choices=("cosine", "step"), help="schedule of the learning rate")
    group.add_argument(
        "--cycles",
        type=within(int, 1, LARGE),
        help="cycles of the cosine; each starts from the signs of the one before, latent weights at ± --init",
    )
    group.add_argument("--batch-size", type=within(int, 2, LARGE), help="images per process")
    group.add_argument("--epochs", type=within(int, 1, LARGE))
    group.add_argument(
        "--duplicate",
        type=within(int, 1, LARGE),
        help="times each image comes in one pass; a pass counts as that many epochs",
    )
    group.add_argument("--loss", choices=LOSSES, help=f"cross-entropy or squared hinge, default {LOSS}")
    group.add_argument(
        "--padding", type=within(int, 0, 1000), help="for the random crop, pixels on each side; 0: no crop"
    )
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
    group.add_argument(
        "--precise_norms",
        type=within(int, 0, LARGE),
        metavar="BATCHES",
        help="after the last step, take the norms' statistics anew on these, with intact weights and feature maps; "
        f"default {PRECISE_NORMS}: keep the running ones",
    )
    group.add_argument("--smoothing", type=within(float, 0, 1), help="label smoothing of the cross-entropy")
    group.add_argument(
        "--margin",
        type=within(float, 0, LARGE),
        help=f"required logit margin, in standard deviations of the logits, default {MARGIN}",
    )
    group.add_argument("--clip", type=within(float, 0, open_low=True), help="clip latent weights to ± this")
    group.add_argument("--decay", type=within(float, 0), help=f"weight decay, default {DECAY}")
    group.add_argument(
        "--holdout",
        type=within(int, 0),
        help=f"evaluate on N held-out training images instead of the test set, default {HOLDOUT}",
    )

    group = parser.add_argument_group("machine")
    group.add_argument(
        "--workers", type=within(int, 1, 1000), default=WORKERS, help="decoding threads, default %(default)s"
    )
    group.add_argument("--compile", action=BooleanOptionalAction, help="torch.compile the training step, default True")
    group.add_argument(
        "--bf16", action=BooleanOptionalAction, default=None, help="train in bfloat16, default: if it is fast here"
    )
    group.add_argument("--channels_last", action=BooleanOptionalAction, default=True)
    group.add_argument(
        "--fold",
        action=BooleanOptionalAction,
        default=True,
        help="evaluate the folded net (models/folded.py), not Brevitas' own",
    )
    return parser.parse_args()


def settle(args, processes):
    """All options that determine a training's result: as given, else from the recipe or the constants."""
    dataset = args.dataset or DATASET
    recipe = args.recipe or RECIPE
    pretrained = PRETRAINED if args.pretrained is None else args.pretrained
    defaults = {
        "wsconv": WSCONV,
        "pad": PAD,
        **fault_options(args),
        "train_flip": TRAIN_FLIP,
        "train_noise": TRAIN_NOISE,
        "pretrained": pretrained,
        "teacher": TEACHER,
        "loss": LOSS,
        "margin": MARGIN,
        "decay": DECAY,
        "precise_norms": PRECISE_NORMS,
        "holdout": HOLDOUT,
        **recipe_options(recipe, dataset, pretrained),
    }
    given = {name: getattr(args, name) for name in defaults if getattr(args, name) is not None}
    options = {"dataset": dataset, "seed": args.seed, "recipe": recipe, **defaults, **given, "processes": processes}
    if args.cycles is None and options["schedule"] == "step":
        options["cycles"] = 1
    if options["cycles"] > 1 and options["schedule"] != "cosine":
        raise UserError(f"--cycles is for the cosine schedule: use 1 with --schedule {options['schedule']}")
    if options["epochs"] % (options["duplicate"] * options["cycles"]):
        raise UserError(
            f"--epochs {options['epochs']} is no multiple of --duplicate {options['duplicate']} "
            f"times --cycles {options['cycles']}: set one of them"
        )
    if options["smoothing"] and options["loss"] != "ce":
        raise UserError(f"--smoothing is for the cross-entropy: use 0 with --loss {options['loss']}")
    if options["memory"] == "thresholds":
        raise UserError("--memory thresholds is for an evaluation: thresholds come into being after training")
    weights = [name for name in ("train_flip", "train_noise") if options[name]]
    if options["memory"] and weights:
        raise UserError(f"--memory is a fault of its own: leave --{weights[0]} out")
    return options


def fault_options(args):
    """The options that describe a fault of one memory: as given, else from the constants.

    UserError if they do not go together.
    """
    defaults = {
        "mem_fault": MEM_FAULT,
        "faulty_bit": CIFARDataset.FAULTY_BIT,
        "neighbor_offset": CIFARDataset.NEIGHBOR_OFFSET,
        "memory": "",
        **CELL_OPTIONS,
    }
    given = {name: getattr(args, name) for name in defaults if getattr(args, name) is not None}
    options = defaults | given
    of_cells = [name for name in CELL_OPTIONS if name in given]
    if of_cells and not options["memory"]:
        raise UserError(f"--{of_cells[0]} is for --memory: name the memory whose cells break")
    others = [name for name in ("faulty_bit", "neighbor_offset") if name in given]
    if options["memory"] and options["mem_fault"] == "faulty":
        raise UserError("--memory is a fault of its own: leave --mem_fault faulty out, or name a repair of the image")
    if options["memory"] and others:
        raise UserError(f"--memory is a fault of its own: leave --{others[0]} out")
    if options["known"] is not None and options["mem_fault"] == "baseline":
        raise UserError("--known is for a repair of --memory image: name one by --mem_fault")
    repaired_cells_of(options)  # UserError for cells that cannot be
    return options


def resumed_options(path, saved, args, processes):
    """The options of the training to continue, completed if they are old. UserError if a given one differs."""
    if saved is None:
        raise UserError(f"{path} is an original checkpoint, without what resuming needs: it can only be evaluated")
    if saved["wsconv"] and "pad" not in saved:
        raise UserError(
            f"{path} is of a version in which weight standardisation replaced the latent weights: it can be evaluated, "
            "not resumed; --pretrained starts from its signs"
        )
    saved = checkpoints.with_older_options(saved)
    given = {name: getattr(args, name, None) for name in saved} | {"processes": processes}
    for name, value in given.items():
        if value is not None and value != saved[name]:
            raise UserError(
                f"{path} was trained with {name} {saved[name]}, not {value}: "
                "leave the option out to continue it, or --resume to train anew"
            )
    return saved


def image_faults(options):
    """The Faults from which each training batch draws one: just one; with --faulty_bit any, none and each bit."""
    if options["memory"] == "image":
        return [repaired_cells_of(options)]
    what, offset = options["mem_fault"], options["neighbor_offset"]
    if options["faulty_bit"] != "any":
        return [fault_of(what, options["faulty_bit"], offset)]
    if what == "baseline":
        raise UserError("--faulty_bit any needs a fault: --mem_fault faulty, or a repair")
    faults = [NO_FAULT]
    for bit in range(MSB + 1):
        try:
            faults.append(fault_of(what, bit, offset))
        except ImpossibleRepair as error:
            impossible = error
    if len(faults) == 1:
        raise impossible
    return faults


def make_batches(args, options, processes):
    """The training batches, this process's share of the test batches, all of them clean, digest of the training set.

    The test images have the fault of `options`; with faults of more than one bit they are clean. Adds to `options` the
    net, if the images determine it.
    """
    name, seed, device = options["dataset"], options["seed"], processes.device
    with processes.first_alone():  # the others then find what the first one downloads, makes or caches
        faults = [(fault, state_of(fault, name, args.data, args.workers)) for fault in image_faults(options)]
        warn_if_learned(*faults[-1], options["holdout"], processes.print)
        images, labels = read_images(name, args.data, True, args.workers)
        options |= checkpoints.net_options(name, images, labels)
        found = digest(images, labels)
        if options["holdout"]:
            (images, labels), (test_images, test_labels) = hold_out(images, labels, options["holdout"])
        else:
            test_images, test_labels = read_images(name, args.data, False, args.workers)
        clean = EvalBatches(test_images, test_labels, torch.device("cpu"))
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
        ((fault, state),) = faults
        test_images = with_fault(test_images, fault, seed, state)
    return batches, EvalBatches(processes.share(test_images), processes.share(test_labels), device), clean, found


def make_net(path, options, saved):
    """The net at the start of training: random, with the signs of --pretrained, or as saved."""
    torch.manual_seed(options["seed"])
    if saved:
        net = checkpoints.restore_net(path, saved, options)
    elif options["pretrained"]:
        net = checkpoints.restart_net(as_path(options["pretrained"]), options, options["init"])
    else:
        net = checkpoints.build_net(options, options["init"])
    for norm in net.norms():
        norm.momentum = options["norm_momentum"]
    return net


def prepare(net, batches, teacher, options, saved, args, processes):
    """The Training of a net on the device. `saved` restores the states of optimiser, schedule and random numbers.

    teacher: a folded Teacher, or None.
    """
    device, fault, seed = processes.device, fault_of_options(options), options["seed"]
    optimizer = make_optimizer(net, options)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    steps = saved["epoch"] // options["duplicate"] * len(batches) if saved else 0
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, len(batches), options), last_epoch=steps - 1
    )
    if saved and "signs" not in saved:
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng_state"])
        if device.type == "cuda" and saved["cuda_rng_state"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng_state"])

    cycle_steps = steps_of_cycle(len(batches), options)

    def set_softness(step):
        net.soften(*(softness(step, cycle_steps, options[name]) for name in ("soften", "soften_weights")))

    map_faults = TrainingMaps(fault, net, batches.most, seed, processes.rank, processes.number)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(args, device))
    model, layout = net, memory_format(args)
    if args.compile is not False:
        model = compiled(net, options["batch_size"], batches.size, device, autocast, layout, processes.print)
    if processes.number > 1:
        model = nn.parallel.DistributedDataParallel(model)
    return Training(
        model=model,
        batch_size=options["batch_size"],
        layout=layout,
        autocast=autocast,
        teach=lessons(teacher, device, autocast),
        compute_loss=make_loss(options),
        optimizer=optimizer,
        scheduler=scheduler,
        weight_faults=TrainingFaults(net, options["train_flip"], options["train_noise"], seed, fault),
        map_faults=map_faults,
        set_softness=set_softness,
        total=lambda tensor: processes.sum(tensor.clone()),
    )


def check_for_evaluation(args):
    """UserError if options are given that only a training uses."""
    if args.faulty_bit == "any":
        raise UserError("--faulty_bit any is for --train: an evaluation is of one bit, and sweep.py measures all")
    if args.pad is not None:
        raise UserError("--pad is for --train: a checkpoint says how its net pads")
    for name in TRAINING_ONLY:
        if getattr(args, name) is not None and (name != "resume" or args.resume):
            option = name.replace("batch_size", "batch-size")
            raise UserError(f"--{option} is for --train: an evaluation does not heed it")


def in_bf16(args, device):
    """True if training is in bfloat16."""
    return bf16_is_fast(device) if args.bf16 is None else args.bf16


def memory_format(args):
    return torch.channels_last if args.channels_last else torch.contiguous_format


def start_cycle(net, training, options, steps_per_pass, say):
    """At the start of each cycle but the first, keep signs and statistics of the net, and reset everything else."""
    cycle, step = divmod(training.scheduler.last_epoch, steps_of_cycle(steps_per_pass, options))
    if cycle and not step:
        say(f"cycle {cycle + 1} of {options['cycles']} starts from the signs of the last")
        net.take_signs(net.eval(), options["init"])
        training.optimizer.state.clear()


def one_epoch(net, training, batches, test_batches, epoch, norm_batches, fold, processes):
    """Train for the pass that starts at `epoch`, and test. Returns a row of the log.

    norm_batches: number of batches, of the pass that would follow, on which the norms are taken anew before the test.
    """
    start = time.monotonic()
    ends = epoch + batches.duplicate
    bar = processes.bar(batches.epoch(epoch), f"epoch {ends}", len(batches))
    sums, loss_sum, lr = train_pass(training, bar)
    trained = to_score(processes.sum(sums))
    loss = processes.sum(loss_sum).item() / trained.n
    if not math.isfinite(loss):
        raise UserError(f"the loss became {loss} in epoch {ends}: training stops, a smaller --lr may help")
    rate = trained.n / (time.monotonic() - start)

    if norm_batches and processes.rank == 0:
        take_norms_anew(net, islice(batches.epoch(ends), norm_batches))
    processes.same_buffers(net)
    tester = Folded(net) if fold else net
    tested = processes.total(evaluate(tester, processes.bar(test_batches, "testing", len(test_batches))))
    return {
        "epoch": ends,
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


def warn_if_seen(options, say):
    """Says so if the net that training starts from, or the teacher, was trained on images that are now held out."""
    holdout = options["holdout"]
    if options["pretrained"]:
        path = as_path(options["pretrained"])
        seen = checkpoints.trained_as(path, checkpoints.read_state(path)).get("holdout", 0)
        if seen != holdout:
            say(f"warning: {path} was trained with --holdout {seen}, so on some or all of the {holdout} images")
    if options["teacher"]:
        say(f"warning: {options['teacher']} was trained on all training images, so on the {holdout} held-out ones")


def warn_if_learned(fault, state, holdout, say):
    """Says so if a repair has learned from images that are now held out. state: what it has learned, or None."""
    if holdout and state is not None:
        say(f"warning: {fault.repair} learned from all training images, so from the {holdout} held-out ones")


def train(args, processes):
    """Train from the start, or continue from the checkpoint."""
    path = checkpoints.path_of(args.sess, args.seed)
    with processes.first_alone():
        check_writable(path)
    with locked(path, str(path)) if processes.rank == 0 else nullcontext():
        train_locked(path, args, processes)


def train_locked(path, args, processes):
    """Train, while the checkpoint is locked against other processes."""
    saved = None
    if args.resume:
        source, saved = resuming.saved_state(args.sess, args.seed)
        options = resumed_options(source, saved.get("options"), args, processes.number)
    else:
        options = settle(args, processes.number)
    epochs, device = options["epochs"], processes.device
    log = saved["log"] if saved else []
    epoch = saved["epoch"] if saved else 0
    if epoch >= epochs:
        processes.print(f"{source} is trained to the end, {epoch} epochs")
        return
    batches, test_batches, clean, images = make_batches(args, options, processes)
    teacher, found = teachers.load(as_path(options["teacher"])) if options["teacher"] else (None, "")
    arithmetic = f"{device.type} in {'bfloat16' if in_bf16(args, device) else 'float32'}"
    made_of = {"images": images, "teacher": found, "threads": torch.get_num_threads(), "arithmetic": arithmetic}
    if saved:
        resuming.check_same(source, saved, made_of, processes.print)
    elif options["holdout"]:
        warn_if_seen(options, processes.print)
    net = make_net(path, options, saved).to(device, memory_format=memory_format(args))
    if options["layers"]:
        check_layers(fault_of_options(options), net)
    checkpoints.check_fits(path, net, test_batches.images, test_batches.labels)
    if teacher:
        teachers.check_fits(options["teacher"], teacher, net)
    if options["precise_norms"] > len(batches):
        raise UserError(f"--precise_norms {options['precise_norms']} is more than a pass has batches, {len(batches)}")
    training = prepare(net, batches, teacher, options, saved, args, processes)
    processes.print(
        f"{path}: training on {DATASETS[options['dataset']].title}, {len(batches.labels)} images, "
        f"epoch {epoch + 1} to {epochs}, on {processes.number} × {arithmetic}"
    )
    if not saved:
        processes.print(table(costs(net.topology, net.classes)))
    holder = source if saved else None
    keeper = resuming.Keeper(path=path, options=options, made_of=made_of, clean=clean, epoch=epoch, holder=holder)
    if processes.rank == 0:
        keeper.pack_lost_cycle()
    try:
        loop(net, training, batches, test_batches, log, args, processes, keeper)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(keeper.held(", --resume goes on from there")) from None
    except UserError as error:
        raise UserError(f"{error}; {keeper.held()}") from None


def loop(net, training, batches, test_batches, log, args, processes, keeper):
    """Train pass by pass from epoch keeper.epoch to the end; each adds a row to `log`."""
    options, epoch = keeper.options, keeper.epoch
    epochs, began, passes = options["epochs"], time.monotonic(), 0
    while epoch < epochs:
        start_cycle(net, training, options, len(batches), processes.print)
        norm_batches = options["precise_norms"] if epoch + options["duplicate"] == epochs else 0
        row = one_epoch(net, training, batches, test_batches, epoch, norm_batches, args.fold, processes)
        log.append(row)
        if processes.rank == 0:
            keeper.keep(net, training, log)
        epoch, passes = row["epoch"], passes + 1
        left = (time.monotonic() - began) / passes * (epochs - epoch) / options["duplicate"]
        processes.print(
            f"epoch {epoch}/{epochs}  loss {row['loss']:.4f}  "
            f"train {row['train_top1']:.2f}/{row['train_top5']:.2f} %  "
            f"test {row['test_top1']:.2f}/{row['test_top5']:.2f} %  "
            f"lr {row['lr']:.2e}  {row['images_per_s']:.0f} images/s  left {timedelta(seconds=round(left))}"
        )


def evaluated_fault(args, net):
    """The Fault under which an evaluation measures, apart from --noise."""
    check_folded(args)
    options = fault_options(args)
    if options["memory"] and args.noise:
        raise UserError("--memory is a fault of its own: leave --noise out")
    if options["memory"]:
        fault = repaired_cells_of(options)
    else:
        fault = fault_of(options["mem_fault"], options["faulty_bit"], options["neighbor_offset"])
    if fault.cells:
        check_layers(fault, net)
    if args.recalibrate and args.noise and fault != NO_FAULT:
        raise UserError("--recalibrate goes with one fault: leave --noise or the fault of the images out")
    return recalibrated(fault) if args.recalibrate and not args.noise else fault


def check_net(args, path, state, holdout, say):
    """UserError if the loaded net cannot be tested as asked. Says so if it is a packed one."""
    if "signs" in state:
        trained = checkpoints.path_of(args.sess, args.seed)
        say(f"no trained {trained} here: using the packed net, signs and statistics only")
        if args.noise:
            raise checkpoints.NoLatentWeights(
                f"weight noise needs latent weights, and {path} holds signs only: train it with --train"
            )
    seen = checkpoints.trained_as(path, state).get("holdout", 0)
    if holdout not in (0, seen):
        raise UserError(
            f"{path} was trained with --holdout {seen}: "
            f"of the images that --holdout {holdout} tests on it has seen some or all"
        )


def read_for_test(args, processes, name, fault, holdout):
    """Images and labels to test on, training images (None if not needed), what the fault's repair learned."""
    with processes.first_alone():
        learned = state_of(fault, name, args.data, args.workers)
        warn_if_learned(fault, learned, holdout, processes.print)
        if holdout:
            whole = read_images(name, args.data, True, args.workers)
            (training, _), (images, labels) = hold_out(*whole, holdout)
        else:
            images, labels = read_images(name, args.data, False, args.workers)
            training = read_images(name, args.data, True, args.workers)[0] if args.recalibrate else None
    return images, labels, training, learned


def test(args, processes):
    """Evaluate the checkpoint once under one fault setting; under weight noise, NOISE_RUNS times."""
    check_for_evaluation(args)
    holdout = HOLDOUT if args.holdout is None else args.holdout
    path = checkpoints.find(args.sess, args.seed)
    name, net, state = checkpoints.load_net(path, args.dataset, args.wsconv)
    fault = evaluated_fault(args, net)
    check_net(args, path, state, holdout, processes.print)
    images, labels, training, learned = read_for_test(args, processes, name, fault, holdout)
    checkpoints.check_fits(path, net, images, labels)
    faulty = with_fault(images, fault, args.seed, learned)
    batches = EvalBatches(processes.share(faulty), processes.share(labels), processes.device)
    net.to(processes.device, memory_format=memory_format(args))

    which = f"{len(labels)} {'held-out' if holdout else 'test'} images"
    trained_with = checkpoints.trained_as(path, state)["wsconv"]
    if net.wsconv != trained_with:
        words = ("without", "with")
        which = f"{words[net.wsconv]} weight standardisation (trained {words[trained_with]}), {which}"
    processes.print(f"{path} (epoch {state['epoch']}), {DATASETS[name].title}, {which}: {fault}")
    scores, flips = trials(args, processes, net, batches, fault, training)
    where = {"checkpoint": str(path), "epoch": state["epoch"], "dataset": name, "images": len(labels)}
    print_result(args, processes, where, fault, scores, flips)


def print_result(args, processes, where, fault, scores, flips):
    """Print the result of an evaluation, and write it to the file of --result. where: its first fields."""
    setting, recalibration = str(fault), ", recalibrated" if args.recalibrate else ""
    if args.noise:
        setting += f", noise sigma_val {args.noise:g}{recalibration}"
    result = {
        **where,
        "setting": setting,
        "runs": len(scores),
        "top1": statistics.mean(score.top1 for score in scores),
        "top5": statistics.mean(score.top5 for score in scores),
        "loss": statistics.mean(score.loss for score in scores),
        "signs_flipped": flipped_share(fault, flips),
    }
    if args.noise:
        runs = "1 run"
        if len(scores) > 1:
            runs = f"{len(scores)} runs, standard deviation {statistics.stdev(score.top1 for score in scores):.3f}"
        processes.print(
            f"weight noise, sigma_val {args.noise:g} (standard deviation {args.noise**2:g}){recalibration}: "
            f"{runs}, {100 * result['signs_flipped']:.2f} % of weight signs flipped"
        )
    processes.print(f"Avg. top-5 acc.: {result['top5']:.3f}%")
    processes.print(f"Avg. acc.: {result['top1']:.3f}%")
    if args.result is not None and processes.rank == 0:
        write_text(as_path(args.result), json.dumps(result, indent=1) + "\n")


def flipped_share(fault, flips):
    """Mean share of weight signs flipped, of the runs; None for transient cells, where it differs for each image."""
    if flips[0] is not None:
        return statistics.mean(flips)
    return None if fault.memory == "weights" else 0.0


def trials(args, processes, net, batches, fault, training):
    """(Scores, shares of flipped weight signs) of the evaluations: one, or under weight noise NOISE_RUNS.

    training: the training images, uint8, for --recalibrate.
    """
    tester, calibration = Folded(net) if args.fold else net, None
    if args.noise:
        fault = Fault("noise", level=args.noise)
        fault = recalibrated(fault) if args.recalibrate else fault
    if args.recalibrate:
        calibration = calibration_of(tester, calibrated_on(training).to(processes.device))
    scores, flips = [], []
    for trial in range(NOISE_RUNS if args.noise else 1):
        bar = processes.bar(batches, f"run {trial + 1}" if args.noise else "testing", len(batches))
        numbers = count(processes.rank, processes.number)  # of the images that this process has
        measured = measure(fault, net, tester, bar, args.seed + trial, numbers, calibration)
        scores.append(processes.total(measured.score))
        flips.append(measured.flipped)
    return scores, flips


def main():
    args = parse()
    wsconv = WSCONV if args.wsconv is None else args.wsconv
    args.sess = args.sess or f"{args.dataset or DATASET}_smaller{'_wsconv' if wsconv else ''}"
    processes = Processes()
    try:
        if args.train and args.recalibrate:
            raise UserError("--recalibrate is for an evaluation: thresholds come into being after training")
        if args.train and args.noise:
            raise UserError("--noise is for an evaluation: --train_noise is for a training")
        if args.train and args.result is not None:
            raise UserError("--result is for an evaluation: a training writes a CSV file beside its checkpoint")
        if args.export_finn:
            if not args.train and args.wsconv is not None:
                raise UserError("--export_finn writes the net as it was trained: leave --wsconv and --no-wsconv out")
            check_export_packages()  # before, not after, hours of training
        (train if args.train else test)(args, processes)
        if args.export_finn and processes.rank == 0:
            export(args.sess, args.seed, args.data)
    finally:
        processes.close()


if __name__ == "__main__":
    run(main)
