"""Weights, gradients, AdamW's means and the average of the weights in shards, one for
each process (FSDP; Zhao et al., 2304.11277), where the launcher asks for it:
`accelerate launch` with data/accelerate/fsdp.yaml, or with --use_fsdp.

A step gathers the weights of the whole model and scatters its gradient. So during a
step a process holds both in full, and between steps its share alone. Checkpoints hold
whole tensors, so that a run goes on with any number of processes, sharded or not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minilib.training.processes import FSDP, SHARDS, n_processes


def asks_for_shards() -> bool:
    """Whether several processes are to share one copy of what is trained.

    Raises:
        ValueError: the launcher asks to keep the shards in the CPU's memory.
    """
    from accelerate.utils import parse_flag_from_env

    if n_processes() == 1 or not any(map(parse_flag_from_env, (FSDP, SHARDS))):
        return False
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise ValueError("fsdp_offload_params must be false: shards stay on the GPUs")
    return True


def can_be_cut(model: nn.Module) -> bool:
    """Whether torch can shard a model; it can't if a weight is a scalar, as the
    temperatures of CLAP and ImageBind are.
    """
    return all(p.dim() > 0 for p in model.parameters())


def shard(module: nn.Module, accelerator: Any) -> nn.Module:
    """Move a model to this process's device and keep its share of each weight there.

    All processes hold the same weights before.

    Raises:
        ValueError: the precision is fp16, whose scaler does not know shards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if accelerator.scaler is not None:
        raise ValueError("precision must be bf16 or no where weights are sharded")
    module.to(memory_format=torch.contiguous_format)  # the only one that has shards
    # mixed precision and the device; the processes are joined by what follows
    module = accelerator.prepare_model(module, evaluation_mode=True)
    mesh = init_device_mesh(accelerator.device.type, (n_processes(),))
    return fully_shard(module, mesh=mesh)


def whole(values: Any, keep: bool = True) -> Any:
    """Nested values with whole tensors, on the CPU, in place of shards.

    All processes must call it; those that do not `keep` get None for each tensor.
    """
    if isinstance(values, dict):
        return {key: whole(x, keep) for key, x in values.items()}
    if isinstance(values, list):
        return [whole(x, keep) for x in values]
    if not isinstance(values, Tensor):
        return values
    values = gather(values.detach())
    return values.cpu() if keep else None


def gather(x: Tensor) -> Tensor:
    """The whole of a tensor that may be in shards; all processes must call it."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def share_like(x: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, cut as `like` is; the tensor itself if
    that is a whole one. All processes hold the same `x`.
    """
    if not hasattr(like, "full_tensor"):
        return x
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    same = DTensor.from_local(x.to(like.device), mesh, [Replicate()], run_check=False)
    return same.redistribute(placements=like.placements)


def share_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict:
    """An optimizer's state in whole tensors, cut as its parameters are."""
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    cut = lambda x, p: share_like(x, p) if getattr(x, "shape", ()) == p.shape else x
    shares = {
        i: {key: cut(x, learned[i]) for key, x in values.items()}
        for i, values in state["state"].items()
    }
    return {**state, "state": shares}
