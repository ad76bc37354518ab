"""For each memory of a net the function that applies a fault to it."""

from faults.activations import misread_activations
from faults.thresholds import misread_thresholds
from faults.weights import faulty_weights, misread_weights, misread_weights_of_each


def applied_by(fault):
    """The function that applies a fault to a net; None for no fault, and for one of the image memory."""
    if fault.memory == "weights" and fault.cells:
        return misread_weights if fault.persistent else misread_weights_of_each
    of_memory = {"weights": faulty_weights, "activations": misread_activations, "thresholds": misread_thresholds}
    return of_memory.get(fault.memory)
