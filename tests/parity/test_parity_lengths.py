"""The released pipeline at any length of sound and of captions: what diffusers does."""

import pytest
import torch
from beside import error, noise, same_sound, their_stages
from peer import PROMPTS, SECONDS

from minilib.conditions import Context
from minilib.convert import pretrained

SCHEDULE = {"n_steps": 1000, "beta_1": 0.0015, "beta_T": 0.0195, "prediction": "eps"}


@pytest.mark.parametrize("guidance", [3.5, 1.0])
@pytest.mark.parametrize(("seconds", "frames"), [(1.24, 31), (3.0, 75), (10.0, 250)])
@torch.no_grad()
def test_any_number_of_latent_frames_gives_what_diffusers_does(
    both, seconds, frames, guidance, monkeypatch
):
    theirs, ours, _ = both
    assert ours.latent_shape(1, round(seconds * 16000))[2] == frames
    given = {"seconds": seconds, "guidance": guidance, "steps": 2}
    same_sound(theirs, ours, monkeypatch, PROMPTS[:1], **given)


@torch.no_grad()
def test_a_long_negative_caption_is_read_whole_where_diffusers_cuts_it(
    both, monkeypatch
):
    theirs, ours, _ = both
    if ours.speaks:
        pytest.skip("no caption is read token by token")
    long, latents = "loud rain falls on a roof", noise(ours, 1)
    given = {"negative": [long], "latents": latents, "seconds": SECONDS, "steps": 2}
    expected = their_stages(theirs, monkeypatch, PROMPTS[:1], **given)
    conditions = ours.encode(PROMPTS[:1])
    S = conditions["text"].sequence.shape[1]
    whole = ours.encode([long], like=conditions)
    assert whole["text"].sequence.shape[1] > S
    # one token a letter and a space: as many as the caption has, less </s> and the
    # first space; CLAP's is read whole there, too
    cut = ours.encode([long[: S - 2]], like=conditions)
    empty = {"clap": whole["clap"], "text": cut["text"]}
    how = ours.sampling.changed(steps=2)
    empty["loa"] = ours.loa_of_negative(empty, how)
    z0 = ours.sample(ours.loa(conditions), conditions, how, empty, latents)
    assert error(z0, expected["latent"]) < 1e-4
    made = ours(PROMPTS[0], seed=0, progress=False, **given)
    assert error(made, expected["wave"]) > 1e-3


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A U-Net of four levels, as the released one: diffusers' and ours."""
    from diffusers import AudioLDM2UNet2DConditionModel

    torch.manual_seed(0)
    theirs = AudioLDM2UNet2DConditionModel(
        in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8, 16, 16), attention_head_dim=2,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
        up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
        cross_attention_dim=[[None, 12, 20]] * 4,
    ).eval()  # fmt: skip
    folder = tmp_path_factory.mktemp("unet")
    theirs.save_pretrained(folder)
    return theirs, pretrained.read_unet(folder, SCHEDULE)


@pytest.mark.parametrize("frames", [1, 2, 3, 31, 75, 250])
@torch.no_grad()
def test_the_way_up_takes_its_sizes_from_the_way_down(deep, frames):
    theirs, ours = deep
    generator = torch.Generator().manual_seed(frames)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    zt, loa, text = draw(2, 4, frames, 16), draw(2, 5, 12), draw(2, 7, 20)
    t, mask = torch.tensor([3, 700]), torch.ones(2, 7, dtype=torch.long)
    given = {"encoder_hidden_states": loa, "encoder_hidden_states_1": text}
    expected = theirs(zt, t, **given, encoder_attention_mask_1=mask).sample
    made = ours(zt, t + 1, {"loa": Context(loa), "text": Context(text, mask)})
    assert expected.std() > 1e-3 and error(made, expected) < 1e-4
