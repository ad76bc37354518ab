#!/usr/bin/env python3
"""Pack a trained checkpoint to give away: the signs of its weights as bits, its statistics as float32.

    .venv/bin/python pack.py --sess cifar10_smaller --seed 11111 --about "CIFAR-10; one H200"
    -> checkpoint/ckpt.t7.cifar10_smaller_11111.packed.pth, and a description in .packed.txt

The packed net must have exactly the accuracy of the net it is packed from, or no file is written. Latent weights and
the optimiser's state are left out. A packed net can be evaluated, exported, and trained further with
`train_smaller.py --train --pretrained FILE`. It cannot be resumed, and cannot be tested with noise on latent weights.
"""

from hashlib import sha256

import torch

from common import Parser, UserError, run, within, write_text, written_whole
from datasets import DATASETS, read_images
from engine import EvalBatches, checkpoints, evaluate
from models.folded import Folded

SESS = "cifar10_smaller"
SEED = 11111
DATA = "data"  # folder of all data sets


def describe(path, state, score, about):
    """The text of the file that describes a packed checkpoint."""
    options = state["options"]
    return (
        f"file      {path.name}\n"
        f"sha256    {sha256(path.read_bytes()).hexdigest()}\n"
        f"data set  {DATASETS[options['dataset']].title}\n"
        f"accuracy  {score.top1:.3f} % top-1, {score.top5:.3f} % top-5 on {score.n} test images, "
        f"after epoch {state['epoch']}\n"
        f"recipe    {' '.join(f'{key}={value}' for key, value in options.items())}\n"
        f"about     {about}\n"
        f"packed from a checkpoint whose sha256 begins with {state['packed_from']}\n"
    )


def pack(sess, seed, data, about):
    """Write the packed file of a checkpoint and the text that describes it. Returns the text."""
    source, path = checkpoints.path_of(sess, seed), checkpoints.packed_path_of(sess, seed)
    dataset, net, state = checkpoints.load_net(source)
    if "options" not in state:
        raise UserError(
            f"{source} is an original checkpoint, which does not say how it was trained: it cannot be packed"
        )
    images, labels = read_images(dataset, data, False)
    checkpoints.check_fits(source, net, images, labels)
    batches = EvalBatches(images, labels, torch.device("cpu"))
    score = evaluate(Folded(net), batches)
    packed = checkpoints.pack(net, state, source.read_bytes())
    with written_whole(path) as partial:
        checkpoints.write(partial, packed)
        _, again, _ = checkpoints.load_net(partial)
        if evaluate(Folded(again), batches) != score:
            raise UserError(f"{path} is not written: packed, the net does not score as before")
    text = describe(path, packed, score, about)
    write_text(path.with_suffix(".txt"), text)
    return text


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sess", default=SESS, help="checkpoint name, default %(default)s")
    parser.add_argument("--seed", type=within(int, 0, 2**62), default=SEED, help="its seed, default %(default)s")
    parser.add_argument("--data", default=DATA, help="folder of all data sets, default %(default)s")
    parser.add_argument("--about", default="", help="a line for the text file: which copy of the data, which hardware")
    args = parser.parse_args()
    print(pack(args.sess, args.seed, args.data, args.about), end="")


if __name__ == "__main__":
    run(main)
