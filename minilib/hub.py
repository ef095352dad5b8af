"""Pipelines on the Hugging Face hub: `push` sends one, with a model card that is
written from its run. `AudioLDM2.from_pretrained("owner/name")` loads it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

from minilib import costs
from minilib.arguments import check_path, shown
from minilib.audioldm2 import AudioLDM2
from minilib.convert import released
from minilib.files import replacing
from minilib.folders import CLASSES, TOKENIZERS
from minilib.guidance import Sampling
from minilib.metrics import guided_where, rows_of, told_settings
from minilib.model import hub_reason, read_json
from minilib.training import curves
from minilib.training.stages import ALL_STAGES

CARD, SCORES, LOG = "README.md", "scores.json", "train.log"
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # of a repository: owner/name
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the hub names licences
# parts of an older pipeline there make way for those of the new one
OLDER = [*(f"{name}/*" for name in CLASSES), *TOKENIZERS, "tokenizer/*"]
OLDER += ["clap_tokenizer/*", LOG, SCORES, curves.PICTURE]


def push(
    folder: str | Path, name: str, licence: str | None = None, private: bool = False
) -> str:
    """Send a pipeline to the hub, and return its address.

    Parts that its folder borrows from another one are sent with it, and so are
    `train.log`, `loss.png` and `scores.json` if they are there. A `README.md` in the
    folder is its card; otherwise one is written.

    Args:
        folder: of a pipeline, in any layout.
        name: of the repository, "owner/name", which is made if there is none.
        licence: of the weights, as the hub names it ("cc-by-4.0"), for a card.
        private: whether a new repository is shown to its owner alone.

    Raises:
        ValueError, FileNotFoundError: the folder holds no whole pipeline, or an
            argument is not as described; nothing is sent.
        OSError: the hub can't be reached, or refuses.
    """
    from huggingface_hub import HfApi

    folder = check_named(folder, name)
    own = folder / CARD
    if own.is_file() and licence is not None:
        said = f"licence must be None where {own} is the card, and names it"
        raise ValueError(f"{said}, not {licence!r}")
    if not own.is_file():
        check_licence(licence)
    pipe = load(folder)
    with tempfile.TemporaryDirectory() as place:
        staged = Path(place) / "pipeline"
        pipe.save_pretrained(staged)
        for file in (LOG, SCORES, curves.PICTURE, CARD):
            if (folder / file).is_file():
                shutil.copy(folder / file, staged / file)
        if not own.is_file():
            text = card(pipe, folder, name, licence)
            (staged / CARD).write_text(text, encoding="utf-8")
        api, what = HfApi(library_name="minilib"), {"repo_id": name}
        try:
            address = api.create_repo(**what, private=private, exist_ok=True)
            told = {"commit_message": "A pipeline of minilib", "delete_patterns": OLDER}
            api.upload_folder(**what, folder_path=staged, **told)
        # the hub raises many kinds of error
        except Exception as error:
            raise OSError(f"{name} was not pushed: {refusal(error)}") from error
    return str(address)


def write_card(folder: str | Path, name: str, licence: str | None) -> Path:
    """Write the card with which `push` would send a pipeline, as `README.md` in its
    folder, where you can change it.

    Raises:
        ValueError: a `README.md` is there already; and as `push`.
    """
    folder = check_named(folder, name)
    check_licence(licence)
    path = folder / CARD
    if path.exists():
        raise ValueError(f"{path} is there already: remove it to have another written")
    text = card(load(folder), folder, name, licence)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def check_named(folder: str | Path, name: str) -> Path:
    """The path of a local folder; raise a sentence if it holds no pipeline, or if this
    can't be the name of a repository.
    """
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ValueError(f"name must be that of a repository, owner/name, not {name!r}")
    path = check_path("folder", folder)
    if not path.is_dir():
        raise FileNotFoundError(f"folder must hold a pipeline: there is no {path}")
    description = path / "pipeline.json"
    if not (description.is_file() or released.is_released(path)):
        raise FileNotFoundError(f"{description} is missing: {path} holds no pipeline")
    return path


def check_licence(licence: Any) -> None:
    """Raise ValueError unless this may name a licence; nobody's is guessed."""
    if not (isinstance(licence, str) and LICENCE.fullmatch(licence)):
        wanted = "must be named as the hub does, as in cc-by-4.0"
        raise ValueError(f"licence of the weights {wanted}, not {shown(licence)}")


def load(folder: Path) -> AudioLDM2:
    """The pipeline in a folder, its numbers as they are stored."""
    description = folder / "pipeline.json"
    if description.is_file() and (peer := read_json(description).get("peer")):
        raise ValueError(
            f"{folder} holds the peer {peer}: only pipelines can be pushed"
        )
    return AudioLDM2.from_pretrained(folder, device="cpu", dtype=None)


def refusal(error: Exception) -> str:
    """Why the hub took nothing."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "log in as somebody who may write there, with: hf auth login"
    return hub_reason(error)


# --------------------------------------------------------------------------------------
# The card


def card(pipe: AudioLDM2, folder: Path, name: str, licence: str) -> str:
    """The model card of a pipeline, in Markdown, from what its folder holds."""
    sections = [
        front_matter(licence),
        f"# {name.split('/')[1]}",
        about(pipe),
        f"## Use\n\n{usage(pipe, name)}",
        f"## Parts\n\n{parts_table(pipe)}",
        f"## Training\n\n{training(folder)}",
        f"## Scores\n\n{scores(folder)}",
        f"## Licence\n\nThe weights are under `{licence}`.",
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(licence: str) -> str:
    """What the hub reads of a card."""
    return (
        f"---\nlicense: {licence}\nlibrary_name: minilib\n"
        "pipeline_tag: text-to-audio\ntags:\n- audioldm2\n---"
    )


def about(pipe: AudioLDM2) -> str:
    """What the pipeline makes, from what, and how it samples."""
    source = "captions"
    if pipe.speaks:
        source = "the words to be spoken and a caption of the voice"
    if pipe.sees:
        source = "pictures"
    how: Sampling = pipe.sampling
    low, high = how.guidance_interval
    settings = {"guidance.low": low, "guidance.high": high}
    guided = f"guidance {how.guidance:g}{guided_where(settings)}"
    words = pipe.vocabulary.get("words", ())
    known = f" It knows {len(words)} words." if words else ""
    return (
        "A pipeline of [AudioLDM 2](https://arxiv.org/abs/2308.05734), made with "
        "`minilib`, the package of the course *The Language of Audio*. From "
        f"{source} it makes sounds, sampled at 16 kHz; it was trained on clips of "
        f"{pipe.seconds:g} s.{known}\n\n"
        f"By default it samples with {how.sampler}, {how.steps} steps, {guided}, and "
        f"temperature {how.temperature:g}."
    )


def usage(pipe: AudioLDM2, name: str) -> str:
    """How to load the pipeline, with one of its own captions."""
    told = next(iter(pipe.vocabulary.get("captions", ())), "a dog barks")
    asked, line = f"[{json.dumps(told)}], seed=0", shlex.quote(told)
    if pipe.speaks:
        asked = f'[{json.dumps(told)}], transcription=["seven"], seed=0'
        line += " --transcription seven"
    if pipe.sees:
        shape = pipe.bind.config.image.shape[1:]
        asked, line = "picture=picture, seed=0", "--picture FILE.png"
    seen = f"# picture: (3, {shape[0]}, {shape[1]}) in [0, 1]\n" if pipe.sees else ""
    return (
        "```python\nimport minilib\n\n"
        f'pipe = minilib.AudioLDM2.from_pretrained("{name}")\n'
        f"{seen}wave = pipe({asked})  # (1, N) float32 in [-1, 1], 16 kHz\n```\n\n"
        f"```bash\nminilib generate {line} --weights {name}\n```"
    )


def parts_table(pipe: AudioLDM2) -> str:
    """The parts and their sizes."""
    rows = costs.sizes(pipe.models)
    total = sum(row.parameters for row in rows)
    cells = [(row.name, row.model, f"{row.parameters:,}") for row in rows]
    return table(("part", "class", "parameters"), [*cells, ("total", "", f"{total:,}")])


def training(folder: Path) -> str:
    """How the parts were trained, from log and notes of the run."""
    stages, path = curves.read_log(folder), folder / "pipeline.json"
    if not stages:
        return "There is no log of the training."
    description = read_json(path) if path.is_file() else {}
    elsewhere = [name for name in CLASSES if name in description]
    lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
    begun = [line for line in lines if line.startswith("preset ")]
    sources = {read_json(x).get("source") for x in folder.glob("finished/*.json")}
    said = [f"On {' and '.join(sorted(filter(None, sources)))}."] if sources else []
    said += [f"`{begun[-1]}`"] if begun else []
    if elsewhere:
        said.append(f"Trained in another run: {', '.join(elsewhere)}.")
    rows = []
    for name, points in in_order(stages):
        losses = ", ".join(f"{k} {x:.4f}" for k, x in points[-1].losses.items())
        rows.append((name, f"{points[-1].step:,}", f"{points[-1].seconds:,}", losses))
    header = "stage", "steps", "seconds", "losses at the end"
    said.append(table(header, rows))
    if (folder / curves.PICTURE).is_file():
        said.append(f"![The losses of each stage over its steps]({curves.PICTURE})")
    return "\n\n".join(said)


def in_order(stages: dict[str, list[curves.Point]]) -> list[tuple[str, list]]:
    """The stages in the paper's order, and after them any others."""
    known = [name for name in ALL_STAGES if name in stages]
    return [(x, stages[x]) for x in [*known, *(x for x in stages if x not in known)]]


def scores(folder: Path) -> str:
    """The table of `scores.json`, which `minilib evaluate --json` writes."""
    path = folder / SCORES
    if not path.is_file():
        return "None were stored with the weights (`minilib evaluate --json`)."
    results = read_json(path)
    try:
        said = [told_settings(results, "times each question"), "", *rows_of(results)]
    except (KeyError, TypeError, ValueError) as error:
        wanted = "what minilib evaluate --json writes"
        raise ValueError(f"{path} must hold {wanted}: it is damaged") from error
    legend = (
        "chance: guessing. control: the same sounds, asked for others. round trip: "
        "clean sounds through VAE and vocoder. ceiling: clean sounds."
    )
    return "```\n" + "\n".join(said) + f"\n```\n\n{legend}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    line = lambda cells: f"| {' | '.join(cells)} |"
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])
