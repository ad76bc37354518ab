"""CIFAR-10 and CIFAR-100 with a broken bit in every 8-bit pixel value, and its repair.

    from CIFARDataset import CIFAR10
    image, label = CIFAR10("data", mem_fault="repaired_n", train=False, faulty_bit=5)[0]

A drop-in replacement for torchvision's classes of the same names: same files, same arguments and five more.
"""

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from common import UserError, digest
from datasets import cifar, to_tensor
from faults import break_images, image_bits, image_breaks
from repairs import REPAIRS, fault_of, learned_state, repaired, with_fault

FAULTY_BIT = 6  # 0 (LSB) to 7 (MSB)
NEIGHBOR_OFFSET = -1  # repaired_n takes the bit at FAULTY_BIT + NEIGHBOR_OFFSET


class _WithFault:
    """Mix-in that adds fault and repair to a class of datasets/cifar.py; CIFAR10 describes them."""

    def __init__(
        self,
        root,
        mem_fault="baseline",
        train=True,
        transform=None,
        target_transform=None,
        download=False,
        faulty_bit=None,
        neighbor_offset=None,
        seed=0,
        fault=None,
    ):
        self.seed = seed
        if fault and (mem_fault, faulty_bit, neighbor_offset) != ("baseline", None, None):
            raise UserError("a data set has one fault: give `fault`, or mem_fault and what belongs to it")
        self.fault = fault or fault_of(
            mem_fault,
            FAULTY_BIT if faulty_bit is None else faulty_bit,
            NEIGHBOR_OFFSET if neighbor_offset is None else neighbor_offset,
        )
        if self.fault.memory not in (None, "image"):
            raise UserError(f"a data set has no {self.fault.memory} memory: break cells of the image memory")
        super().__init__(root, train, transform, target_transform, download)
        self.state = None
        if self.fault.repair and REPAIRS[self.fault.repair].learn:
            clean = to_tensor(type(self)(root).data)
            self.state = learned_state(self.fault.repair, self.fault.bit, self.name, digest(clean), lambda: clean)

    def __getitem__(self, index):
        index = range(len(self))[index]  # so that -1 reads the same broken bits as the last index
        image, label = Image.fromarray(self.data[index]), self.targets[index]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        image = _to_uint8(image)  # 3×H×W
        if self.fault.cells:
            return with_fault(image[None], self.fault, self.seed, numbers=[index])[0].float() / 255, label
        image = break_images(
            self.fault,
            image,
            lambda shape: image_bits(self.seed, [index], shape)[0],
            lambda shape, share: image_breaks(self.seed, [index], shape, share)[0],
        )
        return repaired(self.fault, image[None], self.state)[0].float() / 255, label


class CIFAR10(_WithFault, cifar.CIFAR10):
    """CIFAR-10 in torchvision's folder layout, with fault and repair in every image, training and test alike.

    An item is (image, label): a float32 tensor 3×32×32 in [0, 1], multiples of 1/255, and an int. The fault is
    applied after `transform`, on the 8-bit image. `transform` gets a PIL image, and returns a PIL image, a uint8
    tensor, or a float tensor in [0, 1].

    mem_fault: baseline, faulty or a repair of repairs.REPAIRS; reparied_n and reparied_s are accepted. A repair that
        learns does so from the training images, and stores what it has learned in checkpoint/repairs/.
    download: fetch the files if they are not there.
    faulty_bit, neighbor_offset: None for FAULTY_BIT, NEIGHBOR_OFFSET of this module.
    fault: in place of mem_fault and what belongs to it, a Fault of cells of the image memory, such as
        faults.fault_of_cells(Cells("image"), "inverted", 0.01), with or without repairs.with_repair.
    seed: what a broken bit reads depends on (seed, index) alone; change `dataset.seed` for a fresh draw.

    Official files are recognised by their checksums. Others with the right structure are used after one warning;
    missing, truncated or malformed ones raise UserError naming the file.
    """

    name = "cifar10"  # of what repairs have learned from these images, also in a subclass


class CIFAR100(_WithFault, cifar.CIFAR100):
    """CIFAR-100 with its fine labels; everything else as CIFAR10."""

    name = "cifar100"


def _to_uint8(image):
    """The 8-bit image, uint8 3×H×W, from the output of a transform."""
    if not isinstance(image, torch.Tensor):
        return pil_to_tensor(image)
    if image.dtype == torch.uint8:
        return image
    if image.min() < 0 or image.max() > 1:
        raise UserError("the transform leaves [0, 1]: faults need the 8-bit image, so normalise after the data set")
    return (image * 255).round().to(torch.uint8)
