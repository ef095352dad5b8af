"""The authors' own checkpoint, one file of all parts: the same pipeline as the folder
of diffusers.
"""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from minilib import AudioLDM2
from minilib.convert import released

VAE_NAMES = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q",
    "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
AUDIO_NAMES = {
    "attention.self": "attn", "attention.output.dense": "attn.proj",
    "batch_norm": "bn0", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    "layernorm_before": "norm1", "layernorm_after": "norm2",
}  # fmt: skip
CLAP_NAMES = {
    "audio_model.audio_encoder": "audio_branch", "text_model": "text_branch",
    "projection.linear1": "projection.0", "projection.linear2": "projection.2",
}  # fmt: skip


def renamed(name, names):
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def as_published(folder, path):
    """Write the parts of a diffusers folder into one file, under the authors' names:
    the reverse of what is read.

    Spelled out here once more, and by other means than in the package: by the order in
    which the authors' code lists its blocks.
    """
    from safetensors.torch import load_file

    part = lambda name: load_file(next((folder / name).glob("*.safetensors")))
    state: dict[str, torch.Tensor] = {}
    unet = part("unet")
    res = (
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("emb_layers.1", "time_emb_proj"),
    )
    res += (
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
        ("skip_connection", "conv_shortcut"),
    )

    def move(theirs, ours):
        for end in ("weight", "bias"):
            if f"{ours}.{end}" in unet:
                state[f"model.diffusion_model.{theirs}.{end}"] = unet.pop(
                    f"{ours}.{end}"
                )

    def move_all(theirs, ours):
        for name in [name for name in unet if name.startswith(f"{ours}.")]:
            state[f"model.diffusion_model.{theirs}.{name.removeprefix(f'{ours}.')}"] = (
                unet.pop(name)
            )

    def block(theirs, resnet, attentions):
        for a, b in res:
            move(f"{theirs}.0.{a}", f"{resnet}.{b}")
        for k, attention in enumerate(attentions):
            move_all(f"{theirs}.{1 + k}", attention)

    n = len(
        json.loads((folder / "unet" / "config.json").read_text())[
            "cross_attention_dim"
        ][0]
    )
    for theirs, ours in (
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"), ("input_blocks.0.0", "conv_in"),
        ("out.0", "conv_norm_out"), ("out.2", "conv_out"),
    ):  # fmt: skip
        move(theirs, ours)
    level = lambda i, j: [f"down_blocks.{i}.attentions.{j * n + k}" for k in range(n)]
    block("input_blocks.1", "down_blocks.0.resnets.0", [])
    move("input_blocks.2.0.op", "down_blocks.0.downsamplers.0.conv")
    block("input_blocks.3", "down_blocks.1.resnets.0", level(1, 0))
    block(
        "middle_block",
        "mid_block.resnets.0",
        [f"mid_block.attentions.{k}" for k in range(n)],
    )
    for a, b in res:
        move(f"middle_block.{1 + n}.{a}", f"mid_block.resnets.1.{b}")
    for j in range(2):
        above = [f"up_blocks.0.attentions.{j * n + k}" for k in range(n)]
        block(f"output_blocks.{j}", f"up_blocks.0.resnets.{j}", above)
        block(f"output_blocks.{2 + j}", f"up_blocks.1.resnets.{j}", [])
    move(f"output_blocks.1.{1 + n}.conv", "up_blocks.0.upsamplers.0.conv")
    assert not unet, list(unet)[:3]

    for name, x in part("vae").items():
        name = renamed(name, VAE_NAMES)
        for i in range(3):
            name = name.replace(f"down_blocks.{i}.resnets", f"down.{i}.block")
            name = name.replace(
                f"down_blocks.{i}.downsamplers.0", f"down.{i}.downsample"
            )
            name = name.replace(f"up_blocks.{i}.resnets", f"up.{2 - i}.block")
            name = name.replace(f"up_blocks.{i}.upsamplers.0", f"up.{2 - i}.upsample")
        is_convolution = "attn_1" in name and x.ndim == 2
        state[f"first_stage_model.{name}"] = (
            x[:, :, None, None] if is_convolution else x
        )
    for name, x in part("vocoder").items():
        if name not in ("mean", "scale"):
            state[f"first_stage_model.vocoder.{name.replace('upsampler', 'ups')}"] = x
    state["scale_factor"] = torch.tensor(0.4)
    for name, x in part("language_model").items():
        if name != "lm_head.weight":
            state[f"cond_stage_models.0.model.{name.removeprefix('transformer.')}"] = x
    for name, x in part("text_encoder_2").items():
        state[f"cond_stage_models.1.model.{name}"] = x
    projection = part("projection_model")
    for i, suffix in enumerate(("", "_1")):
        for end in ("weight", "bias"):
            linear = f"cond_stage_models.0.input_sequence_embed_linear.{i}.{end}"
            state[linear] = projection[f"projection{suffix}.{end}"]
    for short, long in (("sos", "start"), ("eos", "end")):
        rows = torch.randn(32, len(projection["sos_embed"]))
        rows[0], rows[1] = projection[f"{short}_embed"], projection[f"{short}_embed_1"]
        state[f"cond_stage_models.0.{long}_of_sequence_tokens.weight"] = rows
    clap_state = part("text_encoder")
    for name, x in clap_state.items():
        if ".attention.self.key." in name and name.startswith("audio_model"):
            continue
        if ".attention.self.value." in name and name.startswith("audio_model"):
            continue
        if ".attention.self.query." in name and name.startswith("audio_model"):
            x = torch.cat(
                [
                    clap_state[name.replace("query", other)]
                    for other in ("query", "key", "value")
                ]
            )
            name = name.replace("attention.self.query", "attn.qkv")
        if name.startswith("audio_model.audio_encoder."):
            name = renamed(name, AUDIO_NAMES)
        state[f"clap.model.{renamed(name, CLAP_NAMES)}"] = x
    state |= {
        "betas": torch.zeros(3),
        "model_ema.decay": torch.zeros(()),
        "logvar": torch.zeros(2),
    }
    torch.save({"state_dict": state, "epoch": 3}, path)
    return state


@pytest.fixture(scope="module", params=["base", "large"])
def published(request, peers, tmp_path_factory):
    """A folder of diffusers and the same weights in one file of the authors' layout."""
    _, folder = peers(request.param)
    path = tmp_path_factory.mktemp("published") / "audioldm2.pth"
    return folder, path, as_published(folder, path)


def test_the_authors_file_holds_the_same_pipeline(published):
    folder, path, _ = published
    a = AudioLDM2.from_diffusers(folder, "cpu")
    load = partial(AudioLDM2.from_original, path, "cpu", like=folder)
    b = load(head_width=None, unconditional_loa="gpt")
    assert set(a.models) == set(b.models)
    for name, model in a.models.items():
        first, second = model.state_dict(), b.models[name].state_dict()
        assert set(first) == set(second)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not any(x.is_meta for x in second.values())
    # in single precision there
    factor = b.vae.config.scaling_factor
    assert factor == pytest.approx(a.vae.config.scaling_factor, rel=1e-6)
    assert replace(b.vae.config, scaling_factor=0.4) == a.vae.config
    assert (b.unet.config, b.gpt.config) == (a.unet.config, a.gpt.config)
    assert (b.seconds, b.sampling) == (a.seconds, a.sampling)
    ids = [pipe.text.tokenizer.encode(["a dog"])[0].tolist() for pipe in (a, b)]
    assert ids[0] == ids[1]
    trained = load(dtype=torch.bfloat16, head_width=8)
    assert trained.unet.config.n_head == (2, 4)
    assert trained.sampling.unconditional_loa == "zeros"
    for model in trained.models.values():
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


only_base = pytest.mark.parametrize("published", ["base"], indirect=True)
OUT = "model.diffusion_model.out.2.weight"
CLAP = "clap.model.text_projection.0"


@only_base
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(OUT), "conv_out.weight is missing"),
        (
            lambda s: s.update({"cond_stage_models.2.x": torch.zeros(1)}),
            "holds cond_stage_models.2.x, which is not part of AudioLDM 2",
        ),
        (
            lambda s: s.update({"first_stage_model.quant_conv.bias": torch.zeros(2)}),
            "quant_conv.bias has shape",
        ),
        (
            lambda s: s.update({f"{CLAP}.bias": torch.zeros(2)}),
            r"text_projection.linear1.bias has shape \(2,\)",
        ),
        (
            lambda s: s.pop(f"{CLAP}.weight"),
            "text_projection.linear1.weight is missing",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if "diffusion" in name],
            "is not a checkpoint of AudioLDM 2",
        ),
        (
            lambda s: s.update(code=pytest.raises),
            "holds more than tensors: reading it would run its code",
        ),
    ],
)
def test_a_file_that_is_not_the_authors_is_refused(published, change, said, tmp_path):
    folder, _, state = published
    state = dict(state)
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=said) as caught:
        released.read_original(tmp_path / "other.pth", folder, head_width=8)
    assert "\n" not in str(caught.value)


@only_base
def test_a_missing_file_and_a_speech_model_are_refused(published, peers, tmp_path):
    folder, path, _ = published
    with pytest.raises(FileNotFoundError, match="other.pth is missing"):
        released.read_original(tmp_path / "other.pth", folder)
    with pytest.raises(ValueError, match="is a speech model: it can be read only from"):
        released.read_original(path, peers("speech")[1])
