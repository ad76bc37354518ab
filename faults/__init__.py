"""Memory faults: the description of a fault, and for each memory a function that applies it."""

from faults.activations import TrainingMaps, misread_activations
from faults.applied import applied_by
from faults.cells import check_array
from faults.fault import (
    ALL_PLANES,
    IMAGE_KINDS,
    KINDS,
    LINES,
    MEMORIES,
    MSB,
    NO_FAULT,
    NOISE_KINDS,
    READINGS,
    RECALIBRATED,
    WEIGHT_KINDS,
    Cells,
    Fault,
    can_recalibrate,
    fault_of_cells,
    planes_of,
    planes_text,
    recalibrated,
    unrepaired,
)
from faults.images import (
    TrainingImages,
    break_cells,
    break_images,
    broken_map,
    faulty_images,
    flip_cells,
    get_bit,
    image_bits,
    image_breaks,
    in_planes,
    same_bits,
    set_bit,
)
from faults.layers import check_layers, first_faulty, memory_size
from faults.options import add_cell_options, as_planes, check_folded, fault_of_options
from faults.thresholds import misread_thresholds
from faults.weights import (
    TrainingFaults,
    faulty_weights,
    misread_weights,
    misread_weights_of_each,
    weight_flips,
    weight_noise,
)
