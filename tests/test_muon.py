"""Muon: its steps are orthogonal, as long as AdamW's, and those of torch's own Muon;
what is no matrix is AdamW's.
"""

import pytest
import torch
from torch import nn

from minilib.training.loop import Recipe, make_optimizer
from minilib.training.muon import MOMENTUM, QUINTIC, STEPS, Muon, orthogonal


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (16, 90), (90, 16)])
def test_an_update_is_near_the_orthogonal_factor(shape):
    matrix = draw(*shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    U, _, V = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diagonal(U.T @ orthogonal(matrix, 5) @ V.T)
    assert values.min() > 0.6 and values.max() < 1.25
    off = U.T @ orthogonal(matrix, 5) @ V.T - torch.diag(values)
    assert off.abs().max() < 1e-4  # the singular vectors are those of the matrix
    # how large it is does not count
    assert torch.allclose(orthogonal(1e3 * matrix, 5), orthogonal(matrix, 5), atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 90), (90, 16)])
def test_products_in_the_smaller_dimension_are_the_newton_schulz_iteration(shape):
    matrix = draw(*shape).double()
    x, (a, b, c) = matrix / matrix.norm(), QUINTIC
    for _ in range(5):
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    assert torch.allclose(orthogonal(matrix, 5), x, atol=1e-5)


@pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="torch.optim has Muon since 2.9"
)
def test_steps_are_those_of_torchs_muon():
    ours, theirs = (nn.Linear(30, 20, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    first = Muon(ours, ("linear",), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    arguments = {
        "momentum": MOMENTUM,
        "adjust_lr_fn": "match_rms_adamw",
        "ns_steps": STEPS,
    }
    second = torch.optim.Muon(
        theirs.parameters(), lr=1e-2, weight_decay=0.1, **arguments
    )
    before = ours.weight.detach().clone()
    for step in range(6):
        for layer, optimizer in ((ours, first), (theirs, second)):
            layer.weight.grad = draw(20, 30, seed=step)
            optimizer.step()
    moved = (ours.weight - before).norm()
    # theirs multiplies in bfloat16
    assert (ours.weight - theirs.weight).norm() < 0.01 * moved


def test_convolutions_are_matrices_and_all_else_is_adamws():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.embedding = (
                nn.Conv2d(4, 6, 3),
                nn.GroupNorm(2, 6),
                nn.Embedding(5, 4),
            )
            self.linear, self.vector = nn.Linear(4, 4), nn.Parameter(torch.ones(3))

    torch.manual_seed(0)
    net = Net()
    gradients = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    before = {name: p.detach().clone() for name, p in net.named_parameters()}

    def after(*layers: str) -> dict[str, torch.Tensor]:
        net.load_state_dict(before)
        for name, p in net.named_parameters():
            p.grad = gradients[name].clone()
        make_optimizer(net, Recipe(1, 1, lr=1e-2, weight_decay=0.1, muon=layers)).step()
        return {name: p.detach().clone() for name, p in net.named_parameters()}

    muon, adamw = after("conv", "linear"), after()
    for name in before:
        assert torch.allclose(muon[name], adamw[name], atol=1e-6) == (
            name not in ("conv.weight", "linear.weight")
        ), name
    assert torch.allclose(
        after("conv")["linear.weight"], adamw["linear.weight"], atol=1e-6
    )
    assert torch.equal(after("conv")["conv.weight"], muon["conv.weight"])
    step = muon["conv.weight"] - before["conv.weight"] * (1 - 1e-2 * 0.1)
    direction = orthogonal(gradients["conv.weight"].flatten(1)).view_as(step)
    assert torch.allclose(step, -1e-2 * 0.2 * 36**0.5 * direction, atol=1e-6)
    # the size of AdamW's, 0.2 of the learning rate
    assert 0.1 < float(step.square().mean().sqrt() / 1e-2) < 0.3


def test_frozen_weights_and_those_without_a_gradient_stay():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = Muon(net, ("linear",), 1e-2, (0.9, 0.99), 0.1)
    optimizer.step()
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in net[1].parameters()
    }
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before))


def test_layers_that_muon_does_not_know_are_named():
    with pytest.raises(ValueError, match="layers must be among linear, conv, not norm"):
        Muon(nn.Linear(2, 2), ("norm", "conv"), 1e-2, (0.9, 0.99), 0.1)


def test_a_closure_gives_the_gradients_of_its_own_step():
    net, x = nn.Linear(4, 4), draw(8, 4)
    optimizer, before = (
        Muon(net, ("linear",), 1e-2, (0.9, 0.99), 0.0),
        net.weight.detach().clone(),
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert not torch.equal(net.weight, before) and optimizer.step(closure) < first


def test_a_model_without_such_layers_is_left_to_adamw():
    ours, theirs = nn.Linear(4, 4), nn.Linear(4, 4)
    theirs.load_state_dict(ours.state_dict())
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.1},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    optimizers = (
        Muon(ours, ("conv",), 1e-2, (0.9, 0.99), 0.1),
        torch.optim.AdamW(groups, 1e-2, (0.9, 0.99)),
    )
    for net, optimizer in zip((ours, theirs), optimizers, strict=True):
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
