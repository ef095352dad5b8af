"""The released AudioLDM 2 as one folder: every module in its place, and what stays
transformers' own.

Tokenizers and CLAP are used as transformers has them, behind the faces of
`text.Tokenizer` and `clap.CLAP`; all else becomes this package's models (`pretrained`).
Chapter 18 builds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minilib import audio
from minilib.convert import original, pretrained
from minilib.files import replacing_folder
from minilib.gpt import LOARegressor
from minilib.model import local_folder, read_json
from minilib.phonemes import PhonemeEncoder
from minilib.text import T5Config, T5Encoder
from minilib.tokenizer import check_captions, check_lengths
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN

INDEX = "model_index.json"
PIPELINE = "AudioLDM2Pipeline"
MODULES = {  # what the released folder holds, by diffusers' names
    "vae": ("AutoencoderKL",),
    "text_encoder": ("ClapModel",),
    "text_encoder_2": ("T5EncoderModel", "VitsModel"),
    "projection_model": ("AudioLDM2ProjectionModel",),
    # the second since diffusers asks for it
    "language_model": ("GPT2Model", "GPT2LMHeadModel"),
    "unet": ("AudioLDM2UNet2DConditionModel",),
    "vocoder": ("SpeechT5HifiGan",),
}
# LOA vectors of the speech models: one for each patch, where the others pool 8 x 8
SPEECH_TOKENS = 512
END_OF_SPEECH = 182  # the phoneme that closes a sentence
PATTERNS = ["*.json", "*.txt", "*.model"]  # of a hub folder, beside its weights


class ReleasedTokenizer:
    """A tokenizer of transformers with the face of `text.Tokenizer`."""

    # the released GPT-2 was trained on captions padded to the longest of a batch
    pad_to = 0

    def __init__(self, backend: Any):
        self.backend = backend
        # transformers writes 10^30 for "not known"
        self.max_tokens = min(backend.model_max_length, 512)

    @classmethod
    def load(cls, folder: Path) -> ReleasedTokenizer:
        """Read the tokenizer that transformers saved into a folder; ValueError where
        there is none.
        """
        import transformers

        try:
            return cls(transformers.AutoTokenizer.from_pretrained(folder))
        # transformers raises many kinds for files that are missing or damaged
        except Exception as error:
            raise ValueError(
                f"{folder} holds no tokenizer that transformers can read"
            ) from error

    def save(self, folder: Path) -> None:
        """Write the tokenizer as transformers reads it."""
        self.backend.save_pretrained(folder)

    def encode(
        self,
        captions: list[str],
        max_length: int | None = None,
        truncate: bool = False,
        pad_to: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Ids (B, S) and mask (B, S) bool, as `text.Tokenizer.encode`."""
        max_length = max_length or self.max_tokens
        limit = {"truncation": True, "max_length": max_length} if truncate else {}
        rows = self.backend(check_captions(captions), **limit)["input_ids"]
        check_lengths(captions, rows, max_length)
        S = max(pad_to, *(len(row) for row in rows))
        ids = torch.tensor(
            [row + [self.backend.pad_token_id] * (S - len(row)) for row in rows]
        )
        mask = torch.tensor(
            [[True] * len(row) + [False] * (S - len(row)) for row in rows]
        )
        return ids, mask


class PhonemeTokenizer(ReleasedTokenizer):
    """VITS' tokenizer, which writes a transcription as phonemes; all are padded to one
    length.
    """

    def __init__(self, backend: Any, n_positions: int):
        super().__init__(backend)
        # as many as GPT-2's projection has learned positions for
        self.max_tokens = self.pad_to = n_positions

    def encode(
        self,
        captions: list[str],
        max_length: int | None = None,
        truncate: bool = False,
        pad_to: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Ids (B, S) and mask (B, S) bool, the first padding turned into the sign of
        the end.
        """
        ids, mask = super().encode(captions, max_length, truncate, pad_to)
        is_zero = ids == 0
        first = is_zero & (is_zero.cumsum(dim=1) == 1)  # (B, S): at most one each
        return ids.masked_fill(first, END_OF_SPEECH), mask | first


class ReleasedCLAP(nn.Module):
    """transformers' ClapModel with the face of `clap.CLAP`: RoBERTa and HTS-AT for BERT
    and PANNs.
    """

    def __init__(self, model: nn.Module, feature_extractor: Any):
        super().__init__()
        self.model, self.feature_extractor = model.eval(), feature_extractor

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        feature_extractor: Path | None = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> ReleasedCLAP:
        """From the folders of a ClapModel and its feature extractor (None: the same).

        `dtype` None keeps what is stored; float64, in which CLAP is released, becomes
        float32.
        """
        return cls.from_state(
            pretrained.read_state(folder), folder, feature_extractor or folder, dtype
        )

    @classmethod
    def from_state(
        cls,
        state: pretrained.State,
        folder: Path,
        feature_extractor: Path,
        dtype: torch.dtype | None = torch.float32,
    ) -> ReleasedCLAP:
        """From tensors by transformers' names, with the config in `folder`."""
        model, heard = cls.untrained(folder, feature_extractor)
        own = model.state_dict()
        for name in own.keys() & state.keys():
            if own[name].shape != state[name].shape:
                shapes = f"{tuple(state[name].shape)} where the config asks for {tuple(own[name].shape)}"
                raise ValueError(
                    f"the weights in {folder} are not those of its config: {name} has "
                    f"shape {shapes}"
                )
        missing, extra = model.load_state_dict(state, strict=False)
        missing = [name for name in missing if name not in buffers(model)]
        unknown = [
            name
            for name in extra
            if not name.endswith(("position_ids", "token_type_ids"))
        ]
        if missing or unknown:
            name = (
                f"{missing[0]} is missing"
                if missing
                else f"{unknown[0]} is not in this config"
            )
            raise ValueError(
                f"the weights in {folder} are not those of its config: {name}"
            )
        stored = next(x.dtype for x in state.values() if x.is_floating_point())
        dtype = dtype or (torch.float32 if stored == torch.float64 else stored)
        return cls(model.to(dtype), heard)

    @staticmethod
    def untrained(folder: Path, feature_extractor: Path) -> tuple[nn.Module, Any]:
        """A ClapModel of the config in a folder, and the feature extractor in another."""
        import transformers

        try:
            model = transformers.ClapModel(
                transformers.ClapConfig.from_pretrained(folder)
            )
            return model, transformers.ClapFeatureExtractor.from_pretrained(
                feature_extractor
            )
        except (OSError, ValueError) as error:
            said = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"{folder} is not a whole ClapModel with a feature extractor: {said}"
            ) from error

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None
    ) -> None:
        """Write the model and its feature extractor into one folder, as transformers
        reads them.
        """
        import copy

        model = copy.deepcopy(self.model).to(dtype) if dtype is not None else self.model
        model.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.model.config.projection_dim

    def embed_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed captions: ids (B, S) of CLAP's own tokenizer, mask (B, S) -> (B, dim),
        of unit length.
        """
        mask = torch.ones_like(ids) if mask is None else mask.long()
        return self.model.get_text_features(ids, attention_mask=mask).pooler_output

    def embed_waves(self, waves: Tensor) -> Tensor:
        """Embed sounds, their first ten seconds, from waveforms: (B, N) at 16 kHz ->
        (B, dim), of unit length.

        Of longer sounds diffusers' pipeline hears ten seconds drawn from a global
        source of randomness, so that its ranking changes from call to call.
        """
        import librosa

        rate = self.feature_extractor.sampling_rate  # 48 kHz
        heard = librosa.resample(
            waves.float().cpu().numpy(), orig_sr=audio.SAMPLE_RATE, target_sr=rate
        )
        heard = heard[:, : self.feature_extractor.nb_max_samples]
        features = self.feature_extractor(
            list(heard), sampling_rate=rate, return_tensors="pt"
        )
        weight = next(self.model.parameters())
        features = {
            name: x.to(weight) if x.is_floating_point() else x.to(weight.device)
            for name, x in features.items()
        }
        return self.model.get_audio_features(**features).pooler_output


def buffers(model: nn.Module) -> set[str]:
    """Names of a model's tensors that are computed, not learned, save the statistics of
    its norms.
    """
    return {
        name
        for name, _ in model.named_buffers()
        if not name.endswith(("running_mean", "running_var"))
    }


# --------------------------------------------------------------------------------------
# The whole folder


class Released(NamedTuple):
    """All that a released folder holds, as `AudioLDM2` takes it."""

    tokenizer: ReleasedTokenizer  # T5's, or that of the phonemes
    clap_tokenizer: ReleasedTokenizer
    parts: dict[str, nn.Module]
    seconds: float


def is_released(folder: Path) -> bool:
    """Whether a folder is laid out as diffusers lays out a pipeline."""
    return (folder / INDEX).is_file()


def fetch(folder: str | Path) -> Path:
    """A local folder as it is; of a hub id the safetensors, or `.bin` files where there
    are no others.
    """
    fetched = local_folder(folder, allow_patterns=[*PATTERNS, "*.safetensors"])
    whole = all(any((fetched / name).glob("*.safetensors")) for name in MODULES)
    if Path(folder).is_dir() or whole or not is_released(fetched):
        return fetched
    return local_folder(folder, allow_patterns=[*PATTERNS, "*.safetensors", "*.bin"])


def read(
    folder: Path,
    dtype: torch.dtype | None = torch.float32,
    head_width: int | None = None,
    n_tokens: int | None = None,
) -> Released:
    """A released folder as parts of a pipeline.

    Args:
        folder: as `AudioLDM2Pipeline.save_pretrained` writes it.
        dtype: floating-point type of the loaded weights, whatever is stored; None keeps
            what is stored.
        head_width: of the U-Net's attention heads at every level; None for as many
            heads as its config says.
        n_tokens: LOA vectors; None for the number that the config names, and for speech
            512.

    Raises:
        FileNotFoundError: a module or a file in it is missing.
        ValueError: a folder of another pipeline, or a file that is damaged or asks for
            what this package does not have.
    """
    index = read_index(folder)
    unet = folder / "unet"
    schedule = pretrained.read_schedule(folder / "scheduler")
    parts: dict[str, nn.Module] = {
        "clap": ReleasedCLAP.from_pretrained(
            folder / "text_encoder", folder / "feature_extractor", dtype
        ),
        "unet": pretrained.read_unet(unet, schedule, dtype, head_width),
        "vae": pretrained.read_vae(folder / "vae", dtype),
        "vocoder": pretrained.read_vocoder(folder / "vocoder", dtype),
    }
    speaks = index["text_encoder_2"][1] == "VitsModel"
    n_tokens = n_tokens or (SPEECH_TOKENS if speaks else None)
    gpt = pretrained.read_gpt(
        folder / "language_model", folder / "projection_model", n_tokens, dtype
    )
    text = (pretrained.read_phonemes if speaks else pretrained.read_t5)(
        folder / "text_encoder_2", dtype
    )
    tokenizer = load_tokenizer(folder / "tokenizer_2", gpt)
    seconds = trained_seconds(unet, parts["vae"])
    clap_tokenizer = ReleasedTokenizer.load(folder / "tokenizer")
    return Released(
        tokenizer, clap_tokenizer, {**parts, "gpt": gpt, "text": text}, seconds
    )


def read_original(
    path: Path,
    like: Path,
    dtype: torch.dtype | None = torch.float32,
    head_width: int | None = None,
    n_tokens: int | None = None,
) -> Released:
    """A checkpoint as the authors published it, a `.pth`, as parts of a pipeline.

    Args:
        path: the checkpoint; like: a released folder of the same model, for its configs
            and tokenizers.
        dtype, head_width, n_tokens: as in `read`.

    Raises:
        FileNotFoundError: the file, or a module of the folder, is missing.
        ValueError: a tensor is missing, misshapen or unknown, or reading the file would
            run the code in it.
    """
    index, state = read_index(like), original.read(path)
    if index["text_encoder_2"][1] == "VitsModel":
        raise ValueError(f"{like} is a speech model, which is read from a folder only")
    used: set[str] = set()
    made, fill = pretrained.made, pretrained.fill
    vae_config = pretrained.vae_config(like / "vae")
    factor = original.scaling_factor(state, used)
    vae = made(
        VAE, replace(vae_config, scaling_factor=factor) if factor else vae_config
    )
    schedule = pretrained.read_schedule(like / "scheduler")
    unet = made(UNet, pretrained.unet_config(like / "unet", schedule, head_width))
    vocoder = made(HiFiGAN, pretrained.vocoder_config(like / "vocoder"))
    gpt = made(
        LOARegressor,
        pretrained.gpt_config(
            like / "language_model", like / "projection_model", n_tokens
        ),
    )
    text = made(
        T5Encoder, T5Config(**pretrained.read_sizes("t5", like / "text_encoder_2"))
    )
    clap_names = ReleasedCLAP.untrained(
        like / "text_encoder", like / "feature_extractor"
    )[0].state_dict()
    states = {
        "vae": original.vae(
            state, vae.state_dict(), len(vae_config.block_out_channels), used
        ),
        "unet": original.pick(
            state,
            unet.state_dict(),
            lambda name: original.unet_name(unet.config, name),
            used,
        ),
        "vocoder": {
            "mean": torch.zeros(vocoder.config.model_in_dim),  # which nothing reads
            "scale": torch.ones(vocoder.config.model_in_dim),
            **original.pick(state, vocoder.state_dict(), original.vocoder_name, used),
        },
        "gpt": pretrained.gpt_in(
            original.projection(state, used),
            original.prefixed(state, "cond_stage_models.0.model.", used),
        ),
        "text": pretrained.t5_in(
            original.prefixed(state, "cond_stage_models.1.model.", used)
        ),
    }
    clap_state = original.clap(state, clap_names, used)
    original.check_used(state, used, path)
    models = {"vae": vae, "unet": unet, "vocoder": vocoder, "gpt": gpt, "text": text}
    parts: dict[str, nn.Module] = {
        name: fill(models[name], states[name], path, dtype) for name in models
    }
    parts["clap"] = ReleasedCLAP.from_state(
        clap_state, like / "text_encoder", like / "feature_extractor", dtype
    )
    clap_tokenizer = ReleasedTokenizer.load(like / "tokenizer")
    seconds = trained_seconds(like / "unet", vae)
    return Released(
        load_tokenizer(like / "tokenizer_2", gpt), clap_tokenizer, parts, seconds
    )


def trained_seconds(unet: Path, vae: VAE) -> float:
    """The length of sound that a U-Net's folder names."""
    sample_size = read_json(unet / "config.json").get("sample_size", 256)
    return sample_size * vae.config.reduction * audio.HOP / audio.SAMPLE_RATE


def load_tokenizer(folder: Path, gpt: LOARegressor) -> ReleasedTokenizer:
    """The tokenizer of what GPT-2 reads beside CLAP: of captions, or of phonemes with
    learned positions.
    """
    tokenizer = ReleasedTokenizer.load(folder)
    positions = gpt.config.learned_positions
    return PhonemeTokenizer(tokenizer.backend, positions) if positions else tokenizer


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's list of modules; one sentence for another pipeline's, or for a
    module it lacks.
    """
    path = folder / INDEX
    index = read_json(path)
    if index.get("_class_name") != PIPELINE:
        raise ValueError(
            f"{path} is that of a {index.get('_class_name')}, not of an {PIPELINE}"
        )
    for name, classes in MODULES.items():
        given = (index.get(name) or [None, None])[1]
        if given not in classes:
            raise ValueError(
                f"{path}: {name} must be a {' or '.join(classes)}, not {given}"
            )
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{folder / name} is missing: the pipeline is not complete"
            )
    return index


def as_diffusers(
    tokenizer: Any, clap_tokenizer: Any, parts: Mapping[str, nn.Module], seconds: float
) -> Any:
    """The parts as diffusers' AudioLDM2Pipeline.

    Raises:
        ValueError: a part has no counterpart there; the sentence names it.
    """
    from diffusers import AudioLDM2Pipeline

    clap, text = parts["clap"], parts["text"]
    if not isinstance(clap, ReleasedCLAP) or not isinstance(
        tokenizer, ReleasedTokenizer
    ):
        raise ValueError(
            "the CLAP and the tokenizer of this package have no counterpart in "
            "transformers: start from a released "
            "folder (`AudioLDM2.from_diffusers`), which brings its own, and train the "
            "other parts"
        )
    projections, language_model = pretrained.gpt_out(parts["gpt"])
    speaks = isinstance(text, PhonemeEncoder)
    frames = seconds * audio.SAMPLE_RATE / audio.HOP
    return AudioLDM2Pipeline(
        vae=pretrained.vae_out(parts["vae"]),
        text_encoder=clap.model,
        text_encoder_2=(pretrained.phonemes_out if speaks else pretrained.t5_out)(text),
        projection_model=projections,
        language_model=language_model,
        tokenizer=clap_tokenizer.backend,
        tokenizer_2=tokenizer.backend,
        feature_extractor=clap.feature_extractor,
        unet=pretrained.unet_out(
            parts["unet"], round(frames / parts["vae"].config.reduction)
        ),
        scheduler=pretrained.scheduler_out(parts["unet"]),
        vocoder=pretrained.vocoder_out(parts["vocoder"]),
    )


def write(pipeline: Any, folder: Path) -> None:
    """Write diffusers' pipeline into a folder, whole or not at all."""
    if (
        folder.exists()
        and not is_released(folder)
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise FileExistsError(
            f"{folder} exists and is no folder of a pipeline: nothing was written"
        )
    with replacing_folder(folder) as new:
        pipeline.save_pretrained(new)
