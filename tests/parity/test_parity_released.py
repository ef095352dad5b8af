"""The released pipeline, whole: the same LOA, latents and waves as diffusers', from the
same folder.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from functools import partial

import librosa
import pytest
import torch
from beside import error, noise, same_sound, words_of
from peer import PROMPTS, SECONDS, peer

from minilib import AudioLDM2
from minilib.convert import configs, released
from minilib.guidance import Sampling


def bits(pipe: AudioLDM2) -> dict[str, torch.Tensor]:
    """All tensors of a pipeline by name."""
    states = {name: model.state_dict() for name, model in pipe.models.items()}
    return {
        f"{part}.{k}": x for part, state in states.items() for k, x in state.items()
    }


def same(a: AudioLDM2, b: AudioLDM2) -> bool:
    first, second = bits(a), bits(b)
    return set(first) == set(second) and all(
        torch.equal(first[name], second[name]) for name in first
    )


CASES = {
    "one": dict(captions=PROMPTS[:1]),
    "several": dict(captions=PROMPTS),
    "negative": dict(captions=PROMPTS[:2], negative=["a bell", "rain"]),
    "unguided": dict(captions=PROMPTS[:2], guidance=1.0),
    "noisy": dict(captions=PROMPTS[:1], eta=1.0),
    "DPM-Solver++": dict(captions=PROMPTS[:2], sampler="dpm"),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_whole_pipeline_puts_out_what_diffusers_does(both, case, monkeypatch):
    from diffusers import DPMSolverMultistepScheduler

    theirs, ours, _ = both
    given = {"seconds": SECONDS, "steps": 4, **CASES[case]}
    if given.get("sampler") == "dpm":
        dpm = DPMSolverMultistepScheduler.from_config(
            theirs.scheduler.config, timestep_spacing="leading"
        )
        monkeypatch.setattr(theirs, "scheduler", dpm)
    same_sound(theirs, ours, monkeypatch, **given)


@torch.no_grad()
def test_several_waveforms_are_ranked_within_their_own_prompt(both, monkeypatch):
    theirs, ours, _ = both
    if ours.speaks:
        pytest.skip("ranking is the same code")
    latents, asked = noise(ours, 4), {"seconds": SECONDS, "progress": False}
    made = ours(PROMPTS[:2], steps=2, latents=latents, candidates=2, **asked)
    with monkeypatch.context() as patch:
        patch.setattr(theirs, "score_waveforms", lambda **given: given["audio"])
        waves = theirs(
            PROMPTS[:2], audio_length_in_s=SECONDS, num_inference_steps=2,
            latents=latents, output_type="pt", num_waveforms_per_prompt=2,
        ).audios.view(2, 2, -1)  # fmt: skip
    for prompt, chosen, two in zip(PROMPTS, made, waves):
        assert min(error(chosen, wave) for wave in two) < 1e-3
        told = ours.clap.encode([prompt]).sequence[0, 0]
        scores = ours.clap.embed_waves(two) @ told
        inputs = theirs.tokenizer(prompt, return_tensors="pt")
        heard = librosa.resample(two.numpy(), orig_sr=16000, target_sr=48000)
        features = theirs.feature_extractor(
            list(heard), return_tensors="pt", sampling_rate=48000
        )
        logits = theirs.text_encoder(**inputs, **features).logits_per_text[0]
        scale = theirs.text_encoder.logit_scale_t.exp()
        assert error(scores * scale, logits) < 1e-4
        assert abs(float(scores[0] - scores[1])) > 1e-3
        assert error(chosen, two[int(scores.argmax())]) < 1e-3


def test_in_out_and_in_again_is_bit_equal_and_sounds_the_same(both, tmp_path):
    from diffusers import AudioLDM2Pipeline

    theirs, ours, _ = both
    ours.to_diffusers(tmp_path / "out")
    n_tokens = ours.gpt.config.n_tokens
    again = AudioLDM2.from_diffusers(tmp_path / "out", "cpu", n_tokens=n_tokens)
    assert same(ours, again) and again.seconds == ours.seconds == SECONDS
    back = AudioLDM2Pipeline.from_pretrained(tmp_path / "out")
    back.set_progress_bar_config(disable=True)
    told = {**words_of(ours), "max_new_tokens": 7} if ours.speaks else {}
    told |= {"num_inference_steps": 2, "latents": noise(ours, 1), "output_type": "pt"}
    # the weights are the same to a bit, but where they lie in memory decides in which
    # order sums are taken
    assert error(*(pipe(PROMPTS[:1], **told).audios for pipe in (back, theirs))) < 1e-4


@pytest.mark.parametrize("both", ["base"], indirect=True)
def test_a_folder_of_a_pipeline_is_replaced_and_another_is_not(both, tmp_path):
    _, ours, _ = both
    ours.to_diffusers(tmp_path / "out")
    (tmp_path / "out" / "vae" / "config.json").unlink()
    ours.to_diffusers(tmp_path / "out")
    assert (tmp_path / "out" / "vae" / "config.json").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    said = "does not hold a pipeline: nothing was written"
    with pytest.raises(FileExistsError, match=said):
        ours.to_diffusers(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "mine"}


def test_a_released_pipeline_is_kept_in_this_packages_own_folder_too(both, tmp_path):
    _, ours, _ = both
    ours.save_pretrained(tmp_path)
    again = AudioLDM2.from_pretrained(tmp_path, device="cpu")
    asked = {"steps": 1, "seed": 0, "progress": False, **words_of(ours)}
    assert same(ours, again)
    assert error(*(pipe(PROMPTS[0], **asked) for pipe in (ours, again))) < 1e-4


def test_from_pretrained_knows_a_folder_of_diffusers(both):
    _, ours, folder = both
    if ours.speaks:
        pytest.skip("512 vectors are more than this GPT-2 has positions for")
    assert same(ours, AudioLDM2.from_pretrained(folder, device="cpu"))


def test_what_a_folder_does_not_say_is_as_in_diffusers(both):
    _, ours, _ = both
    assert ours.sampling == Sampling() and ours.seconds == SECONDS
    assert ours.text.reads == ("transcription" if ours.speaks else "caption")


def test_where_paper_and_diffusers_differ_is_an_argument(both):
    _, ours, folder = both
    load = partial(AudioLDM2.from_diffusers, folder, "cpu", n_tokens=5)
    trained = load(head_width=8, unconditional_loa="zeros")
    assert ours.unet.config.n_head == 2 and trained.unet.config.n_head == (2, 4)
    words = words_of(ours).get("transcription")
    empty = ours.encode([""], like=ours.encode(PROMPTS[:1], words))
    from_gpt, zeros = (
        pipe.loa_of_negative(empty, pipe.sampling).sequence for pipe in (ours, trained)
    )
    assert from_gpt.any() and not zeros.any()
    asked = {"steps": 2, "seed": 0, "progress": False, **words_of(ours)}
    made = [pipe(PROMPTS[0], **asked) for pipe in (ours, trained)]
    assert error(made[1], made[0]) > 1e-3
    said = 'unconditional_loa must be "gpt" or "zeros", not \'none\''
    with pytest.raises(ValueError, match=said):
        load(unconditional_loa="none")
    with pytest.raises(ValueError, match="head_width must divide"):
        load(head_width=7)


def test_transcriptions_are_asked_for_and_refused(both):
    _, ours, _ = both
    call = lambda caption, words=None: ours(
        caption, steps=1, progress=False, transcription=words
    )
    one_each = "transcription must be one for all or one for each of 1, not 2"
    speaks = [
        ("a dog", None, "these weights speak: transcription must give the words"),
        ("a dog", " ", "a transcription is empty"),
        ("a dog", ["a", "b"], one_each),
        ("a dog", "a" * 25, "has 25 tokens, but at most 24 can be read"),
    ]
    mute = [
        ("a dog", "yes", "these weights do not speak"),
        ("dog " * 60, None, "tokens, but at most"),
    ]
    for caption, words, said in speaks if ours.speaks else mute:
        with pytest.raises(ValueError, match=said):
            call(caption, words)


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
            "is for a StableDiffusionPipeline, not for an AudioLDM2Pipeline",
        ),
        (
            lambda f: shutil.rmtree(f / "vae"),
            FileNotFoundError,
            "vae is missing: the pipeline is incomplete",
        ),
        (cut, ValueError, "damaged or incomplete"),
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
    copy = tmp_path / "copy"
    shutil.copytree(both[2], copy)
    change(copy)
    with pytest.raises(kind, match=said) as caught:
        AudioLDM2.from_diffusers(copy, "cpu", n_tokens=5)
    assert "\n" not in str(caught.value)


def test_a_pipeline_of_our_own_clap_is_not_written(tiny_pipe, tmp_path):
    said = "the CLAP and the tokenizer of this package have no counterpart"
    with pytest.raises(ValueError, match=said):
        tiny_pipe.to_diffusers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_first_empty_phoneme_becomes_the_sign_of_the_end(both):
    _, ours, _ = both
    if not ours.speaks:
        pytest.skip("no phonemes")
    ids, mask = ours.text.tokenizer.encode(["ab", "a" * 24])
    assert ids[0].tolist() == [1, 2, released.END_OF_SPEECH, *[0] * 21]
    assert ids[1].tolist() == [1] * 24
    assert mask.sum(dim=1).tolist() == [3, 24]


def test_the_tokenizers_pad_refuse_and_cut_as_this_packages_own(both):
    tokenizer = both[1].clap.tokenizer
    (short, long), mask = tokenizer.encode(["a bell", "a dog barks"], pad_to=20)
    assert len(short) == len(long) == 20 and mask[1].sum() > mask[0].sum()
    assert not (short[mask[0]] == 1).any() and (short[~mask[0]] == 1).all()  # <pad>
    assert tokenizer.encode(["a dog barks"], 4, truncate=True)[0].shape == (1, 4)
    for most, said in (
        (4, "tokens, but at most 4 can be read"),
        (0, "must be at least"),
    ):
        with pytest.raises(ValueError, match=said):
            tokenizer.encode(["a dog barks"], most)
    with pytest.raises(TypeError, match="captions must be a list of str"):
        tokenizer.encode("a dog barks")


@torch.no_grad()
def test_the_encoders_have_the_face_of_this_packages_own(both):
    theirs, ours, _ = both
    told = ours.clap.encode(PROMPTS, pad_to=20)
    ids = theirs.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    expected = theirs.text_encoder.get_text_features(**ids).pooler_output
    assert told.mask is None and error(told.sequence[:, 0], expected) < 1e-5
    assert torch.equal(ours.clap.empty(2).sequence, ours.clap.encode([""] * 2).sequence)
    read = ours.text.encode(["hello there", "yes", "so it is"], pad_to=24)
    nothing = ours.text.empty(3, pad_to=24)
    assert read.sequence.shape == nothing.sequence.shape == (3, 24, ours.text.dim)
    assert read.mask.any(dim=1).all() and bool(nothing.mask.any()) != ours.speaks


@pytest.fixture()
def small_runs(monkeypatch):
    """Training in a moment."""
    from minilib.training import RUNS

    tiny = RUNS["tiny"]
    recipes = {k: replace(recipe, batch_size=2) for k, recipe in tiny.recipes.items()}
    monkeypatch.setitem(RUNS, "tiny", replace(tiny, n_clips=8, recipes=recipes))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.delenv("MINILIB_REALAUDIO", raising=False)


def test_a_released_pipeline_trains_further_and_sounds_the_same_in_diffusers(
    tmp_path, small_runs
):
    from diffusers import AudioLDM2Pipeline

    from minilib import cli
    from minilib.training import train_stages

    peer(tmp_path, "trainable").save_pretrained(tmp_path / "peer")
    own = tmp_path / "own"
    cli.main(["convert", str(tmp_path / "peer"), str(own)])
    train = partial(train_stages, out=own, progress=False)
    said = "on which adversarial, audiomae, joint and judge can train; clap would"
    with pytest.raises(ValueError, match=said):
        train(["audiomae", "clap"], steps=1)
    pipes = [AudioLDM2.from_pretrained(own, device="cpu")]
    for stages, steps in ((["audiomae", "joint"], 2), ("adversarial", 1)):
        train(stages, steps=steps)
        pipes.append(AudioLDM2.from_pretrained(own, device="cpu"))
    before, joint, sharpened = map(bits, pipes)
    moved = lambda a, b: {k.split(".")[0] for k in a if not torch.equal(a[k], b[k])}
    assert moved(before, joint) == {"gpt", "unet"}
    assert "vocoder" in moved(joint, sharpened)
    cli.main(["convert", str(own), str(tmp_path / "back")])
    theirs = AudioLDM2Pipeline.from_pretrained(
        tmp_path / "back", torch_dtype=torch.float32
    )
    theirs.set_progress_bar_config(disable=True)
    ours = pipes[-1]
    latents = noise(ours, 1)
    made = ours(PROMPTS[0], steps=3, seconds=SECONDS, latents=latents, progress=False)
    waves = theirs(
        PROMPTS[0], audio_length_in_s=SECONDS, num_inference_steps=3, latents=latents,
        output_type="pt",
    ).audios  # fmt: skip
    assert error(made, waves) < 1e-3 and waves.std() > 1e-3


def test_a_clap_in_double_precision_is_cast(both, tmp_path):
    theirs, ours, folder = both
    if ours.speaks:
        pytest.skip("the same CLAP")
    double = type(theirs.text_encoder).from_pretrained(
        folder / "text_encoder", dtype=torch.float64
    )
    double.save_pretrained(tmp_path)
    for dtype in (torch.float32, None):
        again = released.ReleasedCLAP.from_pretrained(
            tmp_path, folder / "feature_extractor", dtype
        )
        again.tokenizer = ours.clap.tokenizer
        assert {p.dtype for p in again.parameters()} == {torch.float32}
        told = again.encode(PROMPTS).sequence, ours.clap.encode(PROMPTS).sequence
        assert error(*told) < 1e-5


def test_half_precision_runs_from_caption_to_wave(both):
    _, ours, folder = both
    half = AudioLDM2.from_diffusers(
        folder, "cpu", torch.bfloat16, n_tokens=ours.gpt.config.n_tokens
    )
    asked = {"steps": 2, "seed": 0, "progress": False, **words_of(ours)}
    wave, full = half(PROMPTS[0], **asked), ours(PROMPTS[0], **asked)
    assert wave.dtype == torch.float32 and wave.isfinite().all()
    assert float((wave - full).norm() / full.norm()) < 0.3


def other_field(path, *keys):
    """What writes a field that nobody knows into a file of a folder."""

    def change(folder):
        values = inner = json.loads((folder / path).read_text())
        for key in keys:
            inner = inner[key]
        inner["something_new"] = 1
        (folder / path).write_text(json.dumps(values))

    return change


NAMED = [
    ("model_index.json", []), ("text_encoder/config.json", []),
    ("text_encoder/config.json", ["text_config"]),
    ("text_encoder/config.json", ["audio_config"]),
    ("text_encoder_2/config.json", []), ("vocoder/config.json", []),
    ("feature_extractor/preprocessor_config.json", []),
    ("tokenizer/tokenizer_config.json", []), ("scheduler/scheduler_config.json", []),
    ("tokenizer_2/tokenizer_config.json", []),
]  # fmt: skip


@pytest.mark.parametrize("both", ["base", "speech"], indirect=True)
def test_no_field_of_a_released_folder_is_passed_over(both, tmp_path):
    _, ours, folder = both
    for i, (path, keys) in enumerate(NAMED):
        if ours.speaks and "_2" not in path:
            continue  # it is the same class
        copy = tmp_path / str(i)
        shutil.copytree(folder, copy)
        other_field(path, *keys)(copy)
        with pytest.raises(ValueError, match=f"{path}: .*the field 'something_new'"):
            AudioLDM2.from_diffusers(copy, "cpu", n_tokens=5)


# What transformers 4 wrote into each half of CLAP's config.
BEFORE_5 = (
    "return_dict output_hidden_states output_attentions torchscript torch_dtype "
    "use_bfloat16 tf_legacy_loss pruned_heads tie_word_embeddings is_encoder_decoder "
    "is_decoder cross_attention_hidden_size add_cross_attention tie_encoder_decoder "
    "max_length min_length do_sample early_stopping num_beams num_beam_groups "
    "diversity_penalty temperature top_k top_p typical_p repetition_penalty "
    "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences chunk_size_feed_forward output_scores architectures "
    "return_dict_in_generate forced_bos_token_id forced_eos_token_id prefix "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens finetuning_task id2label label2id tokenizer_class "
    "sep_token_id decoder_start_token_id task_specific_params problem_type "
    "_name_or_path transformers_version use_cache"
).split()


@pytest.mark.parametrize("both", ["base"], indirect=True)
def test_what_older_versions_of_transformers_wrote_is_known(both, tmp_path):
    path = tmp_path / "config.json"
    config = json.loads((both[2] / "text_encoder" / "config.json").read_text())
    config["text_config"] |= {"position_embedding_type": "absolute"}
    config["text_config"] |= {"classifier_dropout": None}
    older = dict.fromkeys(BEFORE_5)
    for part in ("text_config", "audio_config"):
        config[part] = {**older, "projection_hidden_size": 768, **config[part]}
    path.write_text(json.dumps({"fusion_hidden_size": 768, **config}))
    configs.check_clap(path)
    config["text_config"]["position_embedding_type"] = "relative_key"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="position_embedding_type must be 'absolute'"):
        configs.check_clap(path)


@pytest.mark.parametrize("n", [1, 515, 16000, 16001])
def test_sounds_are_resampled_as_by_librosa(n):
    waves = torch.randn(3, n, generator=torch.Generator().manual_seed(0)).numpy()
    for rate in (48000, 44100):
        theirs = librosa.resample(waves, orig_sr=16000, target_sr=rate)
        assert (released.resampled(waves, rate) == theirs).all()


@pytest.mark.parametrize("both", ["base"], indirect=True)
@torch.no_grad()
def test_listening_needs_no_librosa_and_so_no_compiler(both, monkeypatch):
    clap = both[1].clap
    waves = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    expected = clap.embed_waves(waves)
    for name in ("librosa", "numba"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error
    assert torch.equal(clap.embed_waves(waves), expected)


@pytest.mark.parametrize("both", ["base"], indirect=True)
def test_a_variant_of_a_whole_pipeline_is_read(both, tmp_path):
    theirs, ours, _ = both
    theirs.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    files = [path.name for path in tmp_path.rglob("*.safetensors")]
    assert files and all("fp16" in name for name in files)
    assert same(ours, AudioLDM2.from_diffusers(tmp_path, "cpu"))


def test_a_hub_id_without_a_network_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError,
        match="cvssp/audioldm2 is neither a local folder nor available",
    ):
        AudioLDM2.from_diffusers("cvssp/audioldm2")
