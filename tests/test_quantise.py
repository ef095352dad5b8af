"""The vector quantiser, held to loops and formulas written out."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minilib.quantise import GRVQ, RVQ, VectorQuantiser, k_means, perplexity

K, D = 5, 3
CLOUDS = torch.tensor([[4.0, 0.0], [0.0, 4.0], [-4.0, 0.0], [0.0, -4.0]])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(n_codes: int = K, dim: int = D, **options) -> VectorQuantiser:
    """A quantiser whose codes are of order one."""
    quantiser = VectorQuantiser(n_codes, dim, **options)
    quantiser.embedding.weight.data = normal(n_codes, dim, seed=n_codes)
    return quantiser


def by_gradient(**options) -> VectorQuantiser:
    return made(decay=0.0, restart=0.0, **options)


def draw(n: int, seed: int, noise: float = 0.3) -> torch.Tensor:
    """Points (n, 2) of four clouds, the first of which holds half of them."""
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.tensor([0, 0, 0, 1, 2, 3])[
        torch.randint(6, (n,), generator=generator)
    ]
    return CLOUDS[cloud] + noise * torch.randn(n, 2, generator=generator)


@pytest.mark.parametrize("shape", [(4, D), (2, 7, D), (2, 4, 3, D)])
def test_a_vector_becomes_its_nearest_code(shape):
    quantiser, x = made().eval(), normal(*shape, seed=1)
    vectors, codes, _ = quantiser(x)
    assert codes.shape == shape[:-1] and vectors.shape == shape
    codebook = quantiser.embedding.weight
    for row, code, vector in zip(x.view(-1, D), codes.flatten(), vectors.view(-1, D)):
        distances = [float((row - c).square().sum()) for c in codebook]
        assert code == distances.index(min(distances))
        torch.testing.assert_close(vector, codebook[code])
    assert torch.equal(quantiser.encode(x), codes)
    torch.testing.assert_close(quantiser.decode(codes), vectors)
    assert len(codes.unique()) > 1


@pytest.mark.parametrize("beta", [0.25, 2.0])
def test_the_loss_and_its_gradients_are_those_of_the_paper(beta):
    """1711.00937 Eq. 3, with means for sums: the codebook term moves the codes alone,
    the commitment term the vectors alone.
    """
    quantiser, x = by_gradient(beta=beta), normal(2, 7, D, seed=1).requires_grad_()
    made = quantiser(x)
    codebook = quantiser.embedding.weight
    e = codebook[made.codes]
    distance = (x - e).square().mean()
    torch.testing.assert_close(made.loss, (1 + beta) * distance)
    of_x, of_codes = torch.autograd.grad(made.loss, (x, codebook))
    apart = 2 * (x - e).detach() / x.numel()
    torch.testing.assert_close(of_x, beta * apart)
    wanted = torch.zeros(K, D)
    for code, row in zip(made.codes.flatten(), apart.view(-1, D)):
        wanted[code] -= row
    torch.testing.assert_close(of_codes, wanted)


def test_with_running_means_only_the_commitment_term_is_left():
    quantiser, x = made(beta=0.5, restart=0.0).eval(), normal(4, D, seed=1)
    made_of_x = quantiser(x)
    apart = (x - made_of_x.vectors).square().mean()
    torch.testing.assert_close(made_of_x.loss, 0.5 * apart)
    assert not any(p.requires_grad for p in quantiser.parameters())


def test_gradients_pass_straight_through():
    quantiser, x = by_gradient(), normal(4, D, seed=1).requires_grad_()
    weight = normal(4, D, seed=2)
    (gradient,) = torch.autograd.grad((quantiser(x).vectors * weight).sum(), x)
    assert torch.equal(gradient, weight)


def test_the_defaults_are_those_of_the_paper():
    quantiser = VectorQuantiser(64, 8)
    assert (quantiser.beta, quantiser.decay) == (0.25, 0.99)
    assert quantiser.restart == 0.1 and quantiser.seed == 0
    codes = quantiser.embedding.weight
    assert 0.9 / 64 < codes.max() <= 1 / 64 and -1 / 64 <= codes.min() < -0.9 / 64
    state = quantiser.state_dict()
    assert not state["hits"].any() and not state["sums"].any()
    assert state["updates"] == 0 and len(state) == 4
    assert list(VectorQuantiser(64, 8, decay=0.0, restart=0.0).state_dict()) == [
        "embedding.weight"
    ]


def test_restarts_need_running_means():
    with pytest.raises(ValueError, match="restart must be 0 where decay is 0, not 0.1"):
        VectorQuantiser(4, 2, decay=0.0)


def test_codes_follow_the_running_mean_of_their_vectors():
    """N <- decay N + (1 - decay) n and likewise the sums; a code is their quotient."""
    quantiser, decay = made(decay=0.8, restart=0.0), 0.8
    hits, sums = torch.zeros(K), torch.zeros(K, D)
    codebook = quantiser.embedding.weight.clone()
    for step in range(3):
        x = normal(2, 4, D, seed=step)
        hit = torch.cdist(x.view(-1, D), codebook).argmin(dim=1)
        hits, sums = decay * hits, decay * sums
        for code, row in zip(hit, x.view(-1, D)):
            hits[code] += (1 - decay) * 1
            sums[code] += (1 - decay) * row
        for code in hit.unique():
            codebook[code] = sums[code] / hits[code]
        vectors, codes, _ = quantiser.train()(x)
        # the codes move first, and then quantise the batch
        moved = torch.cdist(x.view(-1, D), codebook).argmin(dim=1)
        assert torch.equal(codes.flatten(), moved)
        torch.testing.assert_close(vectors.view(-1, D), codebook[moved])
        torch.testing.assert_close(quantiser.embedding.weight, codebook)
        torch.testing.assert_close(quantiser.hits, hits)
        torch.testing.assert_close(quantiser.sums, sums)
    assert quantiser.updates == 3


def test_a_code_that_nothing_hits_stays_where_it_is_for_ever():
    quantiser = made(2, 2, decay=0.5, restart=0.0).train()
    quantiser.embedding.weight.data = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    for seed in range(300):  # 0.5 ** 300 is zero in float32
        quantiser(0.1 * normal(8, 2, seed=seed))
    assert quantiser.embedding.weight[1].tolist() == [9.0, 9.0]


@pytest.mark.parametrize("options", [{}, {"decay": 0.0, "restart": 0.0}])
def test_nothing_moves_but_in_training(options):
    quantiser = made(**options).eval()
    before = {name: x.clone() for name, x in quantiser.state_dict().items()}
    quantiser(normal(8, D))
    if options:  # by gradient, the forward pass moves nothing in training either
        quantiser.train()(normal(8, D))
    assert all(
        torch.equal(x, before[name]) for name, x in quantiser.state_dict().items()
    )


def test_before_the_first_batch_every_code_is_dead_and_starts_at_a_vector_of_it():
    quantiser, x = made(8, 2).train(), draw(64, seed=3)
    quantiser.revive(x)
    rows = torch.cdist(quantiser.embedding.weight, x).argmin(dim=1)
    assert torch.equal(quantiser.embedding.weight, x[rows])
    assert len(rows.unique()) == 8  # each another one
    least = 0.1 * 64 / 8
    torch.testing.assert_close(quantiser.hits, torch.full((8,), least))
    torch.testing.assert_close(quantiser.sums, least * x[rows])


def test_a_batch_smaller_than_the_codebook_serves_more_than_one_code():
    quantiser, x = made(8, 2).train(), draw(3, seed=3)
    quantiser.revive(x)
    rows = torch.cdist(quantiser.embedding.weight, x).argmin(dim=1)
    assert torch.equal(quantiser.embedding.weight, x[rows])
    assert torch.bincount(rows).tolist() == [3, 3, 2]


def test_a_code_starts_again_where_it_is_used_less_than_its_share():
    quantiser, x = made(4, 2, restart=0.5).train(), draw(16, seed=3)
    quantiser.hits.copy_(torch.tensor([9.0, 1.9, 2.0, 2.1]))  # 0.5 * 16 / 4 = 2
    before = quantiser.embedding.weight.clone()
    quantiser.revive(x)
    kept = (quantiser.embedding.weight == before).all(dim=1)
    assert kept.tolist() == [True, False, True, True]
    assert quantiser.hits.tolist() == pytest.approx([9.0, 2.0, 2.0, 2.1])
    assert not quantiser.sums[kept].any()


def test_what_is_drawn_depends_on_the_seed_and_the_number_of_updates():
    def drawn(seed: int, updates: int) -> torch.Tensor:
        quantiser = made(4, 2, seed=seed)
        quantiser.updates.fill_(updates)
        quantiser.revive(draw(500, seed=3))
        return quantiser.embedding.weight

    first = drawn(0, 0)
    torch.rand(7)  # no other randomness counts
    assert torch.equal(drawn(0, 0), first)
    others = [drawn(0, 1), drawn(1, 0), drawn(2, 0), drawn(1, 1)]
    everything = [first, *others]
    for i, one in enumerate(everything):
        for other in everything[:i]:
            assert not torch.equal(one, other)


def test_running_means_and_restarts_use_the_codes_that_a_gradient_leaves_idle():
    """Four clouds far from where the codes begin."""

    def used(options: dict) -> float:
        torch.manual_seed(0)
        quantiser = VectorQuantiser(16, 2, **options).train()
        learned = [p for p in quantiser.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=1e-2) if learned else None
        for step in range(200):
            loss = quantiser(draw(128, seed=step)).loss
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return float(perplexity(quantiser.eval().encode(draw(4000, seed=999)), 16))

    gradient = used({"decay": 0.0, "restart": 0.0})
    means, both = used({"restart": 0.0}), used({})
    assert gradient < 6 and means < 6
    assert both > 10


def test_what_was_saved_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole, before = made(8, 2).train(), made(8, 2).train()
    for step in range(6):
        whole(draw(32, seed=step))
        if step < 3:
            before(draw(32, seed=step))
    save_file(before.state_dict(), tmp_path / "half.safetensors")
    after = VectorQuantiser(8, 2).train()
    after.load_state_dict(load_file(tmp_path / "half.safetensors"))
    for step in range(3, 6):
        after(draw(32, seed=step))
    for name, x in whole.state_dict().items():
        assert torch.equal(x, after.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_vectors_keep_their_own_type(dtype):
    quantiser = made(8, 2).train()
    quantised = quantiser(draw(32, seed=0).to(dtype))
    assert quantised.vectors.dtype == dtype
    assert quantiser.embedding.weight.dtype == torch.float32
    assert made(8, 2).double().train()(draw(9, seed=0).double()).loss.dtype == (
        torch.float64
    )


def test_running_means_are_exact_where_the_rest_is_in_bfloat16():
    exact, rounded = made(8, 2).train(), made(8, 2).train()
    for step in range(3):
        exact(draw(32, seed=step))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded(draw(32, seed=step))
    torch.testing.assert_close(rounded.sums, exact.sums)
    assert rounded.sums.dtype == torch.float32


def test_perplexity_counts_the_codes_in_use():
    assert float(perplexity(torch.tensor([[0, 1], [2, 3]]), 8)) == pytest.approx(4)
    assert float(perplexity(torch.tensor([5, 5, 5]), 8)) == pytest.approx(1)
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    mixed = float(perplexity(torch.tensor([0, 0, 0, 7]), 8))
    assert mixed == pytest.approx(math.exp(entropy))


# --------------------------------------------------------------------------------------
# Two processes; the file is also the script that each of them runs


class Codes(nn.Module):
    """A model that quantises what it is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(2, 2)
        self.quantiser = VectorQuantiser(8, 2)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        made = self.quantiser(self.map(batch["x"]))
        return made.loss + (made.vectors - batch["x"]).square().mean()


def trained(double: bool = True) -> dict[str, torch.Tensor]:
    from minilib.training import Recipe, fit

    def batch(generator: torch.Generator) -> dict[str, torch.Tensor]:
        seed = int(torch.randint(1000, (1,), generator=generator))
        return {"x": draw(16, seed).double()}

    model = Codes().double()
    fit(model, batch, Recipe(steps=5, batch_size=16, lr=0.05), progress=False)
    return model.state_dict()


def test_two_processes_end_with_the_codes_of_one(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc_per_node", "2", __file__, str(tmp_path),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "MINILIB_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    told = {"capture_output": True, "text": True, "timeout": 240}
    ran = subprocess.run(command, env=environment, **told)
    assert ran.returncode == 0, ran.stderr
    one = trained()
    assert one["quantiser.updates"] == 5
    for rank in range(2):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, x in one.items():
            torch.testing.assert_close(two[name], x)


# --------------------------------------------------------------------------------------
# Residuals and groups


def residual(kind: str = "RVQ", **options) -> RVQ | GRVQ:
    """Four codebooks of 8 codes for vectors of 6, whose codes are of order one."""
    own = {"n_codes": 8, "dim": 6, "rounds": 0, **options}
    made = RVQ(4, **own) if kind == "RVQ" else GRVQ(2, 2, **own)
    for i, level in enumerate(levels(made)):
        level.embedding.weight.data = normal(*level.embedding.weight.shape, seed=i)
    return made


def levels(quantiser: nn.Module) -> list[VectorQuantiser]:
    return [x for x in quantiser.modules() if isinstance(x, VectorQuantiser)]


def distortion(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().mean())


def test_each_level_quantises_what_the_levels_before_left_over():
    rvq, x = residual().eval(), normal(3, 5, 6, seed=9)
    vectors, codes, _ = rvq(x)
    assert codes.shape == (3, 5, 4) and torch.equal(codes, rvq.encode(x))
    for row, code, vector in zip(x.view(-1, 6), codes.view(-1, 4), vectors.view(-1, 6)):
        rest = row.clone()
        for level, given in zip(rvq.levels, code):
            apart = (level.embedding.weight - rest).norm(dim=1)
            assert given == apart.argmin()
            rest = rest - level.embedding.weight[given]
        torch.testing.assert_close(vector, row - rest)


def test_groups_are_residual_quantisers_of_their_parts():
    grvq, x = residual("GRVQ").eval(), normal(3, 5, 6, seed=9)
    vectors, codes, loss = grvq(x)
    alone = [rvq(part) for rvq, part in zip(grvq.groups, x.chunk(2, dim=-1))]
    torch.testing.assert_close(vectors, torch.cat([a.vectors for a in alone], dim=-1))
    torch.testing.assert_close(loss, (alone[0].loss + alone[1].loss) / 2)
    for g, a in enumerate(alone):
        assert torch.equal(codes[..., g::2], a.codes)
    assert torch.equal(grvq.encode(x), codes)
    torch.testing.assert_close(grvq.decode(codes), vectors)


def test_one_group_is_a_residual_quantiser():
    x, own = normal(4, 7, 6, seed=1), {"n_codes": 8, "dim": 6}
    rvq, grvq = RVQ(3, **own).train(), GRVQ(1, 3, **own).train()
    for a, b in zip(rvq(x), grvq(x)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["RVQ", "GRVQ"])
@pytest.mark.parametrize("keep", [None, [1, 4, 2]])
def test_the_gradient_of_a_stack_is_that_of_the_identity(kind, keep):
    """Not Q times it, as it would be if each level passed its own gradient on."""
    quantiser, x = residual(kind), normal(3, 5, 6, seed=1).requires_grad_()
    keep, weight = keep and torch.tensor(keep), normal(3, 5, 6, seed=2)
    made = quantiser(x, keep)
    (gradient,) = torch.autograd.grad((made.vectors * weight).sum(), x)
    assert torch.equal(gradient, weight)


@pytest.mark.parametrize("kind", ["RVQ", "GRVQ"])
def test_a_row_that_keeps_n_codebooks_is_what_its_first_n_codes_say(kind):
    """Quantiser dropout in training is truncation afterwards."""
    quantiser, x = residual(kind).eval(), normal(4, 5, 6, seed=1)
    made = quantiser(x, torch.tensor([1, 2, 3, 4]))
    for n, row, codes in zip((1, 2, 3, 4), made.vectors, made.codes):
        torch.testing.assert_close(row, quantiser.decode(codes[..., :n]))
    assert distortion(made.vectors[0], quantiser(x).vectors[0]) > 0.1
    assert not quantiser.decode(made.codes[..., :0]).any()


def test_the_loss_is_the_commitment_of_the_levels_that_a_row_keeps():
    rvq, x = residual(beta=0.5).eval(), normal(2, 5, 6, seed=1).requires_grad_()
    made, wanted = rvq(x, torch.tensor([1, 3])), 0.0
    for row, codes, keep in zip(x, made.codes, (1, 3)):
        for n in range(1, keep + 1):
            left = row - rvq.decode(codes[..., :n])
            wanted = wanted + 0.5 * left.square().sum() / x.numel() / 4
    torch.testing.assert_close(made.loss, wanted)
    (gradient,) = torch.autograd.grad(made.loss, x)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("kind", ["RVQ", "GRVQ"])
def test_on_what_they_were_trained_on_more_codebooks_are_never_worse(kind):
    """A code is the mean of its rests, and no vector is nearer to them, 0 included."""
    x, drawn = normal(64, 8, 6, seed=1), residual(kind).eval()
    for level in levels(drawn):
        level.embedding.weight.data *= 3
    quantiser = residual(kind, decay=0.5).train()
    for _ in range(60):
        quantiser(x)
    quantiser.eval()
    errors = lambda q: [distortion(x, q.decode(q.encode(x)[..., :n])) for n in range(5)]
    found = errors(quantiser)
    assert all(a > b for a, b in zip(found, found[1:])), found
    loose = errors(drawn)  # codes that mean nothing
    assert any(a < b for a, b in zip(loose, loose[1:])), loose


def test_no_code_of_any_level_stays_dead():
    rvq = RVQ(3, 16, 2, decay=0.9, rounds=0).train()
    for step in range(40):
        codes = rvq(draw(512, seed=step, noise=1.0)).codes
    used = [float(perplexity(codes[..., q], 16)) for q in range(3)]
    assert min(used) > 8, used
    for level in rvq.levels:
        level.restart = 0.0
        level.embedding.weight.data[:12] = 99.0
    for step in range(5):
        codes = rvq(draw(512, seed=step, noise=1.0)).codes
    assert float(perplexity(codes[..., 0], 16)) < 5
    for level in rvq.levels:
        level.restart = 0.1
    for step in range(40):
        codes = rvq(draw(512, seed=step, noise=1.0)).codes
    assert float(perplexity(codes[..., 0], 16)) > 8


def test_k_means_finds_the_clouds_and_never_gets_worse():
    x = draw(600, seed=3)
    error = lambda c: float(torch.cdist(x, c).amin(1).square().mean())
    found = [error(k_means(x, 4, rounds, seed=1)) for rounds in range(6)]
    assert all(a >= b for a, b in zip(found, found[1:])) and found[0] > found[-1]
    centres = k_means(x, 4, 20, seed=1)
    assert torch.cdist(CLOUDS, centres).amin(1).max() < 0.1
    few = k_means(x[:3], 8, 2)  # more codes than rows
    assert few.shape == (8, 2) and torch.isfinite(few).all()


def test_the_first_batch_starts_all_levels_from_its_clusters():
    x = draw(600, seed=3, noise=1.0)
    started, plain = RVQ(2, 8, 2, rounds=10), RVQ(2, 8, 2, rounds=0)
    for rvq in (started, plain):
        rvq.train()(x)
        rvq.eval()
    own = [distortion(x, rvq(x).vectors) for rvq in (started, plain)]
    assert own[0] < 0.8 * own[1]
    before = started.levels[1].embedding.weight.clone()
    started.train()(draw(600, seed=4, noise=1.0))  # the second batch only moves them
    moved = (started.levels[1].embedding.weight - before).norm(dim=1)
    assert moved.max() < 0.5 * before.norm(dim=1).max()


def test_bad_sizes_get_one_sentence():
    with pytest.raises(ValueError, match="decay must lie between 0 and 1, not 0"):
        RVQ(2, 8, 6, decay=0.0, restart=0.0)
    with pytest.raises(ValueError, match="n_groups must divide dim, 6, not be 4"):
        GRVQ(4, 2, 8, 6)


if __name__ == "__main__":
    torch.save(trained(), Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
