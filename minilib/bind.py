"""Binding spaces: many senses in one space, though no data has all of them together.

ImageBind (Girdhar et al., 2305.05665) pairs every sense with pictures only, and
LanguageBind (Zhu et al., 2310.01852) with captions only: senses that were never paired
then find each other through the one that both were paired with. LanguageBind's towers
are adapted by LoRA (Hu et al., 2106.09685). AudioLDM 2 can be trained on the sounds of
such a space and asked with a picture. Chapter 12 builds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.audiomae import ViTBlock
from minilib.clap import (
    INITIAL_TEMPERATURE,
    MAX_LOGIT_SCALE,
    TextTower,
    contrastive_loss,
    same_captions,
)
from minilib.conditions import Context
from minilib.layers import gathered
from minilib.model import Model
from minilib.tokenizer import Reader


@dataclass(frozen=True)
class SenseConfig:
    """What a sense looks like to its tower, and the tower's sizes. Chapter 12."""

    shape: tuple[int, int, int]  # channels, rows, columns
    patch: tuple[int, int]  # rows and columns of a patch
    n_embd: int
    n_layer: int
    n_head: int
    frames: int = 1  # of a video; a patch spans all of them
    stride: tuple[int, int] | None = None  # from patch to patch; None: side by side
    size: tuple[int, int] | None = None  # rows and columns that the tower sees
    temperature: float = 0.05  # of ImageBind's loss with pictures
    rank: int = 0  # of LanguageBind's LoRA
    mean: float = 0.5  # the tower sees (input - mean) / std
    std: float = 0.25


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower, which is CLAP's (chapter 10)."""

    vocab_size: int = 49408
    n_embd: int = 1024
    n_layer: int = 24
    n_head: int = 16
    n_positions: int = 78  # <cls> included


@dataclass(frozen=True)
class BindConfig:
    """The space and its senses; video shares the tower of pictures."""

    dim: int
    text: TextConfig
    image: SenseConfig
    audio: SenseConfig
    depth: SenseConfig
    thermal: SenseConfig
    motion: SenseConfig
    alpha: float = 16.0  # of LanguageBind's LoRA


TOWERS = ("image", "audio", "depth", "thermal", "motion")  # with a tower of patches


class Tower(nn.Module):
    """A vision transformer over the patches of any sense (2010.11929): [CLS] stands for
    the whole, a linear layer brings it into the common space.

    Chapter 12.
    """

    def __init__(self, config: SenseConfig, dim: int):
        super().__init__()
        size, D = config.size or config.shape[1:], config.n_embd
        stride = config.stride or config.patch
        along = zip(size, config.patch, stride)
        self.grid = tuple((n - p) // s + 1 for n, p, s in along)  # patches
        self.cut = {"kernel_size": config.patch, "stride": stride}
        numbers = config.frames * config.shape[0] * math.prod(config.patch)
        self.patches = nn.Linear(numbers, D)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, D))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + math.prod(self.grid), D))
        self.blocks = nn.ModuleList(
            ViTBlock(D, config.n_head) for _ in range(config.n_layer)
        )
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.project = nn.Linear(D, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, frames * channels, rows, columns) -> (B, dim)."""
        x = F.unfold(x, **self.cut).transpose(1, 2)  # (B, P, numbers of a patch)
        x = self.patches(x)  # (B, P, n_embd)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x[:, 0]))


def arrange(sense: str, x: Tensor, config: SenseConfig) -> Tensor:
    """Bring a sense into the form of its tower (B, frames * channels, rows, columns),
    its numbers of order one.

    A picture (B, 3, H, W) becomes a film of equal frames, a video (B, frames, 3, H, W)
    lays its frames behind each other, a trace (B, channels, L) is a row.

    Raises:
        ValueError: `x` has another shape.

    Chapter 12.
    """
    C, H, W = config.shape
    video, trace = (config.frames, C, H, W), (C, W)
    wanted = {"video": video, "motion": trace}.get(sense, config.shape)
    if tuple(x.shape[1:]) != wanted:
        said = ", ".join(map(str, ("B", *wanted)))
        raise ValueError(f"{sense} must have shape ({said}), not {tuple(x.shape)}")
    x = x.reshape(len(x), -1, H, W)  # (B, channels or frames * channels, H, W)
    if config.size:
        x = F.interpolate(x, config.size, mode="bilinear", antialias=True)
    n = config.frames * C // x.shape[1]
    return (x.repeat(1, n, 1, 1) - config.mean) / config.std


class Binding(Reader, Model):
    """Towers for text and all senses, of which one is the hub: each of the others is
    only ever compared with it.

    Chapter 12.
    """

    config_class = BindConfig
    hub: ClassVar[str]

    def __init__(self, config: BindConfig):
        super().__init__(config)
        self.dim = config.dim
        self.text = TextTower(config.text)
        self.text_projection = nn.Linear(config.text.n_embd, config.dim, bias=False)
        self.towers = nn.ModuleDict(
            {name: Tower(getattr(config, name), config.dim) for name in TOWERS}
        )
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))

    def parts(self, sense: str) -> list[nn.Module]:
        """The networks of a sense; those of video are the ones of pictures."""
        if sense == "text":
            return [self.text, self.text_projection]
        if (name := self.seen_as(sense)) not in self.towers:
            known = ", ".join(("text", "video", *self.towers))
            raise ValueError(f"sense must be one of {known}, not {sense!r}")
        return [self.towers[name]]

    def freeze(self, *senses: str) -> None:
        """Keep the networks of these senses, and with text the temperature."""
        for sense in senses:
            for part in self.parts(sense):
                part.requires_grad_(False)
        if "text" in senses:
            self.logit_scale.requires_grad_(False)

    def embed_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed captions: ids and mask (B, S) -> (B, dim), of unit length."""
        return F.normalize(self.text_projection(self.text(ids, mask)), dim=-1)

    def arranged(self, sense: str, x: Tensor) -> Tensor:
        """A sense as its tower wants it: (B, frames * channels, rows, columns)."""
        return arrange(sense, x, getattr(self.config, self.seen_as(sense)))

    @staticmethod
    def seen_as(sense: str) -> str:
        """The sense whose tower reads this one: pictures for video."""
        return "image" if sense == "video" else sense

    def embed(self, sense: str, x: Any) -> Tensor:
        """Embed B inputs of a sense -> (B, dim), of unit length: captions as "text",
        (B, 3, H, W) as "image", (B, frames, 3, H, W) as "video", log-mels as "audio",
        (B, 1, H, W) as "depth" or "thermal", (B, channels, L) as "motion".
        """
        (tower, *_) = self.parts(sense)
        if sense == "text":
            return self.embed_text(*self.read(x))
        x = self.arranged(sense, x.to(self.device, self.dtype))
        return F.normalize(tower(x), dim=-1)

    def encode(self, inputs: Any, pad_to: int = 0) -> Context:
        """Encode B captions as a condition of one vector each, (B, 1, dim), whatever
        `pad_to`; or a dict of senses: their embeddings, added and scaled to length 1.
        """
        named = inputs if isinstance(inputs, Mapping) else {"text": inputs}
        if not named:
            raise ValueError("inputs is empty: at least one sense is needed")
        total = sum(self.embed(sense, x) for sense, x in named.items())
        return Context(F.normalize(total, dim=-1)[:, None])

    def empty(self, n: int, pad_to: int = 0) -> Context:
        """The empty condition for n items, the vector zero: nothing is sensed."""
        return Context(self.logit_scale.new_zeros(n, 1, self.dim))

    def scale(self, sense: str) -> Tensor:
        """1 / temperature for a sense and the hub: learned, one for all."""
        return self.logit_scale.exp()

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Contrastive loss of each sense in the batch with the hub, in nats, and
        "loss", their mean; if several processes train, of all their batches together.

        The batch holds senses by name, all of the same B scenes; for text, `ids` and
        `mask` (B, S). With `other_ids` and `other_mask`, each scene's caption in other
        words, captions must also find each other.
        """
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        senses = [name for name in batch if not name.endswith(("ids", "mask"))]
        found = {name: gathered(self.embed(name, batch[name])) for name in senses}
        same = None  # like captions are no wrong answers
        if "ids" in batch:
            found["text"] = gathered(self.embed_text(batch["ids"], batch["mask"]))
            same = same_captions(gathered(batch["ids"]))
        if self.hub not in found or len(found) < 2:
            given = ", ".join(found)
            raise ValueError(f"batch must hold {self.hub} and another, not {given}")
        hub, losses = found.pop(self.hub), {}
        for name, x in found.items():
            alike = same if "text" in (name, self.hub) else None
            losses[name] = contrastive_loss(hub, x, self.scale(name), alike)
        if "other_ids" in batch:
            text = found.get("text", hub)
            other = gathered(self.embed_text(batch["other_ids"], batch["other_mask"]))
            losses["words"] = contrastive_loss(text, other, self.scale("text"), same)
        return {"loss": sum(losses.values()) / len(losses), **losses}


class ImageBind(Binding):
    """Every sense is paired with pictures (Girdhar et al., 2305.05665).

    First pictures and captions learn together; then both are frozen, and the other
    towers come to meet the pictures. Chapter 12.
    """

    hub = "image"

    def scale(self, sense: str) -> Tensor:
        """Learned for text, fixed for the others."""
        if sense == "text":
            return super().scale(sense)
        config = getattr(self.config, self.seen_as(sense))
        return self.logit_scale.new_tensor(1 / config.temperature)


class LoRA(nn.Linear):
    """A frozen linear layer and a correction of low rank: W + (alpha / r) B A, with B
    zero at the start (2106.09685 Eq. 3).

    Chapter 12.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool, r: int, alpha: float):
        super().__init__(n_in, n_out, bias)
        self.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(r, n_in) / math.sqrt(n_in))
        self.B = nn.Parameter(torch.zeros(n_out, r))
        self.ratio = alpha / r

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n_in) -> (..., n_out)."""
        return super().forward(x) + self.ratio * (x @ self.A.T) @ self.B.T

    def merged(self) -> Tensor:
        """The one matrix (n_out, n_in) that does the same."""
        return self.weight + self.ratio * self.B @ self.A


def add_lora(module: nn.Module, r: int, alpha: float) -> nn.Module:
    """Freeze a module, and give each of its linear layers a correction of rank r; of
    rank 0, none.

    Raises:
        ValueError: r is negative.

    Chapter 12.
    """
    if r < 0:
        raise ValueError(f"r must be 0 or more, not {r}")
    module.requires_grad_(False)
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and r:
            n_out, n_in = child.weight.shape
            adapted = LoRA(n_in, n_out, child.bias is not None, r, alpha)
            adapted.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, adapted.to(child.weight))
        else:
            add_lora(child, r, alpha)
    return module


def spread(position: Tensor, grid: tuple, new: tuple) -> Tensor:
    """Positions (1, 1 + P, D) of [CLS] and of a grid of patches, stretched to another
    grid.
    """
    first, others = position[:, :1], position[:, 1:].transpose(1, 2)  # (1, D, P)
    others = F.interpolate(others.unflatten(2, grid), new, mode="bilinear")
    return torch.cat([first, others.flatten(2).transpose(1, 2)], dim=1)


class LanguageBind(Binding):
    """Every sense is paired with captions (Zhu et al., 2310.01852).

    A sense is turned into a picture, and read by a frozen copy of the tower of pictures
    that LoRA adapts; text stays frozen. Chapter 12.
    """

    hub = "text"
    adapted = ("audio", "depth", "thermal")

    def __init__(self, config: BindConfig):
        super().__init__(config)
        del self.towers["motion"]
        for name in self.adapted:
            sense = getattr(config, name)
            like = replace(config.image, size=sense.size or sense.shape[1:])
            tower = Tower(like, self.dim)
            self.towers[name] = add_lora(tower, sense.rank, config.alpha)
        self.freeze("text", "image")
        self.logit_scale.requires_grad_(True)

    def start_from(self, bound: ImageBind) -> Binding:
        """Take over text and pictures that have learned together, the tower of pictures
        for every sense.
        """
        self.text.load_state_dict(bound.text.state_dict())
        self.text_projection.load_state_dict(bound.text_projection.state_dict())
        seen, known = bound.towers["image"], bound.towers["image"].state_dict()
        for sense in ("image", *self.adapted):
            tower = self.towers[sense]
            position = spread(seen.position, seen.grid, tower.grid)
            tower.load_state_dict({**known, "position": position}, strict=False)
        return self

    def arranged(self, sense: str, x: Tensor) -> Tensor:
        """A sense in the form of a film: each of its channels and frames shows it."""
        x = super().arranged(sense, x)
        if sense not in self.adapted:
            return x
        n = self.config.image.frames * self.config.image.shape[0]
        return x.expand(-1, n, -1, -1)  # from (B, 1, rows, columns)


def vision(n_embd: int, n_layer: int, n_head: int, **others: Any) -> SenseConfig:
    """A sense of `full`: pictures of 224 by 224 in patches of 16."""
    given = {"shape": (1, 224, 224), "patch": (16, 16), **others}
    return SenseConfig(n_embd=n_embd, n_layer=n_layer, n_head=n_head, **given)


def small(n_embd: int, n_layer: int, **others: Any) -> SenseConfig:
    """A small sense: pictures of 32 by 32 in patches of 8."""
    given = {"shape": (1, 32, 32), "patch": (8, 8), "n_head": 4, **others}
    return SenseConfig(n_embd=n_embd, n_layer=n_layer, **given)


MEL = {"mean": -6.8, "std": 2.8}  # of SoundWorld's log-mels, as in CLAP
FILM = {"shape": (3, 32, 32), "frames": 2}
TRACE = {"shape": (6, 1, 128), "patch": (1, 8), "mean": 0.0, "std": 0.15}
HEARD = {"shape": (1, 256, 64), "size": (64, 32), **MEL}  # time before frequency
# of the released ImageBind's fbanks
MEL_FULL = {"mean": -4.268, "std": 9.138}
LARGE = {"n_embd": 1024, "n_layer": 24, "n_head": 16, "patch": (14, 14)}  # ViT-L/14

ImageBind.presets = {
    "tiny": BindConfig(
        dim=128, text=TextConfig(1000, 96, 2, 4, 80),
        image=small(96, 2, **FILM), audio=small(96, 3, rank=16, **HEARD),
        depth=small(64, 2, temperature=0.2, rank=2),
        thermal=small(64, 2, temperature=0.1, rank=2),
        motion=small(64, 2, temperature=0.2, **TRACE),
    ),
    "colab": BindConfig(
        dim=256, text=TextConfig(4000, 256, 4, 8, 160),
        image=small(256, 4, **FILM), audio=small(256, 6, rank=16, **HEARD),
        depth=small(128, 3, temperature=0.2, rank=2),
        thermal=small(128, 3, temperature=0.1, rank=2),
        motion=small(128, 3, temperature=0.2, **TRACE),
    ),
    "full": BindConfig(
        dim=1024, text=TextConfig(),
        image=vision(1280, 32, 16, shape=(3, 224, 224), frames=2, patch=(14, 14)),
        audio=vision(768, 12, 12, shape=(1, 204, 128), stride=(10, 10), **MEL_FULL),
        depth=vision(384, 12, 8, temperature=0.2),
        thermal=vision(768, 12, 12, temperature=0.1),
        motion=vision(512, 6, 8, shape=(6, 1, 2000), patch=(1, 8), temperature=0.2),
    ),
}  # fmt: skip
LanguageBind.presets = {
    "tiny": ImageBind.presets["tiny"],
    "colab": ImageBind.presets["colab"],
    "full": BindConfig(  # in place of a video's 8 frames, 2
        dim=768, text=TextConfig(n_embd=768, n_layer=12, n_head=12),
        image=vision(**LARGE, shape=(3, 224, 224), frames=2),
        audio=vision(**LARGE, shape=(1, 1036, 126), rank=16, **MEL_FULL),
        depth=vision(**LARGE, rank=2), thermal=vision(**LARGE, rank=2),
        motion=vision(**LARGE),  # which LanguageBind does not have
    ),
}  # fmt: skip
