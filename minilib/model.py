"""The base class of every model: a frozen config, named presets, and folders that load
back exactly.

A saved model is a folder of `config.json` + `model.safetensors`, the form of
`huggingface_hub`'s `PyTorchModelHubMixin`, with its gaps closed: loading is strict,
configs come back equal (tuples and nested dataclasses included), the stored dtype is
kept, and nothing is ever unpickled. Chapter 02 shows it at work.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minilib.arguments import check_dtype, check_path
from minilib.files import replacing

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# why the hub refused, and what to do, by the kind of error
HUB_REASONS = {
    "GatedRepoError": "accept its terms on its page, and log in with: hf auth login",
    "RepositoryNotFoundError": "there is no such repository, or it is private and you "
    "must log in with: hf auth login",
    "RevisionNotFoundError": "the repository is empty",
    "HFValidationError": "this is not a valid hub id",
    "LocalTokenNotFoundError": "log in first with: hf auth login",
    **dict.fromkeys(
        ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError")
        + ("ConnectionError", "TimeoutException", "Timeout"),
        "the hub can't be reached",
    ),
}
# Prefixes that DistributedDataParallel and torch.compile add to a model's tensor names.
WRAPPERS = ("module.", "_orig_mod.")


class Model(nn.Module, PyTorchModelHubMixin):
    """A network with a frozen dataclass `config`, `presets` by name, and
    `save_pretrained` / `from_pretrained`.

    A subclass sets `config_class`, takes that config as its only argument, and fills
    `presets`.
    """

    config_class: ClassVar[type]
    presets: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: Any):
        super().__init__()
        if not isinstance(config, self.config_class):
            wanted, given = self.config_class.__name__, type(config).__name__
            raise TypeError(f"config must be a {wanted}, not {given}")
        self.config = config

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Model:
        """Build the model at one of its named sizes (`tiny`, `colab`, `full`, ...),
        with random weights.

        `changes` replace fields of the preset's config.
        """
        if name not in cls.presets:
            known = f"{', '.join(cls.presets)} for {cls.__name__}"
            raise ValueError(f"preset must be one of {known}, not {name!r}")
        return cls(dataclasses.replace(cls.presets[name], **changes))

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return next(self.parameters()).dtype

    def n_parameters(self) -> int:
        """Count the parameters (buffers are not counted)."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, **hub: Any
    ) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, both or neither.

        Args:
            folder: made if it is missing; files of an older save are replaced.
            dtype: the floating-point type on disk, e.g. `torch.float16`; None keeps
                each tensor's own.
        """
        check_dtype(dtype)
        folder = check_path("folder", folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            k: to_dtype(x, dtype).contiguous() for k, x in self.state_dict().items()
        }
        sizes = json.dumps(dataclasses.asdict(self.config), indent=2) + "\n"
        with (
            replacing(folder / WEIGHTS_FILE) as weights,
            replacing(folder / CONFIG_FILE) as config,
        ):
            save_file(state, weights)
            config.write_text(sizes)
            weights.chmod(config.stat().st_mode)  # safetensors lets only the owner read
        if hub.pop("push_to_hub", False):
            self.push_to_hub(hub.pop("repo_id", None) or folder.name, **hub)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = None, **hub: Any
    ) -> Model:
        """Load a model saved by `save_pretrained`, from a folder or a hub id, in
        evaluation mode.

        Args:
            folder: a local folder, or `owner/name` on the Hugging Face hub.
            dtype: floating-point type of the loaded model; None keeps the stored one.

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: a file is damaged, or weights and config do not belong together.
        """
        check_dtype(dtype)
        folder = local_folder(folder, **hub)
        config = read_config(cls.config_class, folder / CONFIG_FILE)
        return cls.filled(config, read_weights(folder / WEIGHTS_FILE), folder, dtype)

    @classmethod
    def filled(
        cls,
        config: Any,
        state: dict[str, Tensor],
        folder: Path,
        dtype: torch.dtype | None = None,
    ) -> Model:
        """The model with this config and these tensors, which must match it exactly, in
        evaluation mode; `folder`, their source, is named in the error if they do not
        fit.
        """
        model, state = built(cls, config, folder), without_prefix(state)
        check_weights(model, state, folder)
        for name, buffer_or_parameter in model.state_dict(keep_vars=True).items():
            buffer_or_parameter.data = to_dtype(state[name], dtype)
        return model.eval()


def built(model_class: type[Model], config: Any, folder: Path) -> Model:
    """A model with the config from a folder; numbers with which no network can be built
    raise a sentence.
    """
    try:
        return model_class(config)
    # a negative width, a fraction of a layer, no heads
    except (RuntimeError, TypeError, ArithmeticError, LookupError) as error:
        said = f"no {model_class.__name__} can be built from it ({error})"
        raise ValueError(f"{folder / CONFIG_FILE} is damaged: {said}") from error


def has_gpu() -> bool:
    """Whether to use a GPU: there is one, and the environment's `MINILIB_DEVICE` is not
    "cpu".

    Raises:
        ValueError: `MINILIB_DEVICE` is something else.
    """
    asked = os.environ.get("MINILIB_DEVICE", "")
    if asked not in ("", "cpu"):
        raise ValueError(f"MINILIB_DEVICE must be cpu, or not be set, not {asked!r}")
    return torch.cuda.is_available() and not asked


def to_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Cast a floating-point tensor; leave integer and boolean ones as they are."""
    cast = dtype is not None and tensor.is_floating_point()
    return tensor.to(dtype) if cast else tensor


def local_folder(folder: str | Path, **hub: Any) -> Path:
    """The path of a local folder, or of the download of a hub id `owner/name` (config
    and safetensors files only).
    """
    path = check_path("folder", folder)
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"weights folder {folder} is a file, not a folder")
    if len(path.parts) != 2 or path.parts[0] in (".", "..", "/", "~"):
        raise FileNotFoundError(f"weights folder {folder} does not exist")
    from huggingface_hub import snapshot_download

    hub = {"allow_patterns": ["*.json", "*.safetensors", "*.txt"], **hub}
    try:
        return Path(snapshot_download(str(folder), **hub))
    # the hub raises many kinds of error: offline, unknown, private, rate-limited
    except Exception as error:
        where = "neither a local folder nor available from the Hugging Face hub"
        raise FileNotFoundError(f"{folder} is {where}: {hub_reason(error)}") from error


def hub_reason(error: Exception) -> str:
    """Why the hub gave or took nothing, in a few words."""
    for kind in type(error).__mro__:
        if kind.__name__ in HUB_REASONS:
            return HUB_REASONS[kind.__name__]
    return getattr(error, "strerror", None) or type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; say in one sentence which file is missing or damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the weights folder is incomplete")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not valid JSON") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it does not hold a JSON object")
    return values


def read_config(config_class: type, path: Path) -> Any:
    """Read a config dataclass equal to the one that was saved."""
    return config_from(config_class, read_json(path), path)


def config_from(config_class: type, values: dict[str, Any], path: Path) -> Any:
    """A config dataclass from a file's values; those of another raise a sentence."""
    try:
        return as_dataclass(config_class, values)
    except TypeError as error:
        raise ValueError(f"{path} is not a {config_class.__name__}: {error}") from error


def as_dataclass(config_class: type, values: dict[str, Any]) -> Any:
    """Rebuild a dataclass from JSON values: nested dicts become dataclasses, lists
    become tuples.
    """
    types = typing.get_type_hints(config_class)
    if unknown := values.keys() - {f.name for f in dataclasses.fields(config_class)}:
        raise TypeError(f"unknown field {min(unknown)!r}")
    return config_class(**{k: from_json(types[k], x) for k, x in values.items()})


def from_json(expected: Any, value: Any) -> Any:
    """Turn one JSON value into the field's type: a nested dataclass, a tuple, or the
    value itself.
    """
    if isinstance(value, dict) and dataclasses.is_dataclass(expected):
        return as_dataclass(expected, value)
    if isinstance(value, list):
        return tuple(from_json(None, item) for item in value)
    return value


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a pickle or an incomplete file is refused with one
    sentence.
    """
    if not path.is_file():
        kinds = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
        pickles = sorted(p.name for p in path.parent.glob("*") if p.suffix in kinds)
        message = f"{path} is missing: the weights folder is incomplete"
        if pickles:
            message += f"; {pickles[0]} beside it is a pickle, which is never loaded"
        raise FileNotFoundError(message)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or incomplete: it is not a whole safetensors file"
        ) from error


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without a wrapper's prefix in their names, if all of them have it."""
    for prefix in WRAPPERS * len(WRAPPERS):  # one wrapper may be inside the other
        if state and all(str(name).startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): x for name, x in state.items()}
    return state


def check_weights(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Raise ValueError unless names and shapes in `state` are exactly the model's."""
    own = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    given = {name: tuple(x.shape) for name, x in state.items()}
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is not in this config" for name in given if name not in own]
    problems += [
        f"{name} has shape {given[name]}, but the config asks for {shape}"
        for name, shape in own.items()
        if given.get(name, shape) != shape
    ]
    wrapped = [x for x in given if x not in own and any(w in x for w in WRAPPERS)]
    if wrapped:
        prefix = next(w for w in WRAPPERS if w in wrapped[0])
        said = f"{wrapped[0]} has a wrapper's prefix {prefix!r}, but not all names do"
        problems = [said, *problems[1:]]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(
            f"the weights in {folder} do not fit its config: {problems[0]}{more}"
        )
