"""A speaker encoder that nobody here trained: Resemblyzer's, which tells speakers apart
whatever they say (chapter 11b).

It follows Wan et al., "Generalized end-to-end loss for speaker verification"
(1710.10467): an LSTM reads a mel spectrogram, and sounds of one speaker get vectors of
a large cosine. It learned from recordings of people. Its weights lie inside the package
`Resemblyzer` (Apache-2.0), of which nothing else is used.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.audio import SAMPLE_RATE
from minilib.recogniser import audible

N_MELS = 40
WINDOW, HOP = 400, 160  # samples: 25 and 10 ms
LEVEL = -30.0  # decibels of full scale, the RMS of what it hears
WIDTH = 256  # of the LSTM and of its vectors
ABSENT = (
    "the speaker encoder is not installed: pip install --no-deps Resemblyzer==0.1.4"
)


class SpeakerEncoder(nn.Module):
    """A vector for the speaker of a sound.

    Raises:
        ModuleNotFoundError: Resemblyzer is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(N_MELS, WIDTH, num_layers=3, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        stored = torch.load(weights_file(), map_location="cpu", weights_only=True)
        own = set(self.state_dict())
        state = {name: x for name, x in stored["model_state"].items() if name in own}
        self.load_state_dict(state)
        self.eval().requires_grad_(False)

    def forward(self, mel: Tensor) -> Tensor:
        """Mel spectrograms (B, T, 40) -> vectors (B, 256) of length 1."""
        _, (hidden, _) = self.lstm(mel)
        return F.normalize(self.linear(hidden[-1]).relu(), dim=1)

    def embed(self, wave: Tensor | np.ndarray) -> Tensor:
        """The vector (256,) of a wave (N,) at 16 kHz, whatever its level and the
        silence around it.

        Raises:
            ValueError: the wave is not one waveform of finite numbers.
        """
        x = np.asarray(wave, dtype=np.float32)
        if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
            raise ValueError(f"wave must be (N,) of finite numbers, not {x.shape}")
        if x.any():
            x = audible(x)
            x = x * (10 ** (LEVEL / 20) / np.sqrt(np.mean(x**2)))
        how = {"n_fft": WINDOW, "hop_length": HOP, "n_mels": N_MELS}
        power = librosa.feature.melspectrogram(y=x, sr=SAMPLE_RATE, **how)
        return self(torch.from_numpy(power.T.astype(np.float32))[None])[0]


def weights_file() -> Path:
    """The file of Resemblyzer's weights, found without importing the package: it would
    import a compiled one that is not needed here.
    """
    found = find_spec("resemblyzer")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(ABSENT)
    return Path(next(iter(found.submodule_search_locations)), "pretrained.pt")
