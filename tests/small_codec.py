"""A codec that learned nothing, for tests of what writes codes or their vectors."""

import json
from pathlib import Path

import torch

from minilib.codec import Codec

TINY = Path(__file__).parents[1] / "data" / "weights" / "tiny"


def codec_in(root: Path) -> Path:
    """A folder `root/tiny` of weights, beside which the codec lies where `train` looks
    for it: its codes differ from frame to frame, though it learned nothing.
    """
    (root / "tiny").symlink_to(TINY)
    torch.manual_seed(0)
    codec = Codec.preset("tiny").eval()
    for level in codec.quantiser.levels:
        torch.nn.init.normal_(level.embedding.weight, std=0.3)
    folder = root / "peers" / "codec"
    codec.save_pretrained(folder / "codec")
    told = {"peer": "codec", "vocoder": str(TINY / "vocoder")}
    (folder / "pipeline.json").write_text(json.dumps(told))
    return root / "tiny"
