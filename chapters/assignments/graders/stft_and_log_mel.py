"""Right and wrong answers to the assignment stft_and_log_mel, for `make graders`."""

import math

import numpy as np
import torch
from torch.nn import functional


def mirrored(wave, length, mode="reflect"):
    """The wave with half a frame more at each end."""
    return functional.pad(wave, (length // 2, length // 2), mode=mode)


def amplitudes(frames, window):
    """What a tone of each frequency would have for an amplitude."""
    spectrum = 2 * torch.fft.rfft(frames * window).abs() / window.sum()
    return torch.cat(
        [spectrum[..., :1] / 2, spectrum[..., 1:-1], spectrum[..., -1:] / 2], -1
    )


def decibels(amplitude):
    """With the floor of -100 dB."""
    return 20 * torch.log10(amplitude.clamp_min(1e-5))


def added(frames, hop):
    """Frames (..., M, L) added where they belong."""
    *batch, M, L = frames.shape
    total = frames.new_zeros(*batch, (M - 1) * hop + L)
    for m in range(M):
        total[..., m * hop : m * hop + L] += frames[..., m, :]
    return total


def divided(total, cover):
    """The quotient, and 0 where there is nothing to divide by."""
    return torch.where(cover.abs() < 1e-8, 0, total / cover.clamp_min(1e-8))


def turns_seen(spec):
    """What is seen of the advance of the phase, in turns from -1/2 to 1/2."""
    return (spec[1:] * spec[:-1].conj()).angle() / (2 * math.pi)


def centres(spec):
    """The frequencies of a frame in turns a sample."""
    K = spec.shape[1]
    return torch.arange(K) / (2 * (K - 1))


def triangles(K, edges, sample_rate):
    """The triangles (F, K) before anything is divided."""
    hz = torch.linspace(0, sample_rate / 2, K, dtype=torch.float64)
    edges = edges.double()[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (hz - left) / (centre - left), (right - hz) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0), hz, centre


def filled(K, edges, sample_rate):
    """The triangles, with the nearest frequency where they are empty."""
    weights, hz, centre = triangles(K, edges, sample_rate)
    for j in range(len(weights)):
        if weights[j].sum() == 0:
            weights[j, (hz - centre[j]).abs().argmin()] = 1
    return weights


def means(magnitude, edges, sample_rate):
    """The bands before the logarithm."""
    W = filled(magnitude.shape[2], edges, sample_rate)
    return magnitude @ (W / W.sum(1, keepdim=True)).to(magnitude).T


def heard_hz__right_nearest_multiple(hz, sample_rate):
    """The distance from the nearest multiple of the rate."""
    return (hz - sample_rate * (hz / sample_rate).round()).abs()


def heard_hz__right_numpy(hz, sample_rate):
    """In NumPy, folded at the Nyquist frequency."""
    rest = np.mod(hz.numpy(), sample_rate)
    return torch.from_numpy(
        np.where(rest > sample_rate / 2, sample_rate - rest, rest)
    ).to(hz.dtype)


def heard_hz__wrong_unfolded(hz, sample_rate):
    """Nothing is folded."""
    return hz


def heard_hz__wrong_rest(hz, sample_rate):
    """Whole turns only."""
    return hz % sample_rate


def heard_hz__wrong_half_rest(hz, sample_rate):
    """Wraps at the Nyquist frequency instead of folding."""
    return hz % (sample_rate / 2)


def heard_hz__wrong_clamped(hz, sample_rate):
    """As if a filter stopped tones at the Nyquist frequency."""
    return hz.clamp_max(sample_rate / 2)


def heard_hz__wrong_once(hz, sample_rate):
    """Right up to the sample rate only."""
    return torch.where(hz > sample_rate / 2, sample_rate - hz, hz)


def heard_hz__wrong_once_absolute(hz, sample_rate):
    """Right up to one and a half times the sample rate."""
    return torch.minimum(hz, (sample_rate - hz).abs())


def heard_hz__wrong_always_mirrored(hz, sample_rate):
    """Mirrors low tones too."""
    return (sample_rate - hz % sample_rate) % sample_rate


def heard_hz__wrong_sixteen_thousand(hz, sample_rate):
    """Right at 16 kHz only."""
    rest = hz % 16000
    return torch.minimum(rest, 16000 - rest)


def heard_hz__wrong_whole_hertz(hz, sample_rate):
    """Rounds to whole hertz."""
    rest = hz.round() % sample_rate
    return torch.minimum(rest, sample_rate - rest)


def heard_hz__wrong_folded_twice(hz, sample_rate):
    """Two folds, right up to twice the sample rate."""
    once = torch.where(hz > sample_rate, hz - sample_rate, hz)
    return torch.minimum(once, (sample_rate - once).abs())


def cut_frames__right_index(wave, length, hop):
    """By a table of indices."""
    N = wave.shape[1]
    at = torch.arange(N // hop)[:, None] * hop + torch.arange(length) - length // 2
    at = at.abs()
    return wave[:, torch.where(at < N, at, 2 * (N - 1) - at)]


def cut_frames__right_loop(wave, length, hop):
    """Frame by frame, with mirrors made by flipping."""
    half, N = length // 2, wave.shape[1]
    before, after = wave[:, 1 : half + 1].flip(1), wave[:, N - 1 - half : N - 1].flip(1)
    long = torch.cat([before, wave, after], dim=1)
    starts = range(0, N // hop * hop, hop)
    return torch.stack([long[:, start : start + length] for start in starts], dim=1)


def cut_frames__wrong_not_centred(wave, length, hop):
    """Frame m begins at sample m hop."""
    long = torch.cat([wave, wave.flip(1)[:, 1:]], dim=1)
    long = functional.pad(long, (0, length))
    return long.unfold(1, length, hop)[:, : wave.shape[1] // hop]


def cut_frames__wrong_zeros(wave, length, hop):
    """Silence beyond the edges."""
    long = mirrored(wave, length, "constant")
    return long.unfold(1, length, hop)[:, : wave.shape[1] // hop]


def cut_frames__wrong_repeated(wave, length, hop):
    """The first and the last sample go on beyond the edges."""
    long = mirrored(wave, length, "replicate")
    return long.unfold(1, length, hop)[:, : wave.shape[1] // hop]


def cut_frames__wrong_circular(wave, length, hop):
    """The sound begins again beyond its end."""
    long = mirrored(wave, length, "circular")
    return long.unfold(1, length, hop)[:, : wave.shape[1] // hop]


def cut_frames__wrong_edge_twice(wave, length, hop):
    """The mirror repeats the edge sample."""
    half = length // 2
    long = torch.cat([wave[:, :half].flip(1), wave, wave[:, -half:].flip(1)], dim=1)
    return long.unfold(1, length, hop)[:, : wave.shape[1] // hop]


def cut_frames__wrong_one_more(wave, length, hop):
    """Keeps the last frame."""
    return mirrored(wave, length).unfold(1, length, hop)


def cut_frames__wrong_first_dropped(wave, length, hop):
    """Drops the first frame instead of the last."""
    return mirrored(wave, length).unfold(1, length, hop)[:, 1:]


def cut_frames__wrong_turned(wave, length, hop):
    """Samples before frames."""
    return cut_frames__reference(wave, length, hop).transpose(1, 2)


def cut_frames__wrong_windowed(wave, length, hop):
    """Under a window already."""
    window = torch.hann_window(length, dtype=wave.dtype)
    return cut_frames__reference(wave, length, hop) * window


def cut_frames__wrong_detached(wave, length, hop):
    """No gradient passes."""
    return cut_frames__reference(wave, length, hop).detach()


def cut_frames__wrong_float32(wave, length, hop):
    """Always in single precision."""
    return cut_frames__reference(wave.float(), length, hop)


def cut_frames__wrong_first_sound(wave, length, hop):
    """The first sound of the batch for all."""
    return cut_frames__reference(wave[:1].expand_as(wave), length, hop)


def cut_frames__wrong_one_early(wave, length, hop):
    """Each frame one sample early."""
    return cut_frames__reference(wave.roll(1, 1), length, hop)


def levels_db__right_matrix(frames, window):
    """By the matrix of the transform, with einsum."""
    L = len(window)
    k, n = torch.arange(L // 2 + 1), torch.arange(L)
    angles = 2 * math.pi * torch.outer(k, n).double() / L
    pointers = torch.polar(torch.ones_like(angles), -angles)
    spectrum = torch.einsum(
        "kn,...n->...k", pointers, (frames * window).double().to(pointers.dtype)
    )
    scale = torch.full((L // 2 + 1,), 2.0, dtype=torch.float64)
    scale[[0, -1]] = 1
    return decibels(spectrum.abs() * scale / window.double().sum()).to(frames.dtype)


def levels_db__right_numpy(frames, window):
    """In NumPy, from the whole transform: both pointers of each tone."""
    x, w = frames.numpy(), window.numpy()
    both = np.abs(np.fft.fft(x * w)) / w.sum()
    L = len(w)
    level = both[..., : L // 2 + 1].copy()
    level[..., 1 : L // 2] += both[..., : L // 2 : -1]
    return torch.from_numpy(20 * np.log10(np.maximum(level, 1e-5)))


def levels_db__wrong_one_pointer(frames, window):
    """Half of each cosine is forgotten."""
    return decibels(torch.fft.rfft(frames * window).abs() / window.sum())


def levels_db__wrong_ends_doubled(frames, window):
    """Doubles the two ends as well."""
    return decibels(2 * torch.fft.rfft(frames * window).abs() / window.sum())


def levels_db__wrong_last_doubled(frames, window):
    """Doubles the last frequency."""
    level = 2 * torch.fft.rfft(frames * window).abs() / window.sum()
    return decibels(torch.cat([level[..., :1] / 2, level[..., 1:]], -1))


def levels_db__wrong_length(frames, window):
    """Divides by the length instead of the window's sum."""
    return decibels(amplitudes(frames, window) * window.sum() / len(window))


def levels_db__wrong_energy(frames, window):
    """Divides by the root of the window's energy."""
    scale = window.sum() / (window.square().sum() * len(window)).sqrt()
    return decibels(amplitudes(frames, window) * scale)


def levels_db__wrong_hann_only(frames, window):
    """Takes half of the length for the window's sum: right for Hann only."""
    return decibels(amplitudes(frames, window) * window.sum() / (len(window) / 2))


def levels_db__wrong_power(frames, window):
    """10 log10 of an amplitude."""
    return 10 * torch.log10(amplitudes(frames, window).clamp_min(1e-10))


def levels_db__wrong_natural(frames, window):
    """The natural logarithm."""
    return 20 * amplitudes(frames, window).clamp_min(1e-5).log()


def levels_db__wrong_no_window(frames, window):
    """No window."""
    return decibels(amplitudes(frames, torch.ones_like(window)))


def levels_db__wrong_window_twice(frames, window):
    """The window twice."""
    return decibels(amplitudes(frames * window, window))


def levels_db__wrong_no_floor(frames, window):
    """No floor."""
    return 20 * torch.log10(amplitudes(frames, window))


def levels_db__wrong_floor_added(frames, window):
    """Adds the floor instead of cutting off there."""
    return 20 * torch.log10(amplitudes(frames, window) + 1e-5)


def levels_db__wrong_lower_floor(frames, window):
    """A floor of -200 dB."""
    return 20 * torch.log10(amplitudes(frames, window).clamp_min(1e-10))


def levels_db__wrong_relative(frames, window):
    """Relative to the loudest."""
    level = amplitudes(frames, window)
    return decibels(level / level.amax().clamp_min(1e-5))


def overlap_add__right_fold(frames, window, hop):
    """With PyTorch's fold."""
    B, M, L = frames.shape
    N = (M - 1) * hop + L
    fold = torch.nn.Fold((1, N), (1, L), stride=(1, hop))
    total = fold((frames * window).transpose(1, 2)).view(B, N)
    cover = fold((window**2).expand(1, M, L).transpose(1, 2)).view(N)
    return divided(total, cover)


def overlap_add__right_sample_by_sample(frames, window, hop):
    """For each sample, over the frames that show it, in NumPy."""
    y, w = frames.numpy(), window.numpy()
    B, M, L = y.shape
    wave = np.zeros((B, (M - 1) * hop + L), dtype=y.dtype)
    for i in range(wave.shape[1]):
        seen = [(m, i - m * hop) for m in range(M) if 0 <= i - m * hop < L]
        cover = sum(w[n] ** 2 for _, n in seen)
        if cover >= 1e-8:
            wave[:, i] = sum(w[n] * y[:, m, n] for m, n in seen) / cover
    return torch.from_numpy(wave)


def overlap_add__wrong_never_zero(frames, window, hop):
    """A small number in the denominator in place of the rule for silence."""
    size = (frames.shape[1] - 1) * hop + len(window)
    total = frames.new_zeros(len(frames), size)
    cover = frames.new_zeros(size)
    for m in range(frames.shape[1]):
        here = slice(m * hop, m * hop + len(window))
        total[:, here] += window * frames[:, m]
        cover[here] += window**2
    return total / (cover + 1e-8)


def overlap_add__wrong_not_divided(frames, window, hop):
    """The sum alone."""
    return added(frames * window, hop)


def overlap_add__wrong_no_second_window(frames, window, hop):
    """Divides by the sum of windows, without a second one: no least squares."""
    M = frames.shape[1]
    return divided(added(frames, hop), added(window.expand(M, -1), hop))


def overlap_add__wrong_window_once(frames, window, hop):
    """Forgets the second window, divides by its square."""
    M = frames.shape[1]
    return divided(added(frames, hop), added((window**2).expand(M, -1), hop))


def overlap_add__wrong_not_squared(frames, window, hop):
    """Divides by the sum of windows."""
    M = frames.shape[1]
    return divided(added(frames * window, hop), added(window.expand(M, -1), hop))


def overlap_add__wrong_mean(frames, window, hop):
    """The plain mean of the frames on a sample."""
    M, L = frames.shape[1:]
    count = added(torch.ones(M, L, dtype=frames.dtype), hop)
    return divided(added(frames, hop), count)


def overlap_add__wrong_constant(frames, window, hop):
    """Divides by one number: right in the middle, for some hops."""
    scale = window.square().sum() / hop
    return added(frames * window, hop) / scale


def overlap_add__wrong_nan(frames, window, hop):
    """0 / 0 at the ends."""
    M = frames.shape[1]
    return added(frames * window, hop) / added((window**2).expand(M, -1), hop)


def overlap_add__wrong_epsilon(frames, window, hop):
    """Adds a small number to every divisor."""
    M = frames.shape[1]
    cover = added((window**2).expand(M, -1), hop)
    return added(frames * window, hop) / (cover + 0.1)


def overlap_add__wrong_side_by_side(frames, window, hop):
    """Frames one behind the other, cut to the right length."""
    M, L = frames.shape[1:]
    return overlap_add__reference(frames, window, L)[:, : (M - 1) * hop + L]


def overlap_add__wrong_backwards(frames, window, hop):
    """The last frame first."""
    return overlap_add__reference(frames.flip(1), window, hop)


def overlap_add__wrong_half_overlap(frames, window, hop):
    """Half a frame for every hop."""
    half = frames.shape[2] // 2
    return overlap_add__reference(frames, window, half)


def overlap_add__wrong_cut_short(frames, window, hop):
    """One hop for each frame, without the rest of the last one."""
    return overlap_add__reference(frames, window, hop)[:, : frames.shape[1] * hop]


def overlap_add__wrong_first_sound(frames, window, hop):
    """The first sound of the batch for all."""
    return overlap_add__reference(frames[:1].expand_as(frames), window, hop)


def overlap_add__wrong_last_wins(frames, window, hop):
    """Later frames replace earlier ones."""
    B, M, L = frames.shape
    wave = frames.new_zeros(B, (M - 1) * hop + L)
    for m in range(M):
        wave[:, m * hop : m * hop + L] = divided(frames[:, m], window)
    return wave


def exact_hz__right_candidates(spec, hop, sample_rate):
    """Tries all whole turns that come into question."""
    centre = centres(spec) * sample_rate
    seen = turns_seen(spec)
    whole = torch.arange(-2, hop + 3)[:, None, None]
    tried = (seen + whole) * sample_rate / hop
    best = (tried - centre).abs().argmin(0, keepdim=True)
    return tried.gather(0, best)[0]


def exact_hz__right_numpy(spec, hop, sample_rate):
    """In NumPy: differences of angles, wrapped by hand."""
    z = spec.numpy()
    K = z.shape[1]
    centre = np.arange(K) / (2 * (K - 1))
    advance = np.diff(np.angle(z), axis=0) / (2 * np.pi)
    off = np.mod(advance - centre * hop + 0.5, 1) - 0.5
    return torch.from_numpy((centre + off / hop) * sample_rate)


def exact_hz__wrong_centre(spec, hop, sample_rate):
    """The frequencies themselves."""
    return (centres(spec) * sample_rate).expand(len(spec) - 1, -1)


def exact_hz__wrong_no_turns(spec, hop, sample_rate):
    """Only what is seen: no whole turns."""
    return turns_seen(spec) * sample_rate / hop


def exact_hz__wrong_positive(spec, hop, sample_rate):
    """The next frequency above the centre."""
    off = (turns_seen(spec) - centres(spec) * hop) % 1
    return (centres(spec) + off / hop) * sample_rate


def exact_hz__wrong_not_wrapped(spec, hop, sample_rate):
    """Differences of angles without wrapping."""
    seen = spec.angle().diff(dim=0) / (2 * math.pi)
    return (centres(spec) + (seen - (centres(spec) * hop) % 1) / hop) * sample_rate


def exact_hz__wrong_backwards(spec, hop, sample_rate):
    """From the later frame to the earlier one."""
    return exact_hz__reference(spec.conj(), hop, sample_rate)


def exact_hz__wrong_radians(spec, hop, sample_rate):
    """Radians where turns are wanted."""
    seen = (spec[1:] * spec[:-1].conj()).angle()
    off = seen - centres(spec) * hop
    return (centres(spec) + (off - off.round()) / hop) * sample_rate


def exact_hz__wrong_per_sample(spec, hop, sample_rate):
    """Forgets that the advance is for a whole hop."""
    off = turns_seen(spec) - centres(spec) * hop
    return (centres(spec) + off - off.round()) * sample_rate


def exact_hz__wrong_length(spec, hop, sample_rate):
    """K for the length of half a frame."""
    centre = torch.arange(spec.shape[1]) / (2 * spec.shape[1])
    off = turns_seen(spec) - centre * hop
    return (centre + (off - off.round()) / hop) * sample_rate


def exact_hz__wrong_settings(spec, hop, sample_rate):
    """Right at 16 kHz with hops of 160 only."""
    return exact_hz__reference(spec, 160, 16000)


def exact_hz__wrong_frequency_axis(spec, hop, sample_rate):
    """The advance from frequency to frequency."""
    turned = torch.cat([spec, spec[:, -1:]], dim=1)
    seen = (turned[:, 1:] * turned[:, :-1].conj()).angle()[:-1] / (2 * math.pi)
    off = seen - centres(spec) * hop
    return (centres(spec) + (off - off.round()) / hop) * sample_rate


def exact_hz__wrong_averaged(spec, hop, sample_rate):
    """The mean over all frames."""
    found = exact_hz__reference(spec, hop, sample_rate)
    return found.mean(0, keepdim=True).expand_as(found)


def exact_hz__wrong_absolute(spec, hop, sample_rate):
    """No negative offsets."""
    off = turns_seen(spec) - centres(spec) * hop
    return (centres(spec) + (off - off.round()).abs() / hop) * sample_rate


def log_bands__right_loop(magnitude, edges, sample_rate):
    """Band by band."""
    K, bands = magnitude.shape[2], []
    hz = torch.arange(K).double() * sample_rate / (2 * (K - 1))
    for low, middle, high in zip(edges, edges[1:], edges[2:]):
        up, down = (hz - low) / (middle - low), (high - hz) / (high - middle)
        w = torch.where(hz < middle, up, down).clamp_min(0)
        if w.sum() == 0:
            w[(hz - middle).abs().argmin()] = 1
        bands.append((magnitude * (w / w.sum()).to(magnitude)).sum(-1))
    return torch.stack(bands, -1).clamp_min(1e-5).log().unsqueeze(1)


def log_bands__right_interpolated(magnitude, edges, sample_rate):
    """Triangles by NumPy's interpolation, means by einsum."""
    K = magnitude.shape[2]
    hz, e = np.linspace(0, sample_rate / 2, K), edges.numpy().astype(float)
    W = np.stack([np.interp(hz, e[j : j + 3], [0, 1, 0]) for j in range(len(e) - 2)])
    for j in np.flatnonzero(W.sum(1) == 0):
        W[j, np.abs(hz - e[j + 1]).argmin()] = 1
    W = torch.from_numpy(W / W.sum(1, keepdims=True)).to(magnitude)
    mean = torch.einsum("bmk,fk->bmf", magnitude, W)
    return torch.log(torch.maximum(mean, mean.new_tensor(1e-5)))[:, None]


def log_bands__wrong_mixed_types(magnitude, edges, sample_rate):
    """The weights have the edges' dtype, and fail beside other magnitudes."""
    hz = torch.linspace(0, sample_rate / 2, magnitude.shape[2]).to(edges)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (hz - left) / (centre - left), (right - hz) / (right - centre)
    weights = torch.minimum(rising, falling).clamp_min(0)
    nearest = torch.eye(len(hz)).to(edges)[(hz - centre).abs().argmin(1)]
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, nearest)
    weights = weights / weights.sum(1, keepdim=True)
    return (magnitude @ weights.T).clamp_min(1e-5).log()[:, None]


def log_bands__wrong_area(magnitude, edges, sample_rate):
    """Triangles of area 1 in hertz, as in the chapter."""
    W = filled(magnitude.shape[2], edges, sample_rate)
    W = W * (2 / (edges[2:] - edges[:-2]))[:, None]
    return (magnitude @ W.to(magnitude).T).clamp_min(1e-5).log()[:, None]


def log_bands__wrong_sum(magnitude, edges, sample_rate):
    """Sums instead of means."""
    W = filled(magnitude.shape[2], edges, sample_rate)
    return (magnitude @ W.to(magnitude).T).clamp_min(1e-5).log()[:, None]


def log_bands__wrong_empty(magnitude, edges, sample_rate):
    """Empty triangles stay empty."""
    W = triangles(magnitude.shape[2], edges, sample_rate)[0]
    W = W / W.sum(1, keepdim=True).clamp_min(1e-9)
    return (magnitude @ W.to(magnitude).T).clamp_min(1e-5).log()[:, None]


def log_bands__wrong_empty_below(magnitude, edges, sample_rate):
    """Empty triangles take the frequency below their middle."""
    W, hz, centre = triangles(magnitude.shape[2], edges, sample_rate)
    for j in range(len(W)):
        if W[j].sum() == 0:
            W[j, int((hz <= centre[j]).sum()) - 1] = 1
    W = W / W.sum(1, keepdim=True)
    return (magnitude @ W.to(magnitude).T).clamp_min(1e-5).log()[:, None]


def log_bands__wrong_boxes(magnitude, edges, sample_rate):
    """Boxes instead of triangles."""
    W = (filled(magnitude.shape[2], edges, sample_rate) > 0).double()
    W = W / W.sum(1, keepdim=True)
    return (magnitude @ W.to(magnitude).T).clamp_min(1e-5).log()[:, None]


def log_bands__wrong_decimal(magnitude, edges, sample_rate):
    """log10."""
    return means(magnitude, edges, sample_rate).clamp_min(1e-5).log10()[:, None]


def log_bands__wrong_power(magnitude, edges, sample_rate):
    """Means of powers."""
    return means(magnitude**2, edges, sample_rate).clamp_min(1e-5).log()[:, None]


def log_bands__wrong_logs_averaged(magnitude, edges, sample_rate):
    """The mean of logarithms."""
    return means(magnitude.clamp_min(1e-5).log(), edges, sample_rate)[:, None]


def log_bands__wrong_no_axis(magnitude, edges, sample_rate):
    """Without the axis of size 1."""
    return log_bands__reference(magnitude, edges, sample_rate)[:, 0]


def log_bands__wrong_turned(magnitude, edges, sample_rate):
    """Bands before frames."""
    return log_bands__reference(magnitude, edges, sample_rate).transpose(2, 3)


def log_bands__wrong_floor_added(magnitude, edges, sample_rate):
    """Adds the floor instead of cutting off there."""
    return (means(magnitude, edges, sample_rate) + 1e-5).log()[:, None]


def log_bands__wrong_lower_floor(magnitude, edges, sample_rate):
    """A floor of 1e-10."""
    return means(magnitude, edges, sample_rate).clamp_min(1e-10).log()[:, None]


def log_bands__wrong_steps(magnitude, edges, sample_rate):
    """Frequencies one step short of the Nyquist frequency."""
    K = magnitude.shape[2]
    return log_bands__reference(magnitude, edges * K / (K - 1), sample_rate)


def log_bands__wrong_detached(magnitude, edges, sample_rate):
    """No gradient passes."""
    return log_bands__reference(magnitude, edges, sample_rate).detach()


def log_bands__wrong_float32(magnitude, edges, sample_rate):
    """Always in single precision."""
    return log_bands__reference(magnitude.float(), edges, sample_rate)
