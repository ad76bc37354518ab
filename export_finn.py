#!/usr/bin/env python3
"""Export a checkpoint for FINN, as QONNX, and check the file against the net.

    .venv/bin/python export_finn.py --sess cifar10_smaller  # -> export_finn/ckpt.t7.cifar10_smaller_11111.qonnx.onnx
    .venv/bin/python export_finn.py --report                  # also print what each layer costs in hardware

The file takes float32 images in [0, 1]; their 8-bit quantiser is in it. It is run on test images twice: as it is, and
recoded as FINN recodes it (models/qonnx_graph.py). Both must give the net's logits, or no file is written. The images
and the net's logits are written beside it as `….input.npy` and `….expected_output.npy`, for FINN's options
verify_input_npy and verify_expected_output_npy.
"""

from common import Parser, run, within
from engine import checkpoints, export
from models.costs import costs, table

SESS = "cifar10_smaller"
SEED = 11111
DATA = "data"  # folder of all data sets
BATCH = 1  # images that the file takes at once
VERIFY = 16  # test images on which the file is compared with the net


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sess", default=SESS, help="checkpoint name, default %(default)s")
    parser.add_argument("--seed", type=within(int, 0, 2**62), default=SEED, help="its seed, default %(default)s")
    parser.add_argument("--data", default=DATA, help="folder of all data sets, default %(default)s")
    parser.add_argument(
        "--batch", type=within(int, 1), default=BATCH, help="images that the file takes at once, default %(default)s"
    )
    parser.add_argument(
        "--verify", type=within(int, 0), default=VERIFY, help="test images to compare on, default %(default)s; 0: none"
    )
    parser.add_argument("--report", action="store_true", help="also print what each layer costs in hardware")
    args = parser.parse_args()
    if args.report:
        _, net, _ = checkpoints.load_net(checkpoints.find(args.sess, args.seed))
        print(table(costs(net.topology, net.classes)))
    export(args.sess, args.seed, args.data, args.batch, args.verify)


if __name__ == "__main__":
    run(main)
