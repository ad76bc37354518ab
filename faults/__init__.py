"""Memory faults: the description of a fault, and for each memory a function that applies it."""

from faults.fault import IMAGE_KINDS, KINDS, MSB, NO_FAULT, NOISE_KINDS, WEIGHT_KINDS, Fault
from faults.images import break_images, faulty_images, get_bit, image_bits, image_breaks, set_bit
from faults.weights import TrainingFaults, faulty_weights, weight_flips, weight_noise
