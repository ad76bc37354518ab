"""One training step and one pass over the batches; torch.compile where it can run."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from engine.batches import scale
from engine.evaluation import score
from faults import TrainingFaults, TrainingMaps

CHECK = 50  # steps between two checks that the loss is finite
RECOMPILE_LIMIT = 64  # one compiled function per activation shape (models/fused.py)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training step needs."""

    model: nn.Module  # the net, compiled and data-parallel if asked for
    batch_size: int  # images of a compiled batch; another size, which occurs once in a pass, runs eager
    layout: torch.memory_format
    autocast: torch.autocast
    teach: Callable  # (uint8 images before the fault) -> the teacher's logits, or None without a teacher
    compute_loss: Callable  # (logits, labels, the teacher's logits or None) -> scalar
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    weight_faults: TrainingFaults
    map_faults: TrainingMaps
    set_softness: Callable  # (step) -> None: sets the net's softness for a step, counted from 0
    total: Callable  # (tensor) -> its sum over all processes


def train_pass(training, batches):
    """One optimiser step per batch. Returns the sums of score() and of the loss over all images, and the last lr.

    Ends early if the loss is not finite, which is checked every CHECK steps.
    """
    model, optimizer, scheduler = training.model, training.optimizer, training.scheduler
    sums = loss_sum = 0
    model.train()
    for step, (images, labels, clean) in enumerate(batches, 1):
        images = images.contiguous(memory_format=training.layout)
        training.set_softness(scheduler.last_epoch)
        training.map_faults.at(scheduler.last_epoch)
        taught = training.teach(clean)
        with training.weight_faults.at(scheduler.last_epoch):
            stance = "default" if len(images) == training.batch_size else "force_eager"
            with training.autocast, torch.compiler.set_stance(stance):
                logits = model(images)
                loss = training.compute_loss(logits, labels, taught)
            optimizer.zero_grad()
            loss.backward()
        lr = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        sums = sums + score(logits.detach(), labels)
        loss_sum = loss_sum + loss.detach() * len(labels)
        if step % CHECK == 0 and not training.total(loss_sum).isfinite():
            break
    return sums, loss_sum, lr


def lessons(teacher, device, autocast):
    """A function: uint8 images N×3×size×size -> the teacher's float32 logits N×classes, computed on `device`.

    Without a teacher (None) it returns None.
    """
    if teacher is None:
        return lambda images: None
    teacher = teacher.to(device, memory_format=torch.channels_last)

    @torch.no_grad()
    def teach(images):
        with autocast:
            return teacher(scale(images).contiguous(memory_format=torch.channels_last)).float()

    return teach


@torch.no_grad()
def take_norms_anew(net, batches):
    """Set the running statistics of the norms to those of batches; training ends with it.

    The mean is the mean of the batches' means, the variance that of their unbiased variances. The net computes in
    float32, binary throughout, with intact weights and feature maps. batches: as of TrainBatches.epoch.
    Source: Wu and Johnson, "Rethinking Batch in BatchNorm" (2021), PreciseBN.
    """
    net.train()
    net.soften(0, 0)
    net.misreads = None
    for number, (images, *_) in enumerate(batches, 1):
        for norm in net.norms():
            norm.momentum = 1 / number
        net(images)


def bf16_is_fast(device):
    """True if the device has bfloat16 arithmetic, which is then faster than float32."""
    return torch.cuda.is_bf16_supported(False) if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


def compiled(net, batch_size, size, device, autocast, layout, say=print):
    """torch.compile(net); `net` itself if that cannot run here.

    It is tried on a batch of zeros; afterwards the state of `net` is restored. say: prints why it cannot run.
    """
    torch.compiler.reset()  # earlier compilations in this process would affect this one
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    fast = torch.compile(net)
    before = copy.deepcopy(net.state_dict())
    images = torch.zeros(batch_size, 3, size, size, device=device).contiguous(memory_format=layout)
    try:
        with autocast:
            fast(images).sum().backward()
    except Exception as error:  # no C++ compiler, an unsupported system, a compiler error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"torch.compile cannot run here, so training goes on without it ({reason})")
        fast = net
    net.load_state_dict(before)
    net.zero_grad()
    return fast
