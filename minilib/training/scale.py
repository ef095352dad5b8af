"""Stages at the released scale, where the paper and its code do what the small presets
leave out: a VAE against a discriminator, an AudioMAE that hears Kaldi's filterbank, and
a U-Net that reads an LOA of any lambda.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from minilib import audio
from minilib.audiomae import ViTBlock, heard
from minilib.conditions import Context, drop, to_batch
from minilib.discriminators import AdversarialVAE, PatchDiscriminator
from minilib.layers import ResBlock, recompute
from minilib.model import Model
from minilib.training.clips import concatenated
from minilib.training.stages import (
    MEL_MEAN,
    MEL_STD,
    P_EMPTY,
    AudioMAEStage,
    LDMStage,
    Stage,
    VAEStage,
    noised,
    seeded,
)
from minilib.unet import UNet
from minilib.vae import VAE, SpatialAttention, centre

MOST_MEASURED = 256  # clips from which the latent's scale is measured
VAE_BLOCKS = (ResBlock, SpatialAttention)  # that may recompute their activations
MAE_BLOCKS = (ViTBlock,)


class AdversarialVAEStage(VAEStage):
    """The VAE against a discriminator, in its authors' weights."""

    start = 50_001  # the step at which the discriminator joins in

    def build(self) -> nn.Module:
        self.vae = seeded(VAE, self.preset, self.seed)
        centre(self.vae, MEL_MEAN, MEL_STD)
        discriminator = seeded(PatchDiscriminator, self.preset, self.seed)
        recompute(self.vae, VAE_BLOCKS, self.recipe.recompute)
        calls = self.start * self.recipe.accumulate
        return AdversarialVAE(self.vae, discriminator, calls)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        mel, config = audio.log_mel(self.waves(generator)), self.vae.config
        r = config.reduction
        shape = len(mel), config.latent_channels, mel.shape[2] // r, mel.shape[3] // r
        return {"mel": mel, "eps": torch.randn(shape, generator=generator)}

    @torch.no_grad()
    def finish(self) -> dict[str, Model]:
        """Bring draws from the posterior to variance 1 by one factor for all channels,
        as the released VAE does.
        """
        vae = self.vae
        vae.config = replace(vae.config, scaling_factor=1.0)
        recompute(vae, VAE_BLOCKS, False)
        draws = []
        generator = torch.Generator().manual_seed(self.seed)
        for mel in self.data.mels(MOST_MEASURED).split(8):
            mean, log_variance = vae.moments(mel.to(vae.device))
            eps = torch.randn(mean.shape, generator=generator).to(mean)
            draws.append(mean + (0.5 * log_variance).exp() * eps)
        factor = 1.0 / float(torch.cat(draws).std())
        vae.config = replace(vae.config, scaling_factor=factor)
        return {"vae": vae}


class FbankStage(AudioMAEStage):
    """The masked autoencoder on Kaldi's filterbank, as its authors trained it."""

    def build(self) -> nn.Module:
        audiomae = super().build()
        recompute(audiomae, MAE_BLOCKS, self.recipe.recompute)
        return audiomae

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        mel = heard(self.model, self.waves(generator))
        shape = len(mel), self.model.config.grid[0] * self.model.config.grid[1]
        return {"mel": mel, "noise": torch.rand(shape, generator=generator)}

    def finish(self) -> dict[str, Model]:
        """Measure the LOA of up to 512 clips, so that the regression sees unit
        variance.
        """
        audiomae, n = self.model, min(512, len(self.data.corpus))
        recompute(audiomae, MAE_BLOCKS, False)
        pieces = torch.arange(n).split(8)
        mels = (heard(audiomae, self.data.corpus.wave(some)) for some in pieces)
        audiomae.fit_statistics(concatenated(n, mels))
        return {"audiomae": audiomae}


class LambdasStage(LDMStage):
    """The U-Net on true LOA of a lambda that each step draws anew, 1, 2, 4 or 8, so
    that one network reads from 8 to 512 vectors of a clip (2308.05734 §3.4).

    The LOA of all lambdas would take megabytes a clip: it is computed in each step.
    """

    unet = "full"  # the U-Net's preset

    @torch.no_grad()
    def build(self) -> nn.Module:
        gpt = self.parts["gpt"]
        self.z0 = self.data.latents(self.parts["vae"])
        empty = {name: x.empty(1) for name, x in self.encoders(gpt).items()}
        self.empty = {**empty, "loa": Context(gpt.generate(empty))}
        unet = seeded(UNet, self.unet, self.seed)
        unet.recompute_activations(self.recipe.recompute)
        return unet

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, _ = self.data.pairs(self.recipe.batch_size, generator)
        n, audiomae = len(indices), self.parts["audiomae"]
        batch = noised(self.z0[indices], self.model.config.n_steps, generator)
        pools = audiomae.config.pools
        pool = pools[int(torch.randint(len(pools), (), generator=generator))]
        with torch.no_grad():
            mel = heard(audiomae, self.data.corpus.wave(indices))
            loa = audiomae.loa(mel.to(audiomae.device), pool).cpu()
        dropped = torch.rand(n, generator=generator) < P_EMPTY
        loa = drop({"loa": Context(loa)}, self.empty, dropped)
        told = {name: context.repeat(n) for name, context in self.empty.items()}
        return batch | to_batch(told | loa)


# the classes of stages that are other than those of the small presets
SCALED: dict[str, type[Stage]] = {
    x.name: x for x in (AdversarialVAEStage, FbankStage, LambdasStage)
}
