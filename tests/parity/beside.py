"""diffusers' pipeline beside ours: each stage of one call, measured."""

import torch
from peer import SECONDS

from minilib import AudioLDM2, audioldm2

LIMITS = {"loa": 1e-4, "latent": 1e-4, "mel": 1e-4, "wave": 1e-3}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def noise(ours: AudioLDM2, n: int, seconds: float = SECONDS) -> torch.Tensor:
    shape = ours.latent_shape(n, round(seconds * 16000))
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def words_of(ours: AudioLDM2, n: int = 1) -> dict[str, list[str]]:
    """What is to be spoken, by a pipeline that speaks."""
    spoken = ["hello there", "yes", "so it is"][:n]
    return {"transcription": spoken} if ours.speaks else {}


def their_stages(
    pipe, patch, captions, latents, negative=None, seconds=SECONDS, steps=4,
    guidance=3.5, eta=0.0, **told,
):  # fmt: skip
    """What diffusers makes in each stage of a call."""
    found = {}

    def written(*given, encode=pipe.encode_prompt, **asked):
        out = encode(*given, **asked)
        found["loa"] = out[2]
        return out

    def decoded(z, *more, decode=pipe.vae.decode, **asked):
        out = decode(z, *more, **asked)
        found["latent"] = pipe.vae.config.scaling_factor * z
        found["mel"] = getattr(out, "sample", out[0])
        return out

    with patch.context() as now:
        now.setattr(pipe, "encode_prompt", written)
        now.setattr(pipe.vae, "decode", decoded)
        found["wave"] = pipe(
            captions, audio_length_in_s=seconds, num_inference_steps=steps,
            guidance_scale=guidance, latents=latents, eta=eta, negative_prompt=negative,
            generator=torch.Generator().manual_seed(3), output_type="pt", **told,
        ).audios  # fmt: skip
    return found


def our_stages(pipe, patch, captions, negative=None, **asked):
    """What ours makes in each stage of a call."""
    found = {"loa": []}

    def written(conditions, loa=pipe.loa):
        found["loa"].append(loa(conditions))
        return found["loa"][-1]

    def decoded(z, *more, decode=pipe.decode):
        found["latent"] = z
        return decode(z, *more)

    def spoken(vocoder, mel, *more, vocode=audioldm2.vocode):
        found["mel"] = mel
        return vocode(vocoder, mel, *more)

    with patch.context() as now:
        now.setattr(pipe, "loa", written)
        now.setattr(pipe, "decode", decoded)
        now.setattr(audioldm2, "vocode", spoken)
        found["wave"] = pipe(captions, negative=negative, progress=False, **asked)
    # diffusers puts that of the negative caption first
    return {**found, "loa": torch.cat(found["loa"][:2][::-1])}


def same_sound(theirs, ours, patch, captions, seconds=SECONDS, sampler="ddim", **given):
    """Assert that both make the same in each stage, and that it is no silence."""
    words, latents = words_of(ours, len(captions)), noise(ours, len(captions), seconds)
    told = {**words, "max_new_tokens": 7} if ours.speaks else {}
    given = {"captions": captions, "latents": latents, "seconds": seconds, **given}
    expected = their_stages(theirs, patch, **given, **told)
    made = our_stages(ours, patch, **given, **words, sampler=sampler, seed=3)
    assert expected["loa"].std() > 0.3 and expected["latent"].abs().max() > 0.1
    assert expected["wave"].abs().max() > 0.01 and expected["wave"].std() > 1e-3
    far = {stage: error(made[stage], expected[stage]) for stage in LIMITS}
    assert all(far[stage] <= most for stage, most in LIMITS.items()), far
