"""The discriminators of the vocoder, and the game that they play with it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from minilib import audio
from minilib.discriminators import (
    FEATURES,
    MEL,
    Adversarial,
    Discriminators,
    DiscriminatorsConfig,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from minilib.training import Recipe, fit
from minilib.training.stages import AdversarialStage
from minilib.vocoder import HiFiGAN, HiFiGANConfig, Vocos, VocosConfig


def small(**changes) -> Discriminators:
    torch.manual_seed(0)
    sizes = {
        "period_channels": (2, 4, 4, 8, 8),
        "scale_channels": (4, 4, 4, 8, 8, 8, 8),
    }
    sizes |= {"scale_groups": (1, 2, 2, 2, 2, 2, 1)}
    return Discriminators(DiscriminatorsConfig(**{**sizes, **changes}))


def vocoder(kind: str = "vocos") -> Vocos | HiFiGAN:
    torch.manual_seed(1)
    if kind == "vocos":
        return Vocos(VocosConfig(dim=16, intermediate_dim=32, n_layer=1))
    return HiFiGAN(HiFiGANConfig(upsample_initial_channel=32))


@pytest.fixture()
def batch() -> dict[str, torch.Tensor]:
    n = torch.arange(16 * audio.HOP) / audio.SAMPLE_RATE
    wave = torch.stack([0.5 * torch.sin(2 * math.pi * f * n) for f in (220.0, 700.0)])
    return {"wave": wave, "mel": audio.log_mel(wave)}


def test_the_published_sizes_give_the_published_networks():
    """Five periods and three scales of the released widths and groups, each kernel with
    its length apart.
    """
    full = Discriminators.preset("full")
    n = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in full.named_children()
    }
    plain = sum(  # weight norm adds a length to every row of a kernel
        conv.weight.numel() + conv.bias.numel()
        for conv in full.modules()
        if hasattr(conv, "stride")
    )
    rows = sum(
        conv.weight.shape[0] for conv in full.modules() if hasattr(conv, "stride")
    )
    assert sum(n.values()) == plain + rows
    assert [conv.weight.shape for conv in full.by_period[0].convs][:2] == [
        (32, 1, 5, 1),
        (128, 32, 5, 1),
    ]
    assert [conv.weight.shape for conv in full.by_scale[0].convs][:2] == [
        (128, 1, 15),
        (128, 32, 41),
    ]
    assert len(full.by_period) == 5 and len(full.by_scale) == 3


@pytest.mark.parametrize("n", (7680, 7681, 5003))
def test_every_discriminator_scores_any_length_and_shows_its_features(n):
    judgements = small()(torch.randn(2, n, generator=torch.Generator().manual_seed(0)))
    assert len(judgements) == 8
    for score, features in judgements:
        assert (
            score.shape[0] == 2
            and score.ndim == 2
            and torch.equal(features[-1].flatten(1), score)
        )
        assert all(len(x) == 2 for x in features)
    assert [len(features) for _, features in judgements] == [6] * 5 + [8] * 3


def test_a_fold_sees_what_is_a_period_away_and_no_neighbour():
    """A change at one sample reaches only the scores of its own column: those of
    samples a whole period away.
    """
    fold = small().by_period[3]  # period 7
    wave = torch.randn(1, 7 * 400, generator=torch.Generator().manual_seed(0))
    other = wave.clone()
    other[0, 7 * 200 + 3] += 1.0
    rows = fold(wave)[0].shape[1] // 7
    changed = ((fold(wave)[0] - fold(other)[0]).abs() > 0).view(rows, 7).any(dim=0)
    assert changed.tolist() == [k == 3 for k in range(7)]


def test_the_losses_are_the_papers_equations():
    real, fake = (
        [(torch.full((2, 3), x), [torch.full((2, 4), x)])] * 2 for x in (0.75, 0.25)
    )
    assert discriminator_loss(real, fake) == pytest.approx(2 * (0.25**2 + 0.25**2))
    assert adversarial_loss(fake) == pytest.approx(2 * 0.75**2)
    assert feature_loss(real, fake) == pytest.approx(2 * 0.5)


@pytest.mark.parametrize("kind", ("vocos", "hifigan"))
def test_each_side_of_the_game_is_moved_by_its_own_loss_only(kind, batch):
    game = Adversarial(vocoder(kind), small())
    game.loss(batch)["loss"].backward()
    generated = game.vocoder.unlimited(batch["mel"])[:, : batch["wave"].shape[1]]

    alone = copy.deepcopy(game.discriminators)
    alone.zero_grad()
    discriminator_loss(alone(batch["wave"]), alone(generated.detach())).backward()
    for (name, mine), other in zip(
        game.discriminators.named_parameters(), alone.parameters()
    ):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)

    still = copy.deepcopy(game.discriminators).requires_grad_(False)
    real, judged = still(batch["wave"]), still(generated)
    mel_l1 = F.l1_loss(audio.log_mel(generated), batch["mel"])
    loss = (
        adversarial_loss(judged) + FEATURES * feature_loss(real, judged) + MEL * mel_l1
    )
    wanted = torch.autograd.grad(loss, list(game.vocoder.parameters()))
    for mine, other in zip(game.vocoder.parameters(), wanted):
        torch.testing.assert_close(mine.grad, other, rtol=1e-3, atol=1e-5)


def test_the_game_is_the_sum_of_its_losses_with_their_weights(batch):
    losses = Adversarial(vocoder(), small()).loss(batch)
    total = losses["adversarial"] + FEATURES * losses["features"]
    total = total + MEL * losses["mel_l1"] + losses["discriminator"]
    torch.testing.assert_close(losses["loss"].detach(), total)
    assert not any(losses[name].requires_grad for name in losses if name != "loss")


def test_the_stage_goes_on_with_the_trained_vocoder_and_ships_no_discriminator(batch):
    class Sounds:
        def waves(self, n, recorded, generator):
            return batch["wave"].repeat(1, 4)

    recipe = Recipe(steps=3, batch_size=2, lr=2e-4, betas=(0.8, 0.99))
    before = vocoder()
    parts = {"vocoder": copy.deepcopy(before)}
    stage = AdversarialStage("tiny", recipe, Sounds(), parts, crop=16)
    first = copy.deepcopy(stage.model.state_dict())
    for name, x in before.state_dict().items():
        assert torch.equal(first[f"vocoder.{name}"], x)
    fit(stage.model, stage.batch, stage.recipe, progress=False)
    after = stage.model.state_dict()
    assert not torch.equal(after["vocoder.head.weight"], first["vocoder.head.weight"])
    names = [name for name in first if name.startswith("discriminators")]
    moved = [not torch.equal(after[name], first[name]) for name in names]
    assert sum(moved) > 0.9 * len(moved)
    assert list(stage.finish()) == ["vocoder"]


def test_discriminators_learn_to_tell_noise_from_tones(batch):
    """They see what they are for: a tone against noise with the same spectrum on
    average.
    """
    judges, noise = small(), torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(judges.parameters(), 2e-3, betas=(0.8, 0.99))
    losses = []
    for _ in range(30):
        spectrum = torch.fft.rfft(batch["wave"])
        turn = torch.exp(2j * math.pi * torch.rand(spectrum.shape, generator=noise))
        scrambled = torch.fft.irfft(spectrum * turn, batch["wave"].shape[1])
        loss = discriminator_loss(judges(batch["wave"]), judges(scrambled))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
