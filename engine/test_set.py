"""Test images under faults, and the digest of what made them."""

import math
from functools import cache, lru_cache

from common import UserError, code_digest, digest
from datasets import read_images
from engine.batches import calibrated_on, state_of, training_digest
from faults import RECALIBRATED, applied_by, same_bits
from models.folded import RECALIBRATION
from repairs import REPAIRS, is_learned, made_by, made_by_cells, with_fault


def psnr(clean, images):
    """Peak signal-to-noise ratio over all values of all images, dB; None if nothing differs."""
    errors = sum(((a.int() - b.int()) ** 2).sum().item() for a, b in zip(clean.split(1000), images.split(1000)))
    return round(10 * math.log10(255**2 * clean.numel() / errors), 4) if errors else None


class TestSet:
    """The test images of a data set, clean and under faults.

    dataset: its name. data: folder of all data sets. workers: threads that decode images, on first use.
    """

    def __init__(self, dataset, data, workers):
        self.where = dataset, data, workers
        self.images, self.labels = read_images(dataset, data, False, workers)
        self.digest = digest(self.images, self.labels)
        self.state_of = cache(lambda fault: state_of(fault, *self.where))
        self.code_of = cache(lambda digest_of, *arguments: digest_of(*arguments))
        # keeps a fault, the same without its repair, and no fault: all sessions measure them before the next fault
        self.under = lru_cache(3)(self._under)

    def state_at_hand(self, fault):
        """What a fault's repair has learned; UserError if it had to learn it now."""
        repair, (dataset, *_) = fault.repair, self.where
        if (
            repair
            and REPAIRS[repair].learn
            and not is_learned(repair, fault.bit, dataset, training_digest(*self.where))
        ):
            raise UserError(f"what {repair} has learned for bit {fault.bit} is not at hand")
        return self.state_of(fault)

    def made_by(self, fault):
        """A digest of what determines a fault's results besides net and test images; None for no fault."""
        if fault.kind == "none":
            return None
        if fault.cells and fault.memory == "image":
            return self.code_of(made_by_cells, fault.repair, fault.protection, fault.known)
        if fault.repair == RECALIBRATED:
            code = self.code_of(code_digest, applied_by(fault), calibrated_on, *RECALIBRATION)
            return digest(code.encode(), training_digest(*self.where).encode())
        if fault.memory == "image":
            learns = fault.repair and REPAIRS[fault.repair].learn
            return self.code_of(made_by, fault.repair, self.where[0], training_digest(*self.where) if learns else "")
        return self.code_of(code_digest, applied_by(fault))

    def _under(self, fault, seed):
        """(images after a fault and its repair, {column: value} of its row: recovered bits and PSNR)."""
        images = with_fault(self.images, fault, seed, self.state_of(fault))
        if fault.memory != "image":
            return images, {}
        bits = [fault.bit] if fault.bit is not None else [bit for bit, _ in fault.cells.planes]
        return images, {"recovered": same_bits(self.images, images, bits), "psnr": psnr(self.images, images)}
