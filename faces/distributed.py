"""What training on several processes needs to be the same as training on one.

The convention of the whole trainer: every rank computes the full loss of the global batch on gathered
features. `gather`'s backward sums the ranks' gradients, so a local feature gets world_size times its true
gradient; DDP's mean over ranks makes the backbone's gradient right. Parameters used behind the gather
(heads) get the full gradient on every rank, the same everywhere, and are not wrapped in DDP.
Source of the functions: torch.distributed.nn does the same but is deprecated from torch 2.14 on.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number; 0 where torch.distributed is not initialised."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """How many processes train together; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if _active() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


_Result = TypeVar("_Result")


@contextlib.contextmanager
def processes(device: str) -> Iterator[bool]:
    """Join the processes that torchrun started; yields whether this one leads. Alone, a process leads itself.

    The others `follow`: they do what the leader calls with `lead`, and end when it leaves this context.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield True
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The leader does most stages alone, and they may take hours.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device != "cpu" else "gloo", timeout=datetime.timedelta(days=7))
    try:
        yield rank() == 0
    finally:
        # What fails in the leader alone ends the others too; where they fail with it, torchrun ends them.
        if rank() == 0:
            with contextlib.suppress(RuntimeError):
                _call(None)
        dist.destroy_process_group()


def lead(function: Callable[..., _Result], *arguments: Any, **mine: Any) -> _Result:
    """`function(*arguments, **mine)` here, and `function(*arguments)` in all other processes at the same time.

    `function` belongs to a module, and the arguments can be pickled; `mine` are what only the leader has.
    """
    if world_size() > 1:
        _call((function, arguments))
    return function(*arguments, **mine)


def follow() -> None:
    """Do what the leader calls until it ends."""
    while (order := _call(None)) is not None:
        function, arguments = order
        function(*arguments)


def _call(order: Any) -> Any:
    told = [order]
    dist.broadcast_object_list(told, src=0)
    return told[0]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[rank() * ctx.rows :][: ctx.rows]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def gather(x: Tensor) -> Tensor:
    """The tensors of all ranks in the order of the ranks, (n, ...) to (world_size * n, ...), with gradient.

    Every rank must call it with a tensor of the same shape. Integers and booleans have no gradient.
    """
    return cast(Tensor, _Gather.apply(x)) if world_size() > 1 else x


def all_sum(x: Tensor) -> Tensor:
    """The sum over ranks, any shape, with gradient (which is summed over the ranks too)."""
    return cast(Tensor, _Sum.apply(x)) if world_size() > 1 else x


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation, (N, C, ...), by the mean and the variance of all ranks' batches: SyncBatchNorm on CPU.

    Parameters, buffers and evaluation mode are those of torch's batch norms. N may differ between ranks.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if world_size() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        dims, shape = [0, *range(2, x.dim())], [1, -1, *(1 for _ in x.shape[2:])]
        total = all_sum(torch.cat([x.sum(dims), x.new_tensor([x.numel() // x.shape[1]])]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = x - mean.view(shape)
        # In two steps, as the mean of squares minus the squared mean cancels in float32.
        variance = all_sum(centred.square().sum(dims)) / count
        if self.training and self.track_running_stats:
            self._track(mean.detach(), (variance * count / (count - 1)).detach())
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        # Without a momentum torch keeps the mean over all batches.
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased_variance.to(self.running_var), share)


_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def global_batch_norm(module: nn.Module) -> nn.Module:
    """Make every batch norm of `module` use the statistics of all ranks; the module itself, changed in place.

    A module that is a batch norm is returned as a new one. Names, parameters and buffers stay, so a state
    dict still fits. Call it when the process group runs and the module lies on its device: CUDA gets torch's
    SyncBatchNorm, which knows no CPU, and the CPU gets `GlobalBatchNorm`. Nothing changes on one process.
    """
    if world_size() == 1:
        return module
    first = next(module.parameters(), None)
    if first is not None and first.is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _PLAIN):
        return _converted(module)
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if isinstance(child, _PLAIN):
            module.set_submodule(name, _converted(child))
    return module


def _converted(old: nn.modules.batchnorm._BatchNorm) -> GlobalBatchNorm:
    """The same batch norm over all ranks; it holds the very parameters and buffers of `old`."""
    new = GlobalBatchNorm(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
    new.weight, new.bias = old.weight, old.bias
    for name, buffer in old.named_buffers(recurse=False):
        setattr(new, name, buffer)
    return new.train(old.training)
