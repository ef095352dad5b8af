"""The page of all systems: every system of the lecture has a row, and every number is
that of the weights, the logs and the stored results.
"""

import html
import json
import math
import re
import shutil
import statistics
import sys
from pathlib import Path

import pytest
import systems
import yaml
from safetensors import safe_open

from minilib import results

ROOT = Path(__file__).parents[1]
# What the lecture names, point by point: systems, and the parts they are built of.
LECTURE = {
    1: ["HiFi-Codec", "FunCodec"],
    3: ["VALL-E", "SpeechX", "Make-A-Voice", "UniAudio", "MVoice"],
    4: ["AudioLDM 2"],
    5: ["Regeneration Learning"],
    6: ["AudioMAE"],
    7: ["FLAN-T5"],
    8: ["CLAP", "BERT", "PANNs"],
    9: ["Phoneme encoder", "espeak"],
    10: ["ImageBind", "CLIP", "ViT", "AST"],
    12: ["LanguageBind"],
    13: ["GPT-2"],
    16: ["VAE, with KL or VQ", "LDM", "U-Net", "CFG"],
    17: ["Stable Diffusion", "VQ", "vocoder"],
    18: ["HiFi-GAN"],
    19: ["DDPM"],
    26: ["Latent diffusion"],
    27: ["Classifier-free guidance"],
    30: [
        "NaturalSpeech 2",
        "Make-An-Audio",
        "Make-An-Audio 1",
        "Make-An-Audio 2",
        "TANGO",
        "MusicLDM",
    ],
    31: ["NExT-GPT"],
}
DEBTS = {  # who takes something from whom, checked with papers and public code
    "audioldm": "clap hifigan ldm vae",
    "audioldm2": "audioldm audiomae cfg clap flant5 gpt2 hifigan imagebind ldm "
    "phonemes regeneration vae",
    "cfg": "ddpm",
    "funcodec": "codecs",
    "hificodec": "codecs",
    "imagebind": "clip",
    "languagebind": "clip imagebind",
    "ldm": "ddpm vae",
    "makeanaudio": "cfg clap ldm vae",
    "makeanaudio2": "cfg clap ldm makeanaudio",
    "makeavoice": "codecs hubert",
    "musicldm": "audioldm clap hifigan",
    "mvoice": "makeavoice",
    "naturalspeech2": "codecs ddpm",
    "nextgpt": "audioldm imagebind ldm",
    "speechx": "codecs valle",
    "tango": "audioldm cfg flant5 ldm",
    "uniaudio": "codecs hubert",
    "valle": "codecs",
}
SHORT = ("LDM", "CFG", "Make-An-Audio 1")  # other names of a system itself
SYSTEMS = systems.every_system()
TEXT = systems.PAGE.read_text(encoding="utf-8")
ROWS = {
    key: row
    for row, key in re.findall(
        r'^(<article class="system" id="system-(\w+)".*)$', TEXT, re.M
    )
}
EFFECT = re.compile(r'<div class="effect" data-effect="(\w+)/(\w+)">(.*?)</div>')
ARM = re.compile(r'<tr data-arm="([^"]*)"><th scope="row">(.*?)</th><td>(.*?)</td>')
by_key = pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.key)


def plain(text: str) -> str:
    """What is read on the page."""
    return html.unescape(re.sub(r"<[^>]*>", "", text))


# ---- rows


def test_every_system_that_the_lecture_names_has_a_row():
    names = {name: s.key for s in SYSTEMS for name in (s.name, *s.also)}
    for point, named in LECTURE.items():
        for name in named:
            assert name in names, f"point {point} of the lecture: {name} has no row"
            assert names[name] in ROWS
    everything = {name for named in LECTURE.values() for name in named}
    assert {system.name for system in SYSTEMS} <= everything


@by_key
def test_a_row_says_all_that_a_row_should(system):
    row = ROWS[system.key]
    assert f"<h3>{system.name} <small>{system.year}</small></h3>" in row
    for part in ("what", "models", "reads", "trained", "frozen"):
        said = getattr(system, part)
        assert said and html.escape(said) in row, f"{system.name}: {part}"
    assert all(name in plain(row) for name in system.also if name not in SHORT)
    assert re.search(r"<dt>Weights</dt><dd>[^<]+</dd>", row)
    assert f'href="{system.source or f"https://arxiv.org/abs/{system.arxiv}"}"' in row


def test_systems_stand_on_the_page_in_the_order_of_their_entries():
    assert list(ROWS) == [system.key for system in SYSTEMS]
    listed = re.findall(r'^\| <a href="#system-(\w+)">(.*?)</a> \| (\d+)', TEXT, re.M)
    assert listed == [(s.key, s.name, str(s.year)) for s in SYSTEMS]


def test_papers_are_those_of_the_bibliography():
    known = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    known = set(re.findall(r"eprint = \{([\d.]+)\}", known))
    told = [*SYSTEMS, *systems.entries()[1]]
    numbers = {s.arxiv for s in told if s.arxiv}
    assert numbers <= known, f"not in references.bib: {numbers - known}"
    assert len(numbers) == sum(bool(s.arxiv) for s in told)


@by_key
def test_chapter_and_module_are_there(system):
    if not system.written:
        assert f'href="../chapters/{system.chapter}' not in ROWS[system.key]
        return
    file = systems.chapters()[system.chapter]
    assert f'<a href="../{file}.html">chapter {system.chapter}</a>' in ROWS[system.key]
    assert (ROOT / system.module).is_file() and system.module in ROWS[system.key]


def test_links_within_the_page_lead_to_rows():
    links = re.findall(r'href="#system-(\w+)"', TEXT)
    assert len(links) > 3 * len(SYSTEMS) and set(links) == set(ROWS)


# ---- numbers


@by_key
def test_effects_are_those_of_the_stored_results(system):
    shown = {
        f"{chapter}/{name}": body
        for chapter, name, body in EFFECT.findall(ROWS[system.key])
    }
    for told, arms in system.effects.items():
        chapter, name = told.split("/")
        stored = ROOT / f"data/results/{chapter}.json"
        if not stored.is_file():
            assert told not in shown and "Still to come" in ROWS[system.key]
            continue
        found = json.loads(stored.read_text(encoding="utf-8"))[name]
        body = shown.pop(told)
        assert ("Did not hold." in body) != found["holds"] == ("Held." in body)
        assert found["claim"].lower() in plain(body).lower()
        rows = [tuple(map(html.unescape, row)) for row in ARM.findall(body)]
        assert {arm for arm, _, _ in rows} == {*arms, found["control"]}
        for arm, label, said in rows:
            mean, error = map(float, said.split(" ± "))
            values = found["arms"][arm]
            assert len(values) >= 3
            assert mean == pytest.approx(statistics.fmean(values), rel=5e-3, abs=1e-6)
            true = statistics.stdev(values) / math.sqrt(len(values))
            assert error == pytest.approx(true, rel=0.5, abs=1e-6)
            assert label.endswith(" (control)") == (arm == found["control"])
        assert rows[-1][0] == found["control"], "an effect without a control"
    assert not shown and (system.effects or system.no_effect in ROWS[system.key])


def test_no_number_with_an_error_stands_outside_an_effect():
    rest = EFFECT.sub("", TEXT)
    assert re.findall(r"\d ± \d", TEXT) and not re.findall(r"\d ± \d", rest)


def test_how_many_effects_held_is_counted():
    shown, held, failed = map(
        int,
        re.search(
            r"Of the (\d+) effects shown,\s(\d+) held and (\d+) did", TEXT
        ).groups(),
    )
    assert shown == TEXT.count('data-effect="') == held + failed
    assert failed == TEXT.count(">Did not hold.<") > 0


@by_key
def test_sizes_are_counted_in_the_weights_that_ship(system):
    total = 0
    for folder in system.weights:
        for path in (ROOT / "data/weights" / folder).rglob("*.safetensors"):
            with safe_open(path, "np") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]
            total += sum(math.prod(shape) for shape in shapes)
    (here,) = re.findall(rf'system-{system.key}">[^|]*\| \d+ \| ([^|]*) \|', TEXT)
    if not total:
        assert here == systems.UNKNOWN and not (system.weights and system.written)
        return
    assert float(here.removesuffix("\u00a0M")) == pytest.approx(total / 1e6, rel=5e-3)


def test_released_sizes_are_those_of_the_presets():
    from minilib import costs  # brings torch, which the page does without

    told = [s.released for s in SYSTEMS if s.released]
    counted = {
        preset: {r.name: r.parameters for r in costs.sizes(costs.preset_parts(preset))}
        for preset in {size.get("preset", "full") for size in told}
    }
    assert len(told) >= 7
    for size in told:
        assert size["weights"] == counted[size.get("preset", "full")][size["part"]]


@by_key
def test_minutes_are_those_of_the_logs(system):
    ship = any((ROOT / "data/weights" / folder).is_dir() for folder in system.weights)
    for log, what in system.logs.items() if ship else ():
        if log == "LOG.md":
            said = next(iter(what.values()))
        else:
            lines = (ROOT / "data/weights" / log / "train.log").read_text().splitlines()
            done = [line.split() for line in lines if " finished: " in line]
            seconds = sum(int(line[5]) for line in done if line[0] in what)
            said = f"{seconds / 60:.0f} minutes on "
        assert said in ROWS[system.key]
    assert bool(system.logs) == bool(system.weights) or not ship


def test_a_time_that_the_log_does_not_tell_is_refused():
    assert systems.noted({"VALL-E and": "about 12 minutes of one core"})
    for what in ({"VALL-E and": "about 13 minutes"}, {"ImageBind": "about 12 minutes"}):
        with pytest.raises(SystemExit, match="LOG.md does not say"):
            systems.noted(what)
    with pytest.raises(SystemExit, match=r"tiny/train.log has no stage sing"):
        systems.logged("tiny", ["vae", "sing"])


# ---- what is stale, missing or misspelt


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["systems.py", *arguments])
    return systems.main()


def test_the_page_is_up_to_date(monkeypatch, capsys):
    assert run(monkeypatch, "--check") == 0, capsys.readouterr().out


def test_a_page_that_is_out_of_date_is_noticed_and_written_anew(
    tmp_path, monkeypatch, capsys
):
    stale = tmp_path / "systems.md"
    monkeypatch.setattr(systems, "PAGE", stale)
    stale.write_text(TEXT.replace("2.29", "2.28"), encoding="utf-8")
    assert run(monkeypatch, "--check") == 1
    assert "run python book/tools/systems.py" in capsys.readouterr().out
    assert "2.28" in stale.read_text(encoding="utf-8")
    assert run(monkeypatch) == 0 and stale.read_text(encoding="utf-8") == TEXT


def test_results_that_are_missing_are_named_and_others_shown(
    tmp_path, monkeypatch, capsys
):
    for path in results.FOLDER.glob("*.json"):
        if path.stem not in ("21", "22"):
            shutil.copy(path, tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(systems, "PAGE", tmp_path / "systems.md")
    assert {"21/order", "22/after"} <= set(systems.missing())
    assert run(monkeypatch) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("Results of chapters 21") and "22/after" in said
    text = (tmp_path / "systems.md").read_text(encoding="utf-8")
    assert "Results of chapters 21" in text and "an effect of chapter 21." in text
    assert 'data-effect="21/' not in text and 'data-effect="20/voices"' in text
    assert systems.entries()[0][0].systems[0].year == 2023


def test_one_sentence_tells_one_chapter_from_several(monkeypatch):
    for names, said in (
        ([], ""),
        (["24/skips", "24/unseen"], "Results of chapter 24 are still to come."),
        (["24/a", "23/b"], "Results of chapters 23 and 24 are still to come."),
    ):
        monkeypatch.setattr(systems, "missing", lambda names=names: names)
        assert systems.to_come() == said


def test_an_entry_that_names_what_is_not_there_is_refused():
    with pytest.raises(SystemExit, match="20 has no effect 'voice'"):
        systems.effect("20/voice")
    with pytest.raises(SystemExit, match=r"20/voices has no arm \['VALLE'\]"):
        systems.effect_html("20/voices", ["VALLE"])
    with pytest.raises(TypeError, match="colour"):
        systems.System("a", "A", colour="red")
    lost = systems.System("a", "A", weights=["peers/nobody"], chapter="20")
    with pytest.raises(SystemExit, match="A: no weights in peers/nobody"):
        systems.size_here(lost)


# ---- the picture


def test_the_picture_links_every_system_and_draws_every_debt():
    figure = re.search(r'<figure class="descent">.*?</figure>', TEXT, re.S)[0]
    assert re.findall(r'<a href="#system-\w+" data-system="(\w+)">', figure) == [
        s.key for s in systems.in_order() if s.key in ROWS
    ]
    drawn = set(re.findall(r'<path class="from-(\w+) to-(\w+)"', figure))
    told = {(p, s.key) for s in systems.in_order() for p in s.takes}
    known = {(p, key) for key, parents in DEBTS.items() for p in parents.split()}
    assert drawn == told == known
    for system in SYSTEMS:  # each can be lit
        lines = f":is(.from-{system.key}, .to-{system.key})"
        assert (
            f'[data-system="{system.key}"]:is(:hover, :focus-visible)) {lines}'
            in figure
        )
        for what in system.takes.values():  # and is told in words
            assert html.escape(what) in ROWS[system.key]


def test_lines_lead_to_later_systems_and_end_at_both_names():
    at = {s.key: i for i, s in enumerate(systems.in_order())}
    for system in systems.in_order():
        assert all(at[parent] < at[system.key] for parent in system.takes)
    figure = systems.descent()
    y = {
        key: int(height)
        for key, height in re.findall(
            r'data-system="(\w+)"><circle cx="\d+" cy="(\d+)"', figure
        )
    }
    ends = r'from-(\w+) to-(\w+)" d="M\d+ (\d+) C(-?\d+) (\d+) (-?\d+) (\d+) \d+ (\d+)"'
    found = re.findall(ends, figure)
    assert len(found) == figure.count("<path ")
    for first, last, y1, x, y1_again, x_again, y2_again, y2 in found:
        assert y.get(first, int(y1)) == int(y1) == int(y1_again) < int(y2)
        assert y.get(last, int(y2)) == int(y2) == int(y2_again) and x == x_again


def test_a_debt_to_a_later_system_is_refused(monkeypatch):
    early = systems.System("a", "A", since="0101", takes={"b": "x"})
    both = [early, systems.System("b", "B", since="0202")]
    monkeypatch.setattr(systems, "every_system", lambda: both)
    monkeypatch.setattr(systems, "entries", lambda: ([], []))
    with pytest.raises(SystemExit, match="A takes from b, which is later"):
        systems.descent()


def test_the_picture_has_no_colours_of_its_own():
    """So that the style gives it others in the dark."""
    assert not re.search(r'(?:fill|stroke)="(?!none)', systems.descent())


# ---- what came after


def test_what_came_after_has_a_source_and_a_chapter_each():
    text = (ROOT / "book/after.md").read_text(encoding="utf-8")
    items = re.split(r"^- ", text, flags=re.MULTILINE)[1:]
    items = [item.split("\n\n")[0] for item in items]
    sources = []
    for item in items:
        source = r"\*\*\[[^\]]+\]\(https://arxiv\.org/abs/(\d{4}\.\d{5})\)\*\*"
        found = re.match(source + r" \((\w+) (\d{4})\)", item)
        assert found, item
        sources.append(found[1])
        assert int(found[3]) == 2000 + int(found[1][:2])
        months = "January February March April May June July August September"
        months = [*months.split(), "October", "November", "December"]
        assert abs(months.index(found[2]) + 1 - int(found[1][2:4])) <= 1, item
        assert re.search(r"\]\((?:\.\./chapters/\w+\.ipynb|systems\.md)\)", item), item
    assert 8 <= len(items) <= 14 and len(set(sources)) == len(items)


def test_readers_find_both_pages():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    assert files.index("book/systems") + 1 == files.index("book/after")
    for page in ("README.md", "book/map.md"):
        assert "systems.md" in (ROOT / page).read_text(encoding="utf-8"), page
