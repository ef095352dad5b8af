"""The stages of AudioLDM 2 in the paper's order (2308.05734 §3.4): what each one
trains, on which batches.

vae, vocoder and audiomae hear sound alone; clap and text read captions; gpt learns to
write the LOA, ldm to turn true LOA into latents; joint tunes these two together;
adversarial sharpens the vocoder. The judge stands apart. Chapter 16 builds them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle
from tqdm.auto import tqdm

from minilib import audio
from minilib.audioldm2 import VOCODERS, encode_captions
from minilib.audiomae import AudioMAE
from minilib.clap import CLAP
from minilib.classifier import Classifier
from minilib.discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from minilib.gpt import LOARegressor
from minilib.model import Model
from minilib.text import T5, noise_spans, span_corrupt
from minilib.tokenizer import PAD
from minilib.training.clips import Recordings, Renders, TrainingData, crop
from minilib.training.loop import Recipe
from minilib.training.processes import is_main
from minilib.unet import UNet
from minilib.vae import VAE, centre, standardise

P_EMPTY = 0.1  # share of the conditions that are emptied, for classifier-free guidance
# share of the clips of which GPT-2 is shown true vectors, in its own stage
P_TAUGHT = 0.25
P_TRUE_LOA = 0.25  # share of true LOA in joint fine-tuning; the rest is predicted
# weights of HiFi-GAN's losses beside the adversarial one (2010.05646 §2.4)
FEATURES, MEL = 2.0, 45.0
MEL_MEAN, MEL_STD = -7.0, 3.0  # about, of SoundWorld's log-mels and of recordings


class Stage(ABC):
    """One stage of the training: which parts it needs, which it makes, and its batches."""

    name: str
    needs: tuple[str, ...] = ()  # parts that must have been trained before
    makes: tuple[str, ...] = ()  # parts that it trains

    def __init__(
        self,
        preset: str,
        recipe: Recipe,
        data: TrainingData,
        parts: dict[str, Model],
        seed: int = 0,
    ):
        self.preset, self.recipe, self.data, self.parts, self.seed = (
            preset,
            recipe,
            data,
            parts,
            seed,
        )
        for name, part in parts.items():
            if name not in self.makes:
                part.requires_grad_(False)
        self.model = self.build()

    @abstractmethod
    def build(self) -> nn.Module:
        """The model to be trained, its weights drawn from the stage's seed."""

    @abstractmethod
    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch, everything random in it drawn from the generator."""

    def finish(self) -> dict[str, Model]:
        """The trained parts by name, in evaluation mode."""
        return {self.makes[0]: self.model}

    def encode(self, captions: list[str]) -> dict[str, Tensor]:
        """Conditions of captions by the frozen encoders, as the losses name them."""
        known = over_captions(self.parts["clap"], self.parts["text"], self.data)
        clap, states = zip(*(known[caption] for caption in captions), strict=True)
        S = max(self.data.tokenizer.pad_to, *map(len, states))
        # (B, S, D)
        text = torch.stack([F.pad(x, (0, 0, 0, S - len(x))) for x in states])
        # (B, S)
        text_mask = torch.arange(S) < torch.tensor([len(x) for x in states])[:, None]
        clap = torch.stack(clap)  # (B, 1, D)
        clap_mask = torch.ones(clap.shape[:2], dtype=torch.bool)
        return {
            "clap": clap,
            "clap_mask": clap_mask,
            "text": text,
            "text_mask": text_mask,
        }


class VAEStage(Stage):
    """The KL-regularised autoencoder on crops of log-mels, self-supervised."""

    name, makes = "vae", ("vae",)

    def build(self) -> nn.Module:
        vae = seeded(VAE, self.preset, self.seed)
        centre(vae, MEL_MEAN, MEL_STD)
        return vae

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        waves = self.data.waves(self.recipe, generator)
        mel = audio.log_mel(crop(waves, self.recipe.crop * audio.HOP, generator))
        B, _, T, F = mel.shape
        C, r = self.model.config.z_channels, self.model.config.reduction
        return {
            "mel": mel,
            "eps": torch.randn(B, C, T // r, F // r, generator=generator),
        }

    def finish(self) -> dict[str, Model]:
        """Bring draws from the posterior to mean 0 and variance 1 in every channel,
        over the captioned clips.

        A channel that the KL term has emptied holds the posterior's variance and hardly
        a mean: it stays small.
        """
        mel = audio.log_mel(
            self.data.corpus.wave(range(min(256, len(self.data.corpus))))
        )
        mel = mel.to(self.model.device)
        with torch.no_grad():
            # (n, latent_channels, ...), not packed
            mean, log_variance = (
                pixel_shuffle(x, self.model.config.pack)
                for x in self.model.moments(mel)
            )
        variance = mean.var(dim=(0, 2, 3)) + log_variance.exp().mean(dim=(0, 2, 3))
        standardise(self.model, mean.mean(dim=(0, 2, 3)), variance.sqrt())
        return {"vae": self.model}


class VocoderStage(Stage):
    """The vocoder on short pieces of waveform, self-supervised."""

    name, makes = "vocoder", ("vocoder",)

    def build(self) -> nn.Module:
        return seeded(VOCODERS[self.preset], self.preset, self.seed)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        waves = self.data.waves(self.recipe, generator)
        wave = crop(waves, self.recipe.crop * audio.HOP, generator)
        return {"wave": wave, "mel": audio.log_mel(wave)}


class Adversarial(nn.Module):
    """A vocoder against discriminators, as one model: each side's loss reaches its own
    weights only.

    Chapter 08.
    """

    def __init__(self, vocoder: Model, discriminators: Discriminators):
        super().__init__()
        self.vocoder, self.discriminators = vocoder, discriminators

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What both sides lose (2010.05646 §2.4): vocoder and discriminators take their
        steps at the same time.

        AdamW scales the step of each weight by its own gradients, so one optimizer
        serves both sides; only the norm at which gradients are clipped is that of both.

        Args:
            batch: `wave` (B, N) and its `mel` (B, 1, T, F).
        """
        wave = batch["wave"]
        speak = getattr(self.vocoder, "unlimited", self.vocoder)
        generated = speak(batch["mel"])[:, : wave.shape[1]]
        real = self.discriminators(wave)
        discriminator = discriminator_loss(
            real, self.discriminators(generated.detach())
        )
        still = {
            name: weight.detach()
            for name, weight in self.discriminators.named_parameters()
        }
        judged = torch.func.functional_call(self.discriminators, still, (generated,))
        real = [
            (score.detach(), [x.detach() for x in features]) for score, features in real
        ]
        mel_l1 = (audio.log_mel(generated) - batch["mel"]).abs().mean()
        parts = {
            "adversarial": adversarial_loss(judged),
            "features": feature_loss(real, judged),
        }
        loss = (
            parts["adversarial"]
            + FEATURES * parts["features"]
            + MEL * mel_l1
            + discriminator
        )
        parts |= {"mel_l1": mel_l1, "discriminator": discriminator}
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


class AdversarialStage(VocoderStage):
    """The trained vocoder goes on against discriminators, which start anew and don't
    ship.

    Chapter 08.
    """

    name, makes, needs = "adversarial", ("vocoder",), ("vocoder",)

    def build(self) -> nn.Module:
        return Adversarial(
            self.parts["vocoder"], seeded(Discriminators, self.preset, self.seed)
        )

    def finish(self) -> dict[str, Model]:
        return {"vocoder": self.model.vocoder}


class AudioMAEStage(Stage):
    """The masked autoencoder on whole clips, self-supervised."""

    name, makes = "audiomae", ("audiomae",)

    def build(self) -> nn.Module:
        return seeded(AudioMAE, self.preset, self.seed)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        mel = audio.log_mel(self.data.waves(self.recipe, generator))
        time_patches, mel_patches = self.model.config.grid
        return {
            "mel": mel,
            "noise": torch.rand(
                len(mel), time_patches * mel_patches, generator=generator
            ),
        }

    def finish(self) -> dict[str, Model]:
        """Measure mean and deviation of every LOA dimension, so that the regression
        sees unit variance.
        """
        mel = audio.log_mel(
            self.data.corpus.wave(range(min(512, len(self.data.corpus))))
        )
        with torch.no_grad():
            loa = self.model.loa(mel.to(self.model.device)).flatten(0, 1)
        self.model.loa_mean.copy_(loa.mean(dim=0))
        self.model.loa_std.copy_(loa.std(dim=0))
        return {"audiomae": self.model}


class CLAPStage(Stage):
    """Both towers of CLAP on captioned clips."""

    name, makes = "clap", ("clap",)

    def build(self) -> nn.Module:
        return seeded(CLAP, self.preset, self.seed)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, captions = self.data.pairs(self.recipe.batch_size, generator)
        ids, mask = self.data.tokenizer.encode(captions)
        return {
            "ids": ids,
            "mask": mask,
            "log_mel": audio.log_mel(self.data.corpus.wave(indices)),
        }


class TextStage(Stage):
    """The T5 encoder by span corruption on captions, with a decoder that does not ship."""

    name, makes = "text", ("text",)

    def build(self) -> nn.Module:
        return seeded(T5, self.preset, self.seed)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        _, captions = self.data.pairs(self.recipe.batch_size, generator)
        ids, mask = self.data.tokenizer.encode(captions)
        # captions are short: at T5's rate of 0.15 one token each would be hidden
        noise = noise_spans(mask, generator, rate=0.3)
        _, targets = span_corrupt(ids, mask, noise)
        # the shares of a batch differ in it
        n_targets = (targets != PAD).sum() / len(ids)
        return {
            "ids": ids,
            "mask": mask,
            "noise": noise,
            "n_targets": n_targets.expand(len(ids)),
        }

    def finish(self) -> dict[str, Model]:
        return {"text": self.model.text_encoder()}


class GPTStage(Stage):
    """GPT-2 on true LOA; a tenth of the captions emptied.

    Teacher-forced is a quarter of the clips, and of these a random share of the
    vectors: elsewhere it goes on from its own.
    """

    name, makes, needs = "gpt", ("gpt",), ("audiomae", "clap", "text")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.loa = over_clips("audiomae", self.parts["audiomae"].loa, self.data)

    def build(self) -> nn.Module:
        return seeded(LOARegressor, self.preset, self.seed)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, captions = self.data.pairs(self.recipe.batch_size, generator)
        loa = self.loa[indices]
        taught = torch.rand(len(loa), 1, generator=generator) < P_TAUGHT
        share = torch.rand(len(loa), 1, generator=generator)
        keep = taught & (torch.rand(loa.shape[:2], generator=generator) < share)
        return {"loa": loa, "keep": keep, **self.encode(emptied(captions, generator))}

    def finish(self) -> dict[str, Model]:
        """GPT-2, having learned how loud the clips are."""
        fit_level(self, self.model)
        return {"gpt": self.model}


class LDMStage(Stage):
    """The U-Net on true LOA, self-supervised: no caption is read (2308.05734 §3.3)."""

    name, makes, needs = "ldm", ("unet",), ("vae", "audiomae", "clap", "text", "gpt")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.loa = over_clips("audiomae", self.parts["audiomae"].loa, self.data)
        vae = self.parts["vae"].to(memory_format=torch.channels_last)
        self.z0 = over_clips("vae", vae.encode, self.data)
        empty = self.encode([""])
        with torch.no_grad():
            # (1, L, D): what "no condition" is
            self.empty_loa = self.parts["gpt"].generate(named(empty))
        self.empty = empty

    def build(self) -> nn.Module:
        return seeded(UNet, self.preset, self.seed)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, _ = self.data.pairs(self.recipe.batch_size, generator)
        batch = noised(
            self.z0[indices],
            self.model.config.n_steps,
            generator,
            self.recipe.level_power,
        )
        n = len(indices)
        keep = torch.rand(n, 1, 1, generator=generator) >= P_EMPTY
        batch["loa"] = torch.where(keep, self.loa[indices], self.empty_loa)
        batch["text"], batch["text_mask"] = (
            self.empty["text"].expand(n, -1, -1),
            self.empty["text_mask"].expand(n, -1),
        )
        return batch


class Joint(nn.Module):
    """GPT-2 and U-Net as one model: the noise loss flows through the predicted LOA into
    GPT-2.
    """

    def __init__(self, gpt: LOARegressor, unet: UNet):
        super().__init__()
        self.gpt, self.unet = gpt, unet

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Noise loss on true or predicted LOA, as `true_loa` says, plus the
        regression's own (2308.05734 §3.4).

        The regression is scored on what it makes of its own vectors, written without
        teacher, since these are what the U-Net gets. One pass over all of them says the
        same as the writing did, vector by vector, and takes half the time to
        differentiate: the gradient then holds each vector's own error, not what it does
        to those after it (as in DAgger, Ross et al., 1011.0686).

        Args:
            batch: of B clips, `loa` (B, L, D) and the conditions; of each at K noise
                levels, `z0` and `eps` (B, K, C, T/r, F/r), `t` and `true_loa` (B, K).
        """
        conditions, levels = named(batch), batch["t"].shape[1]
        with torch.no_grad():
            own = self.gpt.generate(conditions)
        predicted = self.gpt(conditions, own)
        noisy = {
            name: batch[name].flatten(0, 1) for name in ("z0", "t", "eps", "true_loa")
        }
        clips = {
            "predicted": predicted,
            **{name: batch[name] for name in ("loa", "text", "text_mask")},
        }
        clips = {name: x.repeat_interleave(levels, dim=0) for name, x in clips.items()}
        loa = torch.where(
            noisy["true_loa"][:, None, None], clips["loa"], clips["predicted"]
        )
        noise = self.unet.loss({**noisy, **clips, "loa": loa})
        regression = F.mse_loss(predicted, batch["loa"])
        return {
            "loss": noise + regression,
            "noise": noise.detach(),
            "loa": regression.detach(),
        }


class JointStage(LDMStage):
    """Joint fine-tuning: true LOA with probability 0.25, predicted LOA with 0.75
    (2308.05734 §3.4).
    """

    name, makes, needs = (
        "joint",
        ("gpt", "unet"),
        ("vae", "audiomae", "clap", "text", "gpt", "unet"),
    )

    def build(self) -> nn.Module:
        return Joint(self.parts["gpt"], self.parts["unet"])

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, captions = self.data.pairs(self.recipe.batch_size, generator)
        # (K * B, C, T/r, F/r)
        z0 = self.z0[indices].repeat(self.recipe.levels, 1, 1, 1)
        batch = noised(
            z0, self.model.unet.config.n_steps, generator, self.recipe.level_power
        )
        batch = {
            name: x.unflatten(0, (-1, len(indices))).transpose(0, 1)
            for name, x in batch.items()
        }
        captions = emptied(captions, generator)
        full = torch.tensor([bool(caption) for caption in captions])[:, None]  # (B, 1)
        batch["true_loa"] = full & (
            torch.rand(batch["t"].shape, generator=generator) < P_TRUE_LOA
        )
        return {**batch, "loa": self.loa[indices], **self.encode(captions)}

    def finish(self) -> dict[str, Model]:
        """Both parts; GPT-2 has learned anew how loud the clips are, for it writes
        another LOA now.
        """
        fit_level(self, self.model.gpt)
        return {"gpt": self.model.gpt, "unet": self.model.unet}


class JudgeStage(Stage):
    """The classifier that scores generated sounds, trained apart from all that it
    judges.
    """

    name, makes = "judge", ("judge",)

    def __init__(
        self,
        preset: str,
        recipe: Recipe,
        data: TrainingData,
        parts: dict[str, Model],
        seed: int = 0,
    ):
        if data.folder is None:
            self.sounds = Renders(
                Classifier.presets[preset].classes, len(data.corpus), seed
            )
        else:
            self.sounds = Recordings(
                data.folder, data.corpus.waves.shape[1] / audio.SAMPLE_RATE
            )
        super().__init__(preset, recipe, data, parts, seed)

    def build(self) -> nn.Module:
        return seeded(Classifier, self.preset, self.seed, classes=self.sounds.classes)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        waves, labels = self.sounds.draw(self.recipe.batch_size, generator)
        return {"mel": audio.log_mel(waves), "label": labels}


# in the order of the paper; adversarial could follow the vocoder at once
STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        VAEStage, VocoderStage, AudioMAEStage, CLAPStage, TextStage, GPTStage, LDMStage, JointStage, AdversarialStage,
        JudgeStage,
    )
}  # fmt: skip
APART = ("judge",)  # trained only where it is asked for
ALL_STAGES = tuple(name for name in STAGES if name not in APART)


def seeded(model_class: type[Model], preset: str, seed: int, **changes: Any) -> Model:
    """A preset, changed, with weights drawn from a seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class.preset(preset, **changes)


def emptied(captions: list[str], generator: torch.Generator) -> list[str]:
    """The captions, a tenth of them emptied, for classifier-free guidance.

    Chapter 15.
    """
    empty = torch.rand(len(captions), generator=generator) < P_EMPTY
    return [
        "" if e else caption
        for caption, e in zip(captions, empty.tolist(), strict=True)
    ]


def named(batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The conditions of a batch as GPT-2 takes them."""
    return {name: (batch[name], batch[f"{name}_mask"]) for name in ("clap", "text")}


def noised(
    z0: Tensor, n_steps: int, generator: torch.Generator, power: float = 1.0
) -> dict[str, Tensor]:
    """Latents with a noise level and the noise for each (2006.11239 Algorithm 1, lines
    3 and 4).

    Levels are T u^power. With power 1 each is as likely as any other. Below 1 the high
    ones are drawn more often: there it is settled what will be heard. Above 1 the low
    ones: there, how clean and, to the decibel, how loud. The u of one batch are spread
    evenly over [0, 1), so that its loss depends less on which levels it happened to
    draw (the low-discrepancy sampler of 2107.00630).
    """
    # (B,)
    u = (torch.rand((), generator=generator) + torch.arange(len(z0)) / len(z0)) % 1
    places = u**power
    t = 1 + (places * n_steps).long().clamp_max(n_steps - 1)
    return {"z0": z0, "t": t, "eps": torch.randn(z0.shape, generator=generator)}


@torch.no_grad()
def over_captions(
    clap: Model, text: Model, data: TrainingData
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the frozen encoders make of the empty caption and of all others, computed
    once.

    Returns:
        by caption, CLAP's vector (1, D) and T5's states (S, D'), without those of its
        padding.
    """
    if not data.conditions:
        tokenizers = data.tokenizer, data.clap_tokenizer or data.tokenizer
        captions = sorted(
            {"", *data.corpus.captions}, key=lambda caption: (len(caption), caption)
        )
        n_tokens = data.tokenizer.encode(captions)[1].sum(dim=1).tolist()
        vectors = torch.empty(len(captions), 1, clap.dim)
        # in one piece, as what is `concatenated`
        states, end = torch.empty(sum(n_tokens), text.dim), 0
        for start in range(0, len(captions), 64):
            some = captions[start : start + 64]
            (vector, _), (state, mask) = encode_captions(some, *tokenizers, clap, text)
            vectors[start : start + 64] = vector
            n = int(mask.sum())
            states[end : end + n] = state[mask]
            end += n
        by_caption = zip(vectors, states.split(n_tokens), strict=True)
        data.conditions.update(zip(captions, by_caption, strict=True))
    return data.conditions


@torch.no_grad()
def fit_level(stage: Stage, gpt: LOARegressor) -> None:
    """Fit what GPT-2 says of the level to the clips and to what it writes from their
    captions.
    """
    if not gpt.config.level:
        return
    captions, batches = (
        stage.data.corpus.captions,
        torch.arange(len(stage.data.corpus)).split(64),
    )

    def written(batch: Tensor) -> Tensor:
        conditions = named(stage.encode([captions[i] for i in batch.tolist()]))
        here = {
            name: (x.to(gpt.device), mask.to(gpt.device))
            for name, (x, mask) in conditions.items()
        }
        return gpt.generate(here).cpu()

    bar = tqdm(batches, desc="GPT-2 over all captions", unit="batch", leave=False)
    loa = concatenated(len(captions), map(written, bar))
    gpt.fit_level(loa, over_clips("level", audio.loudness, stage.data)[:, 0])


@torch.no_grad()
def over_clips(
    part: str, function: Callable[[Tensor], Tensor], data: TrainingData
) -> Tensor:
    """What a frozen part makes of the log-mels of all clips, computed once: (N, ...)."""
    if part not in data.features:
        # what fits into a cache of the CPU
        batches = torch.arange(len(data.corpus)).split(8)
        bar = tqdm(
            batches,
            desc=f"{part} over all clips",
            unit="batch",
            leave=False,
            disable=not is_main(),
        )
        made = (function(audio.log_mel(data.corpus.wave(batch))) for batch in bar)
        data.features[part] = concatenated(len(data.corpus), made)
    return data.features[part]


def concatenated(n: int, pieces: Iterable[Tensor]) -> Tensor:
    """Pieces (k, ...) as one tensor (n, ...), each copied at once to where it will
    stay.

    Kept one by one they would lie scattered among all that was computed and freed
    between them, and a process would grow by several times what they hold.
    """
    whole, end = torch.empty(0), 0
    for piece in pieces:
        whole = whole if len(whole) else piece.new_empty(n, *piece.shape[1:])
        whole[end : end + len(piece)] = piece
        end += len(piece)
    return whole
