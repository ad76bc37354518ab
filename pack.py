#!/usr/bin/env python3
"""Pack a trained checkpoint to give away: the signs of its weights as bits, its statistics as float32.

    .venv/bin/python pack.py --sess cifar10_smaller --seed 11111 --about "CIFAR-10; one H200"
    -> checkpoint/ckpt.t7.cifar10_smaller_11111.packed.pth, and a description in .packed.txt

The packed net must have exactly the accuracy of the net it is packed from, or no file is written. Latent weights and
the optimiser's state are left out. A packed net can be evaluated, exported, and trained further with
`train_smaller.py --train --pretrained FILE`. It cannot be tested with noise on latent weights, and it can be resumed
only between two cycles of its training.
"""

import torch

from common import Parser, UserError, run, within
from datasets import read_images
from engine import EvalBatches, checkpoints, pack

SESS = "cifar10_smaller"
SEED = 11111
DATA = "data"  # folder of all data sets


def pack_session(sess, seed, data, about):
    """Pack the checkpoint of a session and seed. Returns the text that describes it."""
    source = checkpoints.path_of(sess, seed)
    dataset, net, state = loaded = checkpoints.load_net(source)
    if "options" not in state:
        raise UserError(
            f"{source} is an original checkpoint, which does not say how it was trained: it cannot be packed"
        )
    images, labels = read_images(dataset, data, False)
    checkpoints.check_fits(source, net, images, labels)
    return pack(source, loaded, EvalBatches(images, labels, torch.device("cpu")), "test", about)


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sess", default=SESS, help="checkpoint name, default %(default)s")
    parser.add_argument("--seed", type=within(int, 0, 2**62), default=SEED, help="its seed, default %(default)s")
    parser.add_argument("--data", default=DATA, help="folder of all data sets, default %(default)s")
    parser.add_argument("--about", default="", help="a line for the text file: which copy of the data, which hardware")
    args = parser.parse_args()
    print(pack_session(args.sess, args.seed, args.data, args.about), end="")


if __name__ == "__main__":
    run(main)
