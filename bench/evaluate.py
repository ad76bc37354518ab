#!/usr/bin/env python3
"""Images/s of the folded net against Brevitas' own forward pass, side by side in one run.

    .venv/bin/python -m bench.evaluate                          # CIFAR-10 net
    .venv/bin/python -m bench.evaluate --net tiny_imagenet_smaller --wsconv

Both evaluate the same uint8 images in the way of sweep.py, Brevitas in float32 and channels_last. They run in turn,
so that both see the same load of the machine. Their logits are compared first. Each round gives a ratio; quote the
median. The same rounds measure the arithmetic limit: the rate of one large matrix product in the number type of the
folded net. The share of this rate that the net reaches is printed too. The net's rate counts 2 operations for each
multiply-accumulate of the layers, and nothing else.
"""

import statistics
import time
from argparse import BooleanOptionalAction

import torch

from common import Parser, UserError, run, within
from engine import EvalBatches, evaluate
from models import CNV, TOPOLOGIES
from models.costs import costs
from models.folded import Folded

ROUNDS = 5
IMAGES = 2000  # in a round
SIDE = 4096  # of the matrices in the large product


def large_product(int8, device):
    """A function that multiplies two SIDE×SIDE matrices."""
    if not int8:
        a = torch.ones(SIDE, SIDE, device=device)
        return lambda: a @ a
    a, b = torch.ones(SIDE, SIDE, dtype=torch.uint8), torch.ones(SIDE, SIDE, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(b, None)
    scale, zero = torch.ones(SIDE), torch.zeros(SIDE, dtype=torch.int32)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        a, 1.0, 1, packed, scale, zero, None, 1.0, 0, torch.uint8, "hardtanh", [0.0, 2.0], ""
    )


def seconds(call, device):
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--net", choices=TOPOLOGIES, default="cifar_smaller", help="default %(default)s")
    parser.add_argument("--wsconv", action=BooleanOptionalAction, default=False)
    parser.add_argument("--rounds", type=within(int, 1), default=ROUNDS, help="default %(default)s")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    net = CNV(TOPOLOGIES[args.net], 10, args.wsconv).to(device, memory_format=torch.channels_last).eval()
    size = TOPOLOGIES[args.net].size
    images = torch.randint(256, (IMAGES, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    batches = EvalBatches(images, torch.zeros(IMAGES, dtype=torch.int64), device)
    folded = Folded(net)
    with torch.inference_mode():
        if any(not torch.equal(net(part), folded(part)) for part, _ in batches):
            raise UserError("the folded net's logits are not those of Brevitas: there is nothing to compare")
    work = 2 * costs(TOPOLOGIES[args.net], 10)[-1].macs
    product = large_product(folded.int8, device)
    kind = "8-bit" if folded.int8 else "float32"

    calls = {
        "Brevitas": lambda: evaluate(net, batches),
        "folded": lambda: evaluate(folded, batches),
        "product": product,
    }
    for call in calls.values():
        seconds(call, device)  # warm-up: kernels are compiled, memory is allocated
    rounds = []
    for number in range(1, args.rounds + 1):
        took = {name: seconds(call, device) for name, call in calls.items()}
        rates = {name: IMAGES / took[name] for name in ("Brevitas", "folded")}
        limit, reached = 2 * SIDE**3 / took["product"] / 1e9, rates["folded"] * work / 1e9
        rounds.append((rates["Brevitas"], rates["folded"], rates["folded"] / rates["Brevitas"], limit, reached / limit))
        print(f"round {number}: {describe(rounds[-1])}", flush=True)
    median = [statistics.median(values) for values in zip(*rounds)]
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name()
    print(
        f"median of {args.rounds} rounds, {device.type}, {threads}, {kind}, {work / 1e6:.0f} MOP an image: "
        f"{describe(median)}"
    )


def describe(figures):
    brevitas, folded, ratio, limit, share = figures
    return (
        f"Brevitas {brevitas:.0f}, folded {folded:.0f} images/s, {ratio:.2f} times; "
        f"large product {limit:.0f} GOPS, the net reaches {100 * share:.0f} % of it"
    )


if __name__ == "__main__":
    run(main)
