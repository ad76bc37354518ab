"""The description of a memory fault, the same for command line, data set class, training and sweep."""

from typing import NamedTuple

MSB = 7
IMAGE_KINDS = ("random", "stuck_at_0", "stuck_at_1")  # what a broken bit of the image memory reads
NOISE_KINDS = ("noise", "noise_relative")  # on the latent weights
WEIGHT_KINDS = (*NOISE_KINDS, "flips")
KINDS = ("none", *IMAGE_KINDS, *WEIGHT_KINDS)


class Fault(NamedTuple):
    """What is broken, and how it is repaired. Fields that do not apply are None.

    Make faults of images with repairs.fault_of, which checks them.
    """

    kind: str = "none"  # one of KINDS
    bit: int | None = None  # broken in every pixel value: 0 (LSB) to 7 (MSB)
    repair: str | None = None  # a name in repairs.REPAIRS; None: unrepaired
    source: int | None = None  # the bit that repaired_n or repaired_s copies
    level: float | None = None  # images: share of the bit plane broken; noise: sigma_val; flips: probability
    run: int = 0  # number of the run, for random faults: run r draws with seed + r

    def __str__(self):
        if self.kind == "none":
            return "baseline, no fault"
        if self.kind in WEIGHT_KINDS:
            return f"{self.kind} {self.level:g}"
        if self.repair is None:
            return f"faulty, bit {self.bit} {self.kind}"
        if self.source is None:
            return f"{self.repair}, bit {self.bit} repaired"
        copied = "the MSB" if self.repair == "repaired_s" else f"bit {self.source}"
        return f"{self.repair}, bit {self.bit} copied from {copied}"


NO_FAULT = Fault()
