"""Chapter 01's ground: the log-mel is librosa's, the way back fits, and files come and
go whole.
"""

import io
import math
import os
import subprocess
import sys
import threading

import librosa
import numpy as np
import pytest
import soundfile
import torch

from minilib import audio

N = 40960  # 2.56 s


def noise(n=N, seed=0):
    # (1, N)
    return torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tone(hz=440.0, n=N, decay=0.0):
    t = torch.arange(n, dtype=torch.float64) / audio.SAMPLE_RATE
    # (1, N)
    return (0.8 * torch.sin(2 * math.pi * hz * t) * torch.exp(-decay * t)).float()[None]


def harmonics(hz=220.0, n=N):
    return sum(tone(hz * k, n) / k for k in range(1, 20)) * 0.3  # (1, N)


SOUNDS = {
    "noise": noise(),
    "quiet noise": noise() * 1e-4,
    "tone": tone(),
    "fading tone": tone(1000.0, decay=8.0),
    "harmonics": harmonics(),
    "silence": torch.zeros(1, N),
    "click": torch.eye(1, N),
    "odd length": noise(N + 157),
    "shortest": noise(513),
}


def librosa_log_mel(wave):
    mel = librosa.feature.melspectrogram(
        y=wave.numpy(),
        sr=16000,
        n_fft=1024,
        hop_length=160,
        n_mels=64,
        fmin=0,
        fmax=8000,
        power=1,
        pad_mode="reflect",
    )
    return np.log(np.maximum(mel, 1e-5)).T[: len(wave) // 160]  # (T, F)


# --------------------------------------------------------------------------------------


def test_mel_scale_is_librosas_and_inverts():
    hz = np.linspace(0, 8000, 1001)
    np.testing.assert_allclose(
        audio.hz_to_mel(torch.from_numpy(hz)), librosa.hz_to_mel(hz), rtol=1e-12
    )
    np.testing.assert_allclose(
        audio.mel_to_hz(audio.hz_to_mel(torch.from_numpy(hz))), hz, atol=1e-9
    )
    assert float(audio.hz_to_mel(1000)) == 15


@pytest.mark.parametrize(
    "settings",
    [
        (64, 1024, 16000, 0.0, 8000.0),
        (80, 1024, 22050, 0.0, 8000.0),
        (64, 1024, 48000, 50.0, 14000.0),
    ],
)
def test_mel_filters_are_librosas(settings):
    n_mels, n_fft, sample_rate, fmin, fmax = settings
    theirs = librosa.filters.mel(
        sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax
    )
    np.testing.assert_allclose(
        audio.mel_filters(*settings), theirs, atol=1e-6 * theirs.max(), rtol=0
    )


def test_a_mel_filter_has_area_one_in_hertz():
    wide = audio.mel_filters(n_fft=2**14).sum(dim=1) * 16000 / 2**14
    torch.testing.assert_close(wide, torch.ones(64), atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:n_fft=1024 is too large")  # for the shortest
@pytest.mark.parametrize("name", SOUNDS)
def test_log_mel_is_librosas(name):
    wave = SOUNDS[name]
    ours = audio.log_mel(wave)
    assert (
        ours.shape == (1, 1, wave.shape[1] // 160, 64) and ours.dtype == torch.float32
    )
    np.testing.assert_allclose(
        ours[0, 0].numpy(), librosa_log_mel(wave[0]), atol=1e-5, rtol=0
    )


def test_log_mel_of_silence_is_the_floor():
    torch.testing.assert_close(
        audio.log_mel(torch.zeros(2, 1600)), torch.full((2, 1, 10, 64), math.log(1e-5))
    )


def test_log_mel_of_a_batch_is_that_of_each_sound():
    both = torch.cat([noise(), tone()])
    one_by_one = torch.cat([audio.log_mel(noise()), audio.log_mel(tone())])
    torch.testing.assert_close(audio.log_mel(both), one_by_one, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 512), (1, 1), (1, 0), (1600,), (1, 1, 1600)])
def test_stft_refuses_what_it_cannot_mirror(shape):
    with pytest.raises(ValueError, match=r"wave must be \(B, N\) with N > 512"):
        audio.log_mel(torch.zeros(shape))


@pytest.mark.parametrize("n", [513, 640, 1599, 1600, 1601, N])
def test_istft_gives_the_wave_back_though_the_last_frame_is_dropped(n):
    wave = torch.cat([noise(n), noise(n, seed=1)])
    spec = audio.stft(wave)
    assert spec.shape == (2, n // 160, 513)
    torch.testing.assert_close(audio.istft(spec, n), wave, atol=2e-6, rtol=0)


def test_istft_refuses_a_length_that_does_not_fit():
    with pytest.raises(
        ValueError,
        match="n_samples must be from 1600 to 1759 for 10 frames; given 1760",
    ):
        audio.istft(torch.zeros(1, 10, 513, dtype=torch.complex64), 1760)


def test_decibels_of_a_factor_ten_are_twenty():
    assert float(audio.decibels(torch.tensor(10.0).log())) == pytest.approx(20)


def test_twice_the_amplitude_is_six_decibels_louder_whatever_stands_around():
    burst = torch.nn.functional.pad(tone(n=3200)[0], (8000, N - 11200))
    twice = torch.stack([burst / 2, burst])
    quiet, loud = audio.loudness(audio.log_mel(twice))[:, 0]
    assert loud - quiet == pytest.approx(20 * math.log10(2), abs=0.02)
    thrice = burst + burst.roll(8000) + burst.roll(16000)
    assert abs(audio.loudness(audio.log_mel(thrice[None])) - loud) < 0.1


def test_the_level_is_that_of_the_loudest_50_ms():
    magnitudes = torch.full((2, 1, 30, 4), 1e-3)
    magnitudes[1, :, 10:15] = 1.0
    magnitudes[1, :, 20] = 2.0  # a click
    torch.testing.assert_close(
        audio.loudness(magnitudes.log()), torch.tensor([[-60.0], [0.0]])
    )


# --------------------------------------------------------------------------------------


def mel_error(wave, log_mel):
    return float(audio.decibels((audio.log_mel(wave) - log_mel).abs().mean()))


def test_mel_to_linear_gives_the_bands_of_noise_back():
    log_mel = audio.log_mel(noise())
    mel = audio.mel_to_linear(log_mel) @ audio.mel_filters().T
    assert float(audio.decibels((mel.log() - log_mel[:, 0]).abs().mean())) < 0.01


@pytest.mark.parametrize(
    ("name", "limit"), [("noise", 0.01), ("fading tone", 0.1), ("harmonics", 0.5)]
)
def test_fit_magnitude_gives_the_bands_back(name, limit):
    log_mel = audio.log_mel(SOUNDS[name])
    magnitude = audio.fit_magnitude(log_mel)
    assert magnitude.min() >= 0
    mel = (magnitude @ audio.mel_filters().T).clamp_min(audio.LOG_FLOOR)
    assert float(audio.decibels((mel.log() - log_mel[:, 0]).abs().mean())) < limit


@pytest.mark.parametrize(
    ("name", "limit"),
    [("noise", 1.1), ("fading tone", 1.3), ("harmonics", 3.0), ("silence", 0.3)],
)
def test_griffin_lim_fits_the_log_mel(name, limit):
    log_mel = audio.log_mel(SOUNDS[name])
    wave = audio.griffin_lim(log_mel, generator=torch.Generator().manual_seed(0))
    assert wave.shape == (1, N) and wave.abs().max() <= 1
    assert mel_error(wave, log_mel) < limit


@pytest.mark.parametrize("name", ["noise", "harmonics"])
def test_griffin_lim_beats_random_phase(name):
    log_mel = audio.log_mel(SOUNDS[name][:, : N // 4])
    for seed in range(3):
        generators = (torch.Generator().manual_seed(seed) for _ in range(2))
        random_phase, fitted = (
            audio.griffin_lim(log_mel, n, g)
            for n, g in zip((0, 32), generators, strict=True)
        )
        assert mel_error(fitted, log_mel) < 0.7 * mel_error(random_phase, log_mel)


def test_griffin_lim_goes_further_with_momentum():
    log_mel = audio.log_mel(0.3 * noise(N // 4))
    for seed in range(3):
        generators = (torch.Generator().manual_seed(seed) for _ in range(2))
        plain, fast = (
            audio.griffin_lim(log_mel, 8, g, m)
            for m, g in zip((0.0, 0.99), generators, strict=True)
        )
        assert mel_error(fast, log_mel) < 0.95 * mel_error(plain, log_mel)


def test_griffin_lim_is_the_same_for_the_same_seed():
    log_mel = audio.log_mel(tone(n=1600))
    one, two, other = (
        audio.griffin_lim(log_mel, 4, torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_griffin_lim_bears_a_log_mel_far_below_the_floor():
    assert audio.griffin_lim(torch.full((1, 1, 8, 64), -200.0), 4).isfinite().all()


# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_save_and_load_keep_16_bits(tmp_path, suffix):
    wave = noise()[0]
    audio.save(tmp_path / f"a.{suffix}", wave)
    back = audio.load(tmp_path / f"a.{suffix}")
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, wave, atol=1 / 32767, rtol=0)


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_save_and_load_keep_what_a_lossy_format_keeps(tmp_path, suffix):
    wave = tone()[0]
    audio.save(tmp_path / f"a.{suffix}", wave[None])
    back = audio.load(tmp_path / f"a.{suffix}")
    assert back.shape == wave.shape
    assert (back - wave).square().mean().sqrt() < 0.05 * wave.square().mean().sqrt()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_load_resamples_any_rate_to_16_khz(tmp_path, rate):
    t = np.arange(rate) / rate
    soundfile.write(
        tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * t), rate, subtype="FLOAT"
    )
    back = audio.load(tmp_path / "a.wav")
    assert back.shape == (16000,)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    np.testing.assert_allclose(back[500:-500], expected[500:-500], atol=5e-3)


def test_load_keeps_what_16_khz_cannot_hold_out(tmp_path):
    t = np.arange(48000) / 48000
    soundfile.write(
        tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 11000 * t), 48000, subtype="FLOAT"
    )
    assert audio.load(tmp_path / "a.wav")[500:-500].abs().max() < 5e-3


def test_load_goes_to_another_rate_when_asked(tmp_path):
    audio.save(tmp_path / "a.wav", tone()[0])
    assert audio.load(tmp_path / "a.wav", sample_rate=48000).shape == (3 * N,)


def test_load_mixes_channels_to_one(tmp_path):
    left, right = noise()[0].numpy(), noise(seed=1)[0].numpy()
    soundfile.write(
        tmp_path / "a.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT"
    )
    np.testing.assert_allclose(
        audio.load(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6
    )


def stereo(path, *channels, rate=16000):
    soundfile.write(path, np.stack(channels, axis=1), rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_load_takes_the_loudest_channel_where_they_cancel(tmp_path, share):
    wave = tone()[0].numpy()
    path = stereo(tmp_path / "a.wav", wave, -share * wave)
    with pytest.warns(UserWarning, match="channels of '.*a.wav' cancel each other out"):
        np.testing.assert_array_equal(audio.load(path), wave)
    swapped = stereo(tmp_path / "b.wav", -share * wave, 1.01 * wave)
    with pytest.warns(UserWarning, match="channels of '.*b.wav' cancel each other out"):
        np.testing.assert_array_equal(audio.load(swapped), np.float32(1.01) * wave)


def test_load_takes_the_mean_of_channels_that_do_not_cancel(tmp_path, recwarn):
    left, right = noise()[0].numpy(), noise(seed=1)[0].numpy()
    silent = np.zeros_like(left)
    for channels in ((left, silent), (left, -0.5 * left), (left, right), [silent] * 2):
        back = audio.load(stereo(tmp_path / "a.wav", *channels))
        np.testing.assert_allclose(back, sum(channels) / 2, atol=1e-6)
    six = audio.load(stereo(tmp_path / "a.wav", left, *[silent] * 5))
    np.testing.assert_allclose(six, left / 6, atol=1e-6)
    assert not recwarn


@pytest.mark.parametrize("peak", [1.1, 3.0, 13000.0, 3e38])
def test_load_scales_down_what_is_louder_than_one_and_says_so(tmp_path, peak):
    wave = np.array([1.0, -0.5, 0.25, 0.0]) * peak
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    said = rf"a.wav' has a peak of {np.float32(peak):.6g}, above 1"
    with pytest.warns(UserWarning, match=said.replace("+", r"\+")):
        back = audio.load(tmp_path / "a.wav")
    np.testing.assert_allclose(back, [1.0, -0.5, 0.25, 0.0], rtol=1e-6)
    both = stereo(tmp_path / "b.wav", wave, wave)
    with pytest.warns(UserWarning, match="b.wav' has a peak of"):
        np.testing.assert_allclose(audio.load(both), [1.0, -0.5, 0.25, 0.0], rtol=1e-6)


def test_load_leaves_full_scale_as_it_is(tmp_path, recwarn):
    wave = np.array([-1.0, 1.0, 0.5], dtype=np.float32)
    for subtype in ("FLOAT", "PCM_16"):
        soundfile.write(tmp_path / "a.wav", wave, 16000, subtype=subtype)
        exact = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
        np.testing.assert_array_equal(audio.load(tmp_path / "a.wav"), exact)
    assert not recwarn


def test_what_resampling_makes_louder_is_scaled_not_clipped(tmp_path, recwarn):
    wave = np.sign(noise(4800)[0].numpy()).astype("float32")
    soundfile.write(tmp_path / "a.wav", wave, 48000, subtype="FLOAT")
    back = audio.load(tmp_path / "a.wav")
    assert (back.abs() >= 1).sum() == 1 and not recwarn


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_one_sample_makes_a_file_that_loads(tmp_path, suffix, rate):
    audio.save(tmp_path / f"a.{suffix}", torch.tensor([0.5]), sample_rate=rate)
    assert len(audio.load(tmp_path / f"a.{suffix}")) >= 1


def test_a_long_sound_makes_an_ogg_file_that_loads(tmp_path):
    # libsndfile crashes on a Vorbis block of this length
    wave = 0.1 * noise(180 * 16000)[0]
    audio.save(tmp_path / "a.ogg", wave)
    assert audio.load(tmp_path / "a.ogg").shape == wave.shape


@pytest.mark.parametrize("suffix", ["AIFF", "AU", "W64", "CAF"])
def test_load_reads_what_else_soundfile_reads(tmp_path, suffix):
    wave = tone()[0]
    soundfile.write(
        tmp_path / f"a.{suffix.lower()}", wave.numpy(), 16000, format=suffix
    )
    torch.testing.assert_close(
        audio.load(str(tmp_path / f"a.{suffix.lower()}")), wave, atol=1 / 32767, rtol=0
    )


@pytest.mark.parametrize("format", ["wav", "flac", "mp3"])
def test_equal_sounds_are_equal_bytes_of_every_block(format):
    wave = noise(2**16 + 5000)[0]
    one = audio.encode(wave, format)
    assert one == audio.encode(wave.clone(), format)
    heard = torch.from_numpy(soundfile.read(io.BytesIO(one), dtype="float32")[0])
    assert heard.shape == wave.shape
    assert (heard - wave)[2**16 :].norm() < 0.6 * wave[2**16 :].norm()


# --------------------------------------------------------------------------------------


def whole_file(folder, suffix, **settings):
    path = folder / f"whole.{suffix}"
    soundfile.write(path, harmonics()[0].numpy(), 16000, **settings)
    return path


@pytest.mark.parametrize("kept", [0.5, 0.97])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au"])
def test_load_names_a_truncated_file(tmp_path, suffix, kept, capfd):
    sound = whole_file(tmp_path, suffix).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(sound[: int(kept * len(sound))])
    with pytest.raises(
        ValueError,
        match=r"^path must name a whole .*cut\.\w+' is (cut off at sample \d+|not "
        r"audio, or damaged)",
    ):
        audio.load(path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_load_names_a_file_cut_within_its_header(tmp_path, suffix, capfd):
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole_file(tmp_path, suffix).read_bytes()[:20])
    with pytest.raises(ValueError, match="path must name a"):
        audio.load(path)


def streamed(suffix, size, **settings):
    """A file of which the sizes were never filled in, as a pipe can't be rewound."""
    buffer = io.BytesIO()
    wave = harmonics()[0].numpy()
    soundfile.write(buffer, wave, 16000, format=suffix.upper(), **settings)
    sound = bytearray(buffer.getvalue())
    if suffix == "au":
        sound[8:12] = size[:4]
    elif suffix == "flac":  # 36 bits that tell the number of samples
        sound[21] = sound[21] & 0xF0 | size[0] & 0x0F
        sound[22:26] = size[:4]
    elif suffix == "rf64":
        start = sound.index(b"ds64") + 8
        sound[start : start + 16] = 2 * size
    else:
        start = sound.index(b"SSND" if suffix == "aiff" else b"data") + 4
        if suffix == "wav":
            sound[4:8] = size[:4]
        width = {"w64": 8, "caf": 8}.get(suffix, 4)
        start += 12 if suffix == "w64" else 0
        sound[start : start + width] = size[:width]
    return bytes(sound), soundfile.read(io.BytesIO(buffer.getvalue()))[0]


@pytest.mark.parametrize("size", [bytes(8), b"\xff" * 8], ids=["0", "-1"])
@pytest.mark.parametrize(
    ("suffix", "settings"),
    [
        ("wav", {}),
        ("wav", {"subtype": "FLOAT"}),
        ("wav", {"endian": "BIG"}),
        ("wavex", {"subtype": "PCM_24"}),
        ("rf64", {}),
        ("w64", {}),
        ("caf", {}),
        ("au", {}),
        ("aiff", {}),
        ("flac", {}),
    ],
)
def test_load_reads_a_stream_that_tells_no_size_to_its_end(
    tmp_path, suffix, settings, size
):
    sound, wave = streamed(suffix, size, **settings)
    (tmp_path / "stream").write_bytes(sound)
    for source in (tmp_path / "stream", io.BytesIO(sound)):
        np.testing.assert_allclose(audio.load(source), wave, atol=1e-6)
    assert audio.header(tmp_path / "stream") == (len(wave) / 16000, 16000)


def test_sizes_of_the_rest_may_be_right(tmp_path):
    sound = bytearray(whole_file(tmp_path, "wav").read_bytes())
    sound[40:44] = bytes(4)  # that of the samples alone is missing
    # tags before the samples are skipped
    tags = b"LIST" + (5).to_bytes(4, "little") + b"INFO!\0"
    (tmp_path / "a.wav").write_bytes(sound[:36] + tags + sound[36:])
    assert len(audio.load(tmp_path / "a.wav")) == N


def test_tags_after_no_samples_are_no_samples(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    tags = b"LIST" + (4).to_bytes(4, "little") + b"INFO"
    sound = (tmp_path / "none.wav").read_bytes()
    for more in (b"", tags, 2 * tags):
        (tmp_path / "none.wav").write_bytes(sound + more)
        for look in (audio.load, audio.header):
            with pytest.raises(ValueError, match="none.wav' holds 0 samples"):
                look(tmp_path / "none.wav")


def test_load_reads_a_pipe_and_an_open_file(tmp_path):
    sound = whole_file(tmp_path, "flac").read_bytes()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[sound])
    writer.start()
    piped = audio.load(tmp_path / "pipe")
    writer.join()
    with (tmp_path / "whole.flac").open("rb") as file:
        assert torch.equal(audio.load(file), piped)
    assert torch.equal(audio.load(tmp_path / "whole.flac"), piped)


def test_load_reads_what_is_piped_into_a_program():
    script = "from minilib import audio; print(len(audio.load('/dev/stdin')))"
    sound = streamed("wav", bytes(8))[0]
    told = subprocess.run(
        [sys.executable, "-c", script], input=sound, stdout=subprocess.PIPE, check=True
    )
    assert int(told.stdout) == N


def test_bad_streams_are_told_in_a_sentence():
    for sound, said in (
        (b"", r"the stream is empty \(0 bytes\)"),
        (b"no sound at all", "the stream is not audio, or damaged"),
        (audio.encode(tone()[0], "wav")[:-100], "the stream is cut off"),
    ):
        with pytest.raises(ValueError, match=said):
            audio.load(io.BytesIO(sound))


def test_load_names_every_other_bad_file(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("the quick brown fox " * 100)
    (tmp_path / "bare.raw").write_bytes(bytes(1000))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        soundfile.write(
            tmp_path / f"{name}.wav",
            np.array([0.1, value, 0.2]),
            16000,
            subtype="FLOAT",
        )
    for name, sentence in {
        "empty.wav": r"path must name a sound file; '.*empty.wav' is empty \(0 bytes\)",
        "text.wav": r"path must name .*; '.*text.wav' is not audio, or damaged "
        r"\(Format not recognised\)",
        "bare.raw": r"'.*bare.raw' is not audio, or damaged \(samplerate must be",
        "none.wav": "path must name a sound file with samples; '.*none.wav' holds 0 "
        "samples",
        "nan.wav": "path must name a file of finite samples; '.*nan.wav' holds NaN or "
        "infinity",
        "inf.wav": "path must name a file of finite samples; '.*inf.wav' holds NaN or "
        "infinity",
        "": "path must name a sound file; '.*' is a folder",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            audio.load(tmp_path / name)
    with pytest.raises(
        FileNotFoundError,
        match="path must name a sound file; there is no '.*missing.wav'",
    ):
        audio.load(tmp_path / "missing.wav")


@pytest.mark.parametrize(
    ("name", "wave", "sentence"),
    [
        (
            "a.mov",
            torch.zeros(10),
            "path must end in .wav, .flac, .ogg or .mp3; given '.*a.mov'",
        ),
        ("a", torch.zeros(10), "path must end in"),
        (
            "a.wav",
            torch.zeros(2, 10),
            r"wave must be \(N,\) or \(1, N\) with at least one sample; given \(2, "
            r"10\)",
        ),
        ("a.wav", torch.zeros(0), r"wave must be .* at least one sample; given \(0,\)"),
        ("a.wav", torch.tensor([0.0, math.nan]), "wave must hold finite numbers"),
    ],
)
def test_save_names_what_it_cannot_write_and_leaves_nothing(
    tmp_path, name, wave, sentence
):
    with pytest.raises(ValueError, match=sentence):
        audio.save(tmp_path / name, wave)
    assert list(tmp_path.iterdir()) == []


def test_save_names_a_rate_that_the_format_lacks(tmp_path):
    with pytest.raises(ValueError, match="sample_rate 12345 can't be written as mp3"):
        audio.save(tmp_path / "a.mp3", torch.zeros(100), sample_rate=12345)


def test_save_names_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder '.*nowhere'"):
        audio.save(tmp_path / "nowhere" / "a.wav", torch.zeros(10))


def test_save_names_a_path_that_is_a_folder(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(
        ValueError, match=r"path must be writable; '.*a.wav' is not \(Is a directory\)"
    ):
        audio.save(tmp_path / "a.wav", torch.zeros(10))
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("name", ["a" * 251, "\U0001f514" * 62 + "abc"])
def test_save_takes_the_longest_names_that_are_legal(tmp_path, name):
    audio.save(tmp_path / f"{name}.wav", tone()[0])
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.wav"]
    with pytest.raises(ValueError, match=r"not \(File name too long\)"):
        audio.save(tmp_path / f"{name}b.wav", tone()[0])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("step", ["replace", "write_bytes"])
def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.wav"
    audio.save(path, tone()[0])
    old = path.read_bytes()

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if step == "replace" else type(path), step, disk_full)
    with pytest.raises(
        ValueError, match=r"path must be writable; .* \(No space left on device\)"
    ):
        audio.save(path, noise()[0])
    monkeypatch.undo()
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == [
        "a.wav"
    ]


@pytest.mark.parametrize(
    ("wave", "said"),
    [
        (None, "not None"),
        ("sound", "not 'sound'"),
        (torch.ones(10, dtype=torch.int16), "not torch.int16"),
        (torch.ones(10, dtype=torch.complex64), "not torch.complex64"),
    ],
)
def test_what_is_no_wave_is_refused_and_not_clipped_or_halved(tmp_path, wave, said):
    wanted = r"wave must hold floating-point numbers in \[-1, 1\], "
    with pytest.raises(TypeError, match=wanted + said):
        audio.save(tmp_path / "sound.wav", wave)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("path", [None, 3, b"sound.wav"])
def test_paths_that_are_none_are_refused(path):
    with pytest.raises(TypeError, match="path must be a path"):
        audio.load(path)
    with pytest.raises(TypeError, match="path must be a path"):
        audio.save(path, torch.zeros(10))


@pytest.mark.parametrize("rate", [1, 999, 2_000_000_000])
def test_a_rate_that_no_recording_has_is_refused_by_name(tmp_path, rate):
    path = tmp_path / "odd.wav"
    soundfile.write(path, np.zeros(1000, dtype=np.float32), rate)
    for read in (audio.load, audio.header):
        with pytest.raises(ValueError, match=f"1000 to 1000000 Hz; .*odd.wav.* {rate}"):
            read(path)
