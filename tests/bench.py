"""How fast and how lean this package is beside diffusers and transformers: `make bench` prints it, no test needs it.

One process, the same random weights on both sides, medians of runs that take turns, so that what else the machine does
meets both alike. Peak memory is that of a fresh process that does one thing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "parity"))

from peer import PROMPTS, peer

from minilib import AudioLDM2, audio
from minilib.vocoder import vocode

Work = Callable[[], Any]


def pipelines(folder: Path) -> tuple[Any, AudioLDM2]:
    """diffusers' pipeline of middle size and ours with the same weights."""
    theirs = peer(folder, "mid")
    theirs.save_pretrained(folder / "peer")
    return theirs, AudioLDM2.from_diffusers(folder / "peer", device="cpu")


def cases(theirs: Any, ours: AudioLDM2) -> dict[str, tuple[Work, Work, float | None]]:
    """What is timed: ours, theirs, and the least ratio that is promised."""
    prompt = PROMPTS[1:2]
    conditions = ours.encode(prompt)
    prefix, mask = ours.gpt.projection(list(conditions))
    latents = torch.randn(ours.latent_shape(2, round(10.24 * audio.SAMPLE_RATE)))
    t, loa = torch.full((2,), 500), torch.randn(2, 8, ours.gpt.config.n_embd)
    text, text_mask = (x.repeat(2, *[1] * (x.ndim - 1)) for x in conditions.text)
    text_mask = text_mask.clone()
    text_mask[0, -3:] = False
    mel = theirs.vae.decode(latents[:1]).sample
    padded = theirs.tokenizer(prompt, padding="max_length", max_length=512, return_tensors="pt")
    ids, own_mask = ours.clap_tokenizer.encode(prompt)
    n_long = min(512, ours.gpt.config.n_positions - prefix.shape[1])

    def unet(with_mask: bool) -> tuple[Work, Work]:
        own = text_mask if with_mask else None
        call = dict(encoder_hidden_states=loa, encoder_hidden_states_1=text)
        call |= {"encoder_attention_mask_1": text_mask.long()} if with_mask else {}
        return lambda: ours.unet(latents, t, (loa, None), (text, own)), lambda: theirs.unet(
            latents, t - 1, **call
        )

    def language(n: int) -> tuple[Work, Work]:
        given = dict(inputs_embeds=prefix, attention_mask=mask.long(), max_new_tokens=n)
        return lambda: ours.gpt.generate(list(conditions), n), lambda: theirs.generate_language_model(**given)

    def whole() -> tuple[Work, Work]:
        start = latents[:1]
        call = dict(num_inference_steps=25, audio_length_in_s=10.24, output_type="pt")
        own = lambda: ours(prompt, steps=25, seconds=10.24, latents=start, progress=False)
        return own, lambda: theirs(prompt, latents=start, **call)

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
        "VAE, decoding": (lambda: ours.vae.decode(latents[:1]), lambda: theirs.vae.decode(latents[:1]), None),
        "vocoder": (lambda: vocode(ours.vocoder, mel), lambda: theirs.vocoder(mel[:, 0]), None),
        "a sound, 25 steps": (*whole(), 1.2),
        "DPM-Solver++ 20, DDIM 200": (
            lambda: ours(prompt, steps=20, seconds=10.24, latents=latents[:1], progress=False, sampler="dpm"),
            lambda: ours(prompt, steps=200, seconds=10.24, latents=latents[:1], progress=False),
            None,
        ),
    }


def take_turns(first: Work, second: Work, seconds: float) -> tuple[float, float]:
    """Median time of each of two, run in turns for about so many seconds and at least three times."""
    times: tuple[list[float], list[float]] = ([], [])
    first(), second()
    until = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < until:
        for work, taken in zip((first, second), times, strict=True):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def training_step(unet: torch.nn.Module, predict: Work) -> Work:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        predict().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def training_cases(theirs: Any, ours: AudioLDM2) -> dict[str, tuple[Work, Work, float | None]]:
    """A training step of each U-Net, activations kept or recomputed, which diffusers can do only without masks."""
    latents = torch.randn(2, *ours.latent_shape(1, round(10.24 * audio.SAMPLE_RATE))[1:])
    t, loa = torch.full((2,), 500), torch.randn(2, 8, ours.gpt.config.n_embd)
    text = torch.randn(2, 12, ours.text.dim)
    own = lambda: ours.unet(latents, t, (loa, None), (text, None))
    other = lambda: (
        theirs.unet(latents, t - 1, encoder_hidden_states=loa, encoder_hidden_states_1=text).sample
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
    return {"training step": (*steps, 0.98), "training step, recomputing": (*again, 0.98)}


def decoder(whose: str, folder: str) -> Callable[[torch.Tensor], Any]:
    """What turns a latent into a wave, of one side or the other."""
    if whose == "ours":
        pipe = AudioLDM2.from_diffusers(folder, device="cpu")
        return lambda z: pipe.decode(z, z.shape[2] * 640)
    from diffusers import AudioLDM2Pipeline

    theirs = AudioLDM2Pipeline.from_pretrained(folder)
    return lambda z: theirs.vocoder(theirs.vae.decode(z).sample[:, 0])


def resident(name: str) -> float:
    """Memory of this process in MiB: VmRSS, what it has now, or VmHWM, the most it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def measured(queue: Any, whose: str, seconds: float, folder: str) -> None:
    """What a decode of so many seconds takes above what the process held before it. Linux only."""
    decode = decoder(whose, folder)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    with torch.no_grad():
        decode(torch.randn(1, 4, round(seconds * 25), 16))
    queue.put(resident("VmHWM") - before)


def in_a_fresh_process(whose: str, seconds: float, folder: Path) -> float:
    """`measured` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measured, args=(queue, whose, seconds, str(folder)))
    process.start()
    result = queue.get()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of turns for each row (default: 10)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs, ours = pipelines(folder)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32\n")
        print(f"{'':30}{'minilib':>10}{'peer':>10}{'ratio':>8}{'must be':>9}")
        with torch.no_grad():
            table(cases(theirs, ours), args.seconds)
        table(training_cases(theirs, ours), args.seconds)
        print(f"\n{'peak memory of a decode, MiB':30}{'minilib':>10}{'peer':>10}{'ratio':>8}{'must be':>9}")
        for seconds in (2.56, 10.24, 40.96):
            peaks = [in_a_fresh_process(whose, seconds, folder / "peer") for whose in ("ours", "theirs")]
            must = f"{0.6:9.2f}" if seconds == 40.96 else ""
            print(
                f"{f'{seconds} s':30}{peaks[0]:10.0f}{peaks[1]:10.0f}{peaks[0] / peaks[1]:8.2f}{must}",
                flush=True,
            )


def table(rows: dict[str, tuple[Work, Work, float | None]], seconds: float) -> None:
    """Print the times of both, in seconds, and how many times as fast ours is."""
    for name, (own, others, must) in rows.items():
        mine, other = take_turns(own, others, seconds)
        promise = f"{must:9.2f}" if must else ""
        print(f"{name:30}{mine:10.4f}{other:10.4f}{other / mine:8.2f}{promise}", flush=True)


if __name__ == "__main__":
    main()
