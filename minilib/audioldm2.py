"""AudioLDM 2, whole: from captions to waveforms through the Language of Audio (Liu et al., 2308.05734).

    captions -> encode -> loa -> sample -> decode -> waveforms

The stages are methods, so that a chapter can stop between any two of them. Chapter 16 builds the pipeline.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilib import audio
from minilib.audiomae import AudioMAE
from minilib.clap import CLAP
from minilib.diffusion import ddim_sample
from minilib.gpt import LOARegressor
from minilib.guidance import guided
from minilib.model import Model, local_folder, read_json, replacing
from minilib.text import T5Encoder, Tokenizer, split_words
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN, Vocos

PARTS: dict[str, tuple[type[Model], ...]] = {  # the folders of a pipeline, and the classes each may hold
    "text": (T5Encoder,),
    "clap": (CLAP,),
    "gpt": (LOARegressor,),
    "unet": (UNet,),
    "vae": (VAE,),
    "vocoder": (Vocos, HiFiGAN),
    "audiomae": (AudioMAE,),
}
MAX_TOKENS = 64  # of a caption that the encoders read
PAD_TO = 24  # tokens: GPT-2 counts padding, so that a caption's LOA would depend on the longest beside it
MAX_SECONDS = 60.0
MAX_STEPS = 1000


@dataclass
class Conditions:
    """What the captions became: for each encoder a sequence (B, S, D) and its mask (B, S). Chapter 16."""

    clap: tuple[Tensor, Tensor]  # one global vector, S = 1
    text: tuple[Tensor, Tensor]  # one state for each token

    def repeat(self, n: int) -> Conditions:
        """Each condition n times, the copies side by side."""
        return Conditions(*((x.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)) for x, mask in self))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter((self.clap, self.text))


@dataclass
class Profile:
    """Seconds spent in each stage of a call, in order. Chapter 17."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


class AudioLDM2:
    """The pipeline: encoders, LOA regressor, latent diffusion, VAE and vocoder (2308.05734 Fig. 1). Chapter 16."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        parts: dict[str, Model],
        seconds: float,
        vocabulary: dict | None = None,
        rescale: float = 0.0,
    ):
        self.tokenizer = tokenizer
        self.text, self.clap, self.gpt = parts["text"], parts["clap"], parts["gpt"]
        self.unet, self.vae, self.vocoder = parts["unet"], parts["vae"], parts["vocoder"]
        self.audiomae = parts.get("audiomae")  # needed for training only
        self.seconds = seconds  # the length the weights were trained on
        self.vocabulary = vocabulary or {}
        self.rescale = rescale  # the share of `guidance.rescale_guided`; 0 with the released weights
        self.profile = Profile()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> AudioLDM2:
        """Load a pipeline from a folder of parts, or from the hub. Chapter 16.

        Args:
            folder: holds `pipeline.json`, `tokenizer.json` and a folder for each part.
            device: where to put it; a GPU if there is one, else the CPU.
            dtype: floating-point type of the loaded weights, whatever is stored.

        Raises:
            FileNotFoundError: the folder or a file in it is missing.
            ValueError: a file is damaged, or weights and configs do not belong together.
        """
        folder = local_folder(folder)
        description = read_json(folder / "pipeline.json")
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        parts = {name: load_part(folder, name, dtype) for name in PARTS if name != "audiomae"}
        if (folder / "audiomae").is_dir():
            parts["audiomae"] = load_part(folder, "audiomae", dtype)
        vocabulary = read_json(folder / "vocabulary.json") if (folder / "vocabulary.json").is_file() else {}
        check_widths(parts, folder)
        check_description(description, folder / "pipeline.json")
        pipe = cls(tokenizer, parts, description["seconds"], vocabulary, description.get("rescale", 0.0))
        return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def to(self, device: str | torch.device) -> AudioLDM2:
        """Move every part to a device."""
        for model in self.models():
            model.to(device)
        return self

    def models(self) -> list[Model]:
        """The networks of the pipeline, in the order in which data passes them."""
        named = (self.text, self.clap, self.gpt, self.unet, self.vae, self.vocoder, self.audiomae)
        return [model for model in named if model is not None]

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.unet.device

    @torch.no_grad()
    def __call__(
        self,
        captions: str | Sequence[str],
        steps: int = 25,
        guidance: float = 3.5,
        seconds: float | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        negative: str | Sequence[str] | None = None,
        candidates: int = 1,
        progress: bool = True,
    ) -> Tensor:
        """Generate one sound for each caption. Chapter 16.

        Args:
            captions: B sentences (or one).
            steps: DDIM steps, 1 to 1000.
            guidance: strength w of classifier-free guidance, 0 or more; 1 switches it off.
            seconds: length of the sounds; None for the length of the training clips.
            seed: same seed, same machine: same sounds. None draws one.
            latents: start from this noise (B * candidates, C, T/r, F/r) instead of drawing it.
            negative: what to be guided away from, one for all or one each; None for the empty caption.
            candidates: sounds made for each caption, of which CLAP picks the one most like it.
            progress: show a bar over the steps.

        Returns:
            Waveforms (B, N), float32 in [-1, 1], N = 16000 * seconds, on the CPU.

        Raises:
            ValueError, TypeError: an argument is not as described; the sentence names it.
        """
        captions, negatives = check_captions(captions, negative)
        check_numbers(steps, guidance, candidates)
        n_samples = self.n_samples(seconds)
        self.profile = Profile()
        with self.profile.measure("encode"):
            conditions = self.encode(captions).repeat(candidates)
            unconditional = self.encode(negatives).repeat(candidates) if guidance != 1.0 else None
        with self.profile.measure("loa"):
            loa = self.loa(conditions)
        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        shape = self.latent_shape(len(loa), n_samples)
        if latents is None:
            latents = torch.randn(shape, generator=generator)
        if latents.shape != shape:
            raise ValueError(f"latents must be of shape {shape}, not {tuple(latents.shape)}")
        with self.profile.measure("sample"):
            z0 = self.sample(loa, conditions, steps, guidance, generator, latents, unconditional, progress)
        with self.profile.measure("decode"):
            waves = self.decode(z0, n_samples)
        if candidates > 1:
            with self.profile.measure("rank"):
                waves = self.best(waves, conditions, candidates)
        return waves.float().cpu()

    def encode(self, captions: Sequence[str]) -> Conditions:
        """Encode captions by CLAP's text tower and by the T5 encoder. Chapter 16."""
        ids, mask = (
            x.to(self.device) for x in self.tokenizer.encode(list(captions), MAX_TOKENS, pad_to=PAD_TO)
        )
        clap = self.clap.embed_text(ids, mask)[:, None]  # (B, 1, D)
        return Conditions(clap=(clap, mask.new_ones(len(clap), 1)), text=(self.text(ids, mask), mask))

    def loa(self, conditions: Conditions, generator: torch.Generator | None = None) -> Tensor:
        """M: C -> Y', predict the Language of Audio (B, L, D) (2308.05734 §3.2). Chapter 16.

        The regression draws nothing; `generator` is here for regressors that sample.
        """
        return self.gpt.generate({"clap": conditions.clap, "text": conditions.text})

    def sample(
        self,
        loa: Tensor,
        conditions: Conditions,
        steps: int = 25,
        guidance: float = 3.5,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        unconditional: Conditions | None = None,
        progress: bool = False,
    ) -> Tensor:
        """G: Y' -> z0, latent diffusion by DDIM with classifier-free guidance (2308.05734 §3.3). Chapter 16.

        Args:
            loa: (B, L, D), predicted by `loa` or true, from `AudioMAE.loa`.
            unconditional: conditions to be guided away from; None for those of the empty caption.

        Returns:
            z0 (B, C, T/r, F/r).
        """
        if latents is None:
            shape = self.latent_shape(len(loa), self.n_samples(None))
            latents = torch.randn(shape, generator=generator)
        model = self.noise_predictor(loa, conditions, guidance, unconditional)
        return ddim_sample(model, self.unet.schedule, latents.to(self.device), steps, progress=progress)

    def noise_predictor(
        self,
        loa: Tensor,
        conditions: Conditions,
        guidance: float = 3.5,
        unconditional: Conditions | None = None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """All that a sampler asks of the U-Net: (zt (B, C, T/r, F/r), t (B,)) -> eps_hat, guided. As `sample`.

        Chapter 16.
        """
        empty = None
        if guidance != 1.0:
            unconditional = unconditional or self.encode([""] * len(loa))
            empty = [(self.loa(unconditional), None), unconditional.text]
        predict = guided(self.unet, [(loa, None), conditions.text], empty, guidance, self.rescale)
        return lambda zt, t: self.unet.as_eps(zt, t, predict(zt, t))

    def decode(self, z0: Tensor, n_samples: int) -> Tensor:
        """From latents (B, C, T/r, F/r) to mels by the VAE, to waveforms (B, N) by the vocoder. Chapter 16."""
        return self.vocoder(self.vae.decode(z0))[:, :n_samples]

    def best(self, waves: Tensor, conditions: Conditions, candidates: int) -> Tensor:
        """Of each caption's own candidates (B * candidates, N), the one that CLAP finds most like it. Chapter 17."""
        similarity = (self.embed_waves(waves) * conditions.clap[0][:, 0]).sum(dim=-1)  # (B * candidates,)
        choice = similarity.view(-1, candidates).argmax(dim=1)
        return waves.view(-1, candidates, waves.shape[-1])[torch.arange(len(choice)), choice]

    def embed_waves(self, waves: Tensor) -> Tensor:
        """CLAP embeddings (B, D), of unit length, of waveforms (B, N). Chapter 17."""
        return self.clap.embed_waves(waves)

    def reconstruct(self, mel: Tensor) -> Tensor:
        """A log-mel (B, 1, T, F) through the VAE and back, T any length. Chapter 07."""
        r = self.vae.config.reduction
        padded = torch.nn.functional.pad(mel, (0, 0, 0, -mel.shape[2] % r), value=math.log(audio.LOG_FLOOR))
        return self.vae(padded)[:, :, : mel.shape[2]]

    def n_samples(self, seconds: float | None) -> int:
        """Samples of a sound of this length; raises ValueError unless it lies in 0.1 to 60 s. Chapter 16."""
        seconds = self.seconds if seconds is None else seconds
        if not 0.1 <= seconds <= MAX_SECONDS:  # false for nan as well
            raise ValueError(f"seconds must lie between 0.1 and {MAX_SECONDS:g}, not {seconds}")
        return round(seconds * audio.SAMPLE_RATE)

    def latent_shape(self, n: int, n_samples: int) -> tuple[int, int, int, int]:
        """Shape of the latents of n sounds: frames rounded up to what VAE and U-Net can halve. Chapter 16."""
        r = self.vae.config.reduction
        multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)
        T = math.ceil(n_samples / audio.HOP / r / multiple) * multiple
        return n, self.vae.config.z_channels, T, audio.N_MELS // r

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption that these weights have not been trained on. Chapter 17."""
        known = set(self.vocabulary.get("words", ()))
        return sorted({word for word in split_words(caption) if word and word not in known}) if known else []

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write all parts, the tokenizer and the description, so that `from_pretrained` finds them. Chapter 16."""
        folder = Path(folder)
        for name in PARTS:
            if (model := getattr(self, name)) is not None:
                model.save_pretrained(folder / name, dtype=dtype)
        save_description(folder, self.tokenizer, self.seconds, self.vocabulary, self.rescale)


def load_part(folder: Path, name: str, dtype: torch.dtype | None = None) -> Model:
    """Load one part of a pipeline's folder, by the class that its config names. Chapter 16."""
    config = read_json(folder / name / "config.json")
    known = lambda c: {field.name for field in dataclasses.fields(c.config_class)}
    # the config of an older save may lack a field that was added since: it takes the default
    classes = [c for c in PARTS[name] if config and set(config) <= known(c)]
    if not classes:
        expected = " or ".join(c.__name__ for c in PARTS[name])
        raise ValueError(f"{folder / name / 'config.json'} is not the config of a {expected}")
    return classes[0].from_pretrained(folder / name, dtype=dtype)


def save_description(
    folder: Path, tokenizer: Tokenizer, seconds: float, vocabulary: dict[str, Any], rescale: float = 0.0
) -> None:
    """Write what a pipeline needs beside its parts: `pipeline.json`, tokenizer and vocabulary. Chapter 16."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    description = {"seconds": seconds, "rescale": rescale}
    for name, values in (("pipeline.json", description), ("vocabulary.json", vocabulary)):
        with replacing(folder / name) as path:
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def check_description(description: dict[str, Any], path: Path) -> None:
    """Raise ValueError where a `pipeline.json` does not tell what the pipeline must know. Chapter 16."""
    if not isinstance(description.get("seconds"), int | float):
        raise ValueError(f"{path} is damaged: it must tell the `seconds` of a sound")
    rescale = description.get("rescale", 0.0)
    if not isinstance(rescale, int | float) or not 0.0 <= rescale <= 1.0:
        raise ValueError(f"{path} is damaged: `rescale` must lie between 0 and 1, not {rescale!r}")


def check_widths(parts: dict[str, Model], folder: Path) -> None:
    """Raise ValueError where one part's output does not fit the next one's input. Chapter 16."""
    text, clap, gpt, unet, vae = (parts[name].config for name in ("text", "clap", "gpt", "unet", "vae"))
    loa_dims, text_dims = unet.cross_attention_dim[:2], unet.cross_attention_dim[2:]
    pairs = [
        ("clap", clap.dim, "gpt", gpt.condition_dims[0]),
        ("text", text.d_model, "gpt", gpt.condition_dims[-1]),
        ("vae", vae.z_channels, "unet", unet.in_channels),
        *(("gpt", gpt.n_embd, "unet", dim) for dim in loa_dims if dim is not None),
        *(("text", text.d_model, "unet", dim) for dim in text_dims if dim is not None),
    ]
    for giver, given, taker, taken in pairs:
        if given != taken:
            raise ValueError(
                f"{folder} mixes configs: {giver} gives width {given}, but {taker} takes {taken}"
            )
    if unet.loa_channels and gpt.n_tokens != math.prod(unet.loa_grid):
        raise ValueError(
            f"{folder} mixes configs: gpt writes {gpt.n_tokens} LOA vectors, but unet lays out {unet.loa_grid}"
        )


def check_captions(
    captions: str | Sequence[str], negative: str | Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Captions and what to guide away from, as lists of one length; a sentence for what is neither. Chapter 16."""
    captions = [captions] if isinstance(captions, str) else list(captions)
    if not captions:
        raise ValueError("captions is empty: at least one caption is needed")
    for caption in captions:
        if not isinstance(caption, str):
            raise TypeError(f"captions must be strings, not {type(caption).__name__}")
        if not caption.strip():
            raise ValueError("a caption is empty: describe the sound in a few words")
    negatives = [negative or ""] if isinstance(negative, str) or negative is None else list(negative)
    if len(negatives) == 1:
        negatives = negatives * len(captions)
    if len(negatives) != len(captions):
        raise ValueError(
            f"negative must be one for all or one for each of {len(captions)}, not {len(negatives)}"
        )
    return captions, negatives


def check_numbers(steps: int, guidance: float, candidates: int) -> None:
    """Raise ValueError for numbers that no sampler can use. Chapter 16."""
    if not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps must be a whole number from 1 to {MAX_STEPS}, not {steps}")
    if not 0.0 <= guidance < math.inf:  # false for nan as well
        raise ValueError(f"guidance must be a finite number, 0 or more, not {guidance}")
    if not isinstance(candidates, int) or not 1 <= candidates <= 64:
        raise ValueError(f"candidates must be a whole number from 1 to 64, not {candidates}")
