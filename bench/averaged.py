#!/usr/bin/env python3
"""Share of bits that repairs mend on averaged images: averaging removes most of what JPEG did to their colours.

    .venv/bin/python -m bench.averaged                       # Tiny-ImageNet, averaged 2×2 to 32×32
    .venv/bin/python -m bench.averaged --size 64             # as they are
    .venv/bin/python -m bench.averaged --dataset cifar10     # 32×32 as they are

    .venv/bin/python -m bench.averaged --dataset cifar10 --holdout 2000 --repair learned    # to choose settings

The predictor of `learned` is fitted on averaged training images, and kept nowhere. All test images are repaired. With
--holdout N these are the last N training images, and the predictor is fitted on others.
"""

import torch

from common import Parser, UserError, run, within
from datasets import DATASETS, read_images, spaced
from faults import MSB, same_bits
from repairs import fault_of, repaired
from repairs.predictor import learn_predictor

SIZE = 32
REPAIR = ("median", "colors", "color_scans", "color_field", "learned")
FIT = 5_000  # training images that the predictor is fitted on
EPOCHS = 6


def averaged(images, size):
    """Images whose squares of pixels are averaged and rounded, uint8 N×3×size×size, from larger ones."""
    factor = images.shape[-1] // size
    if factor == 0 or images.shape[-2:] != (factor * size, factor * size):
        raise UserError(f"images of {images.shape[-2]}×{images.shape[-1]} pixels cannot be averaged to {size}×{size}")
    parts = images.split(1000)
    squares = (part.reshape(len(part), 3, size, factor, size, factor).int().sum((3, 5)) for part in parts)
    return torch.cat([((part + factor * factor // 2) // (factor * factor)).to(torch.uint8) for part in squares])


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, default="tiny_imagenet")
    parser.add_argument("--data", default="data")
    parser.add_argument("--size", type=within(int, 1), default=SIZE, help="averaged to this, default %(default)s")
    parser.add_argument("--bits", nargs="+", type=within(int, 0, MSB), default=[7, 6])
    parser.add_argument("--repair", nargs="+", choices=REPAIR, default=REPAIR)
    parser.add_argument("--fit", type=within(int, 1), default=FIT, help="training images, default %(default)s")
    parser.add_argument("--epochs", type=within(int, 1), default=EPOCHS, help="of the fit, default %(default)s")
    parser.add_argument("--holdout", type=within(int, 0), default=0, help="last training images to test on instead")
    args = parser.parse_args()
    training = read_images(args.dataset, args.data, True)[0]
    if args.holdout:
        training, images = training[: -args.holdout], training[-args.holdout :]
    else:
        images = read_images(args.dataset, args.data, False)[0]
    training, images = averaged(spaced(training, args.fit), args.size), averaged(images, args.size)
    print(f"share of bits mended, %, {len(images)} images of {args.dataset} averaged to {args.size}×{args.size}")
    for bit in args.bits:
        for name in args.repair:
            state = learn_predictor(training, bit, args.epochs) if name == "learned" else None
            mended = repaired(fault_of(name, bit, -1), images, state)
            print(f"bit {bit}, {name}: {100 * same_bits(images, mended, [bit]):.1f}", flush=True)


if __name__ == "__main__":
    run(main)
