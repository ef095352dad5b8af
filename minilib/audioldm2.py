"""AudioLDM 2, whole: from captions to waveforms through the Language of Audio (Liu et
al., 2308.05734).

    captions -> encode -> loa -> sample -> decode -> waveforms

The stages are methods, so that a chapter can stop between any two of them. Chapter 16
builds the pipeline.
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

from minilib import audio, lean
from minilib.audiomae import AudioMAE
from minilib.clap import CLAP
from minilib.convert import released
from minilib.convert.released import ReleasedCLAP, ReleasedTokenizer
from minilib.diffusion import ddim_sample, dpm_solver_sample
from minilib.files import replacing, replacing_entries
from minilib.gpt import LOARegressor
from minilib.guidance import guided
from minilib.model import Model, read_json
from minilib.phonemes import PhonemeEncoder
from minilib.text import T5Encoder
from minilib.tokenizer import Tokenizer, split_words
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN, Vocos, vocode

# the folders of a pipeline, and the classes each may hold
PARTS: dict[str, tuple[type, ...]] = {
    "text": (T5Encoder, PhonemeEncoder),
    "clap": (CLAP, ReleasedCLAP),
    "gpt": (LOARegressor,),
    "unet": (UNet,),
    "vae": (VAE,),
    "vocoder": (Vocos, HiFiGAN),
    "audiomae": (AudioMAE,),
}
# one for both encoders, or one for each
TOKENIZERS = ("tokenizer.json", "tokenizer", "clap_tokenizer")
VOCODERS = {"tiny": Vocos, "colab": HiFiGAN, "full": HiFiGAN}  # of each preset
GUIDANCE = 3.5  # of the paper, where a pipeline brings none of its own (2308.05734)
STEPS = 25  # of the sampler, likewise
# decibels, or as many softer: what a sound is off by at most, if it is a sound at all
LOUDER = 20.0
MAX_SECONDS = 60.0
MAX_STEPS = 1000
EVERYWHERE = (0, MAX_STEPS)  # noise levels of guidance, where the weights do not say


@dataclass
class Conditions:
    """What the captions became: for each encoder a sequence (B, S, D) and its mask (B,
    S).
    """

    clap: tuple[Tensor, Tensor]  # one global vector, S = 1
    text: tuple[Tensor, Tensor]  # one state for each token, or phoneme
    loa: Tensor | None = None  # (B, L, D), where it has been predicted

    def repeat(self, n: int) -> Conditions:
        """Each condition n times, the copies side by side."""
        pairs = (
            (x.repeat_interleave(n, 0), mask.repeat_interleave(n, 0))
            for x, mask in self
        )
        return Conditions(
            *pairs, loa=None if self.loa is None else self.loa.repeat_interleave(n, 0)
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter((self.clap, self.text))


AnyTokenizer = Tokenizer | ReleasedTokenizer


def encode_captions(
    captions: Sequence[str],
    tokenizer: AnyTokenizer,
    clap_tokenizer: AnyTokenizer,
    clap: CLAP | ReleasedCLAP,
    text: T5Encoder | PhonemeEncoder,
    transcriptions: Sequence[str] | None = None,
    pad_to: int = 0,
) -> Conditions:
    """Encode captions by CLAP's text tower and by the T5 encoder.

    Args:
        captions: B sentences.
        tokenizer, clap_tokenizer: of the T5 encoder and of CLAP; where both are the
            same, so are the tokens.
        transcriptions: B sentences to be spoken, which the phoneme encoder reads
            instead of the captions.
        pad_to: tokens that T5 gets at least, for GPT-2 counts padding as positions.
    """
    device = next(text.parameters()).device
    read = captions if transcriptions is None else transcriptions
    ids, mask = tokenizer.encode(list(read), pad_to=max(pad_to, tokenizer.pad_to))
    ids, mask = ids.to(device), mask.to(device)
    return Conditions(
        clap=clap_condition(captions, clap_tokenizer, clap),
        text=(text(ids, mask), mask),
    )


def clap_condition(
    captions: Sequence[str], tokenizer: AnyTokenizer, clap: CLAP | ReleasedCLAP
) -> tuple[Tensor, Tensor]:
    """CLAP's one vector for each caption, (B, 1, D), and its mask (B, 1)."""
    device = next(clap.parameters()).device
    ids, mask = (
        x.to(device) for x in tokenizer.encode(list(captions), pad_to=tokenizer.pad_to)
    )
    return clap.embed_text(ids, mask)[:, None], mask.new_ones(len(ids), 1)


@dataclass
class Profile:
    """Seconds spent in each stage of a call, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


class AudioLDM2:
    """The pipeline: encoders, LOA regressor, latent diffusion, VAE and vocoder
    (2308.05734 Fig. 1).
    """

    def __init__(
        self,
        tokenizer: AnyTokenizer,
        parts: dict[str, Any],
        seconds: float,
        vocabulary: dict | None = None,
        rescale: float = 0.0,
        clap_tokenizer: AnyTokenizer | None = None,
        unconditional_loa: str = "gpt",
        guidance: float = GUIDANCE,
        temperature: float = 1.0,
        guidance_interval: Sequence[int] = EVERYWHERE,
        steps: int = STEPS,
    ):
        self.tokenizer, self.clap_tokenizer = tokenizer, clap_tokenizer or tokenizer
        self.text, self.clap, self.gpt = parts["text"], parts["clap"], parts["gpt"]
        self.unet, self.vae, self.vocoder = (
            parts["unet"],
            parts["vae"],
            parts["vocoder"],
        )
        self.audiomae = parts.get("audiomae")  # needed for training only
        self.seconds = seconds  # the length the weights were trained on
        self.vocabulary = vocabulary or {}
        self.unconditional_loa = check_unconditional(unconditional_loa)
        # how much these weights want, where a call does not say ...
        self.guidance = guidance
        self.guidance_interval = tuple(guidance_interval)  # ... at which noise levels
        # ... how wide the noise that sampling starts from ...
        self.temperature = temperature
        self.steps = steps  # ... and in how many steps
        # the share of `guidance.rescale_guided`; 0 with the released weights
        self.rescale = rescale
        self.profile = Profile()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> AudioLDM2:
        """Load a pipeline from a folder of parts, or from the hub.

        Args:
            folder: holds `pipeline.json`, tokenizers and a folder for each part; or a
                folder of diffusers, which `from_diffusers` reads.
            device: where to put it; a GPU if there is one, else the CPU.
            dtype: floating-point type of the loaded weights, whatever is stored; None
                keeps what is stored.

        Raises:
            FileNotFoundError: the folder or a file in it is missing.
            ValueError: a file is damaged, or weights and configs do not belong
                together.
        """
        folder = released.fetch(folder)
        if released.is_released(folder):
            return cls.from_diffusers(folder, device, dtype)
        description = read_json(folder / "pipeline.json")
        check_description(description, folder / "pipeline.json")
        parts = {
            name: load_part(folder, name, dtype) for name in PARTS if name != "audiomae"
        }
        if (folder / "audiomae").is_dir():
            parts["audiomae"] = load_part(folder, "audiomae", dtype)
        vocabulary = (
            read_json(folder / "vocabulary.json")
            if (folder / "vocabulary.json").is_file()
            else {}
        )
        check_widths(parts, folder)
        tokenizer, clap_tokenizer = load_tokenizers(folder, parts["gpt"])
        pipe = cls(
            tokenizer,
            parts,
            description["seconds"],
            vocabulary,
            description.get("rescale", 0.0),
            clap_tokenizer,
            description.get("unconditional_loa", "gpt"),
            description.get("guidance", GUIDANCE),
            description.get("temperature", 1.0),
            description.get("guidance_interval", EVERYWHERE),
            description.get("steps", STEPS),
        )
        return pipe.to(device or default_device())

    @classmethod
    def from_diffusers(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = torch.float32,
        head_width: int | None = None,
        unconditional_loa: str = "gpt",
        n_tokens: int | None = None,
    ) -> AudioLDM2:
        """Load the released AudioLDM 2: base, large, music or speech.

        The released code and diffusers' pipeline differ in three places; the defaults
        are diffusers', and what the weights were trained with is head_width=32,
        unconditional_loa="zeros" and, when called, eta=1.

        Args:
            folder: a folder as diffusers writes it, or a hub id, e.g.
                "cvssp/audioldm2".
            device: where to put it; a GPU if there is one, else the CPU.
            dtype: floating-point type of the loaded weights, whatever is stored; None
                keeps what is stored.
            head_width: of the U-Net's attention heads; None for 8 heads at every level.
            unconditional_loa: what guidance leads away from: "gpt", the LOA of the
                negative caption, or "zeros".
            n_tokens: LOA vectors that GPT-2 writes; None for those that its config
                names, and 512 for speech.

        Raises:
            FileNotFoundError: the folder or a module in it is missing, or the hub can't
                be reached.
            ValueError: it is not an AudioLDM 2, a file is damaged, or reading it would
                run the code in a pickle.
        """
        folder = released.fetch(folder)
        given = released.read(folder, dtype, head_width, n_tokens)
        return cls.from_released(given, folder, device, unconditional_loa)

    @classmethod
    def from_original(
        cls,
        path: str | Path,
        like: str | Path = "cvssp/audioldm2",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = torch.float32,
        head_width: int | None = 32,
        unconditional_loa: str = "zeros",
        n_tokens: int | None = None,
    ) -> AudioLDM2:
        """Load a checkpoint as the authors published it: a `.pth` with all parts in it.

        The defaults are those of the authors' code. The arguments are as in
        `from_diffusers`, but for

        Args:
            path: the file.
            like: a folder or hub id of the same model in diffusers' form, from which
                configs and tokenizers are taken.

        Raises:
            FileNotFoundError: the file or the folder is missing, or the hub can't be
                reached.
            ValueError: a tensor is missing, misshapen or unknown, or reading the file
                would run the code in it.
        """
        folder = released.fetch(like)
        given = released.read_original(Path(path), folder, dtype, head_width, n_tokens)
        return cls.from_released(given, Path(path), device, unconditional_loa)

    @classmethod
    def from_released(
        cls,
        given: released.Released,
        source: Path,
        device: str | torch.device | None,
        unconditional_loa: str,
    ) -> AudioLDM2:
        """The pipeline of what was read from `source`, whichever form it had."""
        check_widths(given.parts, source)
        pipe = cls(
            given.tokenizer,
            given.parts,
            given.seconds,
            clap_tokenizer=given.clap_tokenizer,
            unconditional_loa=unconditional_loa,
        )
        return pipe.to(device or default_device())

    def to_diffusers(self, folder: str | Path) -> None:
        """Write a folder that diffusers' AudioLDM2Pipeline loads, and that gives the
        same sounds.

        Each as loud as `decode` leaves it: diffusers knows nothing of `levelled`.

        Raises:
            ValueError: a part has no counterpart there; the sentence names it, and
                nothing is written.
            FileExistsError: the folder holds something else.
        """
        parts = {
            name: part for name in PARTS if (part := getattr(self, name)) is not None
        }
        pipeline = released.as_diffusers(
            self.tokenizer, self.clap_tokenizer, parts, self.seconds
        )
        released.write(pipeline, Path(folder))

    @property
    def speaks(self) -> bool:
        """Whether this pipeline reads a transcription, and speaks it."""
        return isinstance(self.text, PhonemeEncoder)

    def to(self, device: str | torch.device) -> AudioLDM2:
        """Move every part to a device, its feature maps channels last, as convolutions
        are fastest.
        """
        for model in self.models():
            model.to(device, memory_format=torch.channels_last)
        return self

    def models(self) -> list[torch.nn.Module]:
        """The networks of the pipeline, in the order in which data passes them."""
        named = (
            self.text,
            self.clap,
            self.gpt,
            self.unet,
            self.vae,
            self.vocoder,
            self.audiomae,
        )
        return [model for model in named if model is not None]

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.unet.device

    @torch.no_grad()
    def __call__(
        self,
        captions: str | Sequence[str],
        steps: int | None = None,
        guidance: float | None = None,
        seconds: float | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        negative: str | Sequence[str] | None = None,
        candidates: int = 1,
        progress: bool = True,
        transcription: str | Sequence[str] | None = None,
        eta: float = 0.0,
        sampler: str = "ddim",
        temperature: float | None = None,
        guidance_interval: Sequence[int] | None = None,
    ) -> Tensor:
        """Generate one sound for each caption.

        Args:
            captions: B sentences (or one).
            steps: of the sampler, 1 to 1000; more are finer and slower. None for the
                pipeline's own.
            guidance: strength w of classifier-free guidance, 0 or more; 1 switches it
                off; None for the pipeline's own.
            seconds: length of the sounds; None for the length of the training clips.
            seed: same seed, same machine: same sounds. None draws one.
            latents: start from this noise (B * candidates, C, T/r, F/r) instead of
                drawing it.
            negative: what to be guided away from, one for all or one each; None for the
                empty caption.
            candidates: sounds made for each caption, of which CLAP picks the one most
                like it.
            progress: show a bar over the steps.
            transcription: what is spoken, one for all or one each; speech models need
                it, others have no use for it.
            eta: share of new noise in each DDIM step, 0 to 1.
            sampler: "ddim", or "dpm" for DPM-Solver++, which needs fewer steps.
            temperature: deviation of the noise that sampling starts from, above 0 to 1;
                less than 1 gives sounds that vary less and are cleaner (as in Grad-TTS,
                2105.06337). None for the pipeline's own.
            guidance_interval: (low, high), guide at noise levels above low, up to high
                (2404.07724); below, guidance would exaggerate details. None for the
                pipeline's own.

        Returns:
            Waveforms (B, N), float32 in [-1, 1], N = 16000 * seconds, on the CPU.

        Raises:
            ValueError, TypeError: an argument is not as described; the sentence names
                it.
        """
        captions, negatives = check_captions(captions, negative)
        guidance = self.guidance if guidance is None else guidance
        temperature = self.temperature if temperature is None else temperature
        check_numbers(steps, guidance, candidates, eta, temperature, guidance_interval)
        check_sampler(sampler, eta)
        transcriptions = self.check_transcription(transcription, len(captions))
        n_samples = self.n_samples(seconds)
        self.profile = Profile()
        with self.profile.measure("encode"):
            conditions = self.encode(captions, transcriptions)
            unconditional = (
                self.encode_negative(negatives, conditions) if guidance != 1.0 else None
            )
        with self.profile.measure("loa"):
            loa = self.loa(conditions).repeat_interleave(candidates, dim=0)
            if unconditional is not None:
                unconditional.loa = self.loa_of_negative(unconditional)
                unconditional = unconditional.repeat(candidates)
            conditions = conditions.repeat(candidates)
        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        shape = self.latent_shape(len(loa), n_samples)
        if latents is None:
            latents = torch.randn(shape, generator=generator)
        if latents.shape != shape:
            raise ValueError(
                f"latents must be of shape {shape}, not {tuple(latents.shape)}"
            )
        with self.profile.measure("sample"):
            how = {"progress": progress, "eta": eta, "sampler": sampler}
            how |= {"temperature": temperature, "guidance_interval": guidance_interval}
            z0 = self.sample(
                loa,
                conditions,
                steps,
                guidance,
                generator,
                latents,
                unconditional,
                **how,
            )
        with self.profile.measure("decode"):
            waves = self.levelled(self.decode(z0, n_samples), loa)
        if candidates > 1:
            with self.profile.measure("rank"):
                waves = self.best(waves, conditions, candidates)
        return waves.float().cpu()

    def encode(
        self,
        captions: Sequence[str],
        transcriptions: Sequence[str] | None = None,
        pad_to: int = 0,
    ) -> Conditions:
        """Encode captions by CLAP and T5, or by CLAP and phonemes; as
        `encode_captions`.
        """
        encoders = self.tokenizer, self.clap_tokenizer, self.clap, self.text
        return encode_captions(captions, *encoders, transcriptions, pad_to)

    def encode_negative(
        self, captions: Sequence[str], conditions: Conditions
    ) -> Conditions:
        """Encode what `conditions` are to be guided away from, padded alike, for GPT-2
        counts padding.

        Nothing is spoken there: phonemes are zeros, none of which is read.
        """
        states, mask = conditions.text
        if not self.speaks:
            return self.encode(captions, pad_to=mask.shape[1])
        clap = clap_condition(captions, self.clap_tokenizer, self.clap)
        return Conditions(
            clap=clap, text=(torch.zeros_like(states), torch.zeros_like(mask))
        )

    def loa(
        self, conditions: Conditions, generator: torch.Generator | None = None
    ) -> Tensor:
        """M: C -> Y', predict the Language of Audio (B, L, D) (2308.05734 §3.2).

        The regression draws nothing; `generator` is here for regressors that sample.
        """
        return self.gpt.generate(list(conditions))

    def loa_of_negative(self, unconditional: Conditions) -> Tensor:
        """The LOA (B, L, D) to be guided away from: GPT-2's own, or zeros, as
        `unconditional_loa` says.
        """
        if self.unconditional_loa == "gpt":
            return self.loa(unconditional)
        states, config = unconditional.clap[0], self.gpt.config
        return states.new_zeros(len(states), config.n_tokens, config.n_embd)

    def sample(
        self,
        loa: Tensor,
        conditions: Conditions,
        steps: int | None = None,
        guidance: float | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        unconditional: Conditions | None = None,
        progress: bool = False,
        eta: float = 0.0,
        sampler: str = "ddim",
        temperature: float | None = None,
        guidance_interval: Sequence[int] | None = None,
    ) -> Tensor:
        """G: Y' -> z0, latent diffusion with classifier-free guidance (2308.05734
        §3.3).

        Args:
            loa: (B, L, D), predicted by `loa` or true, from `AudioMAE.loa`.
            steps: of the sampler; None for the pipeline's own.
            guidance: strength w; None for the pipeline's own.
            latents: noise to start from (B, C, T/r, F/r), standard normal:
                `temperature` scales it.
            unconditional: conditions to be guided away from; None for those of the
                empty caption.
            eta: share of new noise in each DDIM step, 0 to 1, drawn from `generator`.
            sampler: "ddim" or "dpm".
            temperature: deviation of the noise to start from; None for the pipeline's
                own.
            guidance_interval: of noise levels, in which there is guidance; None for the
                pipeline's own.

        Returns:
            z0 (B, C, T/r, F/r).
        """
        if latents is None:
            shape = self.latent_shape(len(loa), self.n_samples(None))
            latents = torch.randn(shape, generator=generator)
        model = self.noise_predictor(
            loa, conditions, guidance, unconditional, guidance_interval
        )
        steps = self.steps if steps is None else steps
        temperature = self.temperature if temperature is None else temperature
        latents = temperature * latents.to(self.device, torch.float32)
        if sampler == "dpm":
            return dpm_solver_sample(
                model, self.unet.schedule, latents, steps, progress=progress
            )
        return ddim_sample(
            model, self.unet.schedule, latents, steps, eta, generator, progress=progress
        )

    def noise_predictor(
        self,
        loa: Tensor,
        conditions: Conditions,
        guidance: float | None = None,
        unconditional: Conditions | None = None,
        guidance_interval: Sequence[int] | None = None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """All that a sampler asks of the U-Net: (zt (B, C, T/r, F/r), t (B,)) ->
        eps_hat, guided. As `sample`.
        """
        empty, guidance = None, self.guidance if guidance is None else guidance
        if guidance != 1.0:
            unconditional = unconditional or self.encode_negative(
                [""] * len(loa), conditions
            )
            if unconditional.loa is None:
                unconditional = dataclasses.replace(
                    unconditional, loa=self.loa_of_negative(unconditional)
                )
            empty = [(unconditional.loa, None), unconditional.text]
        # guided by two conditions of the same latents, which therefore need not come
        # twice
        unet = lambda zt, t, *contexts: self.unet(
            zt[: len(loa)], t[: len(loa)], *contexts
        )
        interval = tuple(
            self.guidance_interval if guidance_interval is None else guidance_interval
        )
        # asking a GPU for its level takes time
        interval = None if interval == EVERYWHERE else interval
        predict = guided(
            unet,
            [(loa, None), conditions.text],
            empty,
            guidance,
            self.rescale,
            interval,
        )
        dtype = next(self.unet.parameters()).dtype
        return lambda zt, t: self.unet.as_eps(
            zt, t, predict(zt.to(dtype), t).to(zt.dtype)
        )

    def decode(self, z0: Tensor, n_samples: int) -> Tensor:
        """From latents (B, C, T/r, F/r) to mels by the VAE, to waveforms (B, N) by the
        vocoder.
        """
        z0 = z0.to(next(self.vae.parameters()).dtype)
        return vocode(self.vocoder, lean.decode(self.vae, z0))[:, :n_samples]

    def levelled(self, waves: Tensor, loa: Tensor) -> Tensor:
        """Waveforms (B, N), each as loud as the LOA (B, L, D) says that GPT-2 wrote for
        it.

        Where that would leave [-1, 1] a sound is as loud as it can be. Without
        `GPTConfig.level`, as in the released models, or in a pipeline that was never
        trained, the waveforms come back as they are.
        """
        wanted = self.gpt.level(loa)
        if wanted is None:
            return waves
        gain = (wanted - audio.loudness(audio.log_mel(waves.float()))[:, 0]).clamp(
            -LOUDER, LOUDER
        )
        waves = waves * 10 ** (gain / 20)[:, None]
        return waves / waves.abs().amax(dim=1, keepdim=True).clamp_min(1.0)

    def best(self, waves: Tensor, conditions: Conditions, candidates: int) -> Tensor:
        """Of each caption's own candidates (B * candidates, N), the one that CLAP finds
        most like it.
        """
        # (B * candidates,)
        similarity = (self.embed_waves(waves) * conditions.clap[0][:, 0]).sum(dim=-1)
        choice = similarity.view(-1, candidates).argmax(dim=1)
        return waves.view(-1, candidates, waves.shape[-1])[
            torch.arange(len(choice)), choice
        ]

    def embed_waves(self, waves: Tensor) -> Tensor:
        """CLAP embeddings (B, D), of unit length, of waveforms (B, N)."""
        return self.clap.embed_waves(waves)

    def reconstruct(self, mel: Tensor) -> Tensor:
        """A log-mel (B, 1, T, F) through the VAE and back, T any length. Chapter 07."""
        r = self.vae.config.reduction
        padded = torch.nn.functional.pad(
            mel, (0, 0, 0, -mel.shape[2] % r), value=math.log(audio.LOG_FLOOR)
        )
        return self.vae(padded)[:, :, : mel.shape[2]]

    def n_samples(self, seconds: float | None) -> int:
        """Samples of a sound of this length; raises ValueError unless it lies in 0.1 to
        60 s.
        """
        return round(
            check_seconds(self.seconds if seconds is None else seconds)
            * audio.SAMPLE_RATE
        )

    def latent_shape(self, n: int, n_samples: int) -> tuple[int, int, int, int]:
        """Shape of the latents of n sounds: frames rounded up to what VAE and U-Net can
        halve.
        """
        r = self.vae.config.reduction
        multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)
        T = math.ceil(n_samples / audio.HOP / r / multiple) * multiple
        return n, self.vae.config.z_channels, T, audio.N_MELS // r

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption that these weights have not been trained on."""
        known = set(self.vocabulary.get("words", ()))
        return (
            sorted(
                {word for word in split_words(caption) if word and word not in known}
            )
            if known
            else []
        )

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None
    ) -> None:
        """Write all parts, the tokenizer and the description, so that `from_pretrained`
        finds them.

        They take the place of an older pipeline's in `folder`, all or none; what else
        is there stays.
        """
        with replacing_entries(Path(folder), [*PARTS, *TOKENIZERS]) as new:
            for name in PARTS:
                if (model := getattr(self, name)) is not None:
                    model.save_pretrained(new / name, dtype=dtype)
            save_tokenizers(new, self.tokenizer, self.clap_tokenizer)
            own = ("steps", "guidance", "guidance_interval", "temperature", "rescale")
            sampling = {name: getattr(self, name) for name in own}
            save_description(
                new, self.seconds, self.vocabulary, self.unconditional_loa, **sampling
            )

    def check_transcription(
        self, transcription: str | Sequence[str] | None, n: int
    ) -> list[str] | None:
        """What is to be spoken, as a list of n; a sentence where it is missing or has
        no place.
        """
        if transcription is None:
            if self.speaks:
                raise ValueError("these weights speak: give the words as transcription")
            return None
        if not self.speaks:
            raise ValueError("these weights do not speak: transcription must be None")
        given = (
            [transcription] if isinstance(transcription, str) else list(transcription)
        )
        if any(not isinstance(words, str) or not words.strip() for words in given):
            raise ValueError(
                "a transcription is empty or no string: write the words to be spoken"
            )
        given = given * n if len(given) == 1 else given
        if len(given) != n:
            raise ValueError(
                f"transcription must be one for all or one for each of {n}, not "
                f"{len(given)}"
            )
        return given


def default_device() -> str:
    """A GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_part(folder: Path, name: str, dtype: torch.dtype | None = None) -> Model:
    """Load one part of a pipeline's folder, by the class that its config names."""
    config = read_json(folder / name / "config.json")
    if name == "clap" and config.get("model_type") == "clap":  # transformers' own
        return ReleasedCLAP.from_pretrained(folder / name, dtype=dtype)
    known = lambda c: {field.name for field in dataclasses.fields(c.config_class)}
    # the config of an older save may lack a field that was added since: it takes the
    # default
    models = [c for c in PARTS[name] if issubclass(c, Model)]
    classes = [c for c in models if config and set(config) <= known(c)]
    if not classes:
        expected = " or ".join(c.__name__ for c in models)
        raise ValueError(
            f"{folder / name / 'config.json'} is not the config of a {expected}"
        )
    return classes[0].from_pretrained(folder / name, dtype=dtype)


def load_tokenizers(
    folder: Path, gpt: LOARegressor
) -> tuple[AnyTokenizer, AnyTokenizer]:
    """The tokenizers of a pipeline's folder: one file for both encoders, or
    transformers' own two.
    """
    if (folder / "clap_tokenizer").is_dir():
        tokenizer = released.load_tokenizer(folder / "tokenizer", gpt)
        return tokenizer, ReleasedTokenizer.load(folder / "clap_tokenizer")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return tokenizer, tokenizer


def save_tokenizers(
    folder: Path, tokenizer: AnyTokenizer, clap_tokenizer: AnyTokenizer
) -> None:
    """Write what `load_tokenizers` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder / "tokenizer.json")
    else:
        tokenizer.save(folder / "tokenizer")
        clap_tokenizer.save(folder / "clap_tokenizer")


def save_description(
    folder: Path,
    seconds: float,
    vocabulary: dict[str, Any],
    unconditional_loa: str = "gpt",
    **sampling: Any,
) -> None:
    """Write what a pipeline needs beside parts and tokenizers: `pipeline.json` and the
    vocabulary.

    `sampling` says how these weights want to be sampled: `steps`, `guidance`,
    `guidance_interval`, `temperature`, `rescale`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "seconds": seconds,
        **sampling,
        "unconditional_loa": unconditional_loa,
    }
    for name, values in (
        ("pipeline.json", description),
        ("vocabulary.json", vocabulary),
    ):
        with replacing(folder / name) as path:
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def check_description(description: dict[str, Any], path: Path) -> None:
    """Raise ValueError where a `pipeline.json` does not tell what the pipeline must
    know.
    """
    if not isinstance(description.get("seconds"), int | float):
        raise ValueError(f"{path} is damaged: it must tell the `seconds` of a sound")
    steps = description.get("steps", STEPS)
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise ValueError(
            f"{path} is damaged: `steps` must be a whole number from 1 to "
            f"{MAX_STEPS}, not {steps!r}"
        )
    guidance = description.get("guidance", GUIDANCE)
    if not isinstance(guidance, int | float) or not 0.0 <= guidance < math.inf:
        raise ValueError(
            f"{path} is damaged: `guidance` must be a number, 0 or more, not "
            f"{guidance!r}"
        )
    try:
        check_interval(description.get("guidance_interval", EVERYWHERE))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    temperature = description.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not 0.0 < temperature <= 1.0:
        raise ValueError(
            f"{path} is damaged: `temperature` must lie above 0, at most 1, not "
            f"{temperature!r}"
        )
    rescale = description.get("rescale", 0.0)
    if not isinstance(rescale, int | float) or not 0.0 <= rescale <= 1.0:
        raise ValueError(
            f"{path} is damaged: `rescale` must lie between 0 and 1, not {rescale!r}"
        )
    try:
        check_unconditional(description.get("unconditional_loa", "gpt"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_unconditional(name: str) -> str:
    """The name itself; ValueError where it names no LOA to be guided away from."""
    if name not in ("gpt", "zeros"):
        raise ValueError(f'unconditional_loa must be "gpt" or "zeros", not {name!r}')
    return name


def check_widths(parts: dict[str, Any], folder: Path) -> None:
    """Raise ValueError where one part's output does not fit the next one's input."""
    gpt, unet, vae = (parts[name].config for name in ("gpt", "unet", "vae"))
    clap, text = parts["clap"].dim, parts["text"].dim
    loa_dims, text_dims = unet.cross_attention_dim[:2], unet.cross_attention_dim[2:]
    pairs = [
        ("clap", clap, "gpt", gpt.condition_dims[0]),
        ("text", text, "gpt", gpt.condition_dims[-1]),
        ("vae", vae.z_channels, "unet", unet.in_channels),
        *(("gpt", gpt.n_embd, "unet", dim) for dim in loa_dims if dim is not None),
        *(("text", text, "unet", dim) for dim in text_dims if dim is not None),
    ]
    for giver, given, taker, taken in pairs:
        if given != taken:
            raise ValueError(
                f"{folder} mixes configs: {giver} gives width {given}, but {taker} "
                f"takes {taken}"
            )
    if unet.loa_channels and gpt.n_tokens != math.prod(unet.loa_grid):
        raise ValueError(
            f"{folder} mixes configs: gpt writes {gpt.n_tokens} LOA vectors, but unet "
            f"lays out {unet.loa_grid}"
        )


def check_captions(
    captions: str | Sequence[str], negative: str | Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Captions and what to guide away from, as lists of one length; a sentence for what
    is neither.
    """
    captions = [captions] if isinstance(captions, str) else list(captions)
    if not captions:
        raise ValueError("captions is empty: at least one caption is needed")
    for caption in captions:
        if not isinstance(caption, str):
            raise TypeError(f"captions must be strings, not {type(caption).__name__}")
        if not caption.strip():
            raise ValueError("a caption is empty: describe the sound in a few words")
    negatives = (
        [negative or ""]
        if isinstance(negative, str) or negative is None
        else list(negative)
    )
    if len(negatives) == 1:
        negatives = negatives * len(captions)
    if len(negatives) != len(captions):
        raise ValueError(
            f"negative must be one for all or one for each of {len(captions)}, not "
            f"{len(negatives)}"
        )
    return captions, negatives


def check_sampler(sampler: str, eta: float) -> None:
    """Raise ValueError for a sampler that there is not, or one that can't add noise and
    is asked to.
    """
    if sampler not in ("ddim", "dpm"):
        raise ValueError(f'sampler must be "ddim" or "dpm", not {sampler!r}')
    if sampler == "dpm" and eta:
        raise ValueError(
            f'eta must be 0 with the sampler "dpm", which adds no noise, not {eta}'
        )


def check_seconds(seconds: float) -> float:
    """The length itself; ValueError for one that no sound can have."""
    if not 0.1 <= seconds <= MAX_SECONDS:  # false for nan as well
        raise ValueError(
            f"seconds must lie between 0.1 and {MAX_SECONDS:g}, not {seconds}"
        )
    return seconds


def check_numbers(
    steps: int | None,
    guidance: float | None,
    candidates: int,
    eta: float = 0.0,
    temperature: float | None = None,
    guidance_interval: Sequence[int] | None = None,
) -> None:
    """Raise ValueError for numbers that no sampler can use."""
    if steps is not None and (
        not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS
    ):
        raise ValueError(
            f"steps must be a whole number from 1 to {MAX_STEPS}, not {steps}"
        )
    if guidance is not None and not 0.0 <= guidance < math.inf:  # false for nan as well
        raise ValueError(f"guidance must be a finite number, 0 or more, not {guidance}")
    if not isinstance(candidates, int) or not 1 <= candidates <= 64:
        raise ValueError(
            f"candidates must be a whole number from 1 to 64, not {candidates}"
        )
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie between 0 and 1, not {eta}")
    if temperature is not None and not 0.0 < temperature <= 1.0:
        raise ValueError(
            f"temperature must lie above 0, and be at most 1, not {temperature}"
        )
    if guidance_interval is not None:
        check_interval(guidance_interval)


def check_interval(interval: Sequence[int]) -> None:
    """Raise ValueError where these are not the ends of an interval of noise levels."""
    whole = isinstance(interval, list | tuple) and all(
        type(level) is int for level in interval
    )
    if (
        not whole
        or len(interval) != 2
        or not 0 <= interval[0] < interval[1] <= MAX_STEPS
    ):
        raise ValueError(
            f"guidance_interval must be two noise levels from 0 to {MAX_STEPS}, the "
            f"lower first, not {interval}"
        )
