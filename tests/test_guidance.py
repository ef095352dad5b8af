"""Classifier-free guidance: how to sample, checked at the door; the formula; one
batched call that equals two; the interval of noise levels.
"""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch

from minilib.conditions import Context
from minilib.guidance import MAX_STEPS, Sampling, guide, guided


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- Sampling

CHANGES = {
    "steps": 7,
    "guidance": 2.5,
    "guidance_interval": (100, 900),
    "temperature": 0.5,
    "sampler": "dpm",
    "eta": 0.25,
    "unconditional_loa": "zeros",
}
WHOLE = "steps must be a whole number from 1 to 1000"
FINITE = "guidance must be a finite number and be 0 or more"
SHARE = "must be a finite number and lie between 0 and 1"
LEVELS = "guidance_interval must be two noise levels from 0 to 1000, the lower first"
WORDS = 'unconditional_loa must be "gpt" or "zeros"'
NO_LEVELS = [
    (300, 300), (700, 300), (-1, 300), (0, 1001), (0.0, 300), (300,), (1, 2, 3), 300,
]  # fmt: skip
# field, what is said, of which error, and for which values
REFUSALS = [
    ("steps", WHOLE, ValueError, [0, -3, 1001]),
    ("steps", WHOLE, TypeError, [2.5, 10.0, "10"]),
    ("guidance", FINITE, ValueError, [-0.1, math.inf, -math.inf, math.nan]),
    ("guidance", "guidance must be a number", TypeError, ["3", [3.5]]),
    ("temperature", f"temperature {SHARE}", ValueError, [-0.1, 1.1, math.nan]),
    ("temperature", "temperature must be above 0", ValueError, [0.0]),
    ("temperature", "temperature must be a number", TypeError, ["1"]),
    ("eta", f"eta {SHARE}", ValueError, [-0.1, 1.1, math.nan]),
    ("eta", "eta must be a number", TypeError, ["1"]),
    ("guidance_interval", LEVELS, ValueError, NO_LEVELS),
    ("sampler", 'sampler must be "ddim" or "dpm"', ValueError, ["ddpm", 5]),
    ("unconditional_loa", WORDS, ValueError, ["0"]),
]


def test_sampling_is_what_the_paper_says_unless_weights_bring_their_own():
    assert dataclasses.asdict(Sampling()) == {
        "steps": 25,
        "guidance": 3.5,
        "guidance_interval": (0, 1000),
        "temperature": 1.0,
        "sampler": "ddim",
        "eta": 0.0,
        "unconditional_loa": "gpt",
    }


@pytest.mark.parametrize(("name", "said", "error", "values"), REFUSALS)
def test_each_field_refuses_what_it_cannot_be_in_one_sentence(
    name, said, error, values
):
    for value in values:
        sentence = f"^{re.escape(said)}, not {re.escape(repr(value))}$"
        with pytest.raises(error, match=sentence):
            Sampling(**{name: value})
        with pytest.raises(error, match=sentence):
            Sampling().changed(**{name: value})


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("steps", (1, MAX_STEPS)),
        ("guidance", (0.0, 1e6)),
        ("temperature", (1e-9, 1.0)),
        ("eta", (0.0, 1.0)),
        ("guidance_interval", ((0, 1), (999, 1000))),
    ],
)
def test_the_ends_of_what_a_field_can_be_are_allowed(name, ends):
    for value in ends:
        assert getattr(Sampling(**{name: value}), name) == value


def test_dpm_solver_adds_no_noise():
    assert Sampling(sampler="dpm", eta=0.0).sampler == "dpm"
    assert Sampling(sampler="ddim", eta=0.5).eta == 0.5
    said = '^with the sampler "dpm", which adds no noise, eta must be 0, not 0.5$'
    with pytest.raises(ValueError, match=said):
        Sampling(sampler="dpm", eta=0.5)
    with pytest.raises(ValueError, match=said):
        Sampling(eta=0.5).changed(sampler="dpm")


def test_numbers_of_numpy_and_torch_are_welcome_and_become_plain_ones():
    how = Sampling(
        steps=np.int64(10),
        guidance=np.float32(2.5),
        guidance_interval=[np.int32(100), torch.tensor(900)],
        temperature=torch.tensor(0.5),
        eta=np.float32(0.25),
    )
    wanted = {**CHANGES, "steps": 10, "sampler": "ddim", "unconditional_loa": "gpt"}
    assert dataclasses.asdict(how) == wanted
    as_stored = {**wanted, "guidance_interval": [100, 900]}
    assert json.loads(json.dumps(dataclasses.asdict(how))) == as_stored


def test_a_sampling_is_equal_to_another_of_the_same_fields_and_cannot_be_altered():
    assert Sampling(guidance_interval=[0, 1000]) == Sampling()
    assert hash(Sampling()) == hash(Sampling())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().steps = 5


@pytest.mark.parametrize("name", CHANGES)
def test_changed_replaces_what_is_given_and_keeps_the_rest(name):
    before = Sampling()
    after = before.changed(**{name: CHANGES[name]})
    assert before == Sampling() != after
    wanted = {**dataclasses.asdict(Sampling()), name: CHANGES[name]}
    assert dataclasses.asdict(after) == wanted


def test_changed_keeps_all_where_none_is_given():
    how = Sampling(**{**CHANGES, "eta": 0.0})
    assert how.changed(**dict.fromkeys(CHANGES)) == how.changed() == how


def test_changed_names_a_field_that_is_unknown_even_if_it_is_none():
    said = (
        "^rescale is not a field of sampling, which has steps, guidance, "
        "guidance_interval, temperature, sampler, eta, unconditional_loa$"
    )
    for value in (0.7, None):
        with pytest.raises(TypeError, match=said):
            Sampling().changed(steps=5, rescale=value)


@pytest.mark.parametrize(
    ("level", "wanted"),
    [(1, False), (300, False), (301, True), (700, True), (701, False), (1000, False)],
)
def test_there_is_guidance_above_the_first_level_and_up_to_the_second(level, wanted):
    how = Sampling(guidance_interval=(300, 700))
    assert how.guides(level) is wanted and how.guides(torch.tensor(level)) is wanted
    assert not how.changed(guidance=1).guides(level)
    assert how.changed(guidance=0).guides(level) is wanted


@pytest.mark.parametrize(("low", "high"), [(0, 999), (1, 1000)])
def test_an_interval_that_leaves_out_one_level_leaves_out_that_level(low, high):
    how = Sampling(guidance_interval=(low, high))
    assert [how.guides(t) for t in (1, 2, 999, 1000)] == [
        low == 0,
        True,
        True,
        low == 1,
    ]


def test_where_all_levels_are_guided_none_is_looked_at():
    """Reading a level from a GPU takes time: here it would fail."""
    level = object()  # lies neither above a number nor below one
    assert Sampling().guides(level) and not Sampling(guidance=1).guides(level)
    with pytest.raises(TypeError):
        Sampling(guidance_interval=(0, 999)).guides(level)


# ---- guidance


def test_guide_is_the_unconditional_the_conditional_and_the_line_through_both():
    u, c = randn(2, 3), randn(2, 3, seed=1)
    assert torch.equal(guide(u, c, 0.0), u)
    torch.testing.assert_close(guide(u, c, 1.0), c)
    torch.testing.assert_close(guide(u, c, 3.5), 3.5 * c - 2.5 * u)


def context(B, S, seed=0, read=None):
    mask = None if read is None else torch.arange(S) < torch.tensor(read)[:, None]
    return Context(randn(B, S, 4, seed=seed), mask)


CONDITIONAL = {
    "loa": context(3, 5, seed=1),
    "text": context(3, 7, seed=2, read=[7, 4, 2]),
}
# the empty caption is shorter
UNCONDITIONAL = {"loa": context(3, 5, seed=3), "text": context(3, 1, seed=4)}
XT = randn(3, 4, seed=5)


class Mixture:
    """A model that mixes masked means of both contexts, the level and xt, so that every
    mix-up shows; it keeps how many rows of each it was given.
    """

    def __init__(self):
        self.rows = []

    def __call__(self, xt, t, conditions):
        assert list(conditions) == ["loa", "text"]
        given = [xt, t, *(sequence for sequence, _ in conditions.values())]
        self.rows += [sorted({len(x) for x in given})]
        total = xt * t.view(-1, 1).float() / 500
        for weight, (x, mask) in zip((1.0, 3.0), conditions.values(), strict=True):
            mask = torch.ones(x.shape[:2]) if mask is None else mask.float()
            mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            total = total + weight * torch.tanh(mean)
        return total


def by_two_calls(t, guidance):
    """The guided prediction at a level, from two calls of the model."""
    predicted = (Mixture()(XT, t, given) for given in (UNCONDITIONAL, CONDITIONAL))
    return guide(*predicted, guidance)


@pytest.mark.parametrize("guidance", [0.0, 3.5])
def test_one_batched_call_equals_two(guidance):
    model, t = Mixture(), torch.tensor([300, 300, 300])
    how = Sampling(guidance=guidance)
    eps = guided(model, CONDITIONAL, UNCONDITIONAL, how)(XT, t)
    torch.testing.assert_close(eps, by_two_calls(t, guidance))
    assert model.rows == [[6]]


def test_without_guidance_the_conditional_prediction_stands_and_costs_half():
    model, t = Mixture(), torch.tensor([300, 300, 300])
    eps = guided(model, CONDITIONAL, None, Sampling(guidance=1))(XT, t)
    torch.testing.assert_close(eps, by_two_calls(t, 1.0))
    assert model.rows == [[3]]


@pytest.mark.parametrize(
    ("level", "inside"), [(300, False), (301, True), (700, True), (701, False)]
)
def test_outside_the_interval_the_model_sees_the_conditions_alone(level, inside):
    model, t = Mixture(), torch.tensor([level] * 3)
    how = Sampling(guidance=3.5, guidance_interval=(300, 700))
    eps = guided(model, CONDITIONAL, UNCONDITIONAL, how)(XT, t)
    torch.testing.assert_close(eps, by_two_calls(t, 3.5 if inside else 1.0))
    assert model.rows == [[6 if inside else 3]]


def test_one_item_is_guided_as_in_a_batch():
    first = lambda given: {
        name: Context(x[:1], None if mask is None else mask[:1])
        for name, (x, mask) in given.items()
    }
    t = torch.tensor([300, 300, 300])
    alone = guided(Mixture(), first(CONDITIONAL), first(UNCONDITIONAL), Sampling())
    torch.testing.assert_close(alone(XT[:1], t[:1]), by_two_calls(t, 3.5)[:1])


def test_a_condition_that_the_guided_model_is_not_given_is_not_asked_for():
    model, t = Mixture(), torch.tensor([300, 300, 300])
    more = {**UNCONDITIONAL, "clap": context(3, 1)}
    eps = guided(model, CONDITIONAL, more, Sampling())(XT, t)
    torch.testing.assert_close(eps, by_two_calls(t, 3.5))


def test_guided_names_missing_unconditional_conditions():
    said = "unconditional must not be None unless guidance is 1; guidance is"
    with pytest.raises(ValueError, match=f"^{said} 2.5$"):
        guided(Mixture(), CONDITIONAL, None, Sampling(guidance=2.5))
