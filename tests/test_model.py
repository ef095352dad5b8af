"""The base class of every model: folders that load back exactly, or say in a sentence
why not (chapter 02).
"""

import json
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from minilib.files import replacing
from minilib.model import Model, has_gpu


@dataclass(frozen=True)
class PartConfig:
    width: int = 3
    name: str = "part"


@dataclass(frozen=True)
class ToyConfig:
    width: int = 4
    rates: tuple[int, ...] = (5, 4)
    nested: tuple[tuple[int, ...], ...] = ((1, 3), (5,))
    maybe: tuple[int | None, ...] = (None, 7)
    part: PartConfig = field(default_factory=PartConfig)
    text: str | None = None
    share: float = 0.1


class Toy(Model):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.linear = nn.Linear(config.width, config.part.width)
        self.norm = nn.BatchNorm1d(config.part.width)


Toy.presets = {"tiny": ToyConfig(), "full": ToyConfig(width=8)}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    Toy.preset("tiny").save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


def state_equal(a: nn.Module, b: nn.Module) -> bool:
    b_state = b.state_dict()
    return all(
        torch.equal(x, b_state[name]) and x.dtype == b_state[name].dtype
        for name, x in a.state_dict().items()
    )


@pytest.mark.parametrize(
    "config",
    [
        ToyConfig(),
        ToyConfig(
            rates=(),
            nested=(),
            maybe=(1, None, None),
            part=PartConfig(5, "x"),
            text="ß 中",
            share=1e-30,
        ),
    ],
)
def test_config_and_weights_come_back_equal(tmp_path, config):
    model = Toy(config)
    model.save_pretrained(tmp_path)
    back = Toy.from_pretrained(tmp_path)
    assert back.config == config and hash(back.config) == hash(config)
    assert state_equal(model, back) and not back.training


def test_a_saved_folder_holds_two_files_and_nothing_half_written(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    # whoever may read one may read both
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_half_precision_is_kept_or_cast_as_asked_and_counters_stay_whole(tmp_path):
    model = Toy.preset("tiny")
    model.save_pretrained(tmp_path, dtype=torch.float16)
    half, single = (
        Toy.from_pretrained(tmp_path),
        Toy.from_pretrained(tmp_path, dtype=torch.float32),
    )
    assert half.linear.weight.dtype == half.norm.running_var.dtype == torch.float16
    assert single.linear.weight.dtype == single.norm.running_var.dtype == torch.float32
    assert (
        half.norm.num_batches_tracked.dtype
        == single.norm.num_batches_tracked.dtype
        == torch.int64
    )
    assert torch.equal(single.linear.weight, model.linear.weight.half().float())
    # saving changes nothing in memory
    assert model.linear.weight.dtype == torch.float32


def test_loaded_parameters_can_be_trained(folder):
    model = Toy.from_pretrained(folder)
    model.linear(torch.ones(2, 4)).sum().backward()
    assert all(p.grad is not None for p in model.linear.parameters())


def change(folder, name: str, state: dict) -> None:
    from safetensors.torch import save_file

    save_file(state, folder / name)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda state: state.pop("linear.bias"), "linear.bias is missing"),
        (
            lambda state: state.update(extra=torch.ones(1)),
            "extra is not in this config",
        ),
        (
            lambda state: state.update({"linear.bias": torch.ones(9)}),
            r"\(9,\), but the config asks for \(3,\)",
        ),
        (
            lambda state: [state.pop("linear.bias"), state.pop("linear.weight")],
            r"\(and 1 more\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(folder, edit, said):
    state = Toy.from_pretrained(folder).state_dict()
    edit(state)
    change(folder, "model.safetensors", state)
    with pytest.raises(ValueError, match=said):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[1, 2]", "does not hold a JSON object"),
        ('{"depth": 3}', "unknown field 'depth'"),
        ('{"width": 8}', "do not fit its config"),
        ('{"part": {"height": 1}}', "unknown field 'height'"),
        ("\x00\xff", "not valid JSON"),
        ('{"width": -8}', "config.json is damaged: no Toy can be built from it"),
        ('{"width": 8.5}', "config.json is damaged: no Toy can be built from it"),
        ('{"width": "8"}', "config.json is damaged: no Toy can be built from it"),
    ],
)
def test_a_damaged_or_foreign_config_is_refused(folder, text, said):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=said):
        Toy.from_pretrained(folder)


def test_a_half_copied_weights_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        Toy.from_pretrained(folder)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged or incomplete"):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{name} is missing: the weights folder is incomplete"
    ):
        Toy.from_pretrained(folder)


def test_a_pickle_is_never_loaded(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save(Trap(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"pytorch_model\.bin beside it is a pickle, which is never loaded",
    ):
        Toy.from_pretrained(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Toy.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_that_is_missing_or_a_file_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        Toy.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        Toy.from_pretrained(folder / "config.json")


def test_a_name_that_the_hub_does_not_give_is_one_sentence(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("many\nlines")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        FileNotFoundError,
        match="neither a local folder nor available from the Hugging Face hub",
    ):
        Toy.from_pretrained("somebody/something")


def test_unknown_presets_and_configs_of_others_are_refused():
    with pytest.raises(
        ValueError, match="preset must be one of tiny, full for Toy, not 'huge'"
    ):
        Toy.preset("huge")
    with pytest.raises(TypeError, match="config must be a ToyConfig, not PartConfig"):
        Toy(PartConfig())


def test_what_fails_while_it_is_written_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_save_that_fails_leaves_the_weights_that_were_there(folder, monkeypatch):
    before = Toy.from_pretrained(folder)
    other = Toy.preset("tiny")

    def disk_full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", disk_full)
    with pytest.raises(OSError, match="no space"):
        other.save_pretrained(folder)
    assert state_equal(before, Toy.from_pretrained(folder))
    assert json.loads((folder / "config.json").read_text())["width"] == 4
    assert len(list(folder.iterdir())) == 2


def test_parameters_are_counted_and_buffers_are_not():
    assert Toy.preset("tiny").n_parameters() == 4 * 3 + 3 + 2 * 3


def test_a_gpu_is_used_where_there_is_one_unless_the_environment_says_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("MINILIB_DEVICE", raising=False)
    assert has_gpu()
    monkeypatch.setenv("MINILIB_DEVICE", "cpu")
    assert not has_gpu()
    monkeypatch.delenv("MINILIB_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_gpu()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrappers_prefix_is_taken_off_or_named(folder, prefix):
    model = Toy.from_pretrained(folder)
    wrapped = {prefix + name: x for name, x in model.state_dict().items()}
    change(folder, "model.safetensors", wrapped)
    assert state_equal(Toy.from_pretrained(folder), model)
    bias = wrapped.pop(prefix + "linear.bias")
    change(folder, "model.safetensors", {**wrapped, "linear.bias": bias})
    said = f"has a wrapper's prefix '{prefix.split('.')[0]}.', but not all names do"
    with pytest.raises(ValueError, match=said):
        Toy.from_pretrained(folder)


def test_a_device_that_the_environment_can_not_mean_is_refused(monkeypatch):
    monkeypatch.setenv("MINILIB_DEVICE", "gpu")
    with pytest.raises(ValueError, match="MINILIB_DEVICE must be cpu"):
        has_gpu()
    monkeypatch.setenv("MINILIB_DEVICE", "cpu")
    assert not has_gpu()
