"""Muon: an optimizer with which a weight matrix learns equally fast in all directions.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with
steps scaled to the size of AdamW's, as by Liu et al. (2502.16982).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minilib.training.sharding import gather, share_like

MOMENTUM = 0.95
# a, b, c of the Newton-Schulz iteration s -> a s + b s^3 + c s^5 (Jordan et al.)
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 3  # iterations; Jordan et al. take 5
# layers whose weights are matrices
LAYERS = {"linear": (nn.Linear,), "conv": (nn.Conv1d, nn.Conv2d)}


class Muon(torch.optim.AdamW):
    """Muon for the weights of linear layers or convolutions, AdamW (1711.05101) for all
    other parameters.

    AdamW scales every entry of a gradient separately. Muon factors the momentum of a
    matrix as U S V^T and steps along U V^T, so directions with small gradients are
    learned as fast as those with large ones. A convolution (O, I, k, k) counts as a
    matrix (O, k k I). A step is as large as AdamW's, so one learning rate serves both.

    Args:
        model: its parameters that require a gradient are optimised.
        layers: layers whose weights Muon trains: "linear", "conv", or both.
        lr, betas, weight_decay: as for AdamW; no decay on biases, norms and other
            vectors.

    Raises:
        ValueError: `layers` names another kind of layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ):
        if unknown := set(layers) - set(LAYERS):
            raise ValueError(
                f"layers must be among {', '.join(LAYERS)}, not "
                f"{', '.join(sorted(unknown))}"
            )
        kinds = tuple(kind for name in layers for kind in LAYERS[name])
        inner = {
            id(module.weight) for module in model.modules() if isinstance(module, kinds)
        }
        muon, matrices, vectors = [], [], []
        for p in model.parameters():
            if p.requires_grad:
                (
                    muon if id(p) in inner else matrices if p.dim() > 1 else vectors
                ).append(p)
        groups = [
            {"params": muon, "weight_decay": weight_decay, "muon": True},
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        # makes a GradScaler skip whole steps
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        """Take one step: first of the matrices, along the orthogonal factor of their
        momentum, then of the other parameters by AdamW.

        `closure`, if given, first computes loss and gradients; its loss is returned.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"] if group.get("muon") else ():
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:  # AdamW requires `step` in all states when it is loaded
                    state |= {
                        "step": torch.zeros(()),
                        "momentum": torch.zeros_like(weight),
                    }
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1.0 - MOMENTUM)
                ahead = gather(weight.grad.lerp(momentum, MOMENTUM))  # Nesterov's
                # (O, k, k, I), the order of a convolution's weights in memory
                ahead = ahead.movedim(1, -1)
                update = orthogonal(ahead.flatten(1))  # (O, k k I)
                # the root mean square of AdamW's steps (2502.16982)
                size = 0.2 * max(update.shape) ** 0.5
                weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                update = share_like(update.view_as(ahead).movedim(-1, 1), weight)
                weight.add_(update, alpha=-group["lr"] * size)
                weight.grad = None  # its step is done
        super().step()
        return loss


def orthogonal(matrix: Tensor, steps: int = STEPS) -> Tensor:
    """Approximately U V^T for a matrix U S V^T (m, n): its larger singular values end
    up near 1.

    The Newton-Schulz iteration X <- a X + b (X X^T) X + c (X X^T)^2 X needs products
    but no decomposition. All its factors are polynomials in X X^T, so they are
    multiplied there, in the smaller of the two dimensions.
    """
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    (a, b, c), gram, product = QUINTIC, x @ x.T, None  # gram: (d, d)
    for i in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor if i + 1 < steps else gram
    x = product @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
