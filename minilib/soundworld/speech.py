"""Speech: one or two words that a voice says, and how utterances are drawn
(chapter 11b).

An Utterance is an Event whose strokes are its words, so a scene, its labels and its
rendering work for speech as they do for effects. `espeak` says it. Twelve words and one
voice are held out: the words are made of phonemes that the other words contain, the
voice of attributes that the other voices have.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import soxr

from . import espeak
from .espeak import Piece, Spoken
from .scene import DEFAULT_SECONDS, ONSET, PEAKS, Event, Scene

# Common words that the recogniser of `minilib.recogniser` hears in every voice.
HELD_OUT_WORDS = tuple(
    """
doctor lantern magic monkey motor needle planet rocket shadow tiger willow winter
""".split()
)
WORDS = HELD_OUT_WORDS + tuple(
    """
birthday blanket broken carpet castle chocolate danger eastern garden golden happy
jacket journey kingdom laughter leader lion lonely lovely melody message modern
music narrow ocean party pencil photo private rainbow safety secret silence soldier
student sunshine target teacher thirsty tomorrow trouble turtle uncle wagon welcome
western window zero
""".split()
)
# Further common words to train on; not chosen by any recogniser.
OTHERS = tuple(
    """
about across action after again almost along always angel animal answer apple april
arrow august autumn away baby balloon banana basket battle beauty become before
begin behind below beside better between beyond bicycle bird black blossom blue body
bottle bottom bridge bright brother bubble bucket budget building butter button
cabin camel camera candle canyon captain cat center century chapter cherry chicken
children circle city classic clever climate cloud coffee color column comfort common
company copper corner cotton country cousin cover crystal culture curtain customer
dancer daughter decade december delta desert diamond dinner dog dolphin double down
dragon dream eagle early echo effort eight elephant eleven empire energy engine
evening evergreen every family famous fancy farmer father feather february fellow
festival fever fifteen finger fire fish fishing five flower flying follow forest
forever forget fortune forty fountain four freedom friday friendly frozen future
galaxy gather gentle giant ginger girl glass glory go gold good gospel grammar
grandmother green guitar hammer handle harbor harvest heaven heavy hello hidden
history holiday honey horse hotel house hundred hunter husband ice image india
insect iron island ivory january jelly jewel jungle kettle kitchen kitten ladder
lady language lavender lazy leather left legend lemon leopard letter library light
lily listen little lizard local london lucky lunch machine magnet manner many marble
market master matter meadow medicine member memory metal middle midnight million
minute mirror model moment monday moon morning mother mountain mystery nation nature
never nine nineteen no noble nothing november number object october officer olive
one onion open orange orchard over oxygen oyster painter palace paper parrot penguin
people pepper perfect person piano picture pilot pioneer player pleasure pocket poet
police pony possible potato powder power present pretty prince princess prison
promise public pumpkin puppet purple puzzle quarter question quiet rabbit radio
railroad rain raven reason record red remember ribbon right river robin rubber
saddle salad salmon sand sandwich saturday sausage scholar school science season
second september servant seven sheep shoulder shower silver simple singer sister six
sixteen sixty slipper smoky snow snowman something south sparrow special spider
spirit spoken squirrel star station statue stomach stone stop stormy story
strawberry sugar summer sunday surface surprise swallow sweater system table talent
ten tender tennis theater thirteen thousand three thunder thursday ticket today
together tomato tonight tower travel treasure tree triumph tuesday tunnel twelve
twenty two umbrella under unicorn universe up valley vanilla velvet village violet
vision visit volcano voyage walnut water weather wednesday whisper white wind wisdom
without wolf woman wonder wood wooden world yellow yes yesterday young zebra
""".split()
)
TRIES = 100  # draws of words until some fit into a clip


@dataclass(frozen=True)
class Voice:
    """A voice: what captions say of it, and how espeak-ng makes it."""

    name: str  # "man" or "woman"
    pitch: str  # "low" or "high"
    speed: str  # "slow" or "fast"
    variant: str  # espeak-ng's name, which sets the formants
    height: int  # pitch for espeak-ng, 0 to 99
    rate: int  # words per minute


SPEAKERS = {"man": ("en-us+m3", 20, 75), "woman": ("en-us+f2", 25, 80)}
RATES = {"slow": 95, "fast": 150}
VOICES: dict[str, Voice] = {
    f"{pitch} {speed} {name}": Voice(name, pitch, speed, variant, height, rate)
    for name, (variant, *heights) in SPEAKERS.items()
    for pitch, height in zip(("low", "high"), heights)
    for speed, rate in RATES.items()
}
HELD_OUT_VOICE = "low fast woman"


@dataclass(frozen=True, kw_only=True)
class Utterance(Event):
    """Words that a voice says. Its `name` is the speaker, man or woman.

    `strokes` are the onsets of the words.
    """

    words: tuple[str, ...]
    voice: str  # a key of VOICES
    ends: tuple[float, ...]  # seconds at which the words end
    phonemes: tuple[Piece, ...]  # in IPA, with start and end in seconds

    @property
    def transcription(self) -> str:
        """The words as text: "seven rivers"."""
        return " ".join(self.words)


@functools.lru_cache(maxsize=512)
def spoken(words: tuple[str, ...], voice: str) -> Spoken:
    """What espeak-ng makes of these words in a voice of VOICES; kept, since words
    recur.
    """
    how = VOICES[voice]
    said = espeak.say(" ".join(words), how.variant, how.height, how.rate)
    said.wave.setflags(write=False)
    return said


def utter(utterance: Utterance, sample_rate: int) -> np.ndarray:
    """Say an utterance: (n,) at any level."""
    wave = spoken(utterance.words, utterance.voice).wave
    return soxr.resample(wave, espeak.SAMPLE_RATE, sample_rate)


# --------------------------------------------------------------------------------------
# Drawing


def draw_utterance(
    words: tuple[str, ...],
    voice: str,
    onset: float,
    room: float,
    rng: np.random.Generator,
) -> Utterance:
    """Draw the details that words and voice leave open: level and seed.

    Args:
        words: one or more, each a word of English.
        voice: a key of VOICES.
        onset, room: seconds before the utterance, and the most that it may last.

    Raises:
        ValueError: the voice is unknown, or the words do not fit into `room`.
    """
    if voice not in VOICES:
        raise ValueError(f"voice must be one of {', '.join(VOICES)}, not {voice!r}")
    words, how = tuple(words), VOICES[voice]
    said = spoken(words, voice)
    duration = len(said.wave) / espeak.SAMPLE_RATE
    if duration > room:
        needs = f"{' '.join(words)!r} lasts {duration:.2f} s in this voice"
        raise ValueError(f"room must be long enough: {needs}, not {room:.2f} s")
    later = lambda x: Piece(x.symbol, onset + x.start, onset + x.end)
    pieces = [later(word) for word in said.words]
    return Utterance(
        how.name,
        how.pitch,
        how.speed,
        "normal",
        count=None,
        onset=onset,
        duration=duration,
        seed=int(rng.integers(2**32)),
        peak=PEAKS["normal"] * rng.uniform(0.95, 1.04),
        strokes=tuple(word.start for word in pieces),
        words=words,
        voice=voice,
        ends=tuple(word.end for word in pieces),
        phonemes=tuple(map(later, said.phonemes)),
    )


@functools.cache
def lexicon(split: str, others: bool = False) -> tuple[str, ...]:
    """The words of a split: the held-out ones for "test", the rest for the others."""
    if others:
        return OTHERS
    held_out = frozenset(HELD_OUT_WORDS)
    return tuple(word for word in WORDS if (word in held_out) == (split == "test"))


def voices(split: str) -> tuple[str, ...]:
    """The voices of a split: "test" has one that the others lack."""
    return tuple(v for v in VOICES if split == "test" or v != HELD_OUT_VOICE)


def draw_speech(
    split: str,
    seconds: float,
    numbers: tuple[int, ...],
    others: float,
    rng: np.random.Generator,
) -> Scene:
    """Draw a scene of `seconds` seconds in which a voice says some words.

    Args:
        split: "train", "valid" or "test".
        numbers: how many words; each is equally likely.
        others: the probability that the words are drawn from OTHERS.

    Raises:
        ValueError: `seconds` is too short for any words that were drawn.
    """
    near = min(1.0, seconds / DEFAULT_SECONDS)
    onset = rng.uniform(*ONSET) * near
    room = seconds - 0.02 * near - onset
    every = voices(split)
    known = lexicon(split, split != "test" and rng.random() < others)
    for _ in range(TRIES):
        voice = every[rng.integers(len(every))]
        n = numbers[rng.integers(len(numbers))]
        words = tuple(known[i] for i in rng.choice(len(known), n, replace=False))
        if len(spoken(words, voice).wave) / espeak.SAMPLE_RATE <= room:
            utterance = draw_utterance(words, voice, onset, room, rng)
            return Scene((utterance,), seconds, seed=int(rng.integers(2**32)))
    many = " or ".join(map(str, numbers))
    raise ValueError(f"seconds must be long enough for {many} words, not {seconds:g}")
