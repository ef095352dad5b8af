"""The experiments of chapter 24: what the cross-entropy towards the codebooks buys,
whether words are skipped or said twice, where the voice, the durations and the pitch
come from, and how NaturalSpeech 2 compares with VALL-E and AudioLDM 2 on the same
words. All but the first hear the weights that ship; seeds draw words, voices and noise.
"""

from __future__ import annotations

import difflib
import functools
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from effects import Claim, experiment
from torch import Tensor, nn

from minilib import audio, diffusion
from minilib.cli import shipped_weights
from minilib.codec_diffusion import Read, ce_rvq, expand
from minilib.codec_lm import PROMPT as CODES
from minilib.codec_lm import VALLE
from minilib.conditions import Context, to_batch
from minilib.peers import naturalspeech2 as ns2
from minilib.peers import valle
from minilib.peers.codec import CodecAndVocoder, log_mels
from minilib.quantise import RVQ
from minilib.recogniser import Recogniser
from minilib.soundworld.speech import WORDS
from minilib.soundworld.talkers import TALKERS, UNSEEN_TALKERS, Talker, known_talkers
from minilib.training import Recipe, fit
from minilib.unet import timestep_embedding
from minilib.voices import KnownVoices

PEERS = shipped_weights().parent / "peers"
N = 30  # phrases or words for each seed
CENTS = 1200 / np.log(2)  # of a neper
AR_STEPS, NAR_STEPS = 1000, 400  # of 24 phrases, for VALL-E on phrases
FRAME_MS = 1000 * ns2.HOP / audio.SAMPLE_RATE


# ---- The cross-entropy towards the codebooks, where the legal codes are known

TOY = {"n_levels": 4, "n_codes": 8, "dim": 8}
N_LEGAL = 24
TOY_RECIPE = Recipe(steps=2000, batch_size=128, lr=5e-3, warmup=20)


def toy_codec(seed: int) -> tuple[RVQ, Tensor]:
    """Codebooks that become finer, and codes (N_LEGAL, Q) that come back as they are
    when their sum is encoded.
    """
    generator = torch.Generator().manual_seed(seed)
    rvq = RVQ(**TOY)
    with torch.no_grad():
        for q, level in enumerate(rvq.levels):
            drawn = torch.randn(level.embedding.weight.shape, generator=generator)
            level.embedding.weight.copy_(0.6**q * drawn)
    codes = torch.randint(TOY["n_codes"], (4000, TOY["n_levels"]), generator=generator)
    codes = codes[(rvq.encode(rvq.decode(codes)) == codes).all(dim=1)].unique(dim=0)
    return rvq, codes[torch.randperm(len(codes), generator=generator)[:N_LEGAL]]


class ToyDenoiser(nn.Module):
    """A small network that predicts z0, and its loss with weight `ce`."""

    schedule = diffusion.linear_schedule(1000, 5e-5, 0.02)

    def __init__(self, rvq: RVQ, ce: float, width: int = 128):
        super().__init__()
        self.ce, D = ce, TOY["dim"]
        books = torch.stack([level.embedding.weight.detach() for level in rvq.levels])
        self.register_buffer("codebooks", books)
        self.layers = nn.Sequential(
            nn.Linear(D + 32, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, D),
        )  # fmt: skip

    def forward(self, zt: Tensor, t: Tensor) -> Tensor:
        """(B, D) and (B,) -> (B, D)."""
        return self.layers(torch.cat([zt, timestep_embedding(t, 32)], dim=1))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Squared error of z0, and `ce` times the cross-entropy of its codes."""
        z0, t = batch["z0"], batch["t"]
        z0_hat = self(diffusion.q_sample(self.schedule, z0, t, batch["eps"]), t)
        ce = ce_rvq(z0_hat, batch["codes"], self.codebooks)
        return F.mse_loss(z0_hat, z0) + self.ce * ce

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, D) from noise, in 50 steps."""
        zT = torch.randn(n, TOY["dim"], generator=generator)
        s = self.schedule
        eps = lambda zt, t: diffusion.eps_from_x0(s, zt, t, self(zt, t))
        return diffusion.ddim_sample(eps, s, zT, 50, spacing="trailing", last=0)


@experiment(
    Claim(
        "legal",
        "with the cross-entropy, on average, slightly more generated vectors have "
        "codes of the data",
        "share of vectors with legal codes",
        lambda m: m["lambda 0.5"] > m["lambda 0.1"] > m["lambda 0"],
        control="lambda 0",
        ceiling=1.0,
    ),
    Claim(
        "lattice",
        "but they do not come nearer to the sums of the codebooks' vectors",
        "root mean square distance to the nearest sum",
        lambda m: m["lambda 0.5"] >= m["lambda 0"],
        control="lambda 0",
    ),
)
def toy(seed: int) -> dict[str, dict[str, float]]:
    """Three weights on data of 24 points in 8 dimensions."""
    rvq, legal = toy_codec(seed)
    points = rvq.decode(legal).detach()

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(N_LEGAL, (128,), generator=generator)
        t = torch.randint(1, 1001, (128,), generator=generator)
        eps = torch.randn(128, TOY["dim"], generator=generator)
        return {"z0": points[rows], "codes": legal[rows], "t": t, "eps": eps}

    found = {"legal": {}, "lattice": {}}
    known = {tuple(row) for row in legal.tolist()}
    for ce in (0.0, 0.1, 0.5):
        torch.manual_seed(seed)
        model = ToyDenoiser(rvq, ce)
        fit(model, batch, TOY_RECIPE, seed, "toy", progress=False)
        z = model.sample(2000, torch.Generator().manual_seed(seed))
        codes, name = rvq.encode(z), f"lambda {ce:g}"
        off = (z - rvq.decode(codes)).square().mean().sqrt()
        found["legal"][name] = float(
            np.mean([tuple(x) in known for x in codes.tolist()])
        )
        found["lattice"][name] = float(off)
    return found


# ---- Speech


@functools.cache
def pipeline() -> ns2.TextToAudio:
    """NaturalSpeech 2 as it ships."""
    return ns2.TextToAudio.from_pretrained(PEERS / "naturalspeech2")


def codec() -> CodecAndVocoder:
    """The codec that ships."""
    return pipeline().pipe


@functools.cache
def takes(
    seed: int, n_words: int, talkers: tuple[Talker, ...] = TALKERS
) -> tuple[ns2.Takes, Tensor]:
    """Held-out phrases, and the rows of the first one of each take."""
    order = np.random.default_rng([seed, 7]).permutation(N) % len(talkers)
    who = [talkers[i] for i in order]
    made = ns2.Takes(codec(), N, 5000 + seed, WORDS, who, (n_words, n_words))
    return made, torch.arange(0, 2 * N, 2)


@torch.no_grad()
def read(batch: dict[str, Tensor], prompt: str) -> Read:
    """Read the prompts: "own", another row's ("another's"), or none ("no prompt")."""
    given = batch["prompt"].roll(7, 0) if prompt == "another's" else batch["prompt"]
    there = torch.full((len(given),), prompt != "no prompt")
    return pipeline().model.read(given, there)


@torch.no_grad()
def said(batch: dict[str, Tensor], prompt: str, seed: int, truth: bool = False):
    """Waves (n, N): planned, or with `truth` at the true durations and pitch."""
    model, prompts = pipeline().model, read(batch, prompt)
    d, log_f0 = batch["durations"], batch["log_f0"]
    if not truth:
        d, log_f0 = model.plan(batch["ids"], prompts, ns2.M_CLIP)
    n = len(batch["ids"])
    generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(n)]
    z = model.generate(batch["ids"], d, log_f0, prompts, generators)
    return pipeline().decode(z)


def wrong(wanted: str, heard: str) -> dict[str, int]:
    """Words that are left out, said too much, or heard as others."""
    found = {"delete": 0, "insert": 0, "replace": 0}
    match = difflib.SequenceMatcher(None, wanted.split(), heard.split(), False)
    for kind, i, k, j, m in match.get_opcodes():
        if kind != "equal":
            shared = min(k - i, m - j)
            found["replace"] += shared
            found["delete"] += k - i - shared
            found["insert"] += m - j - shared
    return found


@functools.cache
def ear(longest: int) -> Recogniser:
    """Who hears which words are said, two more than there are if need be."""
    return Recogniser(WORDS, longest)


def skipped(waves: Tensor, texts: list[str]) -> float:
    """Words left out or said too much, for each word that was to be said."""
    n = len(texts[0].split())
    errors = [wrong(text, ear(n + 2)(wave)) for text, wave in zip(texts, waves)]
    return sum(x["delete"] + x["insert"] for x in errors) / (n * len(texts))


class PhraseBatches:
    """Batches of the same phrases for VALL-E."""

    def __init__(self, takes: ns2.Takes, batch_size: int = 24):
        self.takes, self.batch_size = takes, batch_size
        self.phonemes = valle.Phones().encode(takes.texts)

    def told(self, rows: Tensor) -> dict[str, Context]:
        """Phonemes, and half a second of the other phrase of the take as codes."""
        enrolled = self.takes.codes[rows ^ 1, : valle.ENROLMENT, : valle.N_Q]
        phonemes = Context(*(x[rows] for x in self.phonemes))
        return {"phonemes": phonemes, CODES: valle.prompt_of(enrolled)}

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch for `VALLE.loss`."""
        n = self.batch_size
        rows = torch.randint(len(self.takes.texts), (n,), generator=generator)
        stage = torch.randint(1, valle.N_Q, (n,), generator=generator)
        codes = self.takes.codes[rows][..., : valle.N_Q]
        return {"codes": codes, "stage": stage, **to_batch(self.told(rows))}


@functools.cache
@torch.enable_grad()
def phrase_valle() -> VALLE:
    """VALL-E's networks, trained on the phrases of NaturalSpeech 2's training; prints
    the losses over the last two fifths of the steps: how near they are to their end.
    """
    train = ns2.Takes(codec(), ns2.N_TAKES, 0)
    model = valle.untrained(codec(), 0)
    how = {"batch_size": 24}
    recipes = {
        "ar": replace(valle.SPEAKING["ar"], steps=AR_STEPS, **how),
        "nar": replace(valle.SPEAKING["nar"], steps=NAR_STEPS, **how),
    }
    began = time.perf_counter()
    curves = valle.learn(
        model, PhraseBatches(train), recipes, 0, "phrases", progress=False
    )
    print(f"VALL-E trained for {(time.perf_counter() - began) / 60:.1f} minutes")
    for name, curve in curves.items():
        fifths = [float(x.mean()) for x in curve["loss"].tensor_split(5)]
        print(f"{name}: {fifths[3]:.3f}, then {fifths[4]:.3f} nats a code", flush=True)
    return model.eval()


@torch.no_grad()
def by_codes(made: ns2.Takes, rows: Tensor, seed: int, true: bool = False) -> Tensor:
    """What VALL-E, trained on phrases, makes of these: waves (n, N); with `true` the
    codes of the first codebook are given, and only its second network writes.
    """
    told = PhraseBatches(made).told(rows)
    if true:
        codes = phrase_valle().nar.fill(made.codes[rows][..., :1], told)
    else:
        seeds = [1000 * seed + i for i in range(len(rows))]
        generators = [torch.Generator().manual_seed(x) for x in seeds]
        codes = phrase_valle().generate(ns2.M_CLIP, generators, told, 0.7)
    return pipeline().decode(codec().codec.quantiser.decode(codes))


def sounded(made: ns2.Takes, rows: Tensor) -> Tensor:
    """The true vectors through decoder and vocoder: the ceiling."""
    return pipeline().decode(made.vectors[rows])


@experiment(
    Claim(
        "skips",
        "diffusion along planned durations leaves out or repeats fewer words of a "
        "phrase than VALL-E, whose second network had fewer steps of training",
        "words left out or said too much, for each word of the phrase",
        lambda m: m["NaturalSpeech 2"] <= m["codec"] + 0.02 < m["VALL-E"],
        control="VALL-E",
        ceiling=0.0,
    )
)
def skips(seed: int) -> dict[str, dict[str, float]]:
    """Phrases of three held-out words."""
    made, rows = takes(seed, 3)
    texts, batch = [made.texts[i] for i in rows], made.batch(rows)
    waves = {
        "real": made.waves[rows],
        "codec": sounded(made, rows),
        "NaturalSpeech 2": said(batch, "own", seed),
        "VALL-E": by_codes(made, rows, seed),
        "true first codebook": by_codes(made, rows, seed, true=True),
    }
    return {"skips": {arm: skipped(x, texts) for arm, x in waves.items()}}


@experiment(
    Claim(
        "slow",
        "of phrases of two words, too, which may be said more slowly, hardly more is "
        "left out or repeated than by the codec",
        "words left out or said too much, for each word of the phrase",
        lambda m: m["NaturalSpeech 2"] <= m["codec"] + 0.02,
        ceiling=0.0,
    )
)
def slow(seed: int) -> dict[str, dict[str, float]]:
    """Phrases of two held-out words: slow ones of three do not fit into a clip."""
    made, rows = takes(seed, 2)
    texts, batch = [made.texts[i] for i in rows], made.batch(rows)
    waves = {
        "real": made.waves[rows],
        "codec": sounded(made, rows),
        "NaturalSpeech 2": said(batch, "own", seed),
        "true plan": said(batch, "own", seed, truth=True),
    }
    return {"slow": {arm: skipped(x, texts) for arm, x in waves.items()}}


@functools.cache
def judge() -> KnownVoices:
    """Who knows all talkers, clean and through the codec and the vocoder."""
    pipe = pipeline()
    vectors = lambda w: codec().codec.quantiser.decode(
        codec().encode(log_mels(list(w)))
    )
    everybody = TALKERS + UNSEEN_TALKERS
    return known_talkers(lambda w: pipe.decode(vectors(w)), everybody)


def share(heard: list[str], wanted: list[str]) -> float:
    """The share of answers that are right."""
    return float(np.mean([a == b for a, b in zip(heard, wanted, strict=True)]))


def voices(
    seed: int, talkers: tuple[Talker, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """The share of voices, by variant, that are heard right, and how far the sounds are
    from the centre of their talker.
    """
    made, rows = takes(seed, 2, talkers)
    batch, who = made.batch(rows), [made.talkers[i] for i in rows]
    waves = {"real": made.waves[rows], "codec": sounded(made, rows)}
    arms = {"NaturalSpeech 2": "own", "no prompt": "no prompt"}
    for arm, prompt in {**arms, "another's prompt": "another's"}.items():
        waves[arm] = said(batch, prompt, seed)
    names, right, far = judge().names, {}, {}
    own = torch.tensor([names.index(talker.name) for talker in who])
    for arm, x in waves.items():
        distances = judge().distances(x)  # (n, K), squared
        heard = [names[k].split()[0] for k in distances.argmin(dim=1)]
        right[arm] = share(heard, [talker.variant for talker in who])
        far[arm] = float(distances.gather(1, own[:, None]).sqrt().mean())
    return right, far


@experiment(
    Claim(
        "voices",
        "the voice comes from the prompt: it is lost without one",
        "share of voices that are heard right",
        lambda m: m["NaturalSpeech 2"] - m["no prompt"] >= 0.4,
        control="no prompt",
        chance=1 / 12,
    ),
    Claim(
        "unseen",
        "a voice that was in no training clip is heard right with its prompt",
        "share of voices that are heard right",
        lambda m: m["NaturalSpeech 2"] - m["no prompt"] >= 0.2,
        control="no prompt",
        chance=1 / 12,
    ),
    Claim(
        "nearer",
        "a voice that was in no training clip comes nearer with its prompt",
        "distance from the centre of the talker's own words, in deviations",
        lambda m: m["NaturalSpeech 2"] < 0.9 * m["no prompt"],
        control="no prompt",
    ),
)
def prompts(seed: int) -> dict[str, dict[str, float]]:
    """Phrases of two held-out words, in voices heard in training and in others."""
    heard, _ = voices(seed, TALKERS)
    unseen, far = voices(seed, UNSEEN_TALKERS)
    return {"voices": heard, "unseen": unseen, "nearer": far}


@experiment(
    Claim(
        "durations",
        "the prompt tells the durations of the phonemes",
        "mean error of a phoneme's duration, ms",
        lambda m: m["own prompt"] < 0.9 * m["no prompt"],
        control="another's prompt",
    ),
    Claim(
        "pitches",
        "the prompt tells the pitch",
        "mean error of the pitch, cents",
        lambda m: m["own prompt"] < 0.5 * m["no prompt"],
        control="another's prompt",
    ),
)
@torch.no_grad()
def plans(seed: int) -> dict[str, dict[str, float]]:
    """Durations, and the pitch at the true durations, of phrases in both sets of
    voices.
    """
    found: dict[str, dict[str, float]] = {"durations": {}, "pitches": {}}
    model = pipeline().model
    made, rows = takes(seed, 2)
    batch = made.batch(rows)
    x, there = model.encode(batch["ids"])
    d = batch["durations"]
    inner = (d.cumsum(1) < d.sum(1, keepdim=True)) & there
    inner[:, 0] = False
    for arm, prompt in (
        ("own prompt", "own"),
        ("no prompt", "no prompt"),
        ("another's prompt", "another's"),
    ):
        given = read(batch, prompt)
        guess = model.log_durations(x, there, given).exp() - 1
        off = (guess - d).abs()[inner].mean()
        found["durations"][arm] = float(FRAME_MS * off)
        log_f0 = model.log_pitch(expand(x, d), given)
        off = (log_f0 - batch["log_f0"]).abs()[batch["voiced"]].mean()
        found["pitches"][arm] = float(CENTS * off)
    return found


@experiment(
    Claim(
        "words",
        "held-out words are understood more often than VALL-E's",
        "share of words that are heard right",
        lambda m: m["NaturalSpeech 2"] > m["VALL-E"],
        control="another word",
        chance=1 / len(WORDS),
    )
)
def words(seed: int) -> dict[str, dict[str, float]]:
    """The same held-out words by all systems, as each ships."""
    from minilib import AudioLDM2

    made, rows = takes(seed, 1)
    texts, batch = [made.texts[i] for i in rows], made.batch(rows)
    other = {**batch, "ids": batch["ids"].roll(7, 0)}
    ldm2 = AudioLDM2.from_pretrained(shipped_weights().parent / "speech", device="cpu")
    captions = ["a man speaks"] * N
    spoken = valle.TextToAudio.from_pretrained(PEERS / "valle")
    told = {"phonemes": spoken.text.encode(texts)}
    enrolled = made.codes[rows + 1, : valle.ENROLMENT, : valle.N_Q]
    told[CODES] = valle.prompt_of(enrolled)
    generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(N)]
    n_samples = round(valle.SECONDS * audio.SAMPLE_RATE)
    seeds = [1000 * seed + i for i in range(N)]
    waves = {
        "real": made.waves[rows],
        "codec": sounded(made, rows),
        "NaturalSpeech 2": said(batch, "own", seed),
        "VALL-E": spoken.decode(spoken.write(told, n_samples, generators)),
        "AudioLDM 2": ldm2(captions, transcription=texts, seed=seeds, progress=False),
        "another word": said(other, "own", seed),
    }
    heard = lambda x: [ear(1)(wave) for wave in x]
    return {"words": {arm: share(heard(x), texts) for arm, x in waves.items()}}
