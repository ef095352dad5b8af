"""NaturalSpeech 2 as a peer: durations, prompts, the cross-entropy towards the
codebooks, the folder, and the command that speaks.
"""

from dataclasses import replace

import pytest
import small_codec
import torch

from minilib import audio, cli
from minilib.codec import Codec
from minilib.codec_diffusion import NaturalSpeech2, NaturalSpeech2Config, ce_rvq, expand
from minilib.peers import naturalspeech2 as peer
from minilib.peers.codec import CodecAndVocoder
from minilib.peers.naturalspeech2 import Takes, TextToAudio, numbers, untrained
from minilib.quantise import RVQ
from minilib.soundworld.phrases import M_CLIP, SILENCE, pieces_of
from minilib.soundworld.speech import OTHERS, WORDS
from minilib.soundworld.talkers import TALKERS
from minilib.training import fit

pytest.importorskip("espeakng_loader")
SMALL = {"width": 32, "n_layer": 3, "n_block": 1}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return small_codec.codec_in(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def coder(weights):
    return CodecAndVocoder.from_pretrained(weights.parent / "peers" / "codec")


@pytest.fixture(scope="module")
def takes(coder):
    return Takes(coder, 6, seed=0)


@pytest.fixture
def model(coder, takes):
    return untrained(coder, takes, **SMALL).eval()


@pytest.fixture(scope="module")
def folder(weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "N_TAKES", 4)
        patch.setattr(peer, "RECIPE", replace(peer.RECIPE, batch_size=4))
        out = weights.parent / "peers" / "naturalspeech2"
        return peer.train(out, steps=1, progress=False, weights=weights)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bad(message: str, kind: type[Exception] = ValueError):
    return pytest.raises(kind, match=f"^{message}$")


# ---- Data


def test_both_phrases_of_a_take_share_the_voice_and_no_held_out_word(takes):
    assert takes.talkers[::2] == takes.talkers[1::2] == list(TALKERS[:6])
    words = {word for text in takes.texts for word in text.split()}
    assert words <= set(OTHERS) and not words & set(WORDS)
    assert all(1 <= len(text.split()) <= 3 for text in takes.texts)
    assert all(len({*text.split()}) == len(text.split()) for text in takes.texts)


def test_each_phrase_is_the_prompt_of_the_other(takes):
    told = takes.batch(torch.tensor([2, 3]))
    assert torch.equal(told["prompt"][0], takes.vectors[3, : peer.PROMPT])
    assert torch.equal(told["prompt"][1], takes.vectors[2, : peer.PROMPT])


def test_the_latent_is_the_sum_of_the_vectors_of_all_codebooks(takes, coder):
    books = [level.embedding.weight for level in coder.codec.quantiser.levels]
    summed = sum(book[takes.codes[..., q]] for q, book in enumerate(books))
    assert torch.allclose(takes.vectors, summed, atol=1e-5)
    assert takes.codes.shape == (12, M_CLIP, 8) and takes.vectors.shape[2] == 32


def test_a_batch_is_the_generators_alone_and_some_rows_have_no_prompt(takes):
    draw = takes.batches(200, NaturalSpeech2Config())
    one, two, other = (draw(generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["eps"], other["eps"])
    assert 0.05 < 1 - one["prompted"].float().mean() < 0.3
    assert one["t"].min() >= 1 and one["t"].max() <= 1000
    assert (one["durations"].sum(dim=1) == M_CLIP).all()


def test_characters_of_a_phoneme_are_numbered_and_padding_is_zero():
    ids = numbers([(SILENCE, "ˈɪ", SILENCE), (SILENCE,)])
    known = peer.IDS
    assert ids.shape == (2, 3, peer.SIGNS)
    assert ids[0, 1].tolist() == [known["ˈ"], known["ɪ"], 0, 0, 0, 0]
    assert not ids[1, 1:].any() and ids[1, 0, 0] == known[" "] > 0


def test_no_phoneme_of_any_word_is_cut():
    longest = max(len(p) for word in OTHERS[::5] + WORDS for p in pieces_of(word))
    assert longest <= peer.SIGNS


# ---- The networks


def test_every_piece_stands_once_in_its_place_for_as_long_as_it_lasts():
    x = torch.arange(12.0).view(2, 3, 2)
    durations = torch.tensor([[1, 0, 3], [2, 1, 1]])
    out = expand(x, durations)
    assert torch.equal(out[0], x[0, [0, 2, 2, 2]])
    assert torch.equal(out[1], x[1, [0, 0, 1, 2]])


def test_the_cross_entropy_is_that_of_distances_level_by_level():
    torch.manual_seed(0)
    books = torch.randn(3, 5, 4)
    codes, z = torch.randint(5, (2, 7, 3)), torch.randn(2, 7, 4)
    nats = []
    for b in range(2):
        for m in range(7):
            rest = z[b, m].clone()
            for q in range(3):
                distances = (rest - books[q]).square().sum(dim=1)
                nats.append(-(-distances).log_softmax(0)[codes[b, m, q]])
                rest = rest - books[q, codes[b, m, q]]
    assert ce_rvq(z, codes, books) == pytest.approx(float(sum(nats) / len(nats)))


def test_the_cross_entropy_is_least_where_the_codes_are():
    torch.manual_seed(0)
    rvq = RVQ(3, 8, 4)
    for q, level in enumerate(rvq.levels):  # later levels are finer
        torch.nn.init.normal_(level.embedding.weight, std=64.0 / 8**q)
    books = torch.stack([level.embedding.weight.detach() for level in rvq.levels])
    codes = torch.randint(8, (50, 3))
    z = rvq.decode(codes).detach()
    near, far = (ce_rvq(z + off, codes, books) for off in (0.0, 4.0))
    assert near < 0.2 and far > near + 0.5
    pulled = (z + 4.0).requires_grad_()
    ce_rvq(pulled, codes, books).backward()
    assert (pulled.grad * (pulled.detach() - z)).sum() > 0  # downhill is back to z


def test_the_noise_levels_are_those_of_the_papers_process():
    schedule, t = NaturalSpeech2(NaturalSpeech2Config(**SMALL)).schedule, 0.37
    integral = 0.05 * t + (20 - 0.05) * t**2 / 2
    there = schedule.alpha_bar[round(1000 * t)]
    assert float(there.log()) == pytest.approx(-integral, rel=0.02)


def test_the_prompt_is_read_and_what_is_hidden_is_not(model, takes):
    told = takes.batch(torch.arange(4))
    yes, no = torch.ones(4).bool(), torch.zeros(4).bool()
    zt, t = torch.randn(4, M_CLIP, 32, generator=generator()), torch.full((4,), 500)
    frames = expand(model.encode(told["ids"])[0], told["durations"])

    def both(prompt, prompted):
        with torch.no_grad():
            read = model.read(prompt, prompted)
            return model(zt, t, frames, read.voice), model.log_pitch(frames, read)

    other = told["prompt"].roll(1, 0)
    for a, b in zip(both(told["prompt"], yes), both(other, yes)):
        assert (a - b).abs().max() > 1e-4
    for a, b in zip(both(told["prompt"], no), both(other, no)):
        assert torch.equal(a, b)


def test_padding_changes_nothing(model, takes):
    ids = takes.ids[:1]
    S = int(ids.any(dim=2).sum())
    read = model.read(takes.vectors[:1, : peer.PROMPT], torch.ones(1).bool())
    short, _ = model.encode(ids[:, :S])
    long, there = model.encode(torch.cat([ids[:, :S], 0 * ids[:, :1]], dim=1))
    assert torch.allclose(short, long[:, :S], atol=1e-5) and there.sum() == S
    one = model.log_durations(short, ids[:, :S].any(2), read)
    two = model.log_durations(long, there, read)
    assert torch.allclose(one, two[:, :S], atol=1e-5)


def test_a_plan_gives_every_phoneme_a_frame_and_ends_in_silence(model, takes):
    read = model.read(takes.vectors[:3, : peer.PROMPT], torch.ones(3).bool())
    with torch.no_grad():
        model.to_duration.bias.fill_(-9.0)  # a network that would skip them all
    ids, there = takes.ids[:3], takes.ids[:3].any(dim=2)
    d, log_f0 = model.plan(ids, read)
    assert (d[there] >= 1).all() and not d[~there].any()
    assert (d.sum(dim=1) == log_f0.shape[1]).all()
    d, log_f0 = model.plan(ids, read, 70)
    assert (d.sum(dim=1) == 70).all() and log_f0.shape == (3, 70)


def test_what_is_made_together_can_be_made_alone(model, takes):
    told = takes.batch(torch.arange(2))
    read = model.read(told["prompt"], torch.ones(2).bool())
    given = told["ids"], told["durations"], told["log_f0"]
    both = model.generate(*given, read, [generator(1), generator(2)], steps=3)
    alone = type(read)(*(x[1:] for x in read))
    one = model.generate(*(x[1:] for x in given), alone, [generator(2)], steps=3)
    assert torch.allclose(both[1:], one, atol=1e-4)


def test_a_network_that_knows_the_answer_ends_at_it(model, takes, monkeypatch):
    told = takes.batch(torch.arange(2))
    z0 = model.config.scale * told["vectors"]
    monkeypatch.setattr(NaturalSpeech2, "forward", lambda *given: z0)
    read = model.read(told["prompt"], torch.ones(2).bool())
    given = told["ids"], told["durations"], told["log_f0"], read
    z = model.generate(*given, [generator(), generator(1)], steps=5)
    assert torch.allclose(z, told["vectors"], atol=1e-3)


def test_the_silence_at_both_ends_is_left_out_of_the_durations(model, takes):
    batch = takes.batches(4, model.config)(generator())
    loss = lambda: model.loss(batch)["duration"]
    before = loss()
    d, last = batch["durations"], batch["ids"].any(dim=2).sum(dim=1) - 1
    rows = torch.arange(4)
    d[rows, 0] += 1
    d[rows, last] -= 1
    assert torch.equal(loss(), before)
    d[rows, 1] += 9
    d[rows, last] -= 9
    assert loss() != before


def test_training_lowers_every_part_of_the_loss(coder, takes):
    model = untrained(coder, takes, **SMALL)
    recipe = replace(peer.RECIPE, steps=40, batch_size=8, warmup=4)
    curves = fit(model, takes.batches(8, model.config), recipe, 0, "x", progress=False)
    for name in ("data", "ce", "duration", "pitch"):
        assert curves[name][-5:].mean() < 0.95 * curves[name][:5].mean(), name


def test_lambda_weighs_the_cross_entropy(coder, takes):
    for ce in (0.0, 0.5):
        model = untrained(coder, takes, ce=ce, **SMALL)
        told = model.loss(takes.batches(4, model.config)(generator()))
        parts = told["data"] + told["duration"] + told["pitch"] + ce * told["ce"]
        assert torch.allclose(told["loss"], parts, atol=1e-5)


# ---- The folder and the pipeline


def test_the_folder_speaks_as_long_as_it_is_asked_to(folder):
    pipe = TextToAudio.from_pretrained(folder)
    wave = pipe(transcription="doctor window", seconds=1.5, steps=2, seed=0)
    assert wave.shape == (1, 24_000) and wave.isfinite().all()
    free = pipe(transcription="doctor window", steps=2, seed=0)
    assert free.shape[1] % 320 == 0
    again = pipe(transcription="doctor window", seconds=1.5, steps=2, seed=0)
    assert torch.equal(wave, again)


def test_a_voice_is_read_from_its_first_sound_on(folder, takes):
    pipe = TextToAudio.from_pretrained(folder)
    voice = takes.waves[0]
    late = torch.cat([torch.zeros(8000), voice])
    one, two = (pipe.enrol(x).states for x in (voice, late))
    assert (one - two).abs().max() < 1e-3
    assert pipe.enrol(voice, 3).states.shape[0] == 3
    assert not pipe.enrol(None).keep[:, 1:].any()


def test_other_requests_get_one_sentence(folder, takes):
    pipe = TextToAudio.from_pretrained(folder)
    say = lambda **given: pipe(**{"transcription": "doctor", "steps": 2, **given})
    with bad("these weights speak: transcription must give the words"):
        say(transcription=None)
    with bad("these weights read no captions: leave captions out, or .* as voice"):
        say(captions="a dog")
    with bad("a transcription is empty: write the words to speak"):
        say(transcription=" ")
    with bad("candidates must be 1 without a CLAP to choose, not 2"):
        say(candidates=2)
    with bad("these weights have steps and a temperature alone: leave out guidance"):
        say(guidance=3.0)
    with bad("seconds must be .* or more for these words"):
        say(seconds=0.1)
    with bad(r"voice must be a recording \(N,\) that is not silent"):
        say(voice=torch.zeros(16_000))
    with bad("voice must last 0.1 s or longer, not 0.05 s"):
        say(voice=takes.waves[0][2000:2800])


def test_the_vectors_of_another_codec_are_refused(folder, coder):
    model = NaturalSpeech2.from_pretrained(
        folder / "naturalspeech2", dtype=torch.float32
    )
    other = Codec.preset("tiny")
    with bad(
        "the codec is another one: these weights need codec .*, and this one is .*"
    ):
        TextToAudio(model, CodecAndVocoder(other, coder.vocoder))


def test_bad_arguments_of_training_leave_nothing(tmp_path, weights):
    with bad("steps must be a whole number, 1 or more, not 0"):
        peer.train(tmp_path / "out", steps=0, weights=weights)
    with bad("seed must be .*"):
        peer.train(tmp_path / "out", seed=-1, weights=weights)
    assert not list(tmp_path.iterdir())


def test_the_command_speaks_in_the_voice_of_a_file(folder, takes, tmp_path, capsys):
    sound, out = tmp_path / "x.wav", tmp_path / "y.wav"
    audio.save(sound, takes.waves[0])
    line = ["generate", "--weights", folder, "--voice", sound, "-o", out, "--steps", 2]
    line += ["--transcription", "window", "--seed", 3, "--seconds", 1.2]
    assert cli.main([str(x) for x in line]) == 0
    assert audio.load(out).shape == (19_200,)
    assert "seed 3" in capsys.readouterr().out
