"""Sound as tensors: the waveform, its short-time Fourier transform (STFT), the log-mel
spectrogram that every model here reads and writes, the way back without phase (Griffin
and Lim 1984), and sound files.

The settings are AudioLDM 2's (arXiv 2308.05734): 16 kHz, 100 frames a second, 64 mel
bands. Chapter 01 builds this module.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from minilib.arguments import check_path, shown

SAMPLE_RATE = 16000  # samples a second
HOP = 160  # samples from one frame to the next: 100 frames a second
N_FFT = 1024  # samples in a frame: 64 ms
N_MELS = 64  # bands of the mel spectrogram
LOG_FLOOR = 1e-5  # magnitudes below this are heard as silence, and log(0) is undefined
# decibels in one unit of the natural logarithm of a magnitude: 8.686
DB_PER_NEPER = 20 / math.log(10)
UNKNOWN = 2**32  # samples, or more: what a stream says that can't say how many
RATES = range(1_000, 1_000_001)  # hertz; a header that says anything else is damaged
# magic: where the first chunk begins, bytes of a chunk's size, and their order
CHUNKS = {
    b"RIFF": (12, 4, "little"),
    b"RF64": (12, 4, "little"),
    b"RIFX": (12, 4, "big"),
    b"caff": (8, 8, "big"),
}

# --------------------------------------------------------------------------------------
# The mel scale


def hz_to_mel(hz: float | Tensor) -> Tensor:
    """Mel number of a frequency on Slaney's scale (Auditory Toolbox, 1998).

    Up to 1000 Hz the scale is linear, with 15 mel at 1000 Hz; above that it is
    logarithmic, with 27 mel for each factor of 6.4.

    Args:
        hz: frequencies in hertz, any shape.
    Returns:
        mel numbers, the same shape, float64.

    Chapter 01.
    """
    hz = torch.as_tensor(hz, dtype=torch.float64)
    return torch.where(
        hz < 1000, hz * 15 / 1000, 15 + 27 * torch.log(hz / 1000) / math.log(6.4)
    )


def mel_to_hz(mel: float | Tensor) -> Tensor:
    """Frequency of a mel number on Slaney's scale: the inverse of `hz_to_mel`.

    Args:
        mel: mel numbers, any shape.
    Returns:
        frequencies in hertz, the same shape, float64.

    Chapter 01.
    """
    mel = torch.as_tensor(mel, dtype=torch.float64)
    return torch.where(
        mel < 15, mel * 1000 / 15, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27)
    )


@lru_cache
def mel_filters(
    n_mels: int = N_MELS,
    n_fft: int = N_FFT,
    sample_rate: int = SAMPLE_RATE,
    fmin: float = 0.0,
    fmax: float = SAMPLE_RATE / 2,
) -> Tensor:
    """Triangular filters, evenly spaced in mel and of equal area in hertz (Slaney
    1998).

    Band j rises from the centre of band j - 1 to its own centre and falls to the centre
    of band j + 1.

    Args:
        n_mels: number of bands F; n_fft: samples in a frame; sample_rate: in hertz.
        fmin, fmax: the lowest and the highest edge, in hertz.
    Returns:
        (F, K) weights of the K = n_fft // 2 + 1 frequencies in each band, float32;
        shared: don't write to it.

    Chapter 01.
    """
    hz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)  # (K,)
    mel = torch.linspace(
        float(hz_to_mel(fmin)), float(hz_to_mel(fmax)), n_mels + 2, dtype=torch.float64
    )
    edges = mel_to_hz(mel)[:, None]  # (F + 2, 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]  # (F, 1) each
    rising = (hz - left) / (centre - left)  # (F, K)
    falling = (right - hz) / (right - centre)  # (F, K)
    triangles = torch.minimum(rising, falling).clamp_min(0)
    # width (right - left) / 2 at half height: area 1
    return (triangles * 2 / (right - left)).float()


# --------------------------------------------------------------------------------------
# From waveform to log-mel


def stft(wave: Tensor) -> Tensor:
    """Short-time Fourier transform: one spectrum of a Hann window of 64 ms every 10 ms.

    Frame m is centred on sample m * HOP; the ends are mirrored, and the last frame is
    dropped, so that a second has 100 frames and not 101.

    Args:
        wave: (B, N) in [-1, 1], N > 512 (the mirror at each end shows 512 samples).
    Returns:
        (B, M, K) complex: M = N // 160 frames of K = 513 frequencies, 0 to 8000 Hz.
    Raises:
        ValueError: `wave` is not (B, N), or is too short.

    Chapter 01.
    """
    if wave.ndim != 2 or wave.shape[1] <= N_FFT // 2:
        raise ValueError(
            f"wave must be (B, N) with N > {N_FFT // 2} samples; given "
            f"{tuple(wave.shape)}"
        )
    # In float64: between the partials of a pure tone, float32 would leave its own
    # rounding noise.
    window = torch.hann_window(N_FFT, dtype=torch.float64, device=wave.device)
    spec = torch.stft(
        wave.double(),
        N_FFT,
        HOP,
        window=window,
        pad_mode="reflect",
        return_complex=True,
    )
    # (B, M, K)
    return spec.to(wave.dtype.to_complex()).transpose(1, 2)[:, : wave.shape[1] // HOP]


def istft(spec: Tensor, n_samples: int) -> Tensor:
    """Inverse STFT by weighted overlap-add: the wave with the nearest STFT (Griffin and
    Lim 1984, eq. 6).

    The dropped last frame is not missed: its neighbours overlap the last samples, so
    `istft(stft(wave), N)` gives the wave back.

    Args:
        spec: (B, M, K) complex; n_samples: N, with N // 160 == M.
    Returns:
        (B, N) wave.
    Raises:
        ValueError: `n_samples` does not fit the number of frames.

    Chapter 01.
    """
    M = spec.shape[1]
    if n_samples // HOP != M:
        raise ValueError(
            f"n_samples must be from {M * HOP} to {M * HOP + HOP - 1} for {M} frames; "
            f"given {n_samples}"
        )
    window = torch.hann_window(N_FFT, dtype=spec.real.dtype, device=spec.device)
    # (B, N)
    return torch.istft(
        spec.transpose(1, 2), N_FFT, HOP, window=window, length=n_samples
    )


def log_mel(wave: Tensor) -> Tensor:
    """Log-mel spectrogram: the natural logarithm of the mel-filtered magnitudes of the
    STFT.

    Args:
        wave: (B, N) in [-1, 1], N > 512.
    Returns:
        (B, 1, M, F): M = N // 160 frames of F = 64 bands, each value at least
        ln(1e-5) = -11.5.
    Raises:
        ValueError: `wave` is not (B, N), or is too short.

    Chapter 01.
    """
    magnitude = stft(wave).abs()  # (B, M, K)
    mel = magnitude @ mel_filters().to(magnitude).T  # (B, M, F)
    return mel.clamp_min(LOG_FLOOR).log()[:, None]  # (B, 1, M, F)


def decibels(log_ratio: Tensor) -> Tensor:
    """Decibels of a ratio whose natural logarithm is given: 20 log10 of the ratio.

    A difference of log-mel spectrograms is such a logarithm: this course reports the
    distance `decibels((a - b).abs().mean())` of log-mels a and b.

    Args:
        log_ratio: natural logarithm of a ratio of magnitudes, any shape.
    Returns:
        the same ratio in decibels, the same shape.

    Chapter 01.
    """
    return DB_PER_NEPER * log_ratio


def loudness(log_mel: Tensor) -> Tensor:
    """How loud the loudest 50 ms are, in decibels: the mean magnitude of the bands.

    A vocoder that gets the phases wrong changes the peak of a wave by several decibels,
    and this by little.

    Args:
        log_mel: (..., M, F), M at least 5.
    Returns:
        (...,): twice the amplitude is 6 dB more; no number stands for full scale.
    """
    return decibels(
        log_mel.exp().mean(dim=-1).unfold(-1, 5, 1).mean(dim=-1).amax(dim=-1).log()
    )


# --------------------------------------------------------------------------------------
# And back


@lru_cache
def mel_inverse() -> Tensor:
    """Pseudo-inverse of the mel filters (Moore and Penrose): it gives the smallest
    magnitudes that have the wanted bands.

    Returns:
        (K, F) weights, float32; shared: don't write to it.

    Chapter 01.
    """
    return torch.linalg.pinv(mel_filters().double()).float()  # (K, F)


def mel_to_linear(log_mel: Tensor) -> Tensor:
    """Magnitudes of the STFT estimated from a log-mel: pseudo-inverse of the filters,
    with negative values set to 0.

    One matrix product, so it is fast; `fit_magnitude` is slower and more accurate.

    Args:
        log_mel: (B, 1, M, F) as from `log_mel`.
    Returns:
        (B, M, K) magnitudes.

    Chapter 01.
    """
    mel = log_mel[:, 0].exp()  # (B, M, F)
    return (mel @ mel_inverse().to(mel).T).clamp_min(0)  # (B, M, K)


def fit_magnitude(log_mel: Tensor, n_iter: int = 20) -> Tensor:
    """Magnitudes of the STFT that reproduce a log-mel, by multiplicative updates (Lee
    and Seung 2001, eq. 5).

    Beginning with a flat spectrum, each magnitude is multiplied by how much its bands
    still lack or exceed: it stays positive, and the bands come to fit. What 64 bands
    can't tell about 513 frequencies stays blurred.

    Args:
        log_mel: (B, 1, M, F) as from `log_mel`; n_iter: rounds.
    Returns:
        (B, M, K) magnitudes.

    Chapter 01.
    """
    # (B, M, F); silence, all 0, would divide 0 by 0
    mel = log_mel[:, 0].exp().clamp_min(LOG_FLOOR)
    filters = mel_filters().to(mel)  # (F, K)
    magnitude = mel.new_ones(*mel.shape[:2], filters.shape[1])  # (B, M, K)
    for _ in range(n_iter):
        ratio = mel / (magnitude @ filters.T)  # (B, M, F)
        # 0 Hz is in no band
        magnitude = magnitude * (ratio @ filters) / filters.sum(dim=0).clamp_min(1e-9)
    return magnitude


@torch.no_grad()
def griffin_lim(
    log_mel: Tensor,
    n_iter: int = 32,
    generator: torch.Generator | None = None,
    momentum: float = 0.99,
) -> Tensor:
    """A wave that fits a log-mel, by the fast Griffin-Lim algorithm (Perraudin et al.
    2013, algorithm 2).

    Start from a random phase; again and again go to the wave and back, push the result
    on along its last change, keep its phase, and restore the wanted magnitudes.
    `momentum=0` is Griffin and Lim 1984.

    Args:
        log_mel: (B, 1, M, F), M >= 4 frames; n_iter: rounds; generator: draws the first
            phase, on the CPU.
        momentum: how far the push goes, 0 to 1.
    Returns:
        (B, M * 160) wave, clipped to [-1, 1].

    Chapter 01.
    """
    magnitude = fit_magnitude(log_mel)  # (B, M, K)
    n_samples = magnitude.shape[1] * HOP
    turns = torch.rand(magnitude.shape, generator=generator).to(magnitude)
    # (B, M, K), on the unit circle
    phase = torch.polar(torch.ones_like(turns), 2 * math.pi * turns)
    last = torch.zeros_like(phase)
    for _ in range(n_iter):
        consistent = stft(istft(magnitude * phase, n_samples))  # (B, M, K)
        # sgn(z) = z / |z|
        phase = torch.sgn(consistent + momentum * (consistent - last))
        last = consistent
    return istft(magnitude * phase, n_samples).clamp(-1, 1)


# --------------------------------------------------------------------------------------
# Files


def load(path: str | Path | BinaryIO, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Read a sound file as one channel: whatever soundfile reads, at any rate, of any
    length and number of channels.

    Nothing is clipped: a file whose peak exceeds 1 is scaled down to 1 with a warning;
    so is, without a warning, a sound that resampling has made slightly louder than 1.

    Args:
        path: the file, a pipe, or an open binary stream; sample_rate: of the result, in
            hertz; a file with another rate is resampled.
    Returns:
        (N,) float32 in [-1, 1], the mean of the channels; where these cancel each other
        out, the loudest one, with a warning.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, not audio, cut off, empty, or holds NaN.

    Chapter 01.
    """
    from scipy.signal import resample_poly

    wave, file_rate = read(path)  # (N',)
    if file_rate != sample_rate:
        common = math.gcd(file_rate, sample_rate)
        wave = resample_poly(wave, sample_rate // common, file_rate // common)
    wave = torch.from_numpy(wave)  # (N,)
    return wave / wave.abs().max().clamp_min(1)


def save(path: str | Path, wave: Tensor, sample_rate: int = SAMPLE_RATE) -> None:
    """Write a sound file, whole or not at all: WAV or FLAC of 16 bits, OGG (Vorbis) or
    MP3, by its suffix.

    Args:
        path: where to, in a folder that exists; a file that stands there is replaced.
        wave: (N,) or (1, N) in [-1, 1]; what lies outside is clipped.
        sample_rate: in hertz.
    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the suffix is unknown, the wave can't be written, or the file can't.
    """
    path = check_path("path", path)
    suffix = path.suffix.lower()
    if suffix not in (".wav", ".flac", ".ogg", ".mp3"):
        raise ValueError(
            f"path must end in .wav, .flac, .ogg or .mp3; given {str(path)!r}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"path must lie in a folder that exists; there is no folder "
            f"{str(path.parent)!r}"
        )
    sound = encode(wave, suffix[1:], sample_rate)
    # beside it: os.replace can't leave the disk; short, as the name may be the longest
    # that is legal
    half_written = path.with_name(f".{os.getpid()}-{threading.get_native_id()}")
    try:
        half_written.write_bytes(sound)
        os.replace(half_written, path)
    except OSError as error:
        half_written.unlink(missing_ok=True)
        raise ValueError(
            f"path must be writable; {str(path)!r} is not ({error.strerror})"
        ) from error


def encode(wave: Tensor, format: str, sample_rate: int = SAMPLE_RATE) -> bytes:
    """The bytes of a sound file; the same bytes for the same wave, but for the number
    that Ogg gives each stream at random.

    Args:
        wave: (N,) or (1, N) in [-1, 1]; what lies outside is clipped.
        format: "wav", "flac", "ogg" or "mp3"; sample_rate: in hertz.
    Raises:
        ValueError: the wave has another shape, no samples, or NaN, or the format has no
            such rate.
    """
    wave = _as_wave(wave)
    if wave.ndim == 2 and wave.shape[0] == 1:
        wave = wave[0]
    if wave.ndim != 1 or len(wave) == 0:
        raise ValueError(
            f"wave must be (N,) or (1, N) with at least one sample; given "
            f"{tuple(wave.shape)}"
        )
    if not wave.isfinite().all():
        raise ValueError(
            "wave must hold finite numbers; given one with NaN or infinity"
        )
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(
            buffer, "w", sample_rate, channels=1, format=format.upper()
        ) as file:
            # libsndfile crashes on a long Vorbis block
            for block in wave.clamp(-1, 1).split(2**16):
                file.write(block.numpy())
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"sample_rate {sample_rate} can't be written as {format}: {error}"
        ) from error
    return buffer.getvalue()


def _as_wave(wave: Tensor) -> Tensor:
    """A wave as float32 on the CPU; a sentence for what is none, 16-bit samples
    included, of which clipping would leave little but the sign.
    """
    wanted = "wave must hold floating-point numbers in [-1, 1]"
    try:
        wave = torch.as_tensor(wave).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{wanted}, not {shown(wave)}") from error
    if not wave.is_floating_point():
        raise TypeError(f"{wanted}, not {wave.dtype}")
    return wave.float()


def read(path: str | Path | BinaryIO) -> tuple[np.ndarray, int]:
    """One channel (N,) of a sound file, float32 in [-1, 1], at the file's own rate, and
    that rate in hertz; as `load`, which says more.
    """
    source, name = _source(path)
    with _opened(source, name) as file:
        wave, file_rate = _samples(file), file.samplerate
        cut_off = len(wave) < file.frames < UNKNOWN or _ends_early(source, file)
    if cut_off:
        raise ValueError(
            f"path must name a whole sound file; {name} is cut off at sample "
            f"{len(wave)}"
        )
    if len(wave) == 0:
        raise ValueError(
            f"path must name a sound file with samples; {name} holds 0 samples"
        )
    if not np.isfinite(wave).all():
        raise ValueError(
            f"path must name a file of finite samples; {name} holds NaN or infinity"
        )
    return _mixed(_scaled(wave, name), name), file_rate


def read_piece(
    path: str | Path | BinaryIO, place: float, seconds: float
) -> tuple[np.ndarray, int]:
    """A piece of a sound file as `read` returns it, and the rate in hertz; all of it if
    it is shorter. Samples outside the piece are skipped, not decoded where the format
    allows it.

    Args:
        path: as for `load`.
        place: where the piece lies: 0 is the beginning, 1 the end of the file.
        seconds: its length.

    Raises:
        FileNotFoundError, ValueError: as `load`, where the piece shows it.
    """
    source, name = _source(path)
    with _opened(source, name) as file:
        wanted, known = round(seconds * file.samplerate), 0 < file.frames < UNKNOWN
        if known and file.frames > wanted and not _ends_early(source, file):
            file.seek(round(place * (file.frames - wanted)))
            wave, rate = file.read(wanted, "float32", always_2d=True), file.samplerate
            if len(wave) == wanted and np.isfinite(wave).all():
                return _mixed(_scaled(wave, name), name), rate
    wave, rate = read(io.BytesIO(source) if isinstance(source, bytes) else source)
    wanted = round(seconds * rate)
    start = round(place * max(0, len(wave) - wanted))
    return wave[start : start + wanted], rate


def header(path: str | Path | BinaryIO) -> tuple[float, int]:
    """The seconds and the rate in hertz that the header of a sound file tells; no
    sample is read.

    Raises:
        FileNotFoundError, ValueError: as `load`, where the header shows it.
    """
    source, name = _source(path)
    with _opened(source, name) as file:
        if _ends_early(source, file):
            raise ValueError(f"path must name a whole sound file; {name} is cut off")
        if file.frames == 0:
            raise ValueError(
                f"path must name a sound file with samples; {name} holds 0 samples"
            )
        frames = file.frames if file.frames < UNKNOWN else len(_samples(file))
        return frames / file.samplerate, file.samplerate


def _source(path: str | Path | BinaryIO) -> tuple[Path | bytes, str]:
    """A file, or all bytes of what can be read only once, and how sentences call it."""
    if hasattr(path, "read"):
        named = getattr(path, "name", None)
        source, name = path.read(), repr(named) if named else "the stream"
    else:
        path = check_path("path", path)
        name = repr(str(path))
        if not path.exists():
            raise FileNotFoundError(f"path must name a sound file; there is no {name}")
        if path.is_dir():
            raise ValueError(f"path must name a sound file; {name} is a folder")
        source = path if path.is_file() else path.read_bytes()  # a pipe
    if (source.stat().st_size if isinstance(source, Path) else len(source)) == 0:
        raise ValueError(f"path must name a sound file; {name} is empty (0 bytes)")
    return source, name


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[soundfile.SoundFile]:
    """A sound file, read to its end where its header does not tell how long it is; a
    sentence on what is wrong with it.
    """
    try:
        with _open(source) as file:
            if file.samplerate not in RATES:
                raise ValueError(
                    f"path must name a file of {RATES[0]} to {RATES[-1]} Hz; the "
                    f"header of {name} says {file.samplerate}"
                )
            yield file
    except (soundfile.LibsndfileError, TypeError) as error:  # that for headerless ones
        reason = getattr(error, "error_string", str(error)).strip(" .")
        raise ValueError(
            f"path must name a whole sound file; {name} is not audio, or damaged "
            f"({reason})"
        ) from error


def _open(source: Path | bytes) -> soundfile.SoundFile:
    stream = lambda sound: soundfile.SoundFile(io.BytesIO(sound))
    refused = None
    try:
        whole = isinstance(source, Path)
        file = soundfile.SoundFile(source) if whole else stream(source)
        if file.frames > 0:
            return file
    except soundfile.LibsndfileError as error:
        file, refused = None, error
    sound = _bytes(source)
    sized = _with_its_size(sound)
    if sized != sound:
        return stream(sized)
    if refused:
        raise refused
    return file


def _bytes(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _samples(file: soundfile.SoundFile) -> np.ndarray:
    """All samples (N, channels), block by block: of a stream their number is not known
    beforehand.
    """
    shape = {"dtype": "float32", "always_2d": True}
    if file.frames < UNKNOWN:
        return file.read(**shape)
    file.seekable = lambda: False  # or each read would seek to where it has ended
    blocks = [file.read(2**20, **shape)]
    while len(blocks[-1]) == 2**20:
        blocks.append(file.read(2**20, **shape))
    return np.concatenate(blocks)


def _scaled(wave: np.ndarray, name: str) -> np.ndarray:
    """Samples scaled down to a peak of 1 where that is exceeded by more than
    rounding.
    """
    peak = float(np.abs(wave).max())
    if peak <= 1.0001:
        return wave
    said = f"{name} has a peak of {peak:.6g}, above 1: it is scaled down to 1"
    warnings.warn(said, stacklevel=4)  # names the line that calls `load`
    return wave / np.float32(peak)


def _mixed(wave: np.ndarray, name: str) -> np.ndarray:
    """The mean (N,) of the channels (N, channels), or the loudest where the mean is
    more than 20 dB below them.
    """
    power = np.square(wave, dtype=np.float64).mean(axis=0)  # (channels,)
    mean = wave.mean(axis=1)
    if np.square(mean, dtype=np.float64).mean() >= 0.01 * power.mean():
        return mean
    said = f"the channels of {name} cancel each other out: the loudest of them is read"
    warnings.warn(said, stacklevel=4)
    return np.ascontiguousarray(wave[:, power.argmax()])


def _with_its_size(sound: bytes) -> bytes:
    """A sound file that was written to a pipe, and so says that it holds 0 samples, or
    -1: with the size that it has. Other files as they are.
    """
    magic = sound[:4]
    if magic in (b".snd", b"dns."):  # Sun's AU, where this is "to the end"
        return sound[:8] + b"\xff" * 4 + sound[12:]
    if magic not in CHUNKS:
        return sound
    at, width, order = CHUNKS[magic]
    while at + 4 + width <= len(sound):
        start = at + 4 + width
        size = int.from_bytes(sound[at + 4 : start], order)
        if sound[at : at + 4] == b"data":
            if size == 0 and _only_chunks(sound, start, width, order):
                return sound
            size = min(len(sound) - start, 2 ** (8 * width) - 1)
            # RF64 is RIFF with its sizes elsewhere
            form = b"RIFF" if magic == b"RF64" else magic
            head = form + sound[4 : at + 4] + size.to_bytes(width, order)
            return head + sound[start:]
        at = start + size + size % 2 * (width == 4)
    return sound


def _only_chunks(sound: bytes, at: int, width: int, order: str) -> bool:
    """Whether the rest of a file is nothing but further chunks, such as a list of
    tags.
    """
    while at < len(sound) and sound[at : at + 4].strip().isalnum():
        size = int.from_bytes(sound[at + 4 : at + 4 + width], order)
        at += 4 + width + size + size % 2 * (width == 4)
    return at - len(sound) in (0, 1)


def _ends_early(source: Path | bytes, file: soundfile.SoundFile) -> bool:
    """Whether a file is shorter than it says itself: libsndfile reads what is left
    without a word.
    """
    if file.format == "OGG":
        ogg = _bytes(source)
        return _page_end(ogg, ogg.rindex(b"OggS")) > len(ogg)
    sizes = re.search(
        r"(?im)^\s*(?:data|data size|ssnd)\s*: (\d+) \(should be (\d+)\)",
        file.extra_info,
    )
    if sizes is None:
        return False
    promised, found = int(sizes[1]), int(sizes[2])
    # programs that write to a pipe promise a huge number
    return found < promised < 0x7FFF0000


def _page_end(ogg: bytes, start: int) -> int:
    """Where the Ogg page that starts at `start` ends (RFC 3533, section 6)."""
    body = start + 27 + int.from_bytes(ogg[start + 26 : start + 27], "little")
    return body + sum(ogg[start + 27 : body])
