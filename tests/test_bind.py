"""ImageBind and LanguageBind: many senses in one space (chapter 12)."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilib.bind import (
    TOWERS,
    BindConfig,
    ImageBind,
    LanguageBind,
    LoRA,
    SenseConfig,
    TextConfig,
    Tower,
    add_lora,
    arrange,
)
from minilib.clap import contrastive_loss
from minilib.tokenizer import MIN_VOCABULARY, Tokenizer
from minilib.training import Recipe, fit

CAPTIONS = ["a dog barks", "rain falls", "a high bell rings twice"]


def sense(**given) -> SenseConfig:
    return SenseConfig(
        **{
            "shape": (1, 16, 16), "patch": (8, 8), "n_embd": 16, "n_layer": 1,
            "n_head": 2, "rank": 2, **given,
        }
    )  # fmt: skip


CONFIG = BindConfig(
    dim=12,
    text=TextConfig(MIN_VOCABULARY, 16, 1, 2, 40),
    image=sense(shape=(3, 16, 16), frames=2),
    audio=sense(shape=(1, 48, 16), size=(24, 16), mean=-6.8, std=2.8),
    depth=sense(temperature=0.2),
    thermal=sense(temperature=0.1, stride=(4, 4)),
    motion=sense(shape=(6, 1, 32), patch=(1, 8)),
)
INPUTS = {
    "image": (3, 16, 16), "video": (2, 3, 16, 16), "audio": (1, 48, 16),
    "depth": (1, 16, 16), "thermal": (1, 16, 16), "motion": (6, 32),
}  # fmt: skip


def some(B: int = 4, seed: int = 0, text: bool = True) -> dict[str, torch.Tensor]:
    """B random inputs of every sense, and captions of three tokens."""
    generator = torch.Generator().manual_seed(seed)
    batch = {k: torch.rand(B, *x, generator=generator) for k, x in INPUTS.items()}
    batch["audio"] = 4 * batch["audio"] - 9
    if text:
        batch["ids"] = torch.randint(20, 60, (B, 3), generator=generator)
        batch["mask"] = torch.ones(B, 3, dtype=torch.bool)
    return batch


def random(model: nn.Module) -> nn.Module:
    """Weights of order one over the root of the width, so that nothing is nearly
    constant.
    """
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * (p[0].numel() ** -0.5 if p.ndim > 1 else 1))
    return model


@pytest.fixture()
def bound() -> ImageBind:
    torch.manual_seed(0)
    model = ImageBind(CONFIG).eval()
    model.tokenizer = Tokenizer.train(CAPTIONS, MIN_VOCABULARY)
    return model


@pytest.fixture()
def told(bound) -> LanguageBind:
    model = LanguageBind(CONFIG).start_from(bound).eval()
    model.tokenizer = bound.tokenizer
    return model


def state(*modules: nn.Module) -> list[torch.Tensor]:
    return [x.clone() for module in modules for x in module.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- towers and what they see


def test_every_sense_ends_in_one_space_with_unit_length(bound):
    for name, x in some().items():
        if name in INPUTS:
            y = bound.embed(name, x)
            assert y.shape == (4, 12)
            torch.testing.assert_close(y.norm(dim=1), torch.ones(4))
    assert bound.embed("text", CAPTIONS).shape == (3, 12)
    assert set(bound.towers) == set(TOWERS)


@torch.no_grad()
def test_a_tower_is_a_vision_transformer_whose_cls_is_projected():
    torch.manual_seed(0)
    config = sense(stride=(4, 4))
    tower, x = random(Tower(config, 5)), torch.randn(2, 1, 16, 16)
    cut = F.unfold(x, 8, stride=4).transpose(1, 2)  # (2, 9, 64)
    W, b = tower.patches.weight, tower.patches.bias
    h = torch.cat([tower.cls.expand(2, 1, 16), cut @ W.T + b], dim=1) + tower.position
    assert h.shape == (2, 10, 16)
    for block in tower.blocks:
        h = block(h)
    h = F.layer_norm(h[:, 0], (16,), tower.norm.weight, tower.norm.bias, eps=1e-6)
    torch.testing.assert_close(tower(x), h @ tower.project.weight.T)
    assert tower.project.bias is None and tower(x).std() > 0.1


def test_a_picture_is_a_film_of_equal_frames(bound):
    picture = some()["image"]
    film = picture[:, None].expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(
        bound.embed("video", film), bound.embed("image", picture)
    )
    other = film.clone()
    other[:, 1] = other[:, 1].flip(-1)
    assert (bound.embed("video", other) - bound.embed("image", picture)).norm() > 1e-3
    x = torch.arange(2 * 3).view(1, 2, 3, 1, 1).expand(1, 2, 3, 16, 16).float()
    laid = arrange("video", x, replace(CONFIG.image, mean=0.0, std=1.0))
    assert laid[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_inputs_are_standardised(bound):
    x = some()["audio"]
    heard = bound.arranged("audio", x)
    assert heard.shape == (4, 1, 24, 16) and (heard.mean() * 2.8 - 6.8 - x.mean()) < 0.1
    smooth = torch.linspace(-9, -5, 48)[None, None, :, None].expand(4, 1, 48, 16)
    torch.testing.assert_close(
        bound.arranged("audio", smooth)[:, :, 1:-1],
        (F.avg_pool2d(smooth, (2, 1)) + 6.8)[:, :, 1:-1] / 2.8,
    )
    torch.testing.assert_close(
        bound.arranged("motion", some()["motion"])[:, :, 0],
        (some()["motion"] - 0.5) * 4,
    )


# ---- the loss


def info_nce(a: torch.Tensor, b: torch.Tensor, scale: float) -> float:
    """The symmetric loss by hand."""
    s, B = scale * a @ b.T, len(a)
    rows = [-math.log(s[i].exp()[i] / s[i].exp().sum()) for i in range(B)]
    columns = [-math.log(s[i, i].exp() / s[:, i].exp().sum()) for i in range(B)]
    return (sum(rows) + sum(columns)) / (2 * B)


@torch.no_grad()
def test_every_sense_is_compared_with_the_picture_at_its_own_temperature(bound):
    batch = some()
    losses, image = bound.loss(batch), bound.embed("image", batch["image"])
    assert losses.keys() == {
        "loss", "text", "video", "audio", "depth", "thermal", "motion",
    }  # fmt: skip
    scales = {"audio": 20, "depth": 5, "thermal": 10, "motion": 20, "video": 20}
    for name, scale in scales.items():
        by_hand = info_nce(image, bound.embed(name, batch[name]), scale)
        assert losses[name].item() == pytest.approx(by_hand, rel=1e-4), name
    text = bound.embed_text(batch["ids"], batch["mask"])
    by_hand = info_nce(image, text, 1 / 0.07)
    assert losses["text"].item() == pytest.approx(by_hand, rel=1e-4)
    others = [x for name, x in losses.items() if name != "loss"]
    torch.testing.assert_close(losses["loss"], torch.stack(others).mean())


def test_no_loss_compares_two_senses_neither_of_which_is_the_hub(bound):
    batch = some()
    with pytest.raises(
        ValueError, match="batch must hold image and another, not audio"
    ):
        bound.loss({k: batch[k] for k in ("audio", "ids", "mask")})
    with pytest.raises(
        ValueError, match="batch must hold image and another, not image"
    ):
        bound.loss({"image": batch["image"]})
    before = bound.loss({k: batch[k] for k in ("image", "audio")})["audio"]
    torch.testing.assert_close(bound.loss(batch)["audio"], before)


@torch.no_grad()
def test_like_captions_are_no_wrong_answers(bound, told):
    batch = some()
    batch["ids"][2] = batch["ids"][0]
    alike = torch.eye(4, dtype=torch.bool)
    alike[0, 2] = alike[2, 0] = True
    text = bound.embed_text(batch["ids"], batch["mask"])
    scale = bound.logit_scale.exp()
    image = bound.embed("image", batch["image"])
    wanted = contrastive_loss(image, text, scale, alike)
    torch.testing.assert_close(bound.loss(batch)["text"], wanted)
    heard = told.embed("audio", batch["audio"])
    wanted = contrastive_loss(text, heard, scale, alike)
    few = {k: batch[k] for k in ("audio", "ids", "mask")}
    torch.testing.assert_close(told.loss(few)["audio"], wanted)


def test_the_learned_scale_stays_below_100_and_can_come_down(bound):
    with torch.no_grad():
        bound.logit_scale.fill_(9.0)
    bound.loss(some())["loss"].backward()
    assert bound.logit_scale.item() == pytest.approx(math.log(100))
    assert bound.logit_scale.grad.abs() > 0


# ---- frozen is frozen


def test_frozen_towers_are_the_same_bits_after_training(bound):
    bound.freeze("image", "text")
    kept = bound.towers["image"], bound.text, bound.text_projection
    moving = [bound.towers[k] for k in ("audio", "depth", "thermal", "motion")]
    before, others, scale = state(*kept), state(*moving), bound.logit_scale.clone()
    fit(bound, lambda g: some(), Recipe(steps=3, batch_size=4, lr=0.1), progress=False)
    assert same(state(*kept), before) and torch.equal(bound.logit_scale, scale)
    assert not any(torch.equal(a, b) for a, b in zip(state(*moving), others))


def test_training_brings_the_senses_to_the_picture(bound):
    bound.freeze("image", "text")
    batch = some(B=8, text=False)
    before = bound.loss(batch)["loss"].item()
    fit(bound, lambda g: batch, Recipe(40, 8, 1e-2, warmup=1), progress=False)
    assert bound.loss(batch)["loss"].item() < before - 0.5


def test_a_language_bind_trains_its_corrections_and_the_temperature_only(told):
    learned = {name for name, p in told.named_parameters() if p.requires_grad}
    assert "logit_scale" in learned
    others = learned - {"logit_scale"}
    assert others and all(name.endswith((".A", ".B")) for name in others)
    assert {name.split(".")[1] for name in others} == {"audio", "depth", "thermal"}
    kept = told.towers["image"], told.text, told.text_projection
    before = state(*kept)
    weight = told.towers["audio"].project.weight.clone()
    fit(told, lambda g: few(some()), Recipe(3, 4, 0.1), progress=False)
    assert same(state(*kept), before)
    assert torch.equal(told.towers["audio"].project.weight, weight)
    assert told.towers["audio"].project.B.abs().max() > 0


@torch.no_grad()
def test_captions_in_other_words_must_find_each_other(bound, told):
    batch = some()
    batch["other_ids"] = torch.randint(20, 60, (4, 5))
    batch["other_mask"] = torch.ones(4, 5, dtype=torch.bool)
    text = bound.embed_text(batch["ids"], batch["mask"])
    other = bound.embed_text(batch["other_ids"], batch["other_mask"])
    by_hand = info_nce(text, other, 1 / 0.07)
    for model, name in ((bound, "image"), (told, "audio")):
        words = ("ids", "mask", "other_ids", "other_mask")
        losses = model.loss({k: batch[k] for k in (name, *words)})
        assert losses["words"].item() == pytest.approx(by_hand, rel=1e-4)
        assert len(losses) == 3
        torch.testing.assert_close(
            losses["loss"], (losses["words"] + [*losses.values()][1]) / 2
        )


def few(batch: dict) -> dict:
    """A batch without motion, which LanguageBind does not know."""
    return {k: x for k, x in batch.items() if k != "motion"}


# ---- LoRA


def test_lora_is_the_identity_at_first_and_then_adds_alpha_over_r_times_b_a():
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 5), torch.randn(3, 7, 6)
    module = add_lora(nn.Sequential(linear), r=2, alpha=8.0)
    lora = module[0]
    assert isinstance(lora, LoRA) and torch.equal(module(x), linear(x))
    nn.init.normal_(lora.B)
    with torch.no_grad():
        W = linear.weight + 8.0 / 2 * torch.einsum("or,ri->oi", lora.B, lora.A)
        torch.testing.assert_close(module(x), x @ W.T + linear.bias)
        torch.testing.assert_close(lora.merged(), W)
        assert torch.linalg.matrix_rank(lora.merged() - linear.weight) == 2
    learned = [p for p in module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learned) == 2 * (6 + 5)


def test_the_first_gradient_moves_b_and_not_a():
    module = add_lora(nn.Sequential(nn.Linear(6, 5, bias=False)), r=3, alpha=3.0)
    module(torch.randn(4, 6)).square().sum().backward()
    assert module[0].B.grad.abs().max() > 0 == module[0].A.grad.abs().max()
    assert module[0].weight.grad is None and module[0].bias is None


def test_a_correction_of_rank_0_trains_nothing(bound):
    nothing = add_lora(Tower(CONFIG.image, 12), r=0, alpha=16.0)
    assert not [p for p in nothing.parameters() if p.requires_grad]
    assert not [m for m in nothing.modules() if isinstance(m, LoRA)]
    with pytest.raises(ValueError, match="r must be 0 or more, not -1"):
        add_lora(nn.Linear(2, 2), -1, 1.0)


def test_every_linear_layer_of_an_adapted_tower_has_a_correction(told):
    tower = told.towers["audio"]
    kinds = [type(m) for m in tower.modules() if isinstance(m, nn.Linear)]
    assert kinds == [LoRA] * (6 * CONFIG.audio.n_layer + 2)


@torch.no_grad()
def test_a_language_bind_begins_as_the_tower_of_pictures(bound, told):
    depth = some()["depth"]
    picture = depth.expand(-1, 3, -1, -1)  # of three equal channels, of the same size
    torch.testing.assert_close(
        told.embed("depth", depth), bound.embed("image", picture), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(told.embed("text", CAPTIONS), bound.embed("text", CAPTIONS))
    heard = told.arranged("audio", some()["audio"])
    assert heard.shape == (4, 6, 24, 16) and torch.equal(heard[:, 0], heard[:, 5])


# ---- as an encoder of a pipeline


def test_a_condition_is_one_vector_from_any_sense_or_from_several(bound):
    batch = some()
    heard = bound.encode({"audio": batch["audio"]}, pad_to=9)
    assert heard.sequence.shape == (4, 1, bound.dim) and heard.mask is None
    torch.testing.assert_close(
        heard.sequence[:, 0], bound.embed("audio", batch["audio"])
    )
    read = bound.encode(CAPTIONS).sequence[:, 0]
    torch.testing.assert_close(read, bound.embed("text", CAPTIONS))
    both = bound.encode({"audio": batch["audio"], "image": batch["image"]}).sequence
    total = heard.sequence[:, 0] + bound.embed("image", batch["image"])
    torch.testing.assert_close(both[:, 0], F.normalize(total, dim=-1))
    nothing = bound.empty(3, pad_to=5)
    assert nothing.sequence.shape == (3, 1, bound.dim) and not nothing.sequence.any()
    assert bound.reads == "caption"


@pytest.mark.parametrize("kind", [ImageBind, LanguageBind])
def test_a_saved_model_loads_equal(kind, tmp_path):
    torch.manual_seed(0)
    model = random(kind(CONFIG)).eval()
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert loaded.config == CONFIG and type(loaded) is kind
    x = some()["audio"]
    assert torch.equal(loaded.embed("audio", x), model.embed("audio", x))


def test_presets_have_the_papers_sizes_and_the_small_one_ships():
    with torch.device("meta"):
        full, told = ImageBind.preset("full"), LanguageBind.preset("tiny")
        assert ImageBind.preset("tiny").n_parameters() < 1_450_000
        assert ImageBind.preset("colab").n_parameters() < 20_000_000
    config = full.config
    assert config.dim == 1024 and len(full.towers["image"].blocks) == 32
    assert full.towers["image"].position.shape == (1, 257, 1280)
    assert full.towers["audio"].position.shape == (1, 1 + 19 * 12, 768)
    assert full.towers["motion"].position.shape == (1, 251, 512)
    temperatures = {k: getattr(config, k).temperature for k in TOWERS}
    assert temperatures == {
        "image": 0.05, "audio": 0.05, "depth": 0.2, "thermal": 0.1, "motion": 0.2,
    }  # fmt: skip
    assert 1.15e9 < full.n_parameters() < 1.25e9
    assert set(told.towers) == {"image", "audio", "depth", "thermal"}


def test_bad_input_gets_one_sentence(bound, told):
    with pytest.raises(
        ValueError,
        match=r"image must have shape \(B, 3, 16, 16\), not \(2, 3, 16, 15\)",
    ):
        bound.embed("image", torch.zeros(2, 3, 16, 15))
    with pytest.raises(
        ValueError,
        match=r"video must have shape \(B, 2, 3, 16, 16\), not \(2, 3, 16, 16",
    ):
        bound.embed("video", torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"motion must have shape \(B, 6, 32\), not"):
        bound.embed("motion", torch.zeros(2, 6, 1, 32))
    with pytest.raises(
        ValueError, match="sense must be one of text, video, image.*'smell'"
    ):
        bound.embed("smell", torch.zeros(2, 3))
    with pytest.raises(ValueError, match="sense must be one of .*, not 'motion'"):
        told.embed("motion", torch.zeros(2, 6, 32))
    with pytest.raises(ValueError, match="inputs is empty: at least one sense"):
        bound.encode({})
    with pytest.raises(TypeError, match="config must be a BindConfig, not SenseConfig"):
        ImageBind(CONFIG.image)
    bound.tokenizer = None
    with pytest.raises(ValueError, match="this ImageBind has no tokenizer"):
        bound.encode(CAPTIONS)


# ---- the stages, and the weights that ship


def test_the_stages_pair_pictures_with_captions_and_then_other_scenes_with_sounds():
    import small_world

    from minilib import audio
    from minilib.soundworld import SENSES as DRAWN
    from minilib.soundworld import SoundWorld
    from minilib.training.clips import RENDERS

    with small_world.small_world() as data:
        parts = small_world.made_parts(data)
        sight, bind = (small_world.make(x, data, parts) for x in ("sight", "bind"))
        world = SoundWorld("train", 2, small_world.SECONDS, pairs=0.3, music=0.3)
        generator = torch.Generator().manual_seed(1)
        batch, met = sight.batch(generator), bind.batch(generator)
        captions = data.tokenizer.decode(batch["ids"])
        others = data.tokenizer.decode(batch["other_ids"])
        first = {world.caption(i).lower(): i for i in range(16)}
        for k, caption in enumerate(captions):
            seen = DRAWN["image"](world.scene(first[caption]))
            assert torch.equal(batch["image"][k], seen)
        assert captions != others
        unused = [k for k, p in sight.model.named_parameters() if p.requires_grad]
        assert not [k for k in unused if "towers" in k and "towers.image" not in k]
        later = [world.scene(RENDERS + i) for i in range(16)]
        for k in range(8):
            (i,) = (
                i for i, scene in enumerate(later)
                if torch.equal(DRAWN["image"](scene), met["image"][k])
            )  # fmt: skip
            mel = audio.log_mel(world[RENDERS + i].wave[None])
            torch.testing.assert_close(met["audio"][k], mel[0])
            for name in ("depth", "thermal", "motion"):
                assert torch.equal(met[name][k], DRAWN[name](later[i]))
        assert "ids" not in met and set(batch) & set(met) == {"image"}
        learned = {k for k, p in bind.model.named_parameters() if p.requires_grad}
        towers = {name.split(".")[1] for name in learned}
        assert towers == {"audio", "depth", "thermal", "motion"}
        assert bind.finish() == {"bind": bind.model} and sight.finish().keys() == {
            "bind"
        }


def test_recordings_have_no_pictures_to_bind(tmp_path):
    import small_world

    from minilib.training import train_stages

    for names in (["sight"], ["vae", "bind"]):
        with pytest.raises(ValueError, match=f"stage {names[-1]} needs the pictures"):
            train_stages(names, "tiny", tmp_path / "out", data=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())

    with small_world.small_world() as data:
        recorded = replace(data, folder="a folder")
        for name in ("sight", "bind"):
            with pytest.raises(
                ValueError, match=f"stage {name} needs the pictures of SoundWorld; rec"
            ):
                small_world.make(name, recorded, small_world.made_parts(data))


@torch.no_grad()
def test_the_weights_that_ship_name_sounds_that_never_met_a_caption():
    from minilib import audio
    from minilib.cli import shipped_weights
    from minilib.soundworld import CLASSES, SoundWorld, picture, plain, thermal

    folder = shipped_weights().parent / "picture"
    model = ImageBind.from_pretrained(folder / "bind", dtype=torch.float32)
    model.tokenizer = Tokenizer.load(folder / "tokenizer.json")
    assert sum(x.stat().st_size for x in (folder / "bind").iterdir()) < 3_000_000
    world, names = SoundWorld("test", pairs=0.0), list(CLASSES)
    scenes = [world.scene(i) for i in range(60)]
    truth = torch.tensor([names.index(scene.events[0].name) for scene in scenes])
    waves = torch.stack([world.render(scene) for scene in scenes])
    told = model.embed("text", [plain(name) for name in names])
    heard = model.embed("audio", audio.log_mel(waves))
    seen = model.embed("image", torch.stack([picture(scene) for scene in scenes]))
    warm = model.embed("thermal", torch.stack([thermal(scene) for scene in scenes]))
    for x, least in ((heard, 0.4), (seen, 0.6)):
        assert ((x @ told.T).argmax(dim=1) == truth).float().mean() > least
    found = truth[(heard @ warm.T).argmax(dim=1)] == truth
    assert found.float().mean() > 0.3
