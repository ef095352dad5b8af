"""How many clean words the recogniser hears in SoundWorld, by voice and number.

`.venv/bin/python tests/speech_ceiling.py` prints the figures of data/README.md (half a
minute). No test needs it.
"""

from __future__ import annotations

import numpy as np

from minilib.recogniser import Recogniser
from minilib.soundworld import (
    HELD_OUT_WORDS,
    VOICES,
    WORDS,
    Scene,
    SpeechWorld,
    draw_utterance,
)

SECONDS, ONSET, N = 2.56, 0.1, 100


def heard_alone(recogniser: Recogniser, voice: str) -> list[bool]:
    """Whether each of WORDS is heard right, alone in a clip."""
    world, right = SpeechWorld(seconds=SECONDS), []
    for i, word in enumerate(WORDS):
        rng = np.random.default_rng(i)
        said = draw_utterance((word,), voice, ONSET, SECONDS - ONSET, rng)
        right.append(recogniser(world.render(Scene((said,), SECONDS, i))) == word)
    return right


def line(name: str, right: np.ndarray) -> str:
    """A row: the share that is right, its binomial standard error, and the number."""
    p = right.mean()
    return (
        f"{name:42} {p:.3f} +- {(p * (1 - p) / right.size) ** 0.5:.3f}  n {right.size}"
    )


def main() -> None:
    """Print the table."""
    one, two = Recogniser(WORDS), Recogniser(WORDS, longest=2)
    right = {voice: heard_alone(one, voice) for voice in VOICES}
    for voice, answers in right.items():
        print(line(voice, np.array(answers)), flush=True)
    every, k = np.array(list(right.values())), len(HELD_OUT_WORDS)
    print(line("all voices, words of train", every[:, k:]))
    print(line("all voices, held-out words", every[:, :k]), flush=True)
    for split in ("valid", "test"):
        world = SpeechWorld(split, seconds=SECONDS, words=(2,))
        clips = [world[i] for i in range(N)]
        pairs = np.array([two(c.wave) == c.scene.transcription for c in clips])
        print(line(f"two words, both right, {split}", pairs), flush=True)


if __name__ == "__main__":
    main()
