"""The released AudioLDM 2 as one folder: every module in its place, including those
that remain transformers' own.

Tokenizers and CLAP remain transformers' classes, behind the interfaces of
`tokenizer.Tokenizer` and `clap.CLAP`; everything else becomes models of this package
(`pretrained`). This module reads the fields of `folders.Parts`. Chapter 18 shows it at
work.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minilib import audio
from minilib.clap import CLAP
from minilib.conditions import Context
from minilib.convert import configs, original, pretrained
from minilib.files import replacing_folder
from minilib.gpt import LOARegressor
from minilib.guidance import Sampling
from minilib.model import check_weights, local_folder, read_json
from minilib.phonemes import PhonemeEncoder
from minilib.text import T5Encoder
from minilib.tokenizer import Reader, Tokenizer, check_captions, check_lengths
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN, Vocos

INDEX = "model_index.json"
PIPELINE = "AudioLDM2Pipeline"
MODULES = {  # the modules in a released folder, by diffusers' names
    "vae": ("AutoencoderKL",),
    "text_encoder": ("ClapModel",),
    "text_encoder_2": ("T5EncoderModel", "VitsModel"),
    "projection_model": ("AudioLDM2ProjectionModel",),
    # the second because diffusers requires it
    "language_model": ("GPT2Model", "GPT2LMHeadModel"),
    "unet": ("AudioLDM2UNet2DConditionModel",),
    "vocoder": ("SpeechT5HifiGan",),
}
BESIDE = ("scheduler", "feature_extractor", "tokenizer", "tokenizer_2")
# LOA vectors of the speech models: one for each patch, where the others pool 8 x 8
SPEECH_TOKENS = 512
END_OF_SPEECH = 182  # the token that ends a sentence
PATTERNS = ["*.json", "*.txt", "*.model"]  # files of a hub folder besides its weights
# what a run leaves beside a pipeline, which needs none of it
UNREAD = ["separate/*", "finished/*", "checkpoints/*", "cache/*", "scores*.json"]


class ReleasedTokenizer:
    """A tokenizer of transformers with the interface of `tokenizer.Tokenizer`."""

    # the released GPT-2 was trained on captions padded to the longest in a batch
    pad_to = 0

    def __init__(self, backend: Any):
        self.backend = backend
        # transformers writes 10^30 for "unknown"
        self.max_tokens = min(backend.model_max_length, 512)

    @classmethod
    def load(cls, folder: Path, *given: Any) -> ReleasedTokenizer:
        """Read the tokenizer that transformers saved in a folder; ValueError if there
        is none.
        """
        import transformers

        try:
            backend = transformers.AutoTokenizer.from_pretrained(folder)
        # transformers raises many kinds of error for missing or damaged files
        except Exception as error:
            said = f"{folder} holds no tokenizer that transformers can read"
            raise ValueError(said) from error
        configs.check_tokenizer(folder / "tokenizer_config.json", backend)
        return cls(backend, *given)

    def save(self, folder: Path) -> None:
        """Write the tokenizer in the form that transformers reads."""
        self.backend.save_pretrained(folder)

    def encode(
        self,
        captions: list[str],
        max_length: int | None = None,
        truncate: bool = False,
        pad_to: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Ids (B, S) and mask (B, S) bool, as `Tokenizer.encode`."""
        captions = check_captions(captions)
        most = self.max_tokens if max_length is None else max_length
        limit = {"truncation": True, "max_length": most} if truncate else {}
        rows = self.backend(captions, **limit)["input_ids"]
        check_lengths(captions, rows, most)
        lengths = torch.tensor([len(row) for row in rows])
        S, pad = max(pad_to, int(lengths.max())), self.backend.pad_token_id
        ids = torch.tensor([row + [pad] * (S - len(row)) for row in rows])
        return ids, torch.arange(S) < lengths[:, None]


class PhonemeTokenizer(ReleasedTokenizer):
    """VITS's tokenizer, which turns a transcription into phonemes, padded to a fixed
    length.
    """

    def __init__(self, backend: Any, n_positions: int):
        super().__init__(backend)
        # the number of positions that GPT-2's projection has learned
        self.max_tokens = self.pad_to = n_positions

    def encode(
        self, captions: list[str], *args: Any, **given: Any
    ) -> tuple[Tensor, Tensor]:
        """Ids (B, S) and mask (B, S) bool; the end token replaces the first padding."""
        ids, mask = super().encode(captions, *args, **given)
        is_zero = ids == 0
        first = is_zero & (is_zero.cumsum(dim=1) == 1)  # (B, S): at most one each
        return ids.masked_fill(first, END_OF_SPEECH), mask | first


class ReleasedCLAP(Reader, nn.Module):
    """transformers' ClapModel with the interface of `clap.CLAP`: RoBERTa and HTS-AT in
    place of BERT and PANNs.
    """

    def __init__(self, model: nn.Module, feature_extractor: Any):
        super().__init__()
        self.model, self.feature_extractor = model.eval(), feature_extractor

    @classmethod
    def untrained(cls, folder: Path, feature_extractor: Path) -> ReleasedCLAP:
        """Build it from a config in one folder and a feature extractor in another."""
        import transformers

        configs.check_clap(folder / "config.json")
        configs.check_listener(feature_extractor / "preprocessor_config.json")
        try:
            config = transformers.ClapConfig.from_pretrained(folder)
            heard = transformers.ClapFeatureExtractor.from_pretrained(feature_extractor)
            return cls(transformers.ClapModel(config), heard)
        except (OSError, ValueError) as error:
            said = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"{folder} is not a complete ClapModel with feature extractor: {said}"
            ) from error

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        feature_extractor: Path | None = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> ReleasedCLAP:
        """Load it from the folders of a ClapModel and its feature extractor (None: the
        same folder).

        `dtype` None keeps the stored type, but float64, in which CLAP was released,
        becomes float32.
        """
        state = pretrained.read_state(folder)
        clap = cls.untrained(folder, feature_extractor or folder)
        return clap.fill(state, folder, dtype)

    def fill(
        self, state: pretrained.State, folder: Path, dtype: torch.dtype | None
    ) -> ReleasedCLAP:
        """Fill it with weights by transformers' names, all of them or none."""
        own, unread = self.model.state_dict(), ("position_ids", "token_type_ids")
        given = {name: x for name, x in state.items() if not name.endswith(unread)}
        # buffers are computed, not learned, except the norms' statistics
        buffers = [name for name, _ in self.model.named_buffers() if name in own]
        computed = {name: own[name] for name in buffers if "running_" not in name}
        given = {**computed, **given}
        check_weights(self.model, given, folder)
        self.model.load_state_dict(given)
        stored = next(x.dtype for x in state.values() if x.is_floating_point())
        dtype = dtype or (torch.float32 if stored == torch.float64 else stored)
        return self.to(dtype)

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None
    ) -> None:
        """Write the model and its feature extractor to one folder that transformers can
        read.
        """
        model = copy.deepcopy(self.model).to(dtype) if dtype is not None else self.model
        model.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.model.config.projection_dim

    def encode(self, inputs: list[str], pad_to: int = 0) -> Context:
        """Encode B captions as a condition: one vector each, (B, 1, dim); `pad_to` has
        no effect.
        """
        return Context(self.embed_text(*self.read(inputs))[:, None])

    def embed_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed captions: ids (B, S) from CLAP's own tokenizer, mask (B, S)
        -> (B, dim), of unit length.
        """
        mask = torch.ones_like(ids) if mask is None else mask.long()
        return self.model.get_text_features(ids, attention_mask=mask).pooler_output

    def embed_waves(self, waves: Tensor) -> Tensor:
        """Embed the first ten seconds of sounds: waveforms (B, N) at 16 kHz
        -> (B, dim), of unit length.

        From longer sounds diffusers' pipeline picks ten seconds with a global random
        generator, so its ranking changes from call to call.
        """
        listen = self.feature_extractor  # at 48 kHz
        heard = resampled(waves.float().cpu().numpy(), listen.sampling_rate)
        heard = list(heard[:, : listen.nb_max_samples])
        found = listen(heard, sampling_rate=listen.sampling_rate, return_tensors="pt")
        weight = next(self.model.parameters())
        like = lambda x: weight if x.is_floating_point() else weight.device
        features = {name: x.to(like(x)) for name, x in found.items()}
        return self.model.get_audio_features(**features).pooler_output


def resampled(waves: np.ndarray, rate: int) -> np.ndarray:
    """Resample waveforms (B, N) from 16 kHz to (B, N * rate / 16000) as librosa does by
    default, but without numba, the compiler that librosa depends on.
    """
    import soxr

    n = -(-waves.shape[1] * rate // audio.SAMPLE_RATE)
    rows = [soxr.resample(x, audio.SAMPLE_RATE, rate, quality="HQ") for x in waves]
    return np.stack([np.pad(x[:n], (0, max(n - len(x), 0))) for x in rows])


# --------------------------------------------------------------------------------------
# The whole folder: reading


def is_released(folder: Path) -> bool:
    """Whether a folder has the layout of a diffusers pipeline."""
    return (folder / INDEX).is_file()


def fetch(folder: str | Path) -> Path:
    """The path of a local folder, or of the download of a hub id: its safetensors, or
    `.bin` files if there are no others.
    """
    wanted = {"ignore_patterns": UNREAD}
    fetched = local_folder(
        folder, allow_patterns=[*PATTERNS, "*.safetensors"], **wanted
    )
    whole = all(any((fetched / name).glob("*.safetensors")) for name in MODULES)
    if Path(folder).is_dir() or whole or not is_released(fetched):
        return fetched
    every = [*PATTERNS, "*.safetensors", "*.bin"]
    return local_folder(folder, allow_patterns=every, **wanted)


def read(
    folder: Path,
    dtype: torch.dtype | None = torch.float32,
    head_width: int | None = None,
    n_tokens: int | None = None,
) -> dict[str, Any]:
    """The fields of `Parts` from a released folder.

    Args:
        folder: written by `AudioLDM2Pipeline.save_pretrained`.
        dtype: floating-point type of the loaded weights; None keeps the stored type.
        head_width: width of the U-Net's attention heads at every level; None for the
            number of heads in its config.
        n_tokens: number of LOA vectors; None for the config's number, or 512 for
            speech.

    Raises:
        FileNotFoundError: a module or a file in it is missing.
        ValueError: the folder holds another pipeline, or a file is damaged or asks for
            a feature that this package does not have.
    """
    kinds, at = read_index(folder), folder.joinpath
    schedule = pretrained.read_schedule(at("scheduler"), kinds["scheduler"])
    simple = {"text": "text_encoder_2", "vae": "vae", "vocoder": "vocoder"}
    models: dict[str, Any] = {
        name: pretrained.read(kinds[module], at(module), dtype)
        for name, module in simple.items()
    }
    if models["text"].reads == "transcription":
        n_tokens = n_tokens or SPEECH_TOKENS
    gpt = at("language_model"), at("projection_model")
    clap = at("text_encoder"), at("feature_extractor")
    return complete(
        folder,
        clap=ReleasedCLAP.from_pretrained(*clap, dtype),
        unet=pretrained.read_unet(at("unet"), schedule, dtype, head_width),
        gpt=pretrained.read_gpt(*gpt, n_tokens, dtype),
        **models,
    )


def read_original(
    path: Path,
    like: Path,
    dtype: torch.dtype | None = torch.float32,
    head_width: int | None = 32,
    n_tokens: int | None = None,
) -> dict[str, Any]:
    """The fields of `Parts` from a checkpoint published by the authors, a `.pth`; by
    default with attention heads as in their code.

    Args:
        path: the checkpoint; like: a released folder of the same model, for its configs
            and tokenizers.
        dtype, head_width, n_tokens: as in `read`.

    Raises:
        FileNotFoundError: the file, or a module of the folder, is missing.
        ValueError: a tensor is missing, misshapen or unknown, or reading the file would
            run the code in it.
    """
    kinds = read_index(like)
    if kinds["text_encoder_2"] == "VitsModel":
        raise ValueError(f"{like} is a speech model: it can be read only from a folder")
    file, at = original.Checkpoint(path), like.joinpath
    factor = original.scaling_factor(file)
    scale = {} if factor is None else {"scaling_factor": factor}
    schedule = pretrained.read_schedule(at("scheduler"), kinds["scheduler"])
    unet = pretrained.unet_config(at("unet"), schedule, head_width)
    gpt = at("language_model"), at("projection_model")
    models = {
        "vae": pretrained.untrained("AutoencoderKL", at("vae"), **scale),
        "unet": pretrained.made(UNet, unet),
        "vocoder": pretrained.untrained("SpeechT5HifiGan", at("vocoder")),
        "gpt": pretrained.made(LOARegressor, pretrained.gpt_config(*gpt, n_tokens)),
        "text": pretrained.untrained("T5EncoderModel", at("text_encoder_2")),
    }
    clap = ReleasedCLAP.untrained(at("text_encoder"), at("feature_extractor"))
    states = original.states(file, models)
    clap_state = original.clap(file, clap.model.state_dict())
    file.check_taken()
    for name, model in models.items():
        pretrained.fill(model, states[name], path, dtype)
    clap.fill(clap_state, at("text_encoder"), dtype)
    sampling = Sampling(unconditional_loa="zeros")
    return complete(like, clap=clap, sampling=sampling, **models)


def complete(folder: Path, **parts: Any) -> dict[str, Any]:
    """The parts with the tokenizers of a released folder, and the length of sound given
    by its U-Net's config.
    """
    positions = parts["gpt"].config.learned_positions
    parts["text"].tokenizer = load_tokenizer(folder / "tokenizer_2", positions)
    parts["clap"].tokenizer = load_tokenizer(folder / "tokenizer")
    sample_size = read_json(folder / "unet" / "config.json").get("sample_size") or 256
    frames = sample_size * parts["vae"].config.reduction
    return {**parts, "seconds": frames * audio.HOP / audio.SAMPLE_RATE}


def load_tokenizer(folder: Path, n_positions: int = 0) -> ReleasedTokenizer:
    """The tokenizer in a folder: for captions, or, if GPT-2 has learned `n_positions`,
    for phonemes.
    """
    if n_positions:
        return PhonemeTokenizer.load(folder, n_positions)
    return ReleasedTokenizer.load(folder)


def read_index(folder: Path) -> dict[str, str]:
    """The class of each module of a pipeline; another pipeline's folder or a missing
    module raises a sentence.
    """
    path = folder / INDEX
    index = read_json(path)
    if (given := index.get("_class_name")) != PIPELINE:
        raise ValueError(f"{path} is for a {given}, not for an {PIPELINE}")
    absent = [None, None]  # diffusers' entry for a module that a pipeline lacks
    given = [name for name, entry in index.items() if entry != absent]
    configs.refuse_unknown(path, given, {*MODULES, *BESIDE, *configs.DIFFUSERS})
    kinds = {x: (index.get(x) or absent)[1] for x in (*MODULES, "scheduler")}
    for name, classes in MODULES.items():
        if (given := kinds[name]) not in classes:
            wanted = " or ".join(classes)
            raise ValueError(f"{path}: {name} must be a {wanted}, not {given}")
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{folder / name} is missing: the pipeline is incomplete"
            )
    return kinds


# --------------------------------------------------------------------------------------
# The whole folder: writing

OUT = {
    VAE: pretrained.vae_out,
    UNet: pretrained.unet_out,
    LOARegressor: pretrained.gpt_out,
    T5Encoder: pretrained.t5_out,
    PhonemeEncoder: pretrained.phonemes_out,
    HiFiGAN: pretrained.vocoder_out,
    ReleasedCLAP: lambda clap: clap.model,
    ReleasedTokenizer: lambda tokenizer: tokenizer.backend,
    PhonemeTokenizer: lambda tokenizer: tokenizer.backend,
}
OWN = (
    "the CLAP and the tokenizer of this package have no counterpart in transformers: "
    "start from a released folder (`AudioLDM2.from_diffusers`), which has its own, "
    "and train the other parts"
)
NO_COUNTERPART = {
    CLAP: OWN,
    Tokenizer: OWN,
    Vocos: "the vocoder Vocos has no counterpart in transformers: train a HiFiGAN",
}


def out(part: Any, *others: Any) -> Any:
    """The counterpart of a part; ValueError if it has none."""
    if type(part) not in OUT:
        raise ValueError(NO_COUNTERPART[type(part)])
    return OUT[type(part)](part, *others)


def as_diffusers(parts: Any) -> Any:
    """The parts of a pipeline (`folders.Parts`) as diffusers' AudioLDM2Pipeline.

    Raises:
        ValueError: a part has no counterpart there; the sentence names it.
    """
    from diffusers import AudioLDM2Pipeline

    clap, text, unet = parts.clap, parts.text, parts.unet
    frames = parts.seconds * audio.SAMPLE_RATE / audio.HOP / parts.vae.config.reduction
    modules = {
        "text_encoder": out(clap),
        "tokenizer": out(clap.tokenizer),
        "text_encoder_2": out(text),
        "tokenizer_2": out(text.tokenizer),
        "vae": out(parts.vae),
        "vocoder": out(parts.vocoder),
    }
    projection_model, language_model = out(parts.gpt)
    return AudioLDM2Pipeline(
        **modules,
        projection_model=projection_model,
        language_model=language_model,
        feature_extractor=clap.feature_extractor,
        unet=out(unet, round(frames)),
        scheduler=pretrained.scheduler_out(unet),
    )


def write(pipeline: Any, folder: Path) -> None:
    """Write diffusers' pipeline to a folder, whole or not at all."""
    other = folder.exists() and not is_released(folder)
    if other and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists but does not hold a pipeline: nothing was written"
        )
    with replacing_folder(folder) as new:
        pipeline.save_pretrained(new)
