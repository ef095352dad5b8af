"""The released scale, tried at a small size: frozen encoders of transformers under the
stages trained here, and the training steps of diffusers' modules.
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_parity_gpt import CONFIG, conditions, ours_from
from test_parity_gpt import peers as gpts
from test_parity_vae_unet_vocoder import VARIANTS, batch, their_eps, unets, vaes

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)
from minilib import AudioLDM2, cli, folders
from minilib.audiomae import AudioMAE
from minilib.conditions import Context, to_batch
from minilib.discriminators import PatchDiscriminator, PatchDiscriminatorConfig
from minilib.gpt import LOARegressor
from minilib.training import RUNS, Joint, Recipe, train_stages
from minilib.training.encoders import gathered
from minilib.training.loop import make_optimizer
from minilib.unet import UNet


@pytest.fixture(scope="module")
def encoders(peers, tmp_path_factory):
    """The encoders of diffusers' pipeline in one folder."""
    return gathered([peers("base")[1]], tmp_path_factory.mktemp("of") / "encoders")


@pytest.fixture()
def full(encoders, monkeypatch):
    """A run like the preset full, small; with the widths of these encoders."""
    from small_world import OPTIONS, add_small

    add_small(monkeypatch)
    parts = {x: folders.load_part(encoders, x) for x in ("clap", "text")}
    dims = parts["clap"].dim, parts["text"].dim
    small = PatchDiscriminatorConfig(4)
    monkeypatch.setitem(PatchDiscriminator.presets, "small", small)
    wide = replace(AudioMAE.presets["small"], n_mels=128)
    monkeypatch.setitem(AudioMAE.presets, "small", wide)
    gpt, unet = LOARegressor.presets["small"], UNet.presets["small"]
    reads = zip(unet.cross_attention, unet.cross_attention_dim)
    reads = tuple(dims[1] if name == "text" else dim for name, dim in reads)
    n_loa, pools = wide.n_loa(2), wide.pools
    assert 2 in pools
    gpt = replace(gpt, condition_dims=dims, n_tokens=n_loa)
    monkeypatch.setitem(LOARegressor.presets, "small", gpt)
    unet = replace(unet, cross_attention_dim=reads, loa_channels=0)
    monkeypatch.setitem(UNet.presets, "small", unet)
    run = replace(
        RUNS["small"],
        **{
            name: getattr(RUNS["full"], name) for name in ("stages", "kinds", "borrows")
        },
        options={**OPTIONS, "ldm": {"unet": "small"}},
        sizes="small",
    )
    monkeypatch.setitem(RUNS, "full", run)
    monkeypatch.setitem(RUNS, "small", run)
    return encoders


def test_encoders_are_gathered_from_a_pipeline_or_from_two_models(
    encoders, peers, tmp_path
):
    theirs, folder = peers("base")
    apart = [tmp_path / "t5", tmp_path / "clap"]
    shutil.copytree(folder / "text_encoder_2", apart[0])
    shutil.copytree(folder / "text_encoder", apart[1])
    for of, place in (("tokenizer_2", 0), ("tokenizer", 1), ("feature_extractor", 1)):
        shutil.copytree(folder / of, apart[place], dirs_exist_ok=True)
    two = gathered(apart, tmp_path / "two")
    for name in ("text", "clap"):
        first, second = (folders.load_part(x, name) for x in (encoders, two))
        a, b = (x.encode(["a dog barks"]).sequence for x in (first, second))
        assert torch.equal(a, b) and a.std() > 0.01
    read = theirs.tokenizer_2(["a dog barks"], return_tensors="pt")
    expected = theirs.text_encoder_2(read.input_ids).last_hidden_state
    got = folders.load_part(encoders, "text").encode(["a dog barks"]).sequence
    torch.testing.assert_close(got, expected)


def test_encoders_that_are_there_are_not_gathered_twice(encoders, peers, monkeypatch):
    monkeypatch.setattr(folders, "save_tokenizers", lambda *given: pytest.fail("anew"))
    assert gathered([peers("base")[1]], encoders) == encoders
    assert gathered([encoders], encoders / "other") == encoders


def test_a_whole_t5_gives_its_encoder(peers, tmp_path):
    from transformers import T5ForConditionalGeneration

    theirs, folder = peers("base")
    model = T5ForConditionalGeneration(theirs.text_encoder_2.config).eval()
    model.save_pretrained(tmp_path / "t5")
    shutil.copytree(folder / "tokenizer_2", tmp_path / "t5", dirs_exist_ok=True)
    shutil.copytree(folder / "text_encoder", tmp_path / "clap")
    for name in ("tokenizer", "feature_extractor"):
        shutil.copytree(folder / name, tmp_path / "clap", dirs_exist_ok=True)
    made = gathered([tmp_path / "t5", tmp_path / "clap"], tmp_path / "made")
    ids = torch.tensor([[3, 5, 1]])
    expected = model.encoder(ids).last_hidden_state
    text = folders.load_part(made, "text")
    torch.testing.assert_close(text(ids, torch.ones(1, 3).bool()), expected)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ((), "encoders must be one pipeline, or a T5 and a CLAP, not 0 sources"),
        (("a", "b", "c"), "encoders must be one pipeline, .*, not 3 sources"),
        ((".",), "is no pipeline with released encoders: it has no model_index"),
        (("nowhere",), "weights folder nowhere does not exist"),
    ],
)
def test_what_holds_no_encoders_is_told(sources, said, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        gathered(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_stages_over_frozen_encoders_make_a_pipeline_that_sounds(
    full, tmp_path, capsys
):
    train_stages("vae", "full", tmp_path, steps=1, progress=False)  # reads nothing
    line = ["train", "all", "--preset", "full", "--out", str(tmp_path), "--steps", "1"]
    assert cli.main([*line, "--encoders", str(full)]) == 0
    written = json.loads((tmp_path / "pipeline.json").read_text())
    assert (tmp_path / written["clap"]).resolve() == (full / "clap").resolve()
    assert not (tmp_path / "tokenizer.json").exists()
    pipe = AudioLDM2.from_pretrained(tmp_path, device="cpu")
    assert pipe("a dog barks", steps=1, seed=0, progress=False).shape == (1, 10240)
    before = folders.load_part(full, "text").state_dict()
    assert all(torch.equal(before[k], x) for k, x in pipe.text.state_dict().items())
    # what it resumes or adds finds the encoders again
    capsys.readouterr()
    assert cli.main([*line, "--resume"]) == 0
    told = capsys.readouterr().out
    assert told.count("already finished") == len(RUNS["full"].stages)
    pipe.save_pretrained(tmp_path / "copy")
    again = AudioLDM2.from_pretrained(tmp_path / "copy", device="cpu")
    assert again("a dog barks", steps=1, seed=0, progress=False).isfinite().all()


def test_without_encoders_the_stages_that_read_say_so(full, tmp_path, capsys):
    line = ["train", "gpt", "--preset", "full", "--out", str(tmp_path / "x")]
    assert cli.main(line) == 2
    said = "shipped must be the folder of encoders (--encoders): preset full uses its"
    assert said in capsys.readouterr().err
    assert cli.main(["train", "vae", "--encoders", str(full)]) == 2
    assert "--encoders is for full and large, not for tiny" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# ---- One training step of ours and of diffusers'


def after_a_step(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """The weights' changes by one step of AdamW."""
    recipe = Recipe(steps=1, batch_size=1, lr=1e-4, betas=(0.9, 0.999))
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer = make_optimizer(model, recipe)
    loss.backward()
    optimizer.step()
    return {k: p.detach() - before[k] for k, p in model.named_parameters()}


def same_gradients(ours: dict, theirs: dict, limit: float = 1e-4) -> None:
    """Norm of the difference over the norm of all."""
    assert ours.keys() == theirs.keys()
    difference = sum(float((ours[k] - x).square().sum()) for k, x in theirs.items())
    whole = sum(float(x.square().sum()) for x in theirs.values())
    assert whole > 0 and (difference / whole) ** 0.5 < limit


def grads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def scheduler():
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear"
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_of_the_unet_is_diffusers(recompute):
    ours, theirs = unets(VARIANTS["base"], (False, True, True), 4, 1, 2)
    ours.recompute_activations(recompute)
    z0, t, told = batch(n_read=4)
    eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(3))
    given = {"z0": z0, "t": t, "eps": eps, **to_batch(told)}
    zt = scheduler().add_noise(z0, eps, t - 1)
    loss = F.mse_loss(their_eps(theirs, zt, t, told), eps)
    torch.testing.assert_close(ours.loss(given), loss, rtol=1e-5, atol=0)
    steps = after_a_step(ours, ours.loss(given)), after_a_step(theirs, loss)
    same_gradients(grads(ours), grads(theirs))
    same_gradients(*steps, limit=0.02)  # Adam's first step is a sign


def test_a_training_step_of_the_vae_is_diffusers():
    ours, theirs = vaes()
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(2, 1, 48, 16, generator=generator)
    posterior = theirs.encode(mel).latent_dist
    eps = torch.randn(posterior.mean.shape, generator=generator)
    restored = theirs.decode(posterior.mean + posterior.std * eps).sample
    # theirs sums over a clip's values, and ours takes means
    kl = posterior.kl().mean() / eps[0].numel()
    loss = F.l1_loss(restored, mel) + ours.config.kl_weight * kl
    found = ours.loss({"mel": mel, "eps": eps})["loss"]
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    loss.backward(), found.backward()
    same_gradients(grads(ours), grads(theirs))


@pytest.mark.parametrize("padded", [False, True])
def test_a_training_step_of_gpt_2_and_of_the_joint_model_is_theirs(padded):
    gpt2, projection = gpts()
    gpt = ours_from(gpt2, projection)
    (clap, _), (text, mask) = conditions(padded).values()
    generator = torch.Generator().manual_seed(4)
    loa = torch.randn(3, CONFIG.n_tokens, CONFIG.n_embd, generator=generator)

    def theirs_for(teacher):
        clap_mask = torch.ones(3, 1, dtype=torch.long)
        read = projection(clap, text, clap_mask, mask.long())
        x, keep = read.hidden_states, read.attention_mask
        n = x.shape[1]
        x = torch.cat([x, teacher[:, :-1]], dim=1)
        keep = F.pad(keep, (0, teacher.shape[1] - 1), value=1)
        places = torch.arange(x.shape[1])[None]
        states = gpt2(inputs_embeds=x, attention_mask=keep, position_ids=places)
        return states.last_hidden_state[:, n - 1 :]

    told = to_batch(conditions(padded))
    wanted = F.mse_loss(theirs_for(loa), loa)
    found = gpt.loss({"loa": loa, **told})
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    both = torch.nn.ModuleDict({"projection": projection, "gpt2": gpt2})
    wanted.backward(), found.backward()
    same_gradients(named_like_ours(both), grads(gpt))

    reads = {"loa": CONFIG.n_embd, "text": CONFIG.condition_dims[1]}
    unet, their_unet = unets(reads)
    joint = Joint(gpt, unet)
    z0, eps = torch.randn(2, 3, 1, 4, 16, 8, generator=generator)
    t, true = (
        torch.tensor([[3], [500], [990]]),
        torch.tensor([[True], [False], [False]]),
    )
    given = {"z0": z0, "eps": eps, "t": t, "true_loa": true, "loa": loa, **told}
    for model in (joint, both, their_unet):
        model.zero_grad()
    losses = joint.loss(given)
    own = gpt.generate(conditions(padded)).detach()
    predicted = theirs_for(own)
    read = {"loa": Context(torch.where(true[:, :, None], loa, predicted))}
    read["text"] = Context(text, mask)
    zt = scheduler().add_noise(z0[:, 0], eps[:, 0], t[:, 0] - 1)
    noise = F.mse_loss(their_eps(their_unet, zt, t[:, 0], read), eps[:, 0])
    loss = noise + F.mse_loss(predicted, loa)
    torch.testing.assert_close(losses["loss"], loss, rtol=1e-5, atol=0)
    losses["loss"].backward(), loss.backward()
    same_gradients(grads(unet), grads(their_unet))
    same_gradients(named_like_ours(both), grads(gpt))


def named_like_ours(both: torch.nn.ModuleDict) -> dict[str, torch.Tensor]:
    """The gradients of projection and GPT2Model by our names, linear layers turned."""
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    turned = lambda k, x: x.T if k.endswith(linear) else x
    return {k: turned(k, x) for k, x in grads(both).items()}
