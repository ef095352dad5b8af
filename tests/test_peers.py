"""The peers: what each is called, and that its one command makes its weights."""

from inspect import signature
from pathlib import Path

import pytest
import torch

from minilib import cli, peers
from minilib.folders import load_part
from minilib.peers import instructed_t5
from minilib.text import T5Encoder
from minilib.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(instructed_t5, "N_SCENES", 80)


def test_a_peer_is_a_module_that_can_be_trained():
    for name in peers.PEERS:
        assert callable(peers.peer(name).train)


def test_a_peer_that_reads_other_weights_says_which_parts():
    for name in peers.PEERS:
        module = peers.peer(name)
        reads = "weights" in signature(module.train).parameters
        assert bool(getattr(module, "BORROWED", ())) == reads, name


@pytest.mark.parametrize("name", ["musicldm", "naturalspeech2", "nextgpt"])
def test_a_part_that_is_missing_does_not_cost_the_training(name, tmp_path, monkeypatch):
    tiny = Path(__file__).parents[1] / "data" / "weights" / "tiny"
    (tmp_path / "tiny").mkdir()
    for part in ("tokenizer.json", "text", "clap", "vae"):  # no vocoder
        (tmp_path / "tiny" / part).symlink_to(tiny / part)
    for part in ("peers", "picture"):
        (tmp_path / part).symlink_to(tiny.parent / part)
    module = peers.peer(name)
    monkeypatch.setattr(module, "fit", lambda *x: pytest.fail("it trains"))
    with pytest.raises(FileNotFoundError, match="vocoder"):
        module.train(tmp_path / "out", weights=tmp_path / "tiny", progress=False)
    assert not (tmp_path / "out").exists()


def test_an_unknown_peer_is_named_beside_those_that_there_are(capsys, tmp_path):
    said = "peer must be one of codec, instructed_t5.*, not 'tango5'"
    with pytest.raises(ValueError, match=said):
        peers.peer("tango5")
    out = tmp_path / "new"
    assert cli.main(["train-peer", "tango5", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "not 'tango5'" in told and not out.exists()


@pytest.mark.parametrize(
    ("files", "held"),
    [
        (["notes.txt"], "which holds 'notes.txt'"),
        (["text/config.json", "thesis/draft.tex"], "which holds 'thesis/draft.tex'"),
        (["codec/lm/config.json", "codec/pipeline.json"], "'codec/lm/config.json'"),
        (["unet/config.json", "pipeline.json"], "which holds a pipeline"),
    ],
)
def test_a_folder_with_anything_else_in_it_is_not_replaced(
    files, held, capsys, tmp_path
):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    given = "train-peer", "instructed_t5", "--steps", "1", "--out", str(tmp_path)
    assert cli.main(given) == 2
    said = "out must be a new folder, or one that holds weights of instructed_t5 alone"
    told = capsys.readouterr().err
    assert said in told and held in told and told.count("\n") == 1
    assert all((tmp_path / name).read_text() == "{}" for name in files)


def test_older_weights_of_the_peer_alone_are_replaced(tmp_path):
    peers.check_out(tmp_path / "new", "text_ldm")
    peers.check_out(tmp_path, "text_ldm")
    peers.check_out(cli.place_of("peers/text_ldm"), "text_ldm")
    peers.check_out(cli.place_of("peers/instructed_t5"), "instructed_t5")
    with pytest.raises(ValueError, match="which holds text_ldm$"):
        peers.check_out(cli.place_of("peers/text_ldm"), "codec")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="'.*file', which is a file"):
        peers.check_out(tmp_path / "file", "codec")


def test_the_help_of_train_peer_names_all(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train-peer", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(name in told for name in peers.PEERS)


def test_the_command_writes_an_encoder_that_reads_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train-peer", "instructed_t5", "--steps", "1"]) == 0
    out = tmp_path / "runs" / "peers" / "instructed_t5"
    assert f"trained: {out.relative_to(tmp_path)}" in capsys.readouterr().out
    assert sorted(x.name for x in out.iterdir()) == ["text", "tokenizer.json"]
    encoder = load_part(out, "text", torch.float32)
    assert isinstance(encoder, T5Encoder) and not encoder.training
    context = encoder.encode(["a dog barks"])
    assert context.sequence.shape == (1, Tokenizer.pad_to, encoder.dim)
    stored = T5Encoder.from_pretrained(out / "text")
    assert stored.dtype == torch.float16


def test_bad_arguments_get_one_sentence_and_leave_nothing(tmp_path):
    for given, said in (
        ({"steps": 0}, "steps must be a whole number, 1 or more, not 0"),
        ({"seed": -1}, "seed must be a whole number"),
    ):
        with pytest.raises(ValueError, match=said):
            instructed_t5.train(tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_weights_come_from_seed_and_steps_alone(tmp_path):
    made = [
        instructed_t5.train(tmp_path / str(k), seed, steps=2, progress=False)
        for k, seed in enumerate((0, 0, 1))
    ]
    read = lambda folder: (folder / "text" / "model.safetensors").read_bytes()
    assert read(made[0]) == read(made[1]) != read(made[2])


def test_both_stages_train_the_same_weights(monkeypatch):
    """Instructions go on from span corruption."""
    few = instructed_t5.replace(instructed_t5.CORRUPTED, steps=2, batch_size=8)
    still = instructed_t5.replace(few, steps=1, lr=0.0)
    filled, _ = instructed_t5.trained(few, still, progress=False)
    asked, _ = instructed_t5.trained(few, few, progress=False)
    untrained, _ = instructed_t5.trained(still, still, progress=False)
    weight = lambda model: model.encoder.block[0].layer[0].SelfAttention.q.weight
    assert not torch.equal(weight(filled), weight(untrained))
    assert not torch.equal(weight(asked), weight(filled))
    gap = (weight(asked) - weight(filled)).norm()
    assert gap < 0.5 * weight(untrained).norm()


def test_the_weights_that_ship_answer_to_their_size():
    folder = cli.shipped("peers/instructed_t5", "train it")
    size = sum(x.stat().st_size for x in folder.rglob("*") if x.is_file())
    assert size <= 3_000_000
    encoder = load_part(folder, "text", torch.float32)
    assert encoder.config == T5Encoder.presets["tiny"]
    a, b = encoder.encode(["a dog barks, then rain falls"] * 2).sequence
    assert torch.equal(a, b) and a.std() > 0.05
