"""How nets are trained: one block for each recipe and data set; optimiser, schedule and loss are made from a block.

Edit a number and train again, or override it with the option of the same name. A data set without its own block is
trained with the first block of the recipe. Every value is stored in the checkpoint.
"""

import functools
import math
from dataclasses import asdict, dataclass, replace

import torch

from models import LOSSES, distillation, shortfall


@dataclass(frozen=True, kw_only=True)
class Recipe:
    optimizer: str  # adam, sgd
    amsgrad: bool  # of Adam
    lr: float  # for one process; times the number of processes
    init: float  # latent weights start uniform in ± this
    schedule: str  # of the learning rate: cosine or step
    cycles: int  # of the cosine schedule; each starts from the signs of the one before, latent weights at ± init
    batch_size: int  # images per process
    epochs: int
    duplicate: int  # times that each image comes in one pass; a pass counts as that many epochs
    padding: int  # of the random crop, pixels on each side; 0: no crop
    soften: float  # share of the first cycle in which activations go from hard tanh to binary
    soften_weights: float  # share of the first cycle in which weights go from real to binary
    norm_momentum: float  # weight of each batch in the running statistics
    smoothing: float  # label smoothing
    clip: float  # latent weights are clipped to ± this after each step


MODERN = Recipe(
    optimizer="adam",
    amsgrad=False,
    lr=0.01,
    init=0.05,
    schedule="cosine",
    cycles=1,
    batch_size=128,
    epochs=40,
    duplicate=1,
    padding=4,
    soften=0.0,
    soften_weights=0.0,
    norm_momentum=0.1,
    smoothing=0.0,
    clip=math.inf,
)
MODERN_TINY_IMAGENET = replace(
    MODERN, cycles=2, epochs=44, padding=0, soften=0.6, soften_weights=0.9, norm_momentum=0.01
)
MODERN_DEMO = replace(MODERN, batch_size=64, epochs=6, padding=0)

# the original repository's recipe; whole, so that an edit of MODERN leaves it as it is
REFERENCE = Recipe(
    optimizer="adam",
    amsgrad=True,
    lr=0.02,
    init=1.0,
    schedule="step",
    cycles=1,
    batch_size=2048,
    epochs=600,
    duplicate=10,
    padding=4,
    soften=0.0,
    soften_weights=0.0,
    norm_momentum=0.1,
    smoothing=0.0,
    clip=math.inf,
)
REFERENCE_TINY_IMAGENET = replace(REFERENCE, duplicate=3, padding=0)
REFERENCE_DEMO = replace(REFERENCE, padding=0)

RECIPES = {
    "modern": {"cifar10": MODERN, "tiny_imagenet": MODERN_TINY_IMAGENET, "demo": MODERN_DEMO},
    "reference": {"cifar10": REFERENCE, "tiny_imagenet": REFERENCE_TINY_IMAGENET, "demo": REFERENCE_DEMO},
}
# these values replace those of a block in a training that starts from another net (--pretrained)
FINE_TUNING = {"modern": {"lr": 0.001, "cycles": 1, "soften": 0.0, "soften_weights": 0.0}, "reference": {}}

# the same in all recipes
BETAS = (0.9, 0.999)  # of Adam
MOMENTUM = 0.9  # of SGD
WARMUP = 200  # steps of linear warm-up in each cycle of the cosine schedule, at most a tenth of the cycle
LATER_LR = 0.03  # factor on the learning rate in all cycles after the first
TEACHER_SHARE = 0.9  # of the loss, with a teacher: the distance to its predictions; the rest is the loss on the labels
TEMPERATURE = 2.0  # at which the predictions of both are compared
STEP = (80, 0.2, 480)  # step schedule: every N epochs, factor, last epoch
STEP_WSCONV = (60, 0.5, math.inf)


def recipe_options(name, dataset, pretrained):
    """The options of a recipe for a data set, as a dict."""
    blocks = RECIPES[name]
    first = next(iter(blocks.values()))
    return asdict(blocks.get(dataset, first)) | (FINE_TUNING[name] if pretrained else {})


def steps_of_cycle(steps_per_pass, options):
    """Number of steps in each cycle of the training."""
    return options["epochs"] // options["duplicate"] // options["cycles"] * steps_per_pass


def rate_factor(step, steps_per_pass, options):
    """Factor on the learning rate at a step, counted from 0 over the whole training."""
    if options["schedule"] == "cosine":
        steps = steps_of_cycle(steps_per_pass, options)
        warmup = min(WARMUP, steps // 10)
        cycle, step = divmod(step, steps)
        height = LATER_LR if cycle else 1
        if step < warmup:
            return height * (step + 1) / (warmup + 1)
        return height * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    every, factor, last = STEP_WSCONV if options["wsconv"] else STEP
    epoch = step // steps_per_pass * options["duplicate"]
    return factor ** (min(epoch, last) // every)


def softness(step, total, share):
    """The softness at a step: falls linearly from 1 at step 0 to 0 at step share·total; always 0 if share is 0."""
    return max(0.0, 1 - step / (share * total)) if share else 0.0


def make_loss(options):
    """The loss that the options ask for: a function (logits, labels, the teacher's logits or None) -> scalar."""
    on_labels = LOSSES[options["loss"]]
    if options["smoothing"]:
        on_labels = functools.partial(on_labels, label_smoothing=options["smoothing"])

    def compute_loss(logits, labels, taught):
        loss = on_labels(logits, labels)
        if options["teacher"]:
            loss = (1 - TEACHER_SHARE) * loss + TEACHER_SHARE * distillation(logits, taught, TEMPERATURE)
        if options["margin"]:
            loss = loss + shortfall(logits, labels, options["margin"])
        return loss

    return compute_loss


def make_optimizer(net, options):
    """The optimiser that the options ask for. With `clip` it also clips the latent weights after each step."""
    lr = options["lr"] * options["processes"]
    decay, amsgrad = options["decay"], options["amsgrad"]
    if options["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr, momentum=MOMENTUM, weight_decay=decay)
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr, BETAS, weight_decay=decay, amsgrad=amsgrad, fused=True)
    if options["clip"] < math.inf:
        latent = [layer.weight.data for layer in net.binary_layers()]
        optimizer.register_step_post_hook(lambda *_: [w.clamp_(-options["clip"], options["clip"]) for w in latent])
    return optimizer
