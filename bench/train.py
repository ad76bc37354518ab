#!/usr/bin/env python3
"""Images/s of this project's training step against a usual one, side by side in one run.

    .venv/bin/python -m bench.train --data data                      # CIFAR-10 net
    .venv/bin/python -m bench.train --data data --dataset tiny_imagenet
    .venv/bin/python -m bench.train --parts                          # where the time of our step goes
    .venv/bin/python -m bench.train --train_flip 0.05 --margin 3  # our step with these options against ours without
    .venv/bin/python -m bench.train --memory activations --ber 0.05 --transient
    .venv/bin/python -m bench.train --teacher checkpoint/teacher.cifar10_11111.pt

usual: torchvision's CIFAR10 or ImageFolder and transforms in a DataLoader, Brevitas' layers, float32, eager.
ours: train_smaller.py's batches and step. Both use the same images, net, batch size and optimiser. They
run in turn, so that both see the same load of the machine. Each round gives a ratio; quote the median. Meant for
CPUs: a GPU would need more steps in a round.
"""

import statistics
import time
from argparse import Namespace
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from common import Parser, as_path, run, within
from datasets import DATASETS, read_images
from datasets.cifar import CIFAR10
from datasets.demo import Demo
from engine import TrainBatches, Training, bf16_is_fast, compiled, lessons, state_of, train_pass
from faults import TrainingFaults, TrainingMaps, as_planes, fault_of_options
from models import CNV, TOPOLOGIES, teachers
from models.costs import costs
from recipes import MODERN, make_loss, make_optimizer
from repairs import fault_of

ROUNDS = 5
STEPS = 6  # training steps of each way in a round
BATCH_SIZE = MODERN.batch_size
WARM_UP = 3  # steps that are not counted, with --parts
LARGE = 4096  # rows and columns of the matrices whose product gives the machine's limit
WORKERS = 2  # DataLoader processes
KINDS = {
    "cifar10": lambda root, transform: CIFAR10(root, transform=transform, download=True),
    "demo": lambda root, transform: Demo(root, transform=transform, download=True),
    "tiny_imagenet": lambda root, transform: ImageFolder(Path(root) / "tiny-imagenet-200" / "train", transform),
}
PLAIN = {
    "mem_fault": "baseline",
    "faulty_bit": 6,
    "neighbor_offset": -1,
    "memory": "",
    "ber": 0.01,
    "reading": "inverted",
    "transient": False,
    "planes": (),
    "train_flip": 0.0,
    "train_noise": 0.0,
    "margin": 0.0,
    "teacher": "",
    "soften": 0.0,
    "soften_weights": 0.0,
}
# of the options that describe broken cells
WHOLE = {"layers": (), "lines": None, "array": None, "p01": None, "p10": None}


def new_net(dataset):
    row = DATASETS[dataset]
    return CNV(TOPOLOGIES[row.net], row.classes)


def usual_steps(args, device):
    """A generator: each next() is one training step of the usual way."""
    net = new_net(args.dataset).to(device).train()
    augment = transforms.Compose(
        [transforms.RandomCrop(net.topology.size, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    images = KINDS[args.dataset](args.data, augment)
    batches = DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=WORKERS, drop_last=True)
    optimizer = torch.optim.Adam(net.parameters(), MODERN.lr)
    while True:
        for images, labels in batches:
            loss = F.cross_entropy(net(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def our_training(args, device):
    """(Training as in train_smaller.py, at a constant learning rate; its batches)."""
    images, labels = read_images(args.dataset, args.data, True)
    cells = fault_of_options({**vars(args), **WHOLE})
    fault = cells if args.memory == "image" else fault_of(args.mem_fault, args.faulty_bit, args.neighbor_offset)
    faults = [(fault, state_of(fault, args.dataset, args.data))]
    batches = TrainBatches(images, labels, BATCH_SIZE, padding=4, faults=faults, seed=0, device=device)
    net = new_net(args.dataset).to(device, memory_format=torch.channels_last)
    options = {**asdict(MODERN), "decay": 0.0, "processes": 1, "loss": "ce"}
    options |= {"teacher": args.teacher, "margin": args.margin}
    optimizer = make_optimizer(net, options)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device))
    teacher = teachers.load(as_path(args.teacher))[0] if args.teacher else None
    map_faults = TrainingMaps(cells, net, batches.most, seed=0)
    training = Training(
        model=compiled(net, BATCH_SIZE, batches.size, device, autocast, torch.channels_last),
        batch_size=BATCH_SIZE,
        layout=torch.channels_last,
        autocast=autocast,
        teach=lessons(teacher, device, autocast),
        compute_loss=make_loss(options),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        weight_faults=TrainingFaults(net, args.train_flip, args.train_noise, 0, cells),
        map_faults=map_faults,
        set_softness=lambda step: net.soften(args.soften, args.soften_weights),
        total=lambda tensor: tensor,
    )
    return training, batches


def our_steps(args, device):
    """A generator: each next() is one training step of ours."""
    training, batches = our_training(args, device)
    epoch = 0
    while True:
        steps = batches.epoch(epoch)
        for _ in range(len(batches.labels) // BATCH_SIZE):
            train_pass(training, islice(steps, 1))
            yield
        epoch += 1


def parts(args, device):
    """Print how our step's time divides, and the rate of its matrix products against that of one large product."""
    training, batches = our_training(args, device)
    times = {"data": [], "forward": [], "backward": [], "optimiser": []}

    def clock():
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for number, (images, labels, clean) in enumerate(
        islice(timed(batches.epoch(0), times["data"], clock), WARM_UP + args.rounds * STEPS)
    ):
        start = clock()
        training.map_faults.at(number)
        with training.weight_faults.at(number):
            with training.autocast:
                logits = training.model(images.contiguous(memory_format=training.layout))
                loss = training.compute_loss(logits, labels, training.teach(clean))
            forward = clock()
            training.optimizer.zero_grad()
            loss.backward()
        backward = clock()
        training.optimizer.step()
        times["forward"].append(forward - start)
        times["backward"].append(backward - forward)
        times["optimiser"].append(clock() - backward)
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}
    step = sum(medians.values())

    row = DATASETS[args.dataset]
    _, first, *_, total = costs(TOPOLOGIES[row.net], row.classes)
    operations = 2 * BATCH_SIZE * (3 * total.macs - first.macs)  # forward, input and weight gradients; images need none
    dtype = torch.bfloat16 if bf16_is_fast(device) else torch.float32
    a, b = (torch.randn(LARGE, LARGE, device=device).to(dtype) for _ in range(2))
    product = []
    for _ in range(5):
        start = clock()
        a @ b
        product.append(clock() - start)
    limit = 2 * LARGE**3 / statistics.median(product)
    shares = ", ".join(f"{name} {100 * value / step:.0f} %" for name, value in medians.items())
    print(
        f"{device.type}, {torch.get_num_threads()} threads, batch {BATCH_SIZE}: {BATCH_SIZE / step:.0f} images/s; "
        f"{shares}; the products of a step at {operations / step / 1e9:.0f} of {limit / 1e9:.0f} GFLOPS, "
        f"{100 * operations / step / limit:.0f} %"
    )


def timed(items, times, clock):
    """Yields the items, and appends to `times` the seconds that each took to make."""
    items = iter(items)
    while True:
        start = clock()
        item = next(items, None)
        if item is None:
            return
        times.append(clock() - start)
        yield item


def rate(steps, count, device):
    """Images/s over `count` steps."""
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count * BATCH_SIZE / (time.perf_counter() - start)


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", choices=KINDS, default="cifar10")
    parser.add_argument("--data", default="data")
    parser.add_argument("--rounds", type=within(int, 1), default=ROUNDS)
    parser.add_argument("--parts", action="store_true", help="print where the time of our step goes, instead")
    group = parser.add_argument_group("options of train_smaller.py: compares our step with and without them")
    kinds = {"faulty_bit": within(int, 0, 7), "neighbor_offset": int, "train_flip": within(float, 0, 0.5)}
    kinds |= {"train_noise": within(float, 0), "margin": within(float, 0)}
    kinds |= {"soften": within(float, 0, 1), "soften_weights": within(float, 0, 1)}  # softness itself, not a share
    kinds |= {"ber": within(float, 0, 1), "planes": as_planes}
    group.add_argument("--transient", action="store_true")
    for name, value in PLAIN.items():
        if name != "transient":
            group.add_argument(f"--{name}", type=kinds.get(name), default=value)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.parts:
        return parts(args, device)
    plain = Namespace(**{**vars(args), **PLAIN})
    if plain == args:
        ways = {"usual": usual_steps(args, device), "ours": our_steps(args, device)}
    else:
        ways = {"without": our_steps(plain, device), "with": our_steps(args, device)}
    for steps in [*ways.values()] * 2:  # twice, because compiling one net discards the compiled code of the other
        rate(steps, 2, device)  # warm-up: workers start, kernels are compiled
    rates = {name: [] for name in ways}
    for number in range(1, args.rounds + 1):
        for name, steps in ways.items():
            rates[name].append(rate(steps, STEPS, device))
        print(f"round {number}: {described({name: values[-1] for name, values in rates.items()})}", flush=True)
    ratios = [second / first for first, second in zip(*rates.values())]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"median of {args.rounds} rounds on {device.type}, {torch.get_num_threads()} threads: "
        f"{described(medians, statistics.median(ratios))}"
    )


def described(rates, ratio=None):
    """Text of two rates, {name: images/s}, and of their ratio, second / first."""
    first, second = rates.values()
    words = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return f"{words} images/s, {ratio or second / first:.2f} times"


if __name__ == "__main__":
    run(main)
