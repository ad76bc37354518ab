"""Batch norm, binary activation and 2×2 max pool as one step of training, for torch.compile on CPUs.

What torch.compile makes of the three modules goes over the activations many times and works out much of the forward
pass once more in the backward one. Here each direction is a function of its own that it compiles by itself and sees
nothing beyond: statistics and signs forward, two sums and the gradient backward, each one pass over the activations.
"""

import functools

import torch

REACH = 1.0  # the gradient of the sign passes where its argument is not beyond this


def normalized_signs(x, norm, softness, pool):
    """pool(softened(norm(x))) in training, of x's dtype. The running statistics of `norm` take in the batch's.

    x: float N×C×H×W in channels_last; norm: a BatchNorm2d; softness: scalar tensor, 0 for signs, as in CNV; pool: is a
    2×2 max pool wanted? Then H and W are even.
    Gradients are those of the modules one by one: a window's goes to its first largest value, row by row.
    """
    signs, _, mean, var = torch.ops.cnv.normalized_signs(x, norm.weight, norm.bias, softness, norm.eps, pool)
    with torch.no_grad():
        number = x.numel() // x.shape[1]
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (number / (number - 1)), norm.momentum)
    return signs


def _windows(x):
    """N×C×H×W as N×H/2×2×W/2×2×C, the order of memory in channels_last."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).view(n, h // 2, 2, w // 2, 2, c)


def _statistics(x):
    x = x.permute(0, 2, 3, 1).flatten(0, 2).float()
    mean = x.mean(0)
    return mean, (x.square().mean(0) - mean.square()).clamp(min=0)


def _signs(x, mean, gain, bias, softness, pool):
    """The softened signs. With pool also which value of each window is the first largest one (int8, 0 to 3)."""

    def act(values):
        normal = (values.float() - mean) * gain + bias
        signs = torch.where(normal >= 0, 1.0, -1.0)
        return signs + softness * (normal.clamp(-REACH, REACH) - signs)

    if not pool:
        return act(x.permute(0, 2, 3, 1)).to(x.dtype).permute(0, 3, 1, 2)
    windows = _windows(x)
    acts = [act(windows[:, :, i, :, j]) for i in (0, 1) for j in (0, 1)]
    largest = torch.maximum(torch.maximum(acts[0], acts[1]), torch.maximum(acts[2], acts[3]))
    first = torch.where(
        acts[0] == largest, 0.0, torch.where(acts[1] == largest, 1.0, torch.where(acts[2] == largest, 2.0, 3.0))
    )
    return largest.to(x.dtype).permute(0, 3, 1, 2), first.to(torch.int8).permute(0, 3, 1, 2)


def _passed(gradient, x, mean, inverse, weight, bias, first):
    """The normalised x and the gradient that the sign passes, float32 in the order of memory."""
    if first is None:
        x, gradient = x.permute(0, 2, 3, 1).flatten(0, 2), gradient.permute(0, 2, 3, 1).flatten(0, 2).float()
    else:
        x = _windows(x)
        corner = torch.arange(4.0).view(2, 1, 2, 1)
        mine = first.permute(0, 2, 3, 1)[:, :, None, :, None].float() == corner
        gradient = torch.where(mine, gradient.permute(0, 2, 3, 1)[:, :, None, :, None].float(), 0.0)
    normal = (x.float() - mean) * inverse
    return normal, torch.where((normal * weight + bias).abs() <= REACH, gradient, 0.0)


def _sums(gradient, x, mean, inverse, weight, bias, first):
    normal, passed = _passed(gradient, x, mean, inverse, weight, bias, first)
    dims = tuple(range(normal.dim() - 1))
    return (passed * normal).sum(dims), passed.sum(dims)


def _input_gradient(gradient, x, mean, inverse, weight, bias, first, weight_mean, bias_mean):
    n, c, h, w = x.shape
    normal, passed = _passed(gradient, x, mean, inverse, weight, bias, first)
    result = (weight * inverse) * (passed - bias_mean - normal * weight_mean)
    return result.to(x.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


INLINE = {"realize_reads_threshold": 100, "realize_opcount_threshold": 1000}  # nothing is stored on the way


@functools.cache  # on first use: torch.compile with options takes a second, which only training needs to spend
def _compiled(function):
    return torch.compile(function, dynamic=False, options=INLINE)


@torch.library.custom_op("cnv::normalized_signs", mutates_args=())
def _forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, softness: torch.Tensor, eps: float, pool: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    mean, var = _compiled(_statistics)(x)
    found = _compiled(_signs)(x, mean, weight / (var + eps).sqrt(), bias, softness, pool)
    signs, first = found if pool else (found, x.new_empty(0, dtype=torch.int8))
    return signs, first, mean, var


@_forward.register_fake
def _(x, weight, bias, softness, eps, pool):
    n, c, h, w = x.shape
    small = (n, c, h // 2, w // 2) if pool else x.shape
    signs = x.new_empty(small).contiguous(memory_format=torch.channels_last)
    first = x.new_empty(small if pool else 0, dtype=torch.int8)
    if pool:
        first = first.contiguous(memory_format=torch.channels_last)
    return signs, first, weight.new_empty(c), weight.new_empty(c)


@torch.library.custom_op("cnv::normalized_signs_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    given = (gradient, x, mean, 1 / (var + eps).sqrt(), weight, bias, first if first.numel() else None)
    weight_gradient, bias_gradient = _compiled(_sums)(*given)
    number = x.numel() // x.shape[1]
    x_gradient = _compiled(_input_gradient)(*given, weight_gradient / number, bias_gradient / number)
    return x_gradient, weight_gradient, bias_gradient


@_backward.register_fake
def _(gradient, x, mean, var, weight, bias, first, eps):
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx, inputs, output):
    x, weight, bias, _, ctx.eps, _ = inputs
    _, first, mean, var = output
    ctx.mark_non_differentiable(first, mean, var)
    ctx.save_for_backward(x, mean, var, weight, bias, first)


def _differentiate(ctx, gradient, *_):
    x_gradient, weight_gradient, bias_gradient = torch.ops.cnv.normalized_signs_backward(
        gradient, *ctx.saved_tensors, ctx.eps
    )
    return x_gradient, weight_gradient, bias_gradient, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
