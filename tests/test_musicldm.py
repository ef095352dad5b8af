"""MusicLDM in small: loops, beats, mixtures, copies, its training data and folder."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minilib import audio, lean, peers
from minilib.conditions import Context
from minilib.folders import load_part
from minilib.peers import musicldm
from minilib.peers.musicldm import (
    BAR,
    CONFIG,
    FRAMES,
    LOOP,
    PERIODS,
    RECORDED,
    STEP,
    MixedLoops,
    MusicLDM,
    beat_partners,
    beat_vectors,
    clarity,
    copy_threshold,
    cut,
    draw_loops,
    features,
    hear,
    mix_latents,
    mix_sounds,
    mixup,
    nearest,
    pooled,
    tracked,
)
from minilib.soundworld import vocabulary
from minilib.tokenizer import split_words
from minilib.training.loop import step_generator

TINY = Path(__file__).parents[1] / "data/weights/tiny"


@pytest.fixture(scope="module")
def loops():
    return draw_loops(8, seed=0)


@pytest.fixture(scope="module")
def clap():
    return load_part(TINY, "clap", torch.float32)


@pytest.fixture(scope="module")
def vae():
    return load_part(TINY, "vae", torch.float32)


@pytest.fixture(scope="module")
def clips(loops):
    return cut(torch.stack([x.wave for x in loops]), [x.downbeat for x in loops])


def train_of(period, first, n=FRAMES):
    pulses = torch.zeros(n)
    pulses[first::period] = 1
    return pulses


# ---- Loops


def test_all_notes_of_a_loop_stand_on_its_grid(loops):
    for loop in loops:
        frames = 100 * np.array(loop.scene.events[0].strokes)
        beats = (frames - loop.downbeat) / loop.period
        assert np.abs(beats - beats.round()).max() < 1e-6


def test_tempi_take_turns_and_a_bar_begins_on_a_step_of_the_latent(loops):
    assert [loop.period for loop in loops] == [*PERIODS, *PERIODS]
    assert all(loop.downbeat % STEP == 0 for loop in loops)
    assert all(0 <= loop.downbeat < BAR * loop.period for loop in loops)
    assert len({loop.downbeat / loop.period for loop in loops}) > 4


def test_a_clip_fits_into_a_recording_from_any_downbeat():
    assert (BAR * max(PERIODS) - STEP) + FRAMES <= RECORDED
    assert all(period % STEP == 0 for period in PERIODS)


def test_after_two_bars_the_same_notes_come_again(loops):
    tune, loop = loops[0].scene.events[0], loops[0]
    turn = LOOP * loop.period / 100
    notes = {(round(t, 4), f) for t, f in zip(tune.strokes, tune.notes)}
    first = [(t, f) for t, f in notes if t + turn < max(tune.strokes)]
    assert len(first) > 4 and all((round(t + turn, 4), f) in notes for t, f in first)


def test_notes_of_a_loop_come_one_after_the_other(loops):
    for loop in loops:
        assert np.diff(loop.scene.events[0].strokes).min() > 0.1


def test_loops_come_from_their_seed(loops):
    again, other = draw_loops(8, 0), draw_loops(8, 1)
    assert torch.equal(again[3].wave, loops[3].wave)
    assert not torch.equal(other[3].wave, loops[3].wave)
    assert loops[0].wave.shape == (RECORDED * audio.HOP,)


def test_captions_use_words_that_the_encoders_know(loops):
    words = {word for loop in loops for word in split_words(loop.caption)}
    assert words <= {"", *vocabulary(music=True)}


def test_slow_loops_are_called_slow(loops):
    said = {x.period: x.scene.events[0].speed for x in loops}
    assert said == {32: "normal", 40: "normal", 48: "slow", 56: "slow"}


def test_a_clip_is_the_recording_from_its_frame_on(loops):
    waves = torch.stack([x.wave for x in loops[:2]])
    made = cut(waves, [4, 12])
    assert made.shape == (2, FRAMES * 160)
    assert torch.equal(made[1], waves[1, 12 * 160 : (12 + FRAMES) * 160])


# ---- Beats


def test_onsets_on_one_grid_give_a_hand_of_length_1_at_its_angle():
    for period, first in ((32, 0), (40, 10), (56, 49)):
        (hands,) = beat_vectors(train_of(period, first, math.lcm(*PERIODS))[None])
        turn = 2 * math.pi * first / period
        wanted = [
            complex(math.cos(turn), math.sin(turn)) * (p == period) for p in PERIODS
        ]
        assert torch.allclose(hands, torch.tensor(wanted, dtype=hands.dtype), atol=1e-6)


def test_two_grids_give_the_cosine_of_half_their_angle():
    for apart in (0, 5, 10, 20):
        strength = train_of(40, 0, 400) + train_of(40, apart, 400)
        (hand,) = beat_vectors(strength[None], [40])[0]
        assert abs(hand) == pytest.approx(abs(math.cos(math.pi * apart / 40)))


def test_hands_are_weighted_by_strength_and_silence_has_none():
    strength = 3 * train_of(40, 0, 400) + train_of(40, 20, 400)
    assert abs(beat_vectors(strength[None], [40])) == pytest.approx(0.5)
    assert abs(beat_vectors(torch.zeros(1, 400), [40])) == 0


def test_aligned_mixtures_keep_the_beat_and_others_lose_it(loops):
    loops = draw_loops(24, seed=0)
    waves, down = torch.stack([x.wave for x in loops]), [x.downbeat for x in loops]
    rng, periods = np.random.default_rng(0), [x.period for x in loops]

    def beat(same, aligned):
        i, j = map(list, zip(*beat_partners(periods, 24, rng, same)))
        begin = [down[k] if aligned else int(rng.integers(4 * periods[k])) for k in j]
        pair = cut(waves[i], [down[k] for k in i]), cut(waves[j], begin)
        return float(
            clarity(audio.log_mel(mixup(*pair, torch.full((24,), 0.5)))).mean()
        )

    single = float(clarity(audio.log_mel(cut(waves, down))).mean())
    assert single > 0.8 and beat(True, True) > single - 0.03
    assert beat(True, False) < single - 0.15 and beat(False, True) < single - 0.25


def test_the_tracker_finds_the_grid_of_clear_loops():
    found = draw_loops(8, seed=5)
    right = 0
    for loop in found:
        period, first = tracked(loop.wave)
        off = (first - loop.downbeat) % loop.period
        right += period == loop.period and min(off, loop.period - off) <= 7
    assert right == 8


# ---- Mixing


def test_partners_are_others_of_one_tempo_or_of_two():
    periods, rng = [32, 40, 32, 40, 48], np.random.default_rng(0)
    same = set(beat_partners(periods, 200, rng))
    assert same == {(0, 2), (2, 0), (1, 3), (3, 1)}
    apart = set(beat_partners(periods, 400, rng, same=False))
    assert len(apart) == 16 and not apart & same and all(i != j for i, j in apart)


@pytest.mark.parametrize("same, said", [(True, "of one tempo"), (False, "different")])
def test_loops_without_a_partner_are_refused(same, said):
    periods = [32, 40] if same else [32, 32]
    with pytest.raises(ValueError, match=f"periods must hold two .*{said}"):
        beat_partners(periods, 3, np.random.default_rng(0), same)


def test_a_mixture_has_each_part_in_its_share():
    one, two = torch.ones(3, 2, 4), torch.zeros(3, 2, 4)
    share = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(mixup(one, two, share)[:, 0, 0], share)
    assert torch.equal(mixup(two, one, share)[:, 1, 3], 1 - share)


def test_sounds_are_mixed_before_they_are_encoded(clips, clap, vae):
    share = torch.tensor([0.3, 0.6])
    z0, told = mix_sounds(clap, vae, clips[:2], clips[4:6], share)
    mixed = share[:, None] * clips[:2] + (1 - share)[:, None] * clips[4:6]
    with torch.no_grad():
        assert torch.allclose(z0, vae.encode(audio.log_mel(mixed)), atol=1e-4)
        assert torch.allclose(told, clap.embed_waves(mixed), atol=1e-5)


def test_latents_are_mixed_after_and_CLAP_hears_the_decoded_mixture(clips, clap, vae):
    share = torch.tensor([0.3, 0.6])
    z0, told = mix_latents(clap, vae, clips[:2], clips[4:6], share)
    with torch.no_grad():
        one, two = (vae.encode(audio.log_mel(x)) for x in (clips[:2], clips[4:6]))
        s = share.view(2, 1, 1, 1)
        assert torch.allclose(z0, s * one + (1 - s) * two, atol=1e-4)
        heard = clap.embed_audio(lean.decode(vae, z0))
    assert torch.allclose(told, heard, atol=1e-5)
    assert torch.allclose(told.norm(dim=1), torch.ones(2), atol=1e-5)


# ---- Training data


@pytest.fixture(scope="module")
def batches(loops, clap, vae):
    return MixedLoops(clap, vae, loops, n=12, seed=1, batch_size=10)


def test_half_of_a_batch_are_mixtures_and_half_of_the_loops_are_told_by_captions(
    batches,
):
    rows = lambda z, of: [int((of - x).abs().flatten(1).amax(1).argmin()) for x in z]
    counts = {"sound": 0, "caption": 0, "mixture": 0, "nothing": 0}
    for k in range(20):
        batch = batches(step_generator(0, "x", k))
        assert batch["z0"].shape == (10, 4, FRAMES // STEP, 16)
        plain = rows(batch["z0"][:5], batches.plain.z0)
        mixed = rows(batch["z0"][5:], batches.mixtures.z0)
        assert torch.equal(batch["z0"][:5], batches.plain.z0[plain])
        assert torch.equal(batch["z0"][5:], batches.mixtures.z0[mixed])
        told, empty = batch["text"][:, 0], batches.empty["text"].sequence[0]
        same = lambda x, y: (x - y).abs().amax(dim=1) < 1e-6
        found = {
            "sound": same(told[:5], batches.plain.told[plain]),
            "caption": same(told[:5], batches.captions[plain]),
            "mixture": same(told[5:], batches.mixtures.told[mixed]),
            "nothing": same(told, empty),
        }
        assert sum(int(x.sum()) for x in found.values()) == 10
        counts = {name: n + int(found[name].sum()) for name, n in counts.items()}
    assert 8 <= counts["nothing"] <= 35 and 75 <= counts["mixture"] <= 100
    assert min(counts["sound"], counts["caption"]) > 30


def test_a_batch_is_drawn_by_its_generator_alone(batches):
    one, two, other = (batches(step_generator(0, "x", k)) for k in (3, 3, 4))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["z0"], other["z0"])


def test_without_mixing_a_batch_has_loops_alone(loops, clap, vae):
    plain = MixedLoops(clap, vae, loops, None, batch_size=10)
    batch = plain(step_generator(0, "x", 0))
    gaps = torch.cdist(batch["z0"].flatten(1), plain.plain.z0.flatten(1)).amin(dim=1)
    assert len(gaps) == 10 and gaps.max() == 0


@pytest.mark.parametrize("aligned, same", [(True, True), (False, True), (True, False)])
def test_pairs_are_cut_on_their_downbeats_unless_asked(loops, clap, vae, aligned, same):
    given = []

    def noted(clap, vae, first, second, share):
        given.extend((first, second, share))
        return hear(clap, vae, first[:1])

    made = MixedLoops(clap, vae, loops, noted, aligned, same, n=9, seed=2)
    first, second, share = given
    waves = [loop.wave for loop in loops]
    at = lambda k: cut(waves[k][None], [loops[k].downbeat])[0]
    hits = [torch.equal(second[m], at(j)) for m, (_, j) in enumerate(made.pairs)]
    assert all(torch.equal(first[m], at(i)) for m, (i, _) in enumerate(made.pairs))
    assert all(hits) if aligned else sum(hits) < 3
    tempi = [loops[i].period == loops[j].period for i, j in made.pairs]
    assert set(tempi) == {same} and ((share > 0) & (share < 1)).all()


def test_shares_are_near_one_half_as_beta_5_5_is(loops, clap, vae):
    kept = []
    one = lambda clap, vae, first, second, share: (
        kept.append(share) or hear(clap, vae, first[:1])
    )
    MixedLoops(clap, vae, loops[:8], one, n=400)
    assert kept[0].mean() == pytest.approx(0.5, abs=0.03)
    assert kept[0].std() == pytest.approx((1 / 44) ** 0.5, abs=0.02)


# ---- The denoiser


def woken(seed=0):
    torch.manual_seed(seed)
    model = MusicLDM(replace(CONFIG, width=32, n_layer=2))
    for block in model.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.1)
    torch.nn.init.normal_(model.out.weight, std=0.1)
    return model.eval()


@torch.no_grad()
def test_the_vector_reaches_the_blocks_through_the_level_alone():
    model, z, t = woken(), torch.randn(2, 4, 16, 16), torch.tensor([300, 800])
    told = lambda x: {"text": Context(x[:, None])}
    a, b = torch.randn(2, 2, 128)
    assert not torch.allclose(model(z, t, told(a)), model(z, t, told(b)), atol=1e-3)
    assert torch.allclose(model(z, t, told(a)), model(z, t, told(5 * a)), atol=1e-5)
    model.film.weight.zero_()
    assert torch.equal(model(z, t, told(a)), model(z, t, told(b)))


def test_every_weight_learns(batches):
    model = woken()
    model.loss(batches(step_generator(0, "x", 0))).backward()
    lost = [k for k, p in model.named_parameters() if p.grad is None]
    assert not lost and model.film.weight.grad.norm() > 0


# ---- Copies


def test_a_sound_is_its_own_copy_whatever_its_level(clips):
    mels = audio.log_mel(clips)
    found, which = nearest(audio.log_mel(0.5 * clips), mels)
    assert which.tolist() == list(range(8)) and found.min() > 0.9
    assert torch.allclose(features(mels).norm(dim=1), torch.ones(8))


def test_what_is_50_dB_below_the_peak_is_one_floor(clips):
    mels = audio.log_mel(clips[:2])
    faint = mels < mels.amax(dim=(1, 2, 3), keepdim=True) - 50 / 8.686
    assert faint.any() and not faint.all()
    assert torch.allclose(pooled(torch.where(faint, mels - 3, mels)), pooled(mels))


def test_features_are_deviations_from_the_mean_of_the_training_set(clips):
    mels = audio.log_mel(clips)
    assert features(mels, pooled(mels)[0])[0].abs().max() == 0
    wanted = torch.nn.functional.normalize(pooled(mels) - pooled(mels).mean(0), dim=1)
    assert torch.allclose(features(mels), wanted)
    found, which = nearest(mels[:1], mels)
    assert found > 0.99 and which == 0


def test_the_threshold_lets_a_twentieth_of_new_sounds_pass(clips):
    new = draw_loops(40, seed=9)
    new = cut(torch.stack([x.wave for x in new]), [x.downbeat for x in new])
    new, known = audio.log_mel(new), audio.log_mel(clips)
    limit = copy_threshold(new, known)
    assert int((nearest(new, known)[0] >= limit).sum()) == 2
    assert (nearest(known, known)[0] > limit).all()
    assert copy_threshold(new, known, 0.5) < limit


# ---- Its folder


def few_mixtures():
    """The defaults of `MixedLoops` with 8 mixtures instead of N_MIXED."""
    now = musicldm.MixedLoops.__init__.__defaults__
    assert now.count(musicldm.N_MIXED) == 1
    return tuple(8 if x == musicldm.N_MIXED else x for x in now)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(musicldm, "N_LOOPS", 8)
        patch.setattr(musicldm.MixedLoops.__init__, "__defaults__", few_mixtures())
        out = tmp_path_factory.mktemp("peers") / "musicldm"
        return musicldm.train(out, steps=2, progress=False, weights=TINY)


def test_training_writes_a_pipeline_that_reads_captions_by_CLAP(folder, clap):
    told = json.loads((folder / "pipeline.json").read_text())
    assert told["peer"] == "musicldm" and set(musicldm.BORROWED) <= set(told)
    pipe = peers.pipeline(folder)
    own, there = (x.encode(["a fast piano tune"]).sequence for x in (clap, pipe.text))
    assert torch.equal(own, there)
    assert pipe.unknown_words("a slow piano melody in a minor zither") == ["zither"]
    wave = pipe("a low piano melody", seed=0, seconds=1.0, progress=False)
    assert wave.shape == (1, 16_000) and wave.isfinite().all()


def test_weights_are_half_precision_and_read_back(folder):
    stored = MusicLDM.from_pretrained(folder / "unet")
    assert stored.dtype == torch.float16 and stored.config == CONFIG


@pytest.mark.parametrize("given", [{"steps": 0}, {"seed": -1}])
def test_wrong_arguments_are_named(given, tmp_path):
    with pytest.raises(ValueError, match=next(iter(given))):
        musicldm.train(tmp_path / "out", progress=False, **given)
    assert not list(tmp_path.iterdir())


def test_it_is_a_peer():
    assert peers.peer("musicldm") is musicldm
