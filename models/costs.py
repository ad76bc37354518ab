"""What a net costs in hardware: multiply-accumulates, parameters, memory, layer by layer."""

from typing import NamedTuple


class LayerCost(NamedTuple):
    layer: str
    shape: tuple  # of its output for one image, after the pooling
    macs: int  # multiply-accumulates for one image, including those with padding
    weight_bits: int  # bits of one weight
    parameters: int  # weights, and gains and biases of the norm after them
    weight_memory: int  # bits of all its weights
    activation_memory: int  # bits of its output for one image


def costs(topology, classes, channels=3):
    """A list of LayerCost: the input, each layer, and the totals.

    The input has 8 bits, a hidden activation 1. The last layer's outputs are whole numbers, and have as many bits as
    the range of these numbers needs.
    """
    size = topology.size
    rows = [LayerCost("input", (channels, size, size), 0, 0, 0, 0, 8 * channels * size * size)]
    for i, (width, pool) in enumerate(topology.conv, 1):
        size += 2 * topology.padding - 2
        weights = 9 * channels * width
        macs = weights * size * size
        size //= 2 if pool else 1
        shape = (width, size, size)
        rows.append(LayerCost(f"conv {i}", shape, macs, 1, weights + 2 * width, weights, width * size * size))
        channels = width
    features = topology.flat
    for i, width in enumerate((*topology.fc, classes), 1):
        last = i > len(topology.fc)
        weights, norm = features * width, 2 if last else 2 * width
        bits = (2 * features).bit_length() if last else 1  # sums from -features to features
        rows.append(LayerCost(f"fc {i}", (width,), weights, 1, weights + norm, weights, bits * width))
        features = width
    summed = ("macs", "parameters", "weight_memory", "activation_memory")
    sums = {name: sum(getattr(row, name) for row in rows) for name in summed}
    return [*rows, LayerCost("total", (), weight_bits=0, **sums)]


def table(rows):
    """The rows of costs() as a text table."""
    lines = [
        ("layer", "output", "MACs", "weight bits", "parameters", "weight memory (bits)", "activation memory (bits)")
    ]
    for layer, shape, *numbers in rows:
        lines.append((layer, "×".join(map(str, shape)), *(f"{number:,}" if number else "" for number in numbers)))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width) for i, (text, width) in enumerate(zip(line, widths))
        )
        for line in lines
    )
