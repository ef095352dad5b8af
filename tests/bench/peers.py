"""minilib beside diffusers and transformers: the same random weights on both sides,
float32, on this CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import Work, heading, in_a_fresh_process, peak, row, take_turns

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from peer import PROMPTS, peer

from minilib import AudioLDM2, audio, lean
from minilib.conditions import Context
from minilib.vocoder import vocode

# ours, theirs, and the least ratio that is promised
Cases = dict[str, tuple[Work, Work, float | None]]
LENGTHS = (2.56, 10.24, 40.96)  # seconds of sound


def report(folder: Path, seconds: float) -> Iterator[str]:
    """Three tables: speed, memory of a decode, and how both grow."""
    theirs, ours = pipelines(folder)
    yield from heading(
        "times in seconds", "minilib", "peer", "times as fast", "must be"
    )
    with torch.no_grad():
        yield from compared(cases(theirs, ours), seconds)
    yield from compared(training_cases(theirs, ours), seconds)
    yield ""
    yield from heading(
        "peak memory of a decode, MiB", "minilib", "diffusers", "ratio", "at most"
    )
    for length in LENGTHS:
        own, other = (
            in_a_fresh_process(decoding, whose, length, folder)
            for whose in ("ours", "theirs")
        )
        yield row(
            f"{length} s",
            own,
            other,
            own / other,
            0.6 if length == LENGTHS[-1] else None,
        )
    yield ""
    yield from heading(
        "whole sounds, 5 steps: seconds and peak MiB",
        "minilib",
        "diffusers",
        "minilib, MiB",
        "diffusers, MiB",
    )
    for length in LENGTHS:
        for n in (1, 4):
            own, other = (
                in_a_fresh_process(sounding, w, length, n, folder)
                for w in ("ours", "theirs")
            )
            name = f"{length} s, {n} candidate{'s' if n > 1 else ''}"
            yield row(name, own[0], other[0], own[1], other[1])


def compared(cases: Cases, seconds: float) -> Iterator[str]:
    """A row for each case."""
    for name, (own, others, must) in cases.items():
        mine, other = take_turns(own, others, seconds=seconds)
        yield row(name, mine, other, other / mine, must)


def pipelines(folder: Path) -> tuple[Any, AudioLDM2]:
    """diffusers' pipeline of middle size and ours with the same weights."""
    theirs = peer(folder, "mid")
    theirs.save_pretrained(folder / "peer")
    return theirs, AudioLDM2.from_diffusers(folder / "peer", device="cpu")


def cases(theirs: Any, ours: AudioLDM2) -> Cases:
    """What is timed in use."""
    prompt = PROMPTS[1:2]
    conditions = ours.encode(prompt)
    prefix, mask = ours.gpt.projection(conditions)
    latents = torch.randn(ours.latent_shape(2, round(10.24 * audio.SAMPLE_RATE)))
    t, loa = torch.full((2,), 500), torch.randn(2, 8, ours.gpt.config.n_embd)
    text, text_mask = conditions["text"].repeat(2)
    text_mask[0, -3:] = False
    mel = theirs.vae.decode(latents[:1]).sample
    padded = theirs.tokenizer(
        prompt, padding="max_length", max_length=512, return_tensors="pt"
    )
    ids, own_mask = ours.clap.tokenizer.encode(prompt)
    n_long = min(512, ours.gpt.config.n_positions - prefix.shape[1])

    def unet(with_mask: bool) -> tuple[Work, Work]:
        own = text_mask if with_mask else None
        call = dict(encoder_hidden_states=loa, encoder_hidden_states_1=text)
        call |= {"encoder_attention_mask_1": text_mask.long()} if with_mask else {}
        given = {"loa": Context(loa), "text": Context(text, own)}
        return (
            lambda: ours.unet(latents, t, given),
            lambda: theirs.unet(latents, t - 1, **call),
        )

    def language(n: int) -> tuple[Work, Work]:
        given = dict(inputs_embeds=prefix, attention_mask=mask.long(), max_new_tokens=n)
        return (
            lambda: ours.gpt.generate(conditions, n),
            lambda: theirs.generate_language_model(**given),
        )

    def whole(**own: Any) -> Work:
        return lambda: ours(
            prompt, seconds=10.24, latents=latents[:1], progress=False, **own
        )

    def whole_of_theirs(steps: int) -> Work:
        call = dict(
            num_inference_steps=steps, audio_length_in_s=10.24, output_type="pt"
        )
        return lambda: theirs(prompt, latents=latents[:1], **call)

    return {
        "CLAP's text tower": (
            lambda: ours.clap.embed_text(ids, own_mask),
            lambda: theirs.text_encoder.get_text_features(**padded),
            3.0,
        ),
        "LOA, 8 vectors": (*language(8), 1.5),
        f"LOA, {n_long} vectors": (*language(n_long), 1.3),
        "U-Net, with a mask": (*unet(True), 0.98),
        "U-Net, without": (*unet(False), 0.98),
        "VAE, decoding": (
            lambda: lean.decode(ours.vae, latents[:1]),
            lambda: theirs.vae.decode(latents[:1] / theirs.vae.config.scaling_factor),
            None,
        ),
        "vocoder": (
            lambda: vocode(ours.vocoder, mel),
            lambda: theirs.vocoder(mel[:, 0]),
            None,
        ),
        "a sound of 10.24 s, 25 steps": (whole(steps=25), whole_of_theirs(25), 1.2),
        "DPM-Solver++ 20, DDIM 200": (
            whole(steps=20, sampler="dpm"),
            whole(steps=200),
            None,
        ),
    }


def training_step(unet: torch.nn.Module, predict: Work) -> Work:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        predict().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def training_cases(theirs: Any, ours: AudioLDM2) -> Cases:
    """A training step of each U-Net, activations kept or recomputed, which diffusers
    can do only without masks.
    """
    latents = torch.randn(
        2, *ours.latent_shape(1, round(10.24 * audio.SAMPLE_RATE))[1:]
    )
    t, loa = torch.full((2,), 500), torch.randn(2, 8, ours.gpt.config.n_embd)
    text = torch.randn(2, 12, ours.text.dim)
    given = {"loa": Context(loa), "text": Context(text)}
    own = lambda: ours.unet(latents, t, given)
    other = lambda: (
        theirs.unet(
            latents, t - 1, encoder_hidden_states=loa, encoder_hidden_states_1=text
        ).sample
    )

    def recomputed(step: Work, switch: Callable[[bool], None]) -> Work:
        def run() -> None:
            switch(True)
            step()
            switch(False)

        return run

    steps = training_step(ours.unet, own), training_step(theirs.unet, other)
    switches = (
        ours.unet.recompute_activations,
        lambda on: (
            theirs.unet.enable_gradient_checkpointing()
            if on
            else theirs.unet.disable_gradient_checkpointing()
        ),
    )
    again = tuple(map(recomputed, steps, switches))
    return {
        "training step": (*steps, 0.98),
        "training step, recomputing": (*again, 0.98),
    }


def one(whose: str, folder: Path) -> Any:
    """The pipeline of one side."""
    if whose == "ours":
        return AudioLDM2.from_diffusers(folder / "peer", device="cpu")
    from diffusers import AudioLDM2Pipeline

    theirs = AudioLDM2Pipeline.from_pretrained(folder / "peer")
    theirs.set_progress_bar_config(disable=True)
    return theirs


def decoding(whose: str, length: float, folder: Path) -> float:
    """MiB that a decode takes, from the latent to the wave."""
    pipe, z = one(whose, folder), torch.randn(1, 4, round(length * 25), 16)
    with torch.no_grad():
        if whose == "ours":
            return peak(lambda: pipe.decode(z, z.shape[2] * 640))[1]
        return peak(lambda: pipe.vocoder(pipe.vae.decode(z).sample[:, 0]))[1]


def sounding(
    whose: str, length: float, candidates: int, folder: Path
) -> tuple[float, float]:
    """Seconds and MiB of a caption's best of some candidates."""
    pipe = one(whose, folder)
    if whose == "ours":
        return peak(
            lambda: pipe(
                PROMPTS[:1],
                steps=5,
                seconds=length,
                candidates=candidates,
                progress=False,
            )
        )
    call = dict(
        num_inference_steps=5,
        audio_length_in_s=length,
        num_waveforms_per_prompt=candidates,
    )
    return peak(lambda: pipe(PROMPTS[:1], **call))
