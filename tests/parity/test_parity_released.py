"""The released pipeline, whole: the same LOA, latents and waves as diffusers', from the
same folder.
"""

import logging
import shutil

import librosa
import pytest
import torch
from peer import PROMPTS, SECONDS, peer

from minilib import AudioLDM2
from minilib.convert import released


@pytest.fixture(scope="module", params=["base", "large", "speech"])
def both(request, tmp_path_factory):
    """diffusers' pipeline, ours from the folder that it wrote, and the folder."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp(request.param)
    speech = request.param == "speech"
    theirs = peer(folder, request.param)
    theirs.save_pretrained(folder / "peer")
    ours = AudioLDM2.from_diffusers(
        folder / "peer", device="cpu", n_tokens=7 if speech else None
    )
    return theirs, ours, folder / "peer"


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def noise(ours: AudioLDM2, n: int, seconds: float) -> torch.Tensor:
    shape = ours.latent_shape(n, round(seconds * 16000))
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


CASES = {
    "one": dict(captions=PROMPTS[:1]),
    "several": dict(captions=PROMPTS),
    "negative": dict(captions=PROMPTS[:2], negative=["a bell", "rain"]),
    "unguided": dict(captions=PROMPTS[:2], guidance=1.0),
    "10.24 s": dict(captions=PROMPTS[:1], seconds=10.24),
    "longer": dict(captions=PROMPTS[:1], seconds=15.36),
    "noisy": dict(captions=PROMPTS[:1], eta=1.0),
    "DPM-Solver++": dict(captions=PROMPTS[:2], sampler="dpm"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_whole_pipeline_puts_out_what_diffusers_does(both, case, monkeypatch):
    from diffusers import DPMSolverMultistepScheduler

    theirs, ours, _ = both
    given = {
        "seconds": SECONDS,
        "guidance": 3.5,
        "negative": None,
        "eta": 0.0,
        **CASES[case],
    }
    captions, n = given["captions"], len(given["captions"])
    words = (
        {"transcription": ["hello there", "yes", "so it is"][:n]} if ours.speaks else {}
    )
    latents = noise(ours, n, given["seconds"])
    tokens = {"max_new_tokens": 7} if ours.speaks else {}
    call = dict(
        prompt=captions, audio_length_in_s=given["seconds"], num_inference_steps=4, guidance_scale=given["guidance"],
        negative_prompt=given["negative"], latents=latents, eta=given["eta"], **words, **tokens,
    )  # fmt: skip
    dpm = given.get("sampler") == "dpm"
    if dpm:
        monkeypatch.setattr(
            theirs,
            "scheduler",
            DPMSolverMultistepScheduler.from_config(
                theirs.scheduler.config, timestep_spacing="leading"
            ),
        )
    seeded = lambda: torch.Generator().manual_seed(3)
    with torch.no_grad():
        embeds, mask, loa = theirs.encode_prompt(
            captions,
            "cpu",
            1,
            given["guidance"] > 1,
            negative_prompt=given["negative"],
            **words,
            **tokens,
        )
        mel = theirs(**call, generator=seeded(), output_type="latent").audios
        waves = theirs(**call, generator=seeded(), output_type="pt").audios
        conditions = ours.encode(captions, words.get("transcription"))
        own_loa = ours.loa(conditions)
        if given["guidance"] > 1:
            negative = ours.encode_negative(given["negative"] or [""] * n, conditions)
            own_loa = torch.cat([ours.loa(negative), own_loa])
        assert error(own_loa, loa) < 1e-4 and loa.std() > 0.3
        own = ours(
            captions, steps=4, guidance=given["guidance"], seconds=given["seconds"], latents=latents, seed=3,
            negative=given["negative"], progress=False, eta=given["eta"], sampler="dpm" if dpm else "ddim", **words,
        )  # fmt: skip
    assert waves.abs().max() > 0.01 and waves.std() > 1e-3
    assert error(own, waves) < 1e-3
    assert mel.abs().max() > 0.1


def test_several_waveforms_are_ranked_within_their_own_prompt(both):
    theirs, ours, _ = both
    if ours.speaks:
        pytest.skip("ranking is the same code")
    latents = noise(ours, 4, SECONDS)
    made = ours(
        PROMPTS[:2],
        steps=2,
        seconds=SECONDS,
        latents=latents,
        candidates=2,
        progress=False,
    )
    theirs.feature_extractor, kept = None, theirs.feature_extractor
    score, theirs.score_waveforms = (
        theirs.score_waveforms,
        lambda **given: given["audio"],
    )
    waves = theirs(
        PROMPTS[:2], audio_length_in_s=SECONDS, num_inference_steps=2, latents=latents, output_type="pt",
        num_waveforms_per_prompt=2,
    ).audios  # fmt: skip
    theirs.feature_extractor, theirs.score_waveforms = kept, score
    for i in range(2):
        assert min(error(made[i], waves[2 * i + k]) for k in range(2)) < 1e-3
        own = ours.embed_waves(waves[2 * i : 2 * i + 2])
        with torch.no_grad():
            inputs = theirs.tokenizer(PROMPTS[i], return_tensors="pt")
            heard = librosa.resample(
                waves[2 * i : 2 * i + 2].numpy(), orig_sr=16000, target_sr=48000
            )
            features = kept(
                list(heard), return_tensors="pt", sampling_rate=48000
            ).input_features
            logits = theirs.text_encoder(
                **inputs, input_features=features
            ).logits_per_text[0]
        scores = (own * ours.encode(PROMPTS[i : i + 1]).clap[0][0]).sum(dim=1)
        scale = theirs.text_encoder.logit_scale_t.exp()
        assert (
            error(scores * scale, logits) < 1e-4
            and abs(float(scores[0] - scores[1])) > 1e-3
        )
        assert error(made[i], waves[2 * i + int(scores.argmax())]) < 1e-3


def test_in_out_and_in_again_is_bit_equal_and_sounds_the_same(both, tmp_path):
    from diffusers import AudioLDM2Pipeline

    theirs, ours, _ = both
    ours.to_diffusers(tmp_path / "out")
    again = AudioLDM2.from_diffusers(
        tmp_path / "out", device="cpu", n_tokens=ours.gpt.config.n_tokens
    )
    for a, b in zip(ours.models(), again.models(), strict=True):
        first, second = a.state_dict(), b.state_dict()
        assert set(first) == set(second) and all(
            torch.equal(first[name], second[name]) for name in first
        )
    assert again.seconds == ours.seconds == 0.64
    back = AudioLDM2Pipeline.from_pretrained(tmp_path / "out")
    back.set_progress_bar_config(disable=True)
    words = {"transcription": ["yes"], "max_new_tokens": 7} if ours.speaks else {}
    call = dict(
        prompt=PROMPTS[:1],
        num_inference_steps=2,
        latents=noise(ours, 1, SECONDS),
        output_type="pt",
        **words,
    )
    # the weights are the same to a bit, but where they lie in memory decides in which
    # order sums are taken
    assert error(back(**call).audios, theirs(**call).audios) < 1e-4
    ours.to_diffusers(tmp_path / "out")  # a second time it replaces the first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(
        FileExistsError, match="is no folder of a pipeline: nothing was written"
    ):
        ours.to_diffusers(tmp_path / "mine")
    assert [
        path.name for path in tmp_path.iterdir() if path.name not in ("out", "mine")
    ] == []


def test_a_released_pipeline_is_kept_in_this_packages_own_folder_too(both, tmp_path):
    _, ours, _ = both
    ours.save_pretrained(tmp_path)
    again = AudioLDM2.from_pretrained(tmp_path, device="cpu")
    words = {"transcription": "yes"} if ours.speaks else {}
    made = [
        pipe(PROMPTS[0], steps=1, seed=0, progress=False, **words)
        for pipe in (ours, again)
    ]
    assert error(*made) < 1e-4


def test_from_pretrained_knows_a_folder_of_diffusers(both):
    _, ours, folder = both
    if ours.speaks:
        pytest.skip("512 vectors are more than this GPT-2 has positions for")
    again = AudioLDM2.from_pretrained(folder, device="cpu")
    assert (
        error(
            *(
                pipe(PROMPTS[0], steps=1, seed=0, progress=False)
                for pipe in (ours, again)
            )
        )
        < 1e-4
    )


def test_where_paper_and_diffusers_differ_is_an_argument(both):
    _, ours, folder = both
    n = ours.gpt.config.n_tokens
    trained = AudioLDM2.from_diffusers(
        folder, device="cpu", head_width=8, unconditional_loa="zeros", n_tokens=n
    )
    assert ours.unet.config.n_head == 4 and trained.unet.config.n_head == (2, 4)
    conditions = ours.encode(PROMPTS[:1], ["yes"] if ours.speaks else None)
    negative = ours.encode_negative([""], conditions)
    assert (
        not trained.loa_of_negative(negative).any()
        and ours.loa_of_negative(negative).any()
    )
    assert (
        trained.loa_of_negative(negative).shape == ours.loa_of_negative(negative).shape
    )
    words = {"transcription": "yes"} if ours.speaks else {}
    made = [
        pipe(PROMPTS[0], steps=2, seed=0, progress=False, **words)
        for pipe in (ours, trained)
    ]
    assert error(made[1], made[0]) > 1e-3
    with pytest.raises(
        ValueError, match='unconditional_loa must be "gpt" or "zeros", not \'none\''
    ):
        AudioLDM2.from_diffusers(
            folder, device="cpu", unconditional_loa="none", n_tokens=n
        )
    with pytest.raises(ValueError, match="head_width must divide"):
        AudioLDM2.from_diffusers(folder, device="cpu", head_width=7, n_tokens=n)


def test_transcriptions_are_asked_for_and_refused(both):
    _, ours, _ = both
    call = lambda **given: ours("a dog", steps=1, progress=False, **given)
    if ours.speaks:
        for given, said in (
            (None, "these weights speak: give the words as transcription"),
            (" ", "a transcription is empty"),
            (
                ["a", "b"],
                "transcription must be one for all or one for each of 1, not 2",
            ),
            ("a" * 25, "has 25 tokens, but at most 24 are read"),
        ):
            with pytest.raises(ValueError, match=said):
                call(transcription=given)
    else:
        with pytest.raises(ValueError, match="these weights do not speak"):
            call(transcription="yes")
        with pytest.raises(ValueError, match="tokens, but at most"):
            ours("dog " * 60, steps=1, progress=False)


def spoiled(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def other_pipeline(folder):
    path = folder / "model_index.json"
    path.write_text(
        path.read_text().replace("AudioLDM2Pipeline", "StableDiffusionPipeline")
    )


def cut(folder):
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (
            other_pipeline,
            ValueError,
            "is that of a StableDiffusionPipeline, not of an AudioLDM2Pipeline",
        ),
        (
            lambda f: shutil.rmtree(f / "vae"),
            FileNotFoundError,
            "vae is missing: the pipeline is not complete",
        ),
        (cut, ValueError, "damaged or half-copied"),
        (
            lambda f: shutil.rmtree(f / "tokenizer_2"),
            ValueError,
            "tokenizer_2 holds no tokenizer",
        ),
        (
            lambda f: (f / "feature_extractor" / "preprocessor_config.json").unlink(),
            ValueError,
            "ClapModel",
        ),
        (
            lambda f: (f / "unet" / "config.json").unlink(),
            FileNotFoundError,
            "config.json is missing",
        ),
    ],
)
def test_a_broken_folder_is_refused_in_one_sentence(both, change, kind, said, tmp_path):
    copy = spoiled(both[2], tmp_path, change)
    with pytest.raises(kind, match=said) as caught:
        AudioLDM2.from_diffusers(copy, device="cpu", n_tokens=5)
    assert "\n" not in str(caught.value)


def test_a_pipeline_of_our_own_clap_is_not_written(tiny_pipe, tmp_path):
    with pytest.raises(
        ValueError,
        match="the CLAP and the tokenizer of this package have no counterpart",
    ):
        tiny_pipe.to_diffusers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_first_empty_phoneme_becomes_the_sign_of_the_end(both):
    _, ours, _ = both
    if not ours.speaks:
        pytest.skip("no phonemes")
    ids, mask = ours.tokenizer.encode(["ab", "a" * 24])
    assert (
        ids[0].tolist() == [1, 2, released.END_OF_SPEECH, *[0] * 21]
        and mask[0].sum() == 3
    )
    assert ids[1].tolist() == [1] * 24 and mask[1].all()


def test_a_released_pipeline_trains_further_and_sounds_the_same_in_diffusers(
    tmp_path, monkeypatch
):
    import os
    from dataclasses import replace

    from diffusers import AudioLDM2Pipeline

    from minilib import cli
    from minilib.training import RUNS, train_stages

    peer(tmp_path, "trainable").save_pretrained(tmp_path / "peer")
    cli.main(["convert", str(tmp_path / "peer"), str(tmp_path / "own")])
    recipes = {
        name: replace(recipe, batch_size=2)
        for name, recipe in RUNS["tiny"].recipes.items()
    }
    monkeypatch.setitem(RUNS, "tiny", replace(RUNS["tiny"], n_clips=8, recipes=recipes))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.delenv("MINILIB_REALAUDIO", raising=False)
    with pytest.raises(
        ValueError,
        match="holds a released pipeline, which audiomae and joint tune further; clap",
    ):
        train_stages(
            ["audiomae", "clap"], out=tmp_path / "own", steps=1, progress=False
        )
    before = AudioLDM2.from_pretrained(tmp_path / "own", device="cpu")
    train_stages(["audiomae", "joint"], out=tmp_path / "own", steps=2, progress=False)
    trained = AudioLDM2.from_pretrained(tmp_path / "own", device="cpu")
    moved = {
        name
        for name in ("text", "clap", "gpt", "unet", "vae", "vocoder")
        if not all(
            map(
                torch.equal,
                getattr(before, name).parameters(),
                getattr(trained, name).parameters(),
            )
        )
    }
    assert moved == {"gpt", "unet"}
    train_stages("adversarial", out=tmp_path / "own", steps=1, progress=False)
    sharpened = AudioLDM2.from_pretrained(tmp_path / "own", device="cpu")
    assert not all(
        map(torch.equal, trained.vocoder.parameters(), sharpened.vocoder.parameters())
    )
    trained = sharpened
    cli.main(["convert", str(tmp_path / "own"), str(tmp_path / "back")])
    theirs = AudioLDM2Pipeline.from_pretrained(
        tmp_path / "back", torch_dtype=torch.float32
    )
    theirs.set_progress_bar_config(disable=True)
    latents = noise(trained, 1, SECONDS)
    own = trained(PROMPTS[0], steps=3, seconds=SECONDS, latents=latents, progress=False)
    waves = theirs(
        PROMPTS[0],
        audio_length_in_s=SECONDS,
        num_inference_steps=3,
        latents=latents,
        output_type="pt",
    ).audios
    assert error(own, waves) < 1e-3 and waves.std() > 1e-3


def test_a_clap_in_double_precision_is_cast(both, tmp_path):
    theirs, ours, folder = both
    if ours.speaks:
        pytest.skip("the same CLAP")
    shutil.copytree(folder, tmp_path / "copy")
    double = type(theirs.text_encoder).from_pretrained(
        folder / "text_encoder", dtype=torch.float64
    )
    double.save_pretrained(tmp_path / "copy" / "text_encoder")
    for dtype in (torch.float32, None):
        again = AudioLDM2.from_diffusers(tmp_path / "copy", device="cpu", dtype=dtype)
        assert {p.dtype for p in again.clap.parameters()} == {torch.float32}
        assert error(again.encode(PROMPTS).clap[0], ours.encode(PROMPTS).clap[0]) < 1e-5


def test_half_precision_runs_from_caption_to_wave(both):
    _, ours, folder = both
    words = {"transcription": "yes"} if ours.speaks else {}
    half = AudioLDM2.from_diffusers(
        folder, device="cpu", dtype=torch.bfloat16, n_tokens=ours.gpt.config.n_tokens
    )
    wave = half(PROMPTS[0], steps=2, seed=0, progress=False, **words)
    assert wave.dtype == torch.float32 and wave.isfinite().all()
    full = ours(PROMPTS[0], steps=2, seed=0, progress=False, **words)
    assert float((wave - full).norm() / full.norm()) < 0.3


def test_a_hub_id_without_a_network_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError,
        match="cvssp/audioldm2 is neither a folder here nor to be had",
    ):
        AudioLDM2.from_diffusers("cvssp/audioldm2")
