"""Language models of codes: what is written when, who reads whom, and what it costs in
passes, attention and nats.
"""

from dataclasses import replace

import pytest
import torch

from minilib import transformer
from minilib.codec_lm import (
    NAR,
    ONE_NETWORK,
    PATTERNS,
    VALLE,
    CodecLM,
    CodecLMConfig,
    MultiScaleConfig,
    MultiScaleLM,
    NARConfig,
    PatternLM,
    VALLEConfig,
    draw,
    work,
    written,
)
from minilib.conditions import Conditions, Context, to_batch
from minilib.soundworld.tokens import TokenProcess
from minilib.training import Recipe, fit

B, M, Q, K = 2, 5, 3, 6
SIZES = {
    "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "n_codes": K,
    "n_signs": 2, "conditions": ("text",), "condition_dims": (4,),
}  # fmt: skip
ALONE = {**SIZES, "conditions": (), "condition_dims": ()}
MODELS = [*PATTERNS, "textbook"]  # "ar_nar" with latents, "textbook" without
every_model = pytest.mark.parametrize("name", MODELS)


def small(name: str, sizes: dict = ALONE, n_q: int = Q) -> CodecLM:
    """A model with weights so large that everything read shows in the output."""
    torch.manual_seed(0)
    if name == "multi_scale":
        model = MultiScaleLM(MultiScaleConfig(n_q=n_q, n_local=2, **sizes))
    elif name in ("ar_nar", "textbook"):
        latents = name == "ar_nar"
        nar = NARConfig(n_q=n_q, latents=latents, code_dim=5, **sizes)
        model = VALLE(VALLEConfig(CodecLMConfig(n_q=1, **sizes), nar))
        if latents:
            model.nar.take(randn(n_q, sizes["n_codes"], 5))
    else:
        model = PatternLM(CodecLMConfig(n_q=n_q, pattern=name, **sizes))
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_codes(*shape: int, n: int = K, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(n, shape or (B, M, Q), generator=generator)


def seeds(*given: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in given or range(B)]


def some_conditions(prompted: bool = True) -> Conditions:
    text = Context(randn(B, 4, 4), torch.arange(4) < torch.tensor([[4], [2]]))
    prompt = Context(
        some_codes(B, 3, Q, n=K + 2, seed=5), torch.arange(3) < torch.tensor([[2], [3]])
    )
    return {"text": text, "prompt": prompt} if prompted else {"text": text}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---- Patterns


def test_patterns_say_in_which_pass_each_code_is_written():
    tables = {name: written(name, 3, 2).tolist() for name in PATTERNS}
    assert tables == {
        "flat": [[0, 1], [2, 3], [4, 5]],
        "delay": [[0, 1], [1, 2], [2, 3]],
        "parallel": [[0, 0], [1, 1], [2, 2]],
        "ar_nar": [[0, 3], [1, 3], [2, 3]],
        "multi_scale": [[0, 1], [2, 3], [4, 5]],
    }


@pytest.mark.parametrize(("m", "q"), [(1, 1), (1, 4), (5, 3), (750, 8)])
def test_passes_and_attention_are_the_formulas_of_the_chapter(m, q):
    passes = {name: [w.passes for w in work(name, m, q)] for name in PATTERNS}
    assert passes == {
        "flat": [q * m],
        "delay": [m + q - 1],
        "parallel": [m],
        "ar_nar": [m, q - 1],
        "multi_scale": [m, q * m],
    }
    attention = {name: sum(w.attention for w in work(name, m, q)) for name in PATTERNS}
    assert attention == {
        "flat": (q * m) ** 2,
        "delay": (m + q - 1) ** 2,
        "parallel": m**2,
        "ar_nar": q * m**2,
        "multi_scale": m**2 + m * q**2,
    }


@torch.no_grad()
@pytest.mark.parametrize("name", PATTERNS)
def test_work_is_what_the_networks_do(name, monkeypatch):
    """Calls of a network's first block, and scores of its attention."""
    model, layers = small(name), SIZES["n_layer"]
    if name == "ar_nar":
        networks = [model.ar.gpt2.h[0], model.nar.h[0]]
    else:
        parts = ("gpt2", "local") if name == "multi_scale" else ("gpt2",)
        networks = [getattr(model, part).h[0] for part in parts]
    calls = [0] * len(networks)
    for i, block in enumerate(networks):

        def count(*_, i=i):
            calls[i] += 1

        block.register_forward_hook(count)
    model.generate(M, seeds())
    assert calls == [w.passes for w in work(name, M, Q)]

    scores, attention = [], transformer.attention

    def counted(q, k, v, *rest):
        scores.append(len(q) * q.shape[1] * k.shape[1])
        return attention(q, k, v, *rest)

    monkeypatch.setattr(transformer, "attention", counted)
    model.log_prob(some_codes(), {})
    assert sum(scores) == B * layers * sum(w.attention for w in work(name, M, Q))


@torch.no_grad()
@every_model
def test_a_code_depends_on_those_of_earlier_passes_and_on_no_others(name):
    model, codes = small(name), some_codes(1, M, Q)
    table = written("ar_nar" if name == "textbook" else name, M, Q)
    before = model.log_prob(codes, {})
    for m in range(M):
        for q in range(Q):
            other = codes.clone()
            other[0, m, q] = (other[0, m, q] + 1) % K
            moved = (model.log_prob(other, {}) - before)[0].abs() > 1e-5
            moved[m, q] = False  # this is another code of the same distribution
            assert torch.equal(moved, table > table[m, q]), (m, q)


@torch.no_grad()
@every_model
def test_probabilities_of_all_codes_of_a_place_add_up_to_one(name):
    model, codes = small(name), some_codes(1, M, Q)
    for m, q in ((0, 0), (2, 1), (4, 2)):
        each = codes.repeat(K, 1, 1)
        each[:, m, q] = torch.arange(K)
        assert float(model.log_prob(each, {})[:, m, q].exp().sum()) == pytest.approx(
            1.0, abs=1e-5
        )


# ---- Prefix


@torch.no_grad()
@every_model
def test_conditions_and_prompt_are_read_and_their_padding_is_not(name):
    model, codes, conditions = small(name, SIZES), some_codes(), some_conditions()
    wanted = model.log_prob(codes, conditions)
    for key in conditions:
        other = dict(conditions)
        x, mask = other[key]
        far = x + 7.0 if key == "text" else (x + 1) % K
        other[key] = Context(torch.where(mask[..., None], x, far), mask)
        close(model.log_prob(codes, other), wanted)  # padding
        other[key] = Context(torch.where(mask[..., None], far, x), mask)
        assert ((model.log_prob(codes, other) - wanted).abs() > 1e-3).any(dim=2).all()


@torch.no_grad()
@every_model
def test_an_item_is_the_same_alone_and_in_a_batch(name):
    model, codes, conditions = small(name, SIZES), some_codes(), some_conditions()
    together = model.log_prob(codes, conditions)
    drawn = model.generate(M, seeds(), conditions, 0.9, 4)
    for b in range(B):
        own = {  # without the padding
            key: Context(x[b : b + 1, mask[b]]) for key, (x, mask) in conditions.items()
        }
        close(model.log_prob(codes[b : b + 1], own)[0], together[b])
        assert torch.equal(model.generate(M, seeds(b), own, 0.9, 4)[0], drawn[b])


@torch.no_grad()
@every_model
def test_a_dropped_prompt_is_no_prompt(name):
    model, codes = small(name, SIZES), some_codes()
    prompt = some_conditions()["prompt"]
    dropped = Context(prompt.sequence, torch.zeros_like(prompt.mask))
    none = some_conditions(prompted=False)
    close(
        model.log_prob(codes, {**none, "prompt": dropped}), model.log_prob(codes, none)
    )
    alone = small(name)  # nor does an empty prefix stop the network
    close(alone.log_prob(codes, {"prompt": dropped}), alone.log_prob(codes, {}))


@torch.no_grad()
@pytest.mark.parametrize("name", [*ONE_NETWORK, "multi_scale"])
def test_the_prefix_reads_itself_whole(name):
    """Also forwards: the first code's probabilities are those of a prompt of which each
    frame reads each, and not those of one that is read from left to right.
    """
    model, codes = small(name), some_codes(1, M, Q)
    prompt = {"prompt": Context(some_codes(1, 3, Q, seed=5))}
    x, _ = model.prefix(prompt, model.embedding, model.begin[None, None])
    assert x.shape == (1, 4, 16)
    first = model.log_prob(codes, prompt)[:, 0, 0]
    for who, same in ((transformer.prefix_mask(4, 4), True), (None, False)):
        hidden = model.gpt2(x, pattern=who)[:, -1:]
        if name == "multi_scale":
            logits = model.local(model.local_begin + hidden)[:, 0] @ model.heads[0]
        else:
            logits = model.head(hidden)[:, 0, 0]
        mine = logits.log_softmax(dim=1)[:, codes[0, 0, 0]]
        assert ((mine - first).abs().max() < 1e-4) == same


# ---- Writing


@torch.no_grad()
@every_model
@pytest.mark.parametrize("prompted", [True, False])
def test_greedy_codes_are_the_most_probable_given_what_is_written(name, prompted):
    """Step by step with a cache, or all at once from the truth: the same."""
    model, conditions = small(name, SIZES), some_conditions(prompted)
    codes = model.generate(M, seeds(), conditions, temperature=0)
    chosen = model.log_prob(codes, conditions)
    for m in range(M):
        for q in range(Q):
            for k in range(K):
                other = codes.clone()
                other[:, m, q] = k
                beside = model.log_prob(other, conditions)[:, m, q]
                assert (beside <= chosen[:, m, q] + 1e-5).all()


def test_draws_have_the_shares_of_the_logits_at_any_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, None), (1.0, 2)):
        generator, n = seeds(0), 4000
        drawn = torch.cat(
            [draw(logits, generator, temperature, top_k) for _ in range(n)]
        )
        wanted = (logits[0] / temperature).softmax(dim=0)
        if top_k:
            wanted = wanted * (torch.arange(4) < top_k) / wanted[:top_k].sum()
        share = torch.bincount(drawn, minlength=4) / n
        error = (wanted * (1 - wanted) / n).sqrt()
        assert ((share - wanted).abs() <= 4 * error + 1e-9).all()
    assert draw(logits, seeds(0), temperature=0).tolist() == [0]
    assert draw(logits, seeds(0), top_k=1).tolist() == [0]
    assert draw(torch.stack([logits] * 3, dim=1), seeds(0)).shape == (1, 3)


@torch.no_grad()
@every_model
def test_what_is_drawn_is_distributed_as_the_likelihood_says(name):
    """One frame of two codes: all pairs, by their probability."""
    sizes = {**ALONE, "n_codes": 3, "n_layer": 1}
    model, n = small(name, sizes, n_q=2), 3000
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))[:, None]
    wanted = model.log_prob(pairs, {}).sum(dim=(1, 2)).exp()
    assert float(wanted.sum()) == pytest.approx(1.0, abs=1e-5)
    drawn = model.generate(1, seeds(*range(n)))[:, 0]
    if name in ("ar_nar", "textbook"):  # its second codebook is not drawn
        first = model.ar.log_prob(torch.arange(3)[:, None, None], {})[:, 0, 0].exp()
        share, wanted = torch.bincount(drawn[:, 0], minlength=3) / n, first
    else:
        share = torch.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9) / n
    error = (wanted * (1 - wanted) / n).sqrt()
    assert ((share - wanted).abs() < 4.5 * error).all()


# ---- The NAR model


@torch.no_grad()
def test_latent_logits_are_minus_the_scaled_distance_to_the_codebook():
    nar, codes, stage = small("ar_nar").nar, some_codes(), torch.tensor([1, 2])
    missing = randn(B, M, 5, seed=3)
    books = nar.embedding.codebooks[stage]
    books = books / books.square().mean(dim=(1, 2), keepdim=True).sqrt()
    distance = torch.cdist(missing, books).square()
    scale = nar.log_scale[stage].exp()[:, None, None]
    close(
        nar.nearness(missing, stage).softmax(dim=2), (-scale * distance).softmax(dim=2)
    )
    # a vector that is just what is missing is the most probable
    there = books.gather(1, codes[:, :, 0, None].expand(-1, -1, 5))
    assert torch.equal(nar.nearness(there, stage).argmax(dim=2), codes[:, :, 0])


@torch.no_grad()
def test_with_latents_codes_of_equal_sums_are_read_alike_and_else_are_not():
    codes, stage = some_codes(1, M, Q), torch.tensor([2])
    turned = torch.cat([codes[..., [1, 0]], codes[..., 2:]], dim=2)
    for name, alike in (("ar_nar", True), ("textbook", False)):
        nar = small(name).nar
        if alike:  # one codebook twice: the order of two codes is not in their sum
            nar.take(nar.embedding.codebooks[:1].expand(Q, -1, -1))
        difference = nar.at(stage, codes, {}) - nar.at(stage, turned, {})
        assert (difference.abs().max() < 1e-4) == alike


@torch.no_grad()
@pytest.mark.parametrize("name", ["ar_nar", "textbook"])
def test_each_stage_is_told_which_it_is(name):
    model, codes = small(name).nar, some_codes(1, M, 1).expand(1, M, Q).clone()
    norms = [m for m in model.modules() if type(m).__name__ == "StageNorm"]
    assert len(norms) == 2 * SIZES["n_layer"] + 1
    hidden = []
    model.out.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    codes[..., 1] = -1  # for both stages only the first codebook is known
    for q in (1, 2):
        model.at(torch.tensor([q]), codes, {})
    assert (hidden[0] - hidden[1]).abs().max() > 0.1
    for norm in norms:
        norm.scale_and_shift.weight.zero_()
    for q in (1, 2):
        model.at(torch.tensor([q]), codes, {})
    close(hidden[2], hidden[3])


@torch.no_grad()
def test_losses_are_mean_nats_a_code():
    batch = {"codes": some_codes(), **to_batch(some_conditions())}
    for name in MODELS:
        model = small(name, SIZES)
        nats = -model.log_prob(batch["codes"], some_conditions())
        if name not in ("ar_nar", "textbook"):
            close(model.loss(batch), nats.mean())
            continue
        losses = model.loss(batch)
        close(losses["ar"], nats[..., :1].mean())
        close(losses["nar"], nats[..., 1:].mean())
        close(losses["loss"], losses["ar"] + losses["nar"])
        stage = torch.tensor([2, 1])
        picked = nats[torch.arange(B), :, stage].mean()
        close(model.loss({**batch, "stage": stage})["nar"], picked)


@every_model
def test_every_weight_learns_but_the_tables_that_nobody_reads(name):
    model = small(name, SIZES)
    batch = {"codes": some_codes(), **to_batch(some_conditions())}
    loss = model.loss(batch)
    (loss["loss"] if isinstance(loss, dict) else loss).backward()
    for key, parameter in model.named_parameters():
        assert ("wte" in key) == (not parameter.requires_grad)
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), key


# ---- What heads in parallel lose


def test_parallel_heads_learn_to_lose_the_total_correlation_and_others_do_not():
    """On a process whose floor is known exactly."""
    process = TokenProcess.draw(0, n_states=4, n_q=3, n_codes=4)
    floor, lost = process.exact(8)
    assert lost > 0.5
    heard = process.sample(1000, 8, torch.Generator().manual_seed(1))
    least = -float(process.log_prob(heard)[0].mean())  # of this sample
    assert least == pytest.approx(floor, abs=0.05)
    sizes = {**ALONE, "n_embd": 32, "n_layer": 1, "n_codes": 4, "n_signs": 0}
    above = {}
    for name in ("parallel", "flat", "multi_scale"):
        model = small(name, sizes)
        recipe = Recipe(steps=150, batch_size=32, lr=5e-3, warmup=10)
        batches = lambda generator: {"codes": process.sample(32, 8, generator)}
        fit(model, batches, recipe, progress=False)
        with torch.no_grad():
            nats = -float(model.log_prob(heard, {}).sum(dim=2).mean())
        above[name] = nats - least
    assert above["parallel"] == pytest.approx(lost, abs=0.08)
    assert 0 < above["flat"] < 0.15 and 0 < above["multi_scale"] < 0.15


# ---- Files and bad input


@pytest.mark.parametrize("name", ["delay", "multi_scale", "ar_nar", "textbook"])
def test_models_come_back_from_a_folder_as_they_were(name, tmp_path):
    model = small(name, SIZES)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config == model.config
    with torch.no_grad():
        first, second = (
            x.log_prob(some_codes(), some_conditions()) for x in (model, again)
        )
    assert torch.equal(first, second)


def test_presets_fit_a_small_machine_and_the_papers():
    for kind in (PatternLM, NAR, VALLE, MultiScaleLM):
        assert set(kind.presets) == {"tiny", "colab", "full"}
        assert kind.preset("tiny").n_parameters() < 2e6
    full = VALLE.presets["full"]
    assert (full.ar.n_layer, full.ar.n_embd, full.ar.n_head) == (12, 1024, 16)
    assert (full.ar.n_q, full.nar.n_q, full.nar.n_codes) == (1, 8, 1024)


def bad(message: str, kind: type[Exception] = ValueError):
    return pytest.raises(kind, match=f"^{message}$")


@every_model
def test_codes_and_prompts_that_do_not_fit_are_refused_in_one_sentence(name):
    model, codes = small(name), some_codes()
    for wrong, said in (
        (some_codes(B, M, Q + 1), "must have 3 codebooks, as in training, not 4"),
        (some_codes(B, 0, Q), "is empty: it must have at least one frame"),
        (codes - 9, r"must lie between 0 and {}, not be -9"),
        (codes + 9, r"must lie between 0 and {}, not be 14"),
        (
            codes.float(),
            r"must be whole numbers of shape \(B, M, 3\), not torch.float32 of shape "
            r"\(2, 5, 3\)",
        ),
        (
            codes[0],
            r"must be whole numbers of shape \(B, M, 3\), not torch.int64 of shape "
            r"\(5, 3\)",
        ),
    ):
        with bad("codes " + said.format(5)):
            model.log_prob(wrong, {})
        with bad("prompt " + said.format(7)):
            model.generate(2, seeds(), {"prompt": Context(wrong)})


@every_model
def test_conditions_that_do_not_fit_are_refused_in_one_sentence(name):
    model, codes, given = small(name, SIZES), some_codes(), some_conditions()
    text, prompt = given["text"], given["prompt"]
    for wrong, said in (
        ({}, "conditions must be text, and a prompt, if any, not none"),
        ({**given, "clap": text}, ".* not text, prompt, clap"),
        ({"text": Context(randn(B, 4, 3))}, r".* shape \(2, S, 4\), not \(2, 4, 3\)"),
        ({"text": Context(randn(3, 4, 4))}, "condition text must have 2 items, not 3"),
        (
            {"text": text, "prompt": Context(prompt.sequence, prompt.mask[:, :2])},
            r"the mask of condition prompt must be \(2, 3\), not \(2, 2\)",
        ),
    ):
        with bad(said):
            model.log_prob(codes, wrong)
        with bad(said):
            model.generate(2, seeds(), wrong)


@every_model
def test_impossible_drawing_is_refused_before_it_starts(name):
    model = small(name)
    with bad("n_frames must be a whole number, 1 or more, not 0"):
        model.generate(0, seeds())
    with bad("temperature must be a finite number and be 0 or more, not -1"):
        model.generate(2, seeds(), temperature=-1)
    with bad("top_k must be a whole number, 1 or more, not 0"):
        model.generate(2, seeds(), top_k=0)
    for wrong in (torch.Generator(), [], [0, 1]):
        said = "generators must be a list with one torch.Generator an item"
        with bad(said, TypeError):
            model.generate(2, wrong)
    with bad("prefix and codes must take at most 40 positions, not [0-9]+"):
        model.generate(41, seeds())


def test_the_nar_model_fills_only_a_first_codebook_that_is_one():
    nar = small("textbook").nar
    assert nar.fill(some_codes(B, M, 1), {}).shape == (B, M, Q)
    with bad("first must have 1 codebook, as in training, not 3"):
        nar.fill(some_codes(), {})
    with bad("first must lie between 0 and 5, not be 6"):
        nar.fill(torch.full((B, M, 1), 6), {})


def test_models_that_cannot_be_are_refused_in_one_sentence():
    with bad("pattern must be one of flat, delay, parallel, not 'ar_nar'"):
        PatternLM(CodecLMConfig(pattern="ar_nar", **SIZES))
    with bad("pattern must be one of flat, .*, multi_scale, not 'coarse'"):
        written("coarse", 2, 2)
    with bad("the AR model must have n_q 1, not 8"):
        VALLE(VALLEConfig(CodecLMConfig(**SIZES), NARConfig(**SIZES)))
    ar = CodecLMConfig(n_q=1, **SIZES)
    with bad("the AR and the NAR model must have the same codec, not  and 1234abcd"):
        VALLE(VALLEConfig(ar, NARConfig(codec="1234abcd", **SIZES)))
    nar = NAR(replace(NARConfig(n_q=Q, code_dim=5), **ALONE))
    with bad("the NAR model has no codebooks yet: take a codec's first"):
        nar.log_prob(some_codes(), {})
    with bad(r"codebooks must have shape \(3, 6, 5\), not \(4, 6, 5\)"):
        nar.take(randn(4, 6, 5))
