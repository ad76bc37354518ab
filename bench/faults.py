#!/usr/bin/env python3
"""What a fault of a memory costs: time of an evaluation with it, in units of the evaluation without, side by side.

    .venv/bin/python -m bench.faults                            # CIFAR-10 net
    .venv/bin/python -m bench.faults --net tiny_imagenet_smaller --rounds 3 --memory image activations

Drawing the cells and changing the data count, and for persistent weights and thresholds also packing them anew. These
two are paid once for all images, so their share falls with the number of images. Quote the median.
"""

import statistics
import time
from itertools import product

import torch

from common import Parser, run, within
from engine import EvalBatches, faulty_net, predict
from faults import MEMORIES, Cells, fault_of_cells
from models import CNV, TOPOLOGIES
from models.folded import Folded
from repairs import with_fault

ROUNDS = 5
IMAGES = 500
BER = (1e-4, 1e-3, 1e-2, 0.1)


def seconds(fault, net, folded, images, labels):
    """Processor time of an evaluation under a fault; of a plain one for None."""
    start = time.process_time()
    if fault is None:
        predict(folded, EvalBatches(images, labels, images.device))
    else:
        faulty = with_fault(images, fault, 1)
        with faulty_net(fault, net, folded, 1):
            predict(folded, EvalBatches(faulty, labels, images.device))
    return time.process_time() - start


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--net", choices=TOPOLOGIES, default="cifar_smaller", help="default %(default)s")
    parser.add_argument("--rounds", type=within(int, 1), default=ROUNDS, help="default %(default)s")
    parser.add_argument("--images", type=within(int, 1), default=IMAGES, help="in a round, default %(default)s")
    parser.add_argument("--memory", nargs="+", choices=MEMORIES, default=MEMORIES, help="default: all")
    args = parser.parse_args()
    torch.manual_seed(0)
    net = CNV(TOPOLOGIES[args.net], 10).eval()
    size = net.topology.size
    images = torch.randint(0, 256, (args.images, 3, size, size), dtype=torch.uint8)
    labels = torch.zeros(args.images, dtype=torch.int64)
    folded = Folded(net)
    faults = [
        fault_of_cells(Cells(memory, persistent=persistent), "stuck_at_1", level)
        for memory, persistent in product(args.memory, (True, False))
        for level in BER
    ]
    times = {fault: [] for fault in faults}
    seconds(None, net, folded, images, labels)  # warm-up
    for _ in range(args.rounds):
        for fault, ratios in times.items():
            plain = seconds(None, net, folded, images, labels)
            ratios.append(seconds(fault, net, folded, images, labels) / plain)
    print(f"{args.images} images, median of {args.rounds} rounds, {torch.get_num_threads()} threads")
    for fault, ratios in times.items():
        print(f"{statistics.median(ratios):5.2f}  {fault}")


if __name__ == "__main__":
    run(main)
