"""Pictures: read from files, and brought to the size that ImageBind sees."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.arguments import check_path, shown

FORMATS = ("PNG", "JPEG")
LEAST, MOST = 8, 4096  # pixels of a side


def load(path: str | Path) -> Tensor:
    """Read a PNG or JPEG file: (3, H, W), from 0 to 1. What is transparent becomes
    white, and a photograph is turned upright.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or damaged, or too small or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    file = check_path("picture", path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no picture {str(path)!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as opened:
                check_sides(opened.size[::-1], f"the picture {str(path)!r}")
                if opened.mode[0] in "IF":
                    said = "has 16 bits a colour, not 8"
                    raise ValueError(f"the picture {str(path)!r} {said}")
                image = ImageOps.exif_transpose(opened).convert("RGBA")
    except UnidentifiedImageError as error:
        wanted = " or ".join(FORMATS)
        raise ValueError(f"{str(path)!r} is not a {wanted} picture") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"the picture {str(path)!r} is too large: {error}") from error
    # Pillow's errors for a broken PNG (SyntaxError) and for broken Exif data
    except (OSError, SyntaxError, struct.error, TypeError) as error:
        raise ValueError(f"the picture {str(path)!r} is damaged: {error}") from error
    white = Image.new("RGBA", image.size, "white")
    drawn = np.asarray(Image.alpha_composite(white, image).convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(drawn.copy()).permute(2, 0, 1).float() / 255


def check_sides(sides: Sequence[int], name: str) -> None:
    """Raise ValueError for a picture (H, W) with too few pixels, or too many."""
    if not all(LEAST <= side <= MOST for side in sides):
        H, W = sides
        wanted = f"from {LEAST} to {MOST} pixels wide and high"
        raise ValueError(f"{name} must be {wanted}, not {W} by {H}")


def check_pictures(given: Any, size: Sequence[int]) -> Tensor:
    """One or more pictures as a tensor (B, 3, *size), scaled if they have another size.

    Raises:
        ValueError, TypeError: they are not (3, H, W) or (B, 3, H, W), or not numbers
            from 0 to 1.
    """
    try:
        seen = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        said = f"picture must be a tensor (3, H, W), not {shown(given)}"
        raise TypeError(said) from None
    shape = tuple(seen.shape)
    seen = seen[None] if seen.ndim == 3 else seen
    if seen.ndim != 4 or seen.shape[1] != 3 or not len(seen):
        wanted = "(3, H, W) or (B, 3, H, W)"
        raise ValueError(f"picture must have shape {wanted}, not {shape}")
    check_sides(seen.shape[2:], "picture")
    if not seen.is_floating_point() or not ((seen >= 0) & (seen <= 1)).all():
        raise ValueError("picture must hold floating-point numbers from 0 to 1")
    seen = seen.float()
    if tuple(seen.shape[2:]) == tuple(size):
        return seen
    # rounding may leave the range by a hair
    scaled = F.interpolate(seen, tuple(size), mode="bilinear", antialias=True)
    return scaled.clamp(0.0, 1.0)
