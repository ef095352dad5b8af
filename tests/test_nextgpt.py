"""NExT-GPT in small: its words, its stages, what passes between parts, its folder."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minilib import peers
from minilib.folders import load_part
from minilib.peers import nextgpt
from minilib.peers.nextgpt import (
    BOT,
    END,
    MODES,
    REQUESTS,
    SENSED,
    STAGES,
    TASKS,
    USER,
    Decoders,
    Dialogues,
    Imagined,
    NextGPT,
    NextGPTConfig,
    Pictures,
    draw_pictures,
    known_words,
    perceive,
    told,
)
from minilib.soundworld import SoundWorld
from minilib.training import fit
from minilib.transformer import GPT2, TransformerConfig

WEIGHTS = Path(__file__).parents[1] / "data/weights"
TINY = WEIGHTS / "tiny"


def small(**changes):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "width": 16, **changes}
    return NextGPT(NextGPTConfig(known_words(), **sizes))


@pytest.fixture(scope="module")
def decoders():
    bind = load_part(WEIGHTS / "picture", "bind", torch.float32)
    return Decoders(bind, load_part(TINY, "text", torch.float32))


@pytest.fixture(scope="module")
def senses(decoders):
    return perceive(decoders.bind, 16, 0)


def drawn(model, decoders, senses, stage, n=18):
    batches = Dialogues(model, decoders, stage, senses, n)
    return batches(torch.Generator().manual_seed(1))


def test_every_caption_request_and_answer_can_be_read_and_written():
    model, world = small(), SoundWorld("test", 3, pairs=0.0)
    for i in range(60):
        words = world.caption(i).replace(",", "")
        assert model.write(model.read(words)) == words
        event = world.scene(i).events[0]
        assert model.write(model.read(told(event))) == told(event)
    for wordings in REQUESTS.values():
        assert all(model.write(model.read(x)) == x for x in wordings)


def test_a_word_that_it_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"must hold words of SoundWorld, not 'zebra'"):
        small().prompt("draw this", "a zebra barks")


def test_what_is_sensed_stands_where_the_ids_say_so_and_nowhere_else():
    model = small()
    heard = model.prompt("play this")
    assert heard[0] == USER and heard[-1] == BOT
    assert heard.count(SENSED) == model.config.n_sensed
    written = model.prompt("play this", "a dog barks twice")
    ids, _ = nextgpt.padded([written, heard])
    sensed = torch.randn(2, model.config.sensed)
    x = model.embedded(ids, sensed)
    here = ids == SENSED
    projected = model.project_in(sensed[1:]).view(-1, 32)
    assert torch.allclose(x[here], projected, atol=1e-6)
    assert torch.equal(x[~here], model.words[ids[~here]])


def test_lora_is_silent_before_the_last_stage():
    model = small()
    plain = GPT2(TransformerConfig(32, 1, 2, 64, vocab_size=1))
    state = {
        k: x for k, x in model.llm.state_dict().items() if k[-2:] not in (".A", ".B")
    }
    plain.load_state_dict(state)
    x = torch.randn(2, 7, 32)
    assert torch.equal(model.llm(x), plain(x))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_changes_its_own_parameters_and_no_others(stage, decoders, senses):
    model = small()
    torch.nn.init.normal_(model.llm.h[0].attn.c_attn.B)  # so that A has a gradient
    before = copy.deepcopy(model.state_dict())
    recipe = replace(nextgpt.RECIPES[stage], steps=1, batch_size=9, weight_decay=0.0)
    batches = Dialogues(model, decoders, stage, senses, batch_size=9)
    fit(model.learn(stage), batches, recipe, progress=False)
    changed = {
        k for k, x in model.state_dict().items() if not torch.equal(x, before[k])
    }
    lora = {k for k in before if k.endswith((".A", ".B"))}
    own = {k for k in before if k.startswith(STAGES[stage]) and k not in lora}
    own |= lora if stage == "instructions" else set()
    assert changed and changed <= own - {"llm.wte.weight"}
    assert any(k.startswith(STAGES[stage][0]) for k in changed)


def test_an_unknown_stage_gets_one_sentence():
    with pytest.raises(ValueError, match="stage must be one of language, .*'lora'"):
        small().learn("lora")


def test_only_answers_are_predicted(decoders, senses):
    model = small()
    batch = drawn(model, decoders, senses, "instructions")
    for k, (ids, answer) in enumerate(zip(batch["ids"], batch["answer"])):
        given, out = TASKS["instructions"][k % 9]
        start = ids.tolist().index(BOT) + 1
        assert not answer[:start].any() and ids[answer][-1] == END
        assert (ids == SENSED).any() == (given != "text")
        signals = [i for i in ids[answer].tolist() if i >= len(model.tokens)]
        wanted = [] if out == "text" else [*model.places[out]]
        assert signals == wanted and batch["mode"][k] == MODES.index(out)
        assert (batch["sensed"][k] == 0).all() == (given == "text")


def test_a_batch_of_sounds_and_pictures_never_holds_their_caption(decoders, senses):
    model = small()
    batch = drawn(model, decoders, senses, "input")
    for ids, answer in zip(batch["ids"], batch["answer"]):
        prompt = ids[: int(answer.nonzero()[0])].tolist()
        written = model.write(prompt)
        assert any(written == x for some in REQUESTS.values() for x in some)


def test_the_alignment_loss_leaves_the_text_loss_as_it_is(decoders, senses):
    model = small().learn("output")
    batch = drawn(model, decoders, senses, "output")
    words = {k: x for k, x in batch.items() if k not in ("image", "audio")}
    with_, without = model.loss(batch), model.loss(words)
    assert {"text", "image", "audio"} < set(with_) and set(without) == {"loss", "text"}
    assert torch.equal(with_["text"], without["text"])
    with_["audio"].backward()
    assert model.signals.grad[2:].abs().sum() > 0
    assert model.project_out["audio"].out.weight.grad.abs().sum() > 0
    assert model.words.grad is None and model.llm.ln_f.weight.grad is None


def test_the_alignment_loss_is_0_at_the_target_and_1_at_zero(decoders, senses):
    model = small().learn("output")
    batch = drawn(model, decoders, senses, "output")
    for k, mode in enumerate(MODES[1:], 1):
        target = batch[mode][batch["mode"] == k]
        for made, expected in ((target, 0.0), (torch.zeros_like(target), 1.0)):
            model.condition = lambda at, *_, made=made, mode=mode: (
                made if at == mode else torch.zeros(len(made), *batch[at].shape[1:])
            )
            assert float(model.loss(batch)[mode]) == pytest.approx(expected)


def scripted(model, script):
    """A model that answers with these ids, whatever it is asked."""
    forward = model.forward

    def other(ids, sensed):
        logits, hidden, x = forward(ids, sensed)
        logits = torch.zeros_like(logits)
        for row, at in enumerate((ids == BOT).nonzero()[:, 1].tolist()):
            for k, token in enumerate(script[: ids.shape[1] - at]):
                logits[row, at + k, token] = 1.0
        return logits, hidden, x

    model.forward = other
    return model.eval()


def test_a_condition_needs_all_signals_in_order():
    model = small()
    a, b = model.places["image"]
    word = model.tokens["dog"]
    for script, kinds in (
        ([word, a, b, END], {"image"}),
        ([word, a, END], set()),
        ([word, b, a, END], set()),
        ([*model.places["audio"], a, b, END], {"audio", "image"}),
    ):
        fresh = scripted(copy.deepcopy(model), script)
        (ids,), (made,) = fresh.answer([fresh.prompt("draw this")], torch.zeros(1, 128))
        assert set(made) == kinds and ids == script[:-1]
        assert all(x.shape[1] == 128 for x in made.values())


def test_an_answer_is_that_of_a_prompt_alone_whatever_stands_beside_it():
    model = small().eval()
    one, two = model.prompt("play this", "a dog barks"), model.prompt("draw this")
    sensed = torch.randn(2, 128)
    (first, _), _ = model.answer([one, two], sensed)
    (alone,), _ = model.answer([one], sensed[:1])
    assert first == alone


def test_states_of_almost_nothing_are_not_read(decoders):
    states = decoders.audio(["a dog barks", "a cow moos three times"])
    _, mask = Decoders.read(states + 0.01 * torch.randn(states.shape))
    there = decoders.text.encode(["a dog barks", "a cow moos three times"]).mask
    assert torch.equal(mask, there[:, :8]) and mask[0].sum() < mask[1].sum()
    assert Decoders.read(torch.zeros(1, 8, 128)).mask.sum() == 1


def test_every_caption_that_is_told_fits_into_the_states(decoders):
    captions = {told(SoundWorld().scene(i).events[0]) for i in range(400)}
    _, mask = decoders.text.tokenizer.encode(sorted(captions))
    assert mask.sum(dim=1).max() <= NextGPTConfig.audio_states


def test_no_caption_passes_by_the_language_model():
    class Deaf:
        def encode(self, captions):
            assert not any(captions), "the decoder's own encoder was asked"
            return "nothing"

    model = small()
    signals = [*model.places["audio"], END]
    heard = Imagined(scripted(model, signals), Deaf())
    assert heard.encode([""]) == "nothing"
    dog, cow = heard.encode(["a dog barks", "a cow moos"]).sequence
    assert not torch.allclose(dog, cow)
    silent = Imagined(scripted(small(), [END]), Deaf())
    with pytest.raises(ValueError, match="gave no signal to play 'a dog barks'"):
        silent.encode(["a dog barks"])


def test_pictures_are_drawn_from_noise_and_a_condition(decoders):
    torch.manual_seed(0)
    model = nextgpt.TextLDM(replace(nextgpt.ICONS, width=32, n_layer=1)).eval()
    batch = Pictures(decoders, 8)(torch.Generator().manual_seed(0))
    assert batch["z0"].shape[1:] == (3, 16, 16) and batch["z0"].abs().max() <= 1
    assert float(model.loss(batch)) > 0
    made = draw_pictures(model, decoders.image(["a dog barks"]))
    assert made.shape == (1, 3, 32, 32) and 0 <= made.min() <= made.max() <= 1
    assert torch.equal(made, draw_pictures(model, decoders.image(["a dog barks"])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        few = {k: replace(r, batch_size=9) for k, r in nextgpt.RECIPES.items()}
        patch.setattr(nextgpt, "RECIPES", few)
        icons = replace(nextgpt.ICON_RECIPE, batch_size=4)
        patch.setattr(nextgpt, "ICON_RECIPE", icons)
        out = tmp_path_factory.mktemp("peers") / "nextgpt"
        return nextgpt.train(out, steps=1, progress=False, weights=TINY)


def test_the_folder_names_what_it_borrows_and_answers(folder):
    stored = json.loads((folder / "pipeline.json").read_text())
    assert stored["peer"] == "nextgpt" and stored["bind"].endswith("picture/bind")
    pipe = peers.pipeline(folder)
    assert isinstance(pipe, nextgpt.TextToAudio)
    assert pipe.text.tokenizer.pad_to > 0  # the command line asks for it
    answer = pipe.ask("draw this", picture=torch.rand(3, 32, 32))
    assert isinstance(answer.words, str)
    scripted(pipe.model, [*pipe.model.places["audio"], END])
    answer = pipe.ask("play this", text="a dog barks", seed=3)
    assert answer.picture is None and answer.wave.shape == (40_960,)
    wave = pipe("a dog barks", seed=3, progress=False)
    assert wave.shape == (1, 40_960) and np.isfinite(wave.numpy()).all()


def test_exactly_one_thing_is_asked_about(folder):
    pipe = nextgpt.TextToAudio.from_pretrained(folder)
    said = "one of text, picture and wave must be given, not"
    with pytest.raises(ValueError, match=f"{said} 0"):
        pipe.ask("play this")
    with pytest.raises(ValueError, match=f"{said} 2"):
        pipe.ask("play this", text="a dog barks", wave=torch.zeros(40_960))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": ""}, "text is empty"),
        ({"text": 3}, "text must be"),
        ({"request": " ", "text": "a dog barks"}, "request is empty"),
        ({"text": "a unicorn sings"}, "not 'unicorn'"),
        ({"text": "a dog barks", "seed": "x"}, "seed must be a whole number"),
        ({"picture": [None]}, "picture must be a tensor"),
        ({"picture": torch.full((3, 32, 32), torch.nan)}, "picture must hold"),
        ({"wave": torch.zeros(16_000)}, r"wave must have shape \(40960,\), 2.56 s"),
        ({"wave": torch.full((40_960,), torch.nan)}, "wave must hold finite"),
    ],
)
def test_bad_questions_get_one_sentence(folder, given, said):
    pipe = nextgpt.TextToAudio.from_pretrained(folder)
    with pytest.raises((ValueError, TypeError), match=said):
        pipe.ask(**{"request": "play this", **given})


def test_bad_arguments_of_training_get_one_sentence(tmp_path):
    for given, said in (
        ({"steps": 0}, "steps must be a whole number, 1 or more, not 0"),
        ({"seed": -1}, "seed must be a whole number"),
    ):
        with pytest.raises(ValueError, match=said):
            nextgpt.train(tmp_path / "out", progress=False, weights=TINY, **given)
        assert not (tmp_path / "out").exists()


def test_the_weights_that_ship_answer_in_what_is_asked_for(decoders):
    folder = WEIGHTS / "peers/nextgpt/nextgpt"
    model = NextGPT.from_pretrained(folder, dtype=torch.float32)
    captions = ["a dog barks twice", "rain falls", "a cow moos three times"]
    for out in MODES:
        prompts = [model.prompt(REQUESTS[out][0], x) for x in captions]
        ids, made = model.answer(prompts, torch.zeros(3, 128))
        ending = nextgpt.ENDINGS[out]
        assert [model.write(x) for x in ids] == [f"{x} {ending}" for x in captions]
        assert all(set(x) == {out} - {"text"} for x in made)
        if out != "text":
            states = torch.stack([x[out] for x in made]).flatten(1)
            own = getattr(decoders, out)(captions).flatten(1)
            assert torch.cdist(states, own).argmin(dim=1).tolist() == [0, 1, 2]
