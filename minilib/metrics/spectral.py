"""Spectral errors in decibels: of a log-mel, and of each step of a recording's way
through VAE and vocoder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from minilib import audio
from minilib.audioldm2 import AudioLDM2

# frames (30.72 s): longer recordings are reconstructed in pieces of this length ...
CHUNK = 3072
# ... with this many more frames on either side; a multiple of every VAE's reduction
CONTEXT = 128
SHORTEST = 8  # frames: shorter recordings are padded, as the STFT needs 513 samples


def spectral_error(
    mel_a: Tensor, mel_b: Tensor, wave: Tensor | None = None
) -> dict[str, float]:
    """Mean |difference| of two log-mels in decibels, with digital silence scored apart.

    Where every sample under a frame is exactly 0, the log-mel is at its floor of -100
    dB, which no model reaches and no ear hears: such frames say nothing about how well
    a sound is preserved.

    Args:
        mel_a, mel_b: (B, 1, T, F) as from `audio.log_mel`.
        wave: (B, N), whose log-mel one of them is; None counts no frame as silent.
    Returns:
        `db` over all other frames, `silent_db` over the silent ones (each 0 if there
        are none), and `silent_share`, the share of silent frames, 0 to 1.
    Raises:
        ValueError: the shapes differ, or `wave` is too short for the frames.
    """
    if mel_a.shape != mel_b.shape or mel_a.ndim != 4:
        given = f"given {tuple(mel_a.shape)} and {tuple(mel_b.shape)}"
        raise ValueError(f"mel_a and mel_b must both be (B, 1, T, F); {given}")
    error = audio.decibels((mel_a - mel_b).abs()).mean(dim=(1, 3))  # (B, T)
    silent = torch.zeros_like(error, dtype=torch.bool)
    if wave is not None:
        silent = silent_frames(wave, error.shape[1])
    return {
        "db": float(error[~silent].mean()) if not silent.all() else 0.0,
        "silent_db": float(error[silent].mean()) if silent.any() else 0.0,
        "silent_share": float(silent.float().mean()),
    }


def silent_frames(wave: Tensor, T: int) -> Tensor:
    """Which of the first T frames of the STFT cover only zeros: wave (B, N)
    -> (B, T) bool.
    """
    if wave.ndim != 2 or wave.shape[1] // audio.HOP < T:
        wanted = f"(B, N) with N at least {T * audio.HOP} samples"
        raise ValueError(f"wave must be {wanted}; given {tuple(wave.shape)}")
    sounding = (wave != 0).float()  # (B, N)
    # (B, N // HOP + 1)
    heard = F.max_pool1d(sounding, audio.N_FFT, audio.HOP, padding=audio.N_FFT // 2)
    return heard[:, :T] == 0


@torch.no_grad()
def reconstruction(
    pipe: AudioLDM2, wave: Tensor, progress: bool = False
) -> dict[str, Any]:
    """Send a recording through VAE and vocoder, and measure what each step loses.

    Recordings above 30 s are processed in pieces, each with 1.28 s of context on either
    side. This saves memory but changes the result a little, since the VAE attends to
    all of its input.

    Args:
        pipe: the pipeline whose VAE and vocoder are measured.
        wave: (N,) or (1, N) at 16 kHz, N at least 1.
        progress: show a bar over the pieces of a long recording.
    Returns:
        `wave` (N,), the reconstruction; the L1 distance in decibels from the
        recording's log-mel after the VAE (`vae_db`), after the vocoder on the true
        log-mel (`vocoder_db`) and after both (`total_db`); the same for digital silence
        in the recording (`vae_silent_db`, …); and `silent_share`.
    Raises:
        ValueError: `wave` is not one waveform.
    """
    if wave.numel() == 0 or wave.ndim > 2 or wave.shape[:-1].numel() != 1:
        wanted = "(N,) or (1, N) with at least one sample"
        raise ValueError(f"wave must be {wanted}; given {tuple(wave.shape)}")
    n_samples, n_scored = wave.shape[-1], -(-wave.shape[-1] // audio.HOP)
    n_padded = max(SHORTEST, n_scored) * audio.HOP
    padded = F.pad(wave.reshape(1, -1), (0, n_padded - n_samples))  # (1, T * HOP)
    framed = lambda x: x.unflatten(1, (-1, audio.HOP))  # (1, T * HOP) -> (1, T, HOP)
    step = partial(in_chunks, device=pipe.device, progress=progress)
    hear = lambda frames: audio.log_mel(frames.flatten(1))[:, 0]  # -> (1, T, F)
    keep = lambda mel: pipe.reconstruct(mel[:, None])[:, 0]  # -> (1, T, F)
    N = lambda mel: mel.shape[1] * audio.HOP
    speak = lambda mel: framed(pipe.vocoder(mel[:, None])[:, : N(mel)])
    mel = step(hear, framed(padded))
    kept = step(keep, mel)
    result = step(speak, kept)  # (1, T, HOP)
    after = {"vae": kept, "vocoder": step(hear, step(speak, mel))}
    after["total"] = step(hear, result)
    found: dict[str, Any] = {"wave": result.flatten()[:n_samples]}
    for name, other in after.items():
        pair = (x[:, None, :n_scored] for x in (mel, other))
        error = spectral_error(*pair, padded)
        found |= {f"{name}_db": error["db"], f"{name}_silent_db": error["silent_db"]}
        found["silent_share"] = error["silent_share"]
    return found


def in_chunks(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    device: torch.device,
    progress: bool = False,
) -> Tensor:
    """Apply a function of frames, (1, T, C) -> (1, T, C'), to pieces of a recording
    with context on either side.

    Args:
        function: returns one frame for each; x: (1, T, C); device: where it runs;
            progress: show a bar.
    """
    T, pieces, starts = x.shape[1], [], range(0, x.shape[1], CHUNK)
    quiet = not progress or len(starts) == 1
    for start in tqdm(starts, unit="piece", leave=False, disable=quiet):
        before = min(start, CONTEXT)
        y = function(x[:, start - before : start + CHUNK + CONTEXT].to(device)).cpu()
        pieces.append(y[:, before : before + min(CHUNK, T - start)])
    return torch.cat(pieces, dim=1)
