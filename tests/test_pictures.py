"""What SoundWorld looks like: pictures and the other senses (chapter 12)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minilib.soundworld import (
    CLASSES,
    INSTRUMENTS,
    SENSES,
    Scene,
    SoundWorld,
    depth,
    held_out_combinations,
    motion,
    picture,
    thermal,
    video,
)
from minilib.soundworld.pictures import ICONS, ROOM, icon, shakes, spots

WORLD = SoundWorld("train", music=0.2)


def scenes(n: int, events: int = 0) -> list[Scene]:
    """The first n scenes, of this many events if not 0."""
    found = (WORLD.scene(i) for i in range(40 * n))
    fits = (scene for scene in found if events in (0, len(scene.events)))
    return [next(fits) for _ in range(n)]


def with_event(scene: Scene, **changes) -> Scene:
    """A scene whose first event is changed."""
    first, *others = scene.events
    return replace(scene, events=(replace(first, **changes), *others))


def test_every_sense_has_its_shape_and_its_range():
    for scene in scenes(20):
        assert picture(scene).shape == (3, 32, 32)
        assert video(scene).shape == (2, 3, 32, 32)
        assert depth(scene).shape == thermal(scene).shape == (1, 32, 32)
        assert motion(scene).shape == (6, 128)
        for sense in (picture, video, depth, thermal):
            x = sense(scene)
            assert x.dtype == torch.float32 and 0 <= x.min() <= x.max() <= 1
    assert picture(scene, size=50).shape == (3, 50, 50)
    assert set(SENSES) == {"image", "video", "depth", "thermal", "motion"}


def test_the_same_scene_looks_the_same_alone_or_after_others():
    some = scenes(8)
    for name, sense in SENSES.items():
        together = [sense(scene) for scene in some]
        for i in (5, 0):
            alone = sense(SoundWorld("train", music=0.2).scene(i))
            assert torch.equal(alone, together[i]), name
        assert not torch.equal(together[0], together[1])


def test_a_picture_shows_neither_pitch_nor_speed_nor_loudness_nor_order():
    for scene in scenes(30, events=1):
        other = with_event(
            scene, pitch="high", f0=1.0, speed="slow", rate=99.0, loudness="loud",
            peak=0.1, onset=0.0, seed=7,
        )  # fmt: skip
        for sense in (picture, video, depth, thermal):
            assert torch.equal(sense(scene), sense(other))
    left = []
    for scene in scenes(60, events=2):
        x = {
            k: [place[1] for place in spots(scene, 32) if place[0] == k] for k in (0, 1)
        }
        left.append(np.mean(x[0]) < np.mean(x[1]))
    assert 15 < sum(left) < 45  # the first event is on either side


def test_motion_shows_strokes_and_no_pitch():
    for scene in scenes(30, events=1):
        other = with_event(scene, pitch="high", f0=1.0, loudness="loud", peak=0.1)
        assert torch.equal(motion(scene), motion(other))
    counted = [s for s in scenes(60, events=1) if (s.events[0].count or 0) > 1]
    for scene in counted:
        event, trace = scene.events[0], motion(scene).square().sum(dim=0)
        assert shakes(event) == list(event.strokes)
        rest = trace[: int(50 * event.strokes[0])]
        for start in event.strokes:
            struck = trace[int(50 * start) : int(50 * start) + 5]
            assert struck.max() > 5 * 6 * 0.03**2 and len(struck)
        assert not len(rest) or rest.mean() < 4 * 6 * 0.03**2


def test_a_picture_shows_class_place_and_count():
    scene = next(s for s in scenes(60, events=1) if s.events[0].name == "dog")
    assert not torch.equal(picture(scene), picture(with_event(scene, name="cat")))
    for n in (1, 2, 3, 4):
        assert len(spots(with_event(scene, count=n), 32)) == n
    assert len(spots(with_event(scene, count=None), 32)) == 1
    places = {spots(s, 32)[0][1:3] for s in scenes(30, events=1)}
    assert len(places) > 15


@pytest.mark.parametrize("size", [16, 32, 96])
def test_icons_lie_in_the_picture_and_those_of_a_pair_in_its_halves(size):
    for scene in scenes(40):
        found = spots(scene, size)
        for _, left, top, side in found:
            assert 0 <= left <= size - side and 0 <= top <= size - side
        if len(scene.events) == 2:
            middle = {k: [x + s / 2 for j, x, _, s in found if j == k] for k in (0, 1)}
            a, b = sorted(middle.values(), key=np.mean)
            assert max(a) < size / 2 + 1 and min(b) > size / 2 - 1


def test_every_class_and_instrument_has_an_icon_of_its_own():
    assert set(ICONS) == {*CLASSES, *INSTRUMENTS}
    drawn = {name: icon(name, 16) for name in ICONS}
    for name, x in drawn.items():
        assert x.shape == (4, 16, 16) and 0 <= x.min() and x.max() <= 1, name
        assert 0.12 < x[3].mean() < 0.95 and (x[:3] <= x[3] + 1e-6).all(), name
    every = np.stack([x.ravel() for x in drawn.values()])
    distance = np.square(every[:, None] - every[None]).mean(axis=2)
    assert (distance + np.eye(len(every))).min() > 0.01


def test_in_a_video_what_sounds_moves_and_two_events_move_in_their_order():
    for scene in scenes(20, events=1):
        first, second = video(scene)
        assert torch.equal(first, picture(scene)) and not torch.equal(second, first)
    for scene in scenes(20, events=2):
        still, frames = picture(scene), video(scene)
        for k, frame in enumerate(frames):
            side = {j: [x for i, x, *_ in spots(scene, 32) if i == j] for j in (0, 1)}
            changed = (frame - still).abs().sum(dim=(0, 1)).nonzero()[:, 0].float()
            nearer = [abs(changed.mean() - np.mean(side[j]) - 5) for j in (0, 1)]
            assert nearer[k] < nearer[1 - k]


def test_depth_is_nearer_below_and_heat_is_warm_where_the_dog_is():
    scene = next(s for s in scenes(60, events=1) if s.events[0].name == "dog")
    _, left, top, side = spots(scene, 32)[0]
    middle = (0, top + side // 2, left + side // 2)
    assert depth(scene)[middle] > 0.4 and depth(scene)[0, 0, 0] < 0.45
    assert thermal(scene)[middle] > 0.6
    wet = with_event(scene, name="drip")
    _, left, top, side = spots(wet, 32)[0]
    assert thermal(wet)[0, top + side // 2, left + side // 2] < ROOM - 0.1


def test_a_held_out_combination_has_a_picture_that_training_never_shows():
    test = SoundWorld("test", pairs=0.0)
    for i in range(20):
        event = test.scene(i).events[0]
        assert event.combination in held_out_combinations()
        assert picture(test.scene(i)).shape == (3, 32, 32)


@pytest.mark.parametrize("sense", [picture, video, depth, thermal])
def test_bad_input_gets_one_sentence(sense):
    scene = WORLD.scene(0)
    with pytest.raises(TypeError, match="scene must be a Scene of SoundWorld, not str"):
        sense("a dog")
    for size, kind in ((8, ValueError), (1024, ValueError), (32.0, TypeError)):
        with pytest.raises(kind, match=f"size must be .* pixels, not {size}"):
            sense(scene, size)
    strange = with_event(scene, name="zebra")
    with pytest.raises(ValueError, match="an event must be .* 38 in all, not 'zebra'"):
        sense(strange)


def test_motion_refuses_what_is_no_scene():
    with pytest.raises(TypeError, match="scene must be a Scene of SoundWorld, not int"):
        motion(3)
