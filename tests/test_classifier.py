"""The classifier that judges generated sounds (chapter 17)."""

import math

import pytest
import torch
import torch.nn.functional as F

from minilib import audio, classifier
from minilib.classifier import Classifier, ClassifierBlock, ClassifierConfig
from minilib.soundworld import CLASSES, INSTRUMENTS


def small(*classes: str) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(classes=classes, channels=(4, 8))).eval()


def test_a_judge_hears_clips_of_any_length_from_32_frames_on():
    judge = Classifier.preset("tiny").eval()
    assert judge.config.classes == (*CLASSES, *INSTRUMENTS)
    n_classes = len(CLASSES) + len(INSTRUMENTS)
    for T in (32, 33, 100):
        assert judge(torch.zeros(2, 1, T, 64)).shape == (2, n_classes)
    with pytest.raises(ValueError, match="T and F at least 32, not \\(2, 1, 31, 64\\)"):
        judge(torch.zeros(2, 1, 31, 64))
    for shape in ((1, 2, 40, 64), (2, 40, 64), (1, 1, 40, 31)):
        with pytest.raises(ValueError, match="mel must have shape"):
            judge(torch.zeros(shape))


def test_every_preset_has_the_same_judge():
    assert len({Classifier.presets[name] for name in ("tiny", "colab", "full")}) == 1
    assert 0.3e6 < Classifier.preset("tiny").n_parameters() < 0.5e6


def test_a_block_convolves_normalises_and_keeps_the_larger_of_each_two_by_two():
    block = ClassifierBlock(1, 3, kernel=3, stride=2, pool=2)
    x = torch.randn(4, 1, 16, 8, generator=torch.Generator().manual_seed(0))
    h = F.conv2d(x, block.conv.weight, stride=2, padding=1)  # (4, 3, 8, 4)
    mean, var = h.mean(dim=(0, 2, 3)), h.var(dim=(0, 2, 3), correction=0)
    h = (h - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    wanted = h.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax(dim=(3, 5)).relu()
    torch.testing.assert_close(block(x), wanted, atol=1e-5, rtol=1e-4)


def test_every_block_halves_time_and_frequency_once():
    judge, x = small("a", "b"), torch.zeros(1, 1, 32, 64)
    for block, size in zip(judge.blocks, ((8, 16), (8, 16)), strict=True):
        x = block(x)  # the first by its stride and its pool, the last by neither
        assert tuple(x.shape[2:]) == size
    kernels = [block.conv.kernel_size for block in judge.blocks]
    assert kernels == [(5, 5), (3, 3)] and judge.reduction == 4


def test_features_are_the_whole_of_a_sound_and_its_loudest_spot():
    judge = small("a", "b")
    mel = -7 + 3 * torch.randn(2, 1, 12, 64, generator=torch.Generator().manual_seed(1))
    x = (mel + 6.8) / 2.8  # to mean 0 and variance 1
    for block in judge.blocks:
        x = block(x)
    wanted = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
    torch.testing.assert_close(judge.features(mel), wanted)
    torch.testing.assert_close(judge(mel), judge.head(wanted))


def test_sounds_are_heard_in_batches_as_one_by_one(monkeypatch):
    monkeypatch.setattr(classifier, "BATCH", 3)
    judge, waves = small("a", "b", "c"), 0.1 * torch.randn(5, 4000)
    alone = torch.cat([judge.features(audio.log_mel(wave[None])) for wave in waves])
    torch.testing.assert_close(judge.embed(waves), alone)
    assert torch.equal(judge.hear(waves), judge.head(alone).argmax(dim=1))
    assert not judge.embed(waves).requires_grad


def test_a_judge_learns_to_tell_low_from_high():
    judge = small("low", "high").train()
    seconds = torch.arange(2400) / audio.SAMPLE_RATE
    hertz = torch.cat([torch.linspace(200, 400, 8), torch.linspace(2000, 4000, 8)])
    noise = torch.randn(16, 2400, generator=torch.Generator().manual_seed(0))
    waves = 0.5 * torch.sin(2 * math.pi * hertz[:, None] * seconds) + 0.005 * noise
    batch = {"mel": audio.log_mel(waves), "label": torch.arange(16) // 8}
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.01)
    first = judge.loss(batch).item()
    assert first == pytest.approx(math.log(2), abs=0.4)  # in nats; chance
    for _ in range(15):
        optimizer.zero_grad()
        judge.loss(batch).backward()
        optimizer.step()
    assert judge.loss(batch).item() < 0.3 * first
    assert torch.equal(judge.eval().hear(waves), batch["label"])


def test_a_judge_comes_back_from_its_folder(tmp_path):
    judge = small("a", "b", "c")
    judge.save_pretrained(tmp_path, dtype=torch.float16)
    again = Classifier.from_pretrained(tmp_path, dtype=torch.float32)
    mel = torch.randn(2, 1, 40, 64) * 2 - 7
    assert again.config == judge.config
    torch.testing.assert_close(again(mel), judge(mel), atol=1e-2, rtol=1e-2)
