"""The stages of AudioLDM 2 in the paper's order (2308.05734 §3.4): what each one
trains, on which batches.

vae, vocoder and audiomae hear sound alone; clap and text read captions; gpt learns to
write the LOA, ldm to turn true LOA into latents; joint tunes these two together;
adversarial sharpens the vocoder. Apart stand the judge, and sight and bind, which make
ImageBind. Each is built in the chapter of its model. speak and utter are gpt and ldm
for speech, depict is gpt for pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio
from minilib.audiomae import AudioMAE, Columns, ColumnsConfig
from minilib.bind import ImageBind
from minilib.clap import CLAP
from minilib.classifier import Classifier
from minilib.conditions import Context, drop, from_batch, to_batch
from minilib.discriminators import Adversarial, Discriminators
from minilib.gpt import LOARegressor, Loudness, LoudnessConfig
from minilib.memory import Memory, MemoryConfig
from minilib.model import Model
from minilib.phonemes import PhonemeEncoder, PhonemeTokenizer
from minilib.soundworld import SENSES, Scene, SoundWorld, describe
from minilib.soundworld.corpus import to_float
from minilib.soundworld.instructions import instructions
from minilib.text import T5, noise_spans, span_corrupt
from minilib.tokenizer import PAD
from minilib.training.clips import (
    RENDERS,
    Labelled,
    Recordings,
    Renders,
    SaidVoices,
    SaidWords,
    TrainingData,
    bar,
    concatenated,
    crop,
    draw,
)
from minilib.training.loop import Recipe
from minilib.unet import UNet
from minilib.vae import VAE, centre, standardise
from minilib.vocoder import VOCODERS

P_EMPTY = 0.1  # share of the conditions that are emptied, for classifier-free guidance
# share of the clips of which GPT-2 is shown true vectors, in its own stage
P_TAUGHT = 0.25
P_TRUE_LOA = 0.25  # share of true LOA in joint fine-tuning; the rest is predicted
# clips to which the LOA of speech is fitted, and how loud those of a stream are
MOST_FITTED = 1024
P_PROMPTED = 0.5  # share of speech whose voice is told by a sound, not by a caption
MOST_REMEMBERED = 2048  # clips among which a picture finds its place
MOST_PHONEMES = 24  # with the end sign, of what is spoken in a clip
SMEARED = 0.3  # the largest share that is smeared, of what the judge of voices hears
MEL_MEAN, MEL_STD = -7.0, 3.0  # about, of SoundWorld's log-mels and of recordings


class Stage(ABC):
    """One stage of the training: which parts it needs, which it makes, and its batches.

    Args:
        preset: of the models that it makes.
        recipe: how they are trained; data: from what.
        parts: by name, those that it needs; an encoder has its tokenizer.
        seed: of weights and batches.
        options: other values for the class's own `crop`, `recorded` or `levels`.
    """

    name: str
    needs: tuple[str, ...] = ()  # parts that must have been trained before
    makes: tuple[str, ...] = ()  # parts that it trains
    renews: tuple[str, ...] = ()  # of these, parts that it makes only where they were
    reads_classes = False  # of recordings, as their table tells them
    crop = 0  # frames of each clip that a batch takes; 0 takes all
    recorded = 0.0  # share of recordings in a batch, where there are recordings

    def __init__(
        self,
        preset: str,
        recipe: Recipe,
        data: TrainingData,
        parts: dict[str, Model],
        seed: int = 0,
        **options: Any,
    ):
        self.preset, self.recipe, self.data = preset, recipe, data
        self.parts, self.seed = parts, seed
        for name, value in options.items():
            if not hasattr(self, name):
                raise TypeError(f"stage {self.name} has no option {name}")
            setattr(self, name, value)
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

    def waves(self, generator: torch.Generator) -> Tensor:
        """Waveforms (B, N) to listen to, cut and mixed as the stage's options say."""
        n = self.recipe.batch_size
        waves = self.data.waves(n, self.recorded, generator)
        return crop(waves, self.crop * audio.HOP, generator) if self.crop else waves

    def ahead(self, generator: torch.Generator) -> None:
        """Begin to read the clips of the batch that will be drawn from this generator:
        every batch draws its clips first.
        """
        self.data.ahead(self.recipe.batch_size, generator)

    def encoders(self, gpt: LOARegressor) -> dict[str, Model]:
        """The encoders of what GPT-2 reads, by name."""
        return {name: self.parts[name] for name in gpt.config.conditions}


class VAEStage(Stage):
    """The KL-regularised autoencoder, self-supervised, on log-mels. Chapter 07."""

    name, makes = "vae", ("vae",)

    def build(self) -> nn.Module:
        vae = seeded(VAE, self.preset, self.seed)
        centre(vae, MEL_MEAN, MEL_STD)
        return vae

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        mel = audio.log_mel(self.waves(generator))  # (B, 1, T, F)
        C, r = self.model.config.latent_channels, self.model.config.reduction
        shape = len(mel), C, mel.shape[2] // r, mel.shape[3] // r
        return {"mel": mel, "eps": torch.randn(shape, generator=generator)}

    @torch.no_grad()
    def finish(self) -> dict[str, Model]:
        """Bring draws from the posterior to mean 0 and variance 1 in every channel.

        A channel that the KL term has emptied holds the posterior's variance and hardly
        a mean: it stays small.
        """
        mel = self.data.mels(256).to(self.model.device)
        mean, log_variance = self.model.moments(mel)  # each (n, C, T/r, F/r)
        variance = mean.var(dim=(0, 2, 3)) + log_variance.exp().mean(dim=(0, 2, 3))
        standardise(self.model, mean.mean(dim=(0, 2, 3)), variance.sqrt())
        return {"vae": self.model}


class VocoderStage(Stage):
    """The vocoder on short pieces of waveform, self-supervised. Chapter 08."""

    name, makes = "vocoder", ("vocoder",)

    def build(self) -> nn.Module:
        return seeded(VOCODERS[self.preset], self.preset, self.seed)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        wave = self.waves(generator)
        return {"wave": wave, "mel": audio.log_mel(wave)}


class AdversarialStage(VocoderStage):
    """The trained vocoder goes on against discriminators, which start anew and don't
    ship. Chapter 08.
    """

    name, needs = "adversarial", ("vocoder",)

    def build(self) -> nn.Module:
        discriminators = seeded(Discriminators, self.preset, self.seed)
        return Adversarial(self.parts["vocoder"], discriminators)

    def finish(self) -> dict[str, Model]:
        return {"vocoder": self.model.vocoder}


class AudioMAEStage(Stage):
    """The masked autoencoder on whole clips, self-supervised. Chapter 09."""

    name, makes = "audiomae", ("audiomae",)

    def build(self) -> nn.Module:
        return seeded(AudioMAE, self.preset, self.seed)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        mel = audio.log_mel(self.waves(generator))
        time_patches, mel_patches = self.model.config.grid
        shape = len(mel), time_patches * mel_patches
        return {"mel": mel, "noise": torch.rand(shape, generator=generator)}

    def finish(self) -> dict[str, Model]:
        """Measure the LOA, so that the regression sees unit variance."""
        self.model.fit_statistics(self.data.mels(512))
        return {"audiomae": self.model}


class CLAPStage(Stage):
    """Both towers of CLAP on captioned clips. Chapter 10."""

    name, makes = "clap", ("clap",)

    def build(self) -> nn.Module:
        return seeded(CLAP, self.preset, self.seed)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, captions = self.data.pairs(self.recipe.batch_size, generator)
        ids, mask = self.data.tokenizer.encode(captions)
        log_mel = audio.log_mel(self.data.corpus.wave(indices))
        return {"ids": ids, "mask": mask, "log_mel": log_mel}


class TextStage(Stage):
    """The T5 encoder by span corruption on captions, with a decoder that does not ship.

    Chapter 11.
    """

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
        n_targets = ((targets != PAD).sum() / len(ids)).expand(len(ids))
        return {"ids": ids, "mask": mask, "noise": noise, "n_targets": n_targets}

    def finish(self) -> dict[str, Model]:
        return {"text": self.model.text_encoder()}


class InstructStage(TextStage):
    """T5, trained by span corruption before, learns to follow instructions about
    scenes, as FLAN-T5 did (2210.11416). Chapter 11.
    """

    name, needs = "instruct", ("text",)  # the whole T5, its decoder included

    def build(self) -> nn.Module:
        self.told = instructions(len(self.data.corpus), seed=self.seed)
        return self.parts["text"]

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        n, encode = self.recipe.batch_size, self.data.tokenizer.encode
        some = [self.told[i] for i in draw(len(self.told), n, generator).tolist()]
        ids, mask = encode([instruction.text for instruction in some])
        targets, kept = encode([instruction.answer for instruction in some])
        n_targets = (kept.sum() / n).expand(n)
        return {"ids": ids, "mask": mask, "targets": targets, "n_targets": n_targets}


class GPTStage(Stage):
    """GPT-2 on true LOA; a tenth of the captions are emptied.

    A quarter of the clips are teacher-forced, at a random share of their vectors;
    everywhere else GPT-2 goes on from what it wrote itself. Encoders that this stage
    also makes learn with it. Chapter 13.
    """

    name, makes, needs = "gpt", ("gpt", "loudness"), ("audiomae", "clap", "text")

    def build(self) -> nn.Module:
        self.gpt = seeded(LOARegressor, self.preset, self.seed)
        self.loa = self.data.loa(self.parts["audiomae"], self.gpt.config.n_tokens)
        encoders = self.encoders(self.gpt).items()
        self.learning = {name: x for name, x in encoders if name in self.makes}
        return Reading(self.gpt, self.learning) if self.learning else self.gpt

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, _ = self.data.pairs(self.recipe.batch_size, generator)
        return self.batch_of(indices, generator)

    def batch_of(self, indices: Tensor, generator: torch.Generator) -> dict:
        """The batch of these clips (B,)."""
        loa = self.loa[indices]  # (B, L, D)
        taught = torch.rand(len(loa), 1, generator=generator) < P_TAUGHT
        share = torch.rand(len(loa), 1, generator=generator)
        keep = taught & (torch.rand(loa.shape[:2], generator=generator) < share)
        dropped = torch.rand(len(loa), generator=generator) < P_EMPTY
        encoders = self.encoders(self.gpt)
        told = self.data.told(encoders, indices, dropped, learning=self.learning)
        return {"loa": loa, "keep": keep, **told}

    def finish(self) -> dict[str, Model]:
        """GPT-2, the encoders that learned with it, and how loud the clips are."""
        loudness = fitted_loudness(self.gpt, self.encoders(self.gpt), self.data)
        return {"gpt": self.gpt, **self.learning, "loudness": loudness}


class Reading(nn.Module):
    """GPT-2 and encoders that learn with it, as one model: they encode inside the loss,
    whose gradient reaches them.
    """

    def __init__(self, gpt: LOARegressor, encoders: dict[str, Model]):
        super().__init__()
        self.gpt, self.encoders = gpt, nn.ModuleDict(encoders)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """`LOARegressor.loss` of a batch in which `NAME_ids` and `NAME_ids_mask` (B, S)
        are what encoder NAME reads, and `dropped` (B,) says where it reads nothing.
        """
        told, empty = {}, {}
        for name, encoder in self.encoders.items():
            ids, mask = batch[f"{name}_ids"], batch[f"{name}_ids_mask"]
            told[name] = Context(encoder(ids, mask), mask)
            empty[name] = encoder.empty(1, pad_to=ids.shape[1])
        told = drop(told, empty, batch["dropped"])
        return self.gpt.loss({**batch, **to_batch(told)})


class LDMStage(Stage):
    """The U-Net on true LOA, self-supervised: no caption is read (2308.05734 §3.3).

    Chapter 14.
    """

    name, makes, needs = "ldm", ("unet",), ("vae", "audiomae", "clap", "text", "gpt")

    @torch.no_grad()
    def build(self) -> nn.Module:
        gpt = self.parts["gpt"]
        self.loa = self.data.loa(self.parts["audiomae"], gpt.config.n_tokens)
        self.z0 = self.data.latents(self.parts["vae"])
        # what "no condition" is
        empty = {name: x.empty(1) for name, x in self.encoders(gpt).items()}
        self.empty = {**empty, "loa": Context(gpt.generate(empty))}
        unet = seeded(UNet, self.preset, self.seed)
        unet.recompute_activations(self.recipe.recompute)
        return unet

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, _ = self.data.pairs(self.recipe.batch_size, generator)
        n = len(indices)
        batch = noised(self.z0[indices], self.model.config.n_steps, generator)
        dropped = torch.rand(n, generator=generator) < P_EMPTY
        loa = drop({"loa": Context(self.loa[indices])}, self.empty, dropped)
        told = {name: context.repeat(n) for name, context in self.empty.items()}
        return batch | to_batch(told | loa)


class Joint(nn.Module):
    """GPT-2 and U-Net as one: the noise loss also teaches GPT-2. Chapter 16."""

    def __init__(self, gpt: LOARegressor, unet: UNet):
        super().__init__()
        self.gpt, self.unet = gpt, unet

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Noise loss on true or predicted LOA, as `true_loa` says, plus the
        regression's own, on what GPT-2 writes without a teacher (2308.05734 §3.4).

        A pass over the written vectors gives them again. Its gradient holds each
        vector's own error, not what that does to later ones (as in DAgger, 1011.0686).

        The batch holds, of B clips, `loa` (B, L, D) and the conditions; of each at K
        noise levels, `z0` and `eps` (B, K, C, T/r, F/r), `t` and `true_loa` (B, K).
        """
        conditions = from_batch(batch, self.gpt.config.conditions)
        K = batch["t"].shape[1]
        with torch.no_grad():
            own = self.gpt.generate(conditions)
        predicted = self.gpt(conditions, own)
        regression = F.mse_loss(predicted, batch["loa"])
        true = batch["true_loa"].flatten()[:, None, None]  # (B K, 1, 1)
        both = (x.repeat_interleave(K, dim=0) for x in (batch["loa"], predicted))
        told = {name: context.repeat(K) for name, context in conditions.items()}
        told["loa"] = Context(torch.where(true, *both))
        noisy = {name: batch[name].flatten(0, 1) for name in ("z0", "t", "eps")}
        noise = self.unet.loss({**noisy, **to_batch(told)})
        losses = {"noise": noise.detach(), "loa": regression.detach()}
        return {"loss": noise + regression, **losses}


class JointStage(Stage):
    """Joint fine-tuning on true LOA or, mostly, predicted (§3.4). Chapter 16."""

    name, makes, renews = "joint", ("gpt", "unet", "loudness"), ("loudness",)
    needs = ("vae", "audiomae", "clap", "text", "gpt", "unet")
    levels = 1  # of noise, at which each latent is shown to the U-Net

    def build(self) -> nn.Module:
        gpt, unet = self.parts["gpt"], self.parts["unet"]
        self.loa = self.data.loa(self.parts["audiomae"], gpt.config.n_tokens)
        self.z0 = self.data.latents(self.parts["vae"])
        unet.recompute_activations(self.recipe.recompute)
        return Joint(gpt, unet)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, _ = self.data.pairs(self.recipe.batch_size, generator)
        B, K = len(indices), self.levels
        z0 = self.z0[indices].repeat(K, 1, 1, 1)  # (K B, C, T/r, F/r)
        noisy = noised(z0, self.model.unet.config.n_steps, generator)
        noisy = {k: x.unflatten(0, (K, B)).transpose(0, 1) for k, x in noisy.items()}
        dropped = torch.rand(B, generator=generator) < P_EMPTY
        # where nothing is read, the LOA is GPT-2's own
        true = torch.rand(B, K, generator=generator) < P_TRUE_LOA
        noisy["true_loa"] = true & ~dropped[:, None]
        told = self.data.told(self.encoders(self.model.gpt), indices, dropped)
        return {**noisy, "loa": self.loa[indices], **told}

    def finish(self) -> dict[str, Model]:
        """Both parts, and how loud the clips are: GPT-2 writes another LOA now."""
        gpt, made = self.model.gpt, {"gpt": self.model.gpt, "unet": self.model.unet}
        if "loudness" in self.parts:
            made["loudness"] = fitted_loudness(gpt, self.encoders(gpt), self.data)
        return made


class JudgeStage(Stage):
    """The classifier that scores generated sounds, trained apart from all that it
    judges. Chapter 17.
    """

    name, makes, reads_classes = "judge", ("judge",), True

    def build(self) -> nn.Module:
        seconds = self.data.corpus.waves.shape[1] / audio.SAMPLE_RATE
        self.sounds = self.labelled(seconds)
        classes = self.sounds.classes
        return seeded(Classifier, self.preset, self.seed, classes=classes)

    def labelled(self, seconds: float) -> Labelled:
        """The sounds of so many seconds from which it learns."""
        if self.data.folder is not None:
            return Recordings(self.data.folder, seconds)
        known, n = Classifier.presets[self.preset].classes, len(self.data.corpus)
        return Renders(known, n, self.seed, self.data.progress)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        waves, labels = self.sounds.draw(self.recipe.batch_size, generator)
        return {"mel": audio.log_mel(waves), "label": labels}


class WordsStage(JudgeStage):
    """The judge of words: it tells which word of SoundWorld is said."""

    name, makes, reads_classes = "words", ("words",), False

    def labelled(self, seconds: float) -> Labelled:
        """Words in other voices than those of SoundWorld."""
        return SaidWords(seconds, self.data.progress)


class VoicesStage(JudgeStage):
    """The judge of voices: it tells which voice of SoundWorld speaks."""

    name, makes, reads_classes = "voices", ("voices",), False

    def labelled(self, seconds: float) -> Labelled:
        """Other words than those of SoundWorld."""
        return SaidVoices(seconds, self.data.progress)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        batch = super().batch(generator)
        return {**batch, "mel": blurred(batch["mel"], generator)}


class SightStage(Stage):
    """Pictures and captions of SoundWorld learn together, and captions in other words:
    the part of ImageBind that the paper takes from CLIP, ready-made. Chapter 12.
    """

    name, makes = "sight", ("bind",)

    def build(self) -> nn.Module:
        world, indices = scenes_to_see(self, first=0)
        self.seen = seen(world, indices, ("image",))
        self.captions = [twice_told(world.scene(i)) for i in indices]
        model = seeded(ImageBind, self.preset, self.seed)
        model.freeze("audio", "depth", "thermal", "motion")  # whose turn comes later
        return model

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        some = draw(len(self.captions), self.recipe.batch_size, generator)
        told, others = zip(*(self.captions[i] for i in some.tolist()))
        ids, mask = self.data.tokenizer.encode(list(told))
        other_ids, other_mask = self.data.tokenizer.encode(list(others))
        batch = {"image": self.seen["image"][some], "ids": ids, "mask": mask}
        return {**batch, "other_ids": other_ids, "other_mask": other_mask}


class BindStage(Stage):
    """Sound, depth, heat and motion come to meet the pictures, which stay as they are.

    The scenes are others than those of the stage `sight`: no sound was ever beside a
    caption. Chapter 12.
    """

    name, makes, needs = "bind", ("bind",), ("bind",)

    def build(self) -> nn.Module:
        world, indices = scenes_to_see(self, first=RENDERS)
        self.seen = seen(world, indices, ("image", "depth", "thermal", "motion"))
        self.sounds = np.stack([world.samples(i) for i in indices])
        self.parts["bind"].freeze("image", "text")
        return self.parts["bind"]

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        some = draw(len(self.sounds), self.recipe.batch_size, generator)
        batch = {sense: x[some] for sense, x in self.seen.items()}
        waves = torch.from_numpy(to_float(self.sounds[some.numpy()]))
        return {**batch, "audio": audio.log_mel(waves)}


class SpeakStage(GPTStage):
    """GPT-2 and the phoneme encoder learn together to write the LOA of speech, a vector
    for each column of patches.

    CLAP tells the voice: from a caption or, as often, from a sound. The sound is any
    clip in the same voice, so that only the phonemes say which word it is.
    """

    name, needs = "speak", ("audiomae", "clap")
    makes = ("gpt", "text", "columns")

    def build(self) -> nn.Module:
        audiomae, clap = self.parts["audiomae"], self.parts["clap"]
        columns = fitted_columns(audiomae, self.data)
        text = seeded(PhonemeEncoder, self.preset, self.seed)
        text.tokenizer = PhonemeTokenizer(MOST_PHONEMES)
        self.parts |= {"columns": columns, "text": text}
        sizes = {"n_tokens": columns.config.n_tokens, "n_embd": columns.config.dim}
        sizes |= {"condition_dims": (clap.dim, text.dim)}
        sizes |= {"learned_positions": MOST_PHONEMES}
        self.gpt = seeded(LOARegressor, self.preset, self.seed, **sizes)
        self.loa, self.learning = self.data.columns(audiomae, columns), {"text": text}
        heard = ("clap", 0), clap.embed_audio
        self.sounds = self.data.over_clips(*heard, of=(clap,))  # (N, D)
        same: dict[str, list[int]] = {}
        for i, voice in enumerate(self.data.voices):
            same.setdefault(voice, []).append(i)
        self.same = {voice: torch.tensor(some) for voice, some in same.items()}
        return Reading(self.gpt, self.learning)

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        indices, _ = self.data.pairs(self.recipe.batch_size, generator)
        batch = self.batch_of(indices, generator)
        shown = torch.rand(len(indices), generator=generator) < P_PROMPTED
        prompts = self.sounds[self.prompts(indices, generator)][:, None]  # (B, 1, D)
        shown = (shown & ~batch["dropped"])[:, None, None]
        return {**batch, "clap": torch.where(shown, prompts, batch["clap"])}

    def prompts(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """For each clip (B,) a clip of the same voice: (B,)."""
        alike = [self.same[self.data.voices[i]] for i in indices.tolist()]
        drawn = torch.rand(len(alike), generator=generator).tolist()
        places = (some[int(u * len(some))] for some, u in zip(alike, drawn))
        return torch.stack(list(places))

    def finish(self) -> dict[str, Model]:
        """GPT-2, the phoneme encoder, and the map that defines their LOA."""
        return {"gpt": self.gpt, **self.learning, "columns": self.parts["columns"]}


class UtterStage(LDMStage):
    """The U-Net on the true LOA of speech; it reads nothing else."""

    name = "utter"
    needs = ("vae", "audiomae", "columns", "clap", "text", "gpt")
    widths: tuple[int, ...] = ()  # of the U-Net's blocks; () for the preset's

    @torch.no_grad()
    def build(self) -> nn.Module:
        gpt, columns = self.parts["gpt"], self.parts["columns"]
        self.loa = self.data.columns(self.parts["audiomae"], columns)
        self.z0 = self.data.latents(self.parts["vae"])
        empty = {name: x.empty(1) for name, x in self.encoders(gpt).items()}
        self.empty = {**empty, "loa": Context(gpt.generate(empty))}
        patch, L = UNet.presets[self.preset].patch, gpt.config.n_tokens
        sizes: dict[str, Any] = {"in_channels": self.z0.shape[1], "loa_grid": (L, 1)}
        T, F_ = (n // patch for n in self.z0.shape[2:])
        sizes["loa_patch"] = (T // L, F_)  # each vector lies under its own frames
        read = {"cross_attention": (None, "loa")}
        read["cross_attention_dim"] = (None, gpt.config.n_embd)
        if self.widths:
            sizes["block_out_channels"] = tuple(self.widths)
        unet = seeded(UNet, self.preset, self.seed, **sizes, **read)
        unet.recompute_activations(self.recipe.recompute)
        return unet


class DepictStage(GPTStage):
    """GPT-2 on what ImageBind hears in the clips. At inference a picture takes the
    sound's place: GPT-2 has seen no picture before, and no pair of picture and sound.

    In the common space a picture lies near its sound, but not where a sound would lie.
    So noise is added to what is heard, as CapDec does (Nukrai et al., 2211.00575), and
    some of the sounds are remembered, to find a picture's place among them (`Memory`).
    """

    name, needs = "depict", ("audiomae", "bind")
    makes = ("gpt", "loudness", "memory")
    blur = 0.5  # length of the noise, beside embeddings of length 1

    def build(self) -> nn.Module:
        bind = self.parts["bind"]
        D = bind.dim
        sizes = {"conditions": ("bind",), "condition_dims": (D,)}
        self.gpt = seeded(LOARegressor, self.preset, self.seed, **sizes)
        with torch.no_grad():  # as for CLAP, whose vectors have length 1, too
            self.gpt.projection.projection.weight.mul_(D**0.5)
        self.loa = self.data.loa(self.parts["audiomae"], self.gpt.config.n_tokens)
        self.data.heard("bind", bind)
        self.learning = {}
        return self.gpt

    def batch_of(self, indices: Tensor, generator: torch.Generator) -> dict:
        """The batch of these clips (B,), blurred where it is not emptied."""
        batch = super().batch_of(indices, generator)
        heard = batch["bind"]  # (B, 1, D)
        noise = torch.randn(heard.shape, generator=generator)
        blurred = heard + self.blur * noise / heard.shape[2] ** 0.5
        told = heard.any(dim=2, keepdim=True)
        return {**batch, "bind": F.normalize(blurred, dim=2) * told}

    def finish(self) -> dict[str, Model]:
        """GPT-2, how loud the clips are, and what ImageBind heard in some of them."""
        heard = self.data.heard("bind", self.parts["bind"])[:MOST_REMEMBERED]
        memory = Memory(MemoryConfig(*heard.shape))
        memory.fit(heard)
        return {**super().finish(), "memory": memory}


# in the order of the paper; adversarial could follow the vocoder at once
STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        VAEStage, VocoderStage, AudioMAEStage, CLAPStage, TextStage, GPTStage, LDMStage,
        JointStage, AdversarialStage, SightStage, BindStage, JudgeStage,
    )
}  # fmt: skip
APART = ("sight", "bind", "judge")  # trained only where it is asked for
# further stages, of presets that speak; the last two judge what they say
SPEECH: dict[str, type[Stage]] = {
    x.name: x for x in (SpeakStage, UtterStage, WordsStage, VoicesStage)
}
SEEING: dict[str, type[Stage]] = {DepictStage.name: DepictStage}  # pictures
# of a stream, their batches need no sound where outputs of frozen parts are kept
SOUNDLESS = (GPTStage, LDMStage, JointStage)
ALL_STAGES = tuple(name for name in STAGES if name not in APART)


def seeded(model_class: type[Model], preset: str, seed: int, **changes: Any) -> Model:
    """A preset, changed, with weights drawn from a seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class.preset(preset, **changes)


def check_seen(names: Sequence[str], data: Any) -> None:
    """Raise ValueError for stages that look at pictures, which recordings lack."""
    for name in names if data is not None else ():
        if name in ("sight", "bind"):
            said = "recordings have none: leave out the folder of recordings"
            raise ValueError(f"stage {name} needs the pictures of SoundWorld; {said}")


def scenes_to_see(stage: Stage, first: int) -> tuple[SoundWorld, range]:
    """A SoundWorld with tunes, and the scenes of it that a stage may look at: as many
    as there are clips, RENDERS at most.

    Raises:
        ValueError: the clips are recordings, which have no pictures.
    """
    check_seen([stage.name], stage.data.folder)
    seconds = stage.data.corpus.waves.shape[1] / audio.SAMPLE_RATE
    world = SoundWorld("train", stage.seed + 2, seconds, pairs=0.3, music=0.3)
    return world, range(first, first + min(len(stage.data.corpus), RENDERS))


def seen(
    world: SoundWorld, indices: range, senses: tuple[str, ...]
) -> dict[str, Tensor]:
    """What scenes look like to some senses: of each, (n, ...)."""
    scenes = [world.scene(i) for i in indices]
    return {x: torch.stack([SENSES[x](scene) for scene in scenes]) for x in senses}


def twice_told(scene: Scene) -> tuple[str, str]:
    """Two captions of a scene, most often in different words."""
    first, second = (np.random.default_rng([scene.seed, k]) for k in (1, 3))
    return describe(scene, first), describe(scene, second)


def blurred(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Log-mels (B, 1, T, F) whose power is smeared over the nearest bands and frames,
    of each clip another share. A vocoder smears too, and fills the gaps between the
    harmonics of a low voice: its pitch must be heard in spite of that.
    """
    power = mel.exp().square()
    smeared = F.avg_pool2d(power, 3, stride=1, padding=1, count_include_pad=False)
    share = SMEARED * torch.rand(len(mel), 1, 1, 1, generator=generator)
    return torch.lerp(power, smeared, share).sqrt().log()


def noised(z0: Tensor, n_steps: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Latents (B, ...) with a noise level and the noise for each (2006.11239 Algorithm
    1, lines 3 and 4).

    Every level is as likely as any other. Those of one batch are spread evenly, so that
    its loss depends less on which it happened to draw (the low-discrepancy sampler of
    2107.00630).
    """
    places = torch.arange(len(z0)) / len(z0)
    u = (torch.rand((), generator=generator) + places) % 1  # (B,), in [0, 1)
    t = 1 + (u * n_steps).long().clamp_max(n_steps - 1)
    return {"z0": z0, "t": t, "eps": torch.randn(z0.shape, generator=generator)}


def fitted_columns(audiomae: AudioMAE, data: TrainingData) -> Columns:
    """The LOA with a vector for each column of patches, as wide as a patch's features,
    fitted to clips.
    """
    T, sizes = data.corpus.waves.shape[1] // audio.HOP, audiomae.config
    n_features = sizes.hidden_size * sizes.grid[1]
    given = T, sizes.patch_size, n_features, sizes.hidden_size
    columns = Columns(ColumnsConfig(*given))
    columns.fit(audiomae, data.mels(MOST_FITTED))
    return columns


@torch.no_grad()
def fitted_loudness(
    gpt: LOARegressor, encoders: dict[str, Model], data: TrainingData
) -> Loudness:
    """How loud the clips are, as read from what GPT-2 writes from their captions."""
    fitted = data.first(MOST_FITTED if data.streamed else len(data.corpus))
    n, everything = len(fitted), fitted.split(64)

    def written(indices: Tensor) -> Tensor:
        dropped = torch.zeros(len(indices), dtype=torch.bool)
        told = data.told(encoders, indices, dropped)
        told = {name: x.to(gpt.device) for name, x in told.items()}
        return gpt.generate(from_batch(told, gpt.config.conditions)).cpu()

    loa = concatenated(n, map(written, bar(everything, "GPT-2", data.progress)))
    loudness = Loudness(LoudnessConfig(*loa.shape[1:]))
    loudness.fit(loa, data.over_clips(("loudness", 0), audio.loudness)[fitted][:, 0])
    return loudness
