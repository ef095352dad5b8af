"""What the page of the book does beyond jupyter-book, as one Sphinx extension: numbers
by the chapter's file name, the map with links, previews of terms and equations.

_config.yml names it under `sphinx: local_extensions`. Nothing is computed here, and
nothing is loaded from elsewhere.
"""

from __future__ import annotations

import html
import json
import re
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import Any

import course_map
import notebooks
import opening
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

GLOSSARY = "book/glossary"
GALLERY = notebooks.ROOT / "book" / "gallery.md"
HAN = re.compile(r"[\u3400-\u9fff][\u3000-\u303f\u3400-\u9fff\uff00-\uffef]*")
DESCRIPTION = (
    "A course that builds AudioLDM 2, which makes sounds from sentences, in chapters "
    "that run on a laptop: diffusion, latents, language models and vocoders, each "
    "heard, checked and trained."
)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect what follows to Sphinx."""
    app.connect("config-inited", address)
    app.connect("source-read", fill_in)
    app.connect("env-get-updated", number, priority=900)  # after Sphinx has counted
    app.connect("html-page-context", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# --------------------------------------------------------------------------------------
# Before reading


def address(app: Sphinx, config: Any) -> None:
    """Turn on the links that edit a page and report an error, once there is an address
    for them.
    """
    theme = config.html_theme_options
    for button in ("repository", "issues", "edit_page"):
        theme[f"use_{button}_button"] = bool(theme.get("repository_url"))


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the map with its links in the place of its picture in a chapter, and sounds
    of the gallery on the welcome page.
    """
    if chapter := notebooks.number(docname):
        source[0] = with_map(source[0], chapter)
    else:
        source[0] = with_sounds(source[0])


def with_map(text: str, chapter: str) -> str:
    """A notebook in which a drawing, its boxes links, will take the place of the
    picture of the map.
    """
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        words = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and words.startswith("<!-- map: lit -->"):
            # drawn when the page is finished, so that a search doesn't find its words
            cell["source"] = f'<figure class="pipeline" data-lit="{chapter}"></figure>'
    return json.dumps(notebook)


def with_sounds(text: str) -> str:
    """A page with its opening picture, and with sound number 3 of the gallery where
    `<!-- gallery: 3 -->` stands.
    """
    text = text.replace("<!-- opening -->", opening.picture())
    wanted = re.compile(r"<!-- gallery: (\d+) -->")
    if not wanted.search(text):
        return text
    figures = re.findall(r"<figure id=.*?</figure>", GALLERY.read_text("utf-8"))
    return wanted.sub(lambda found: figures[int(found[1])], text)


# --------------------------------------------------------------------------------------
# Numbers


def number(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Number figures, equations and exercises by the file's name, as 6.1 or 11b.3.

    Sphinx counts through the whole book; a new chapter would move every number after
    it.
    """
    for docname, kinds in env.toc_fignumbers.items():
        chapter = notebooks.number(docname)
        for numbers in kinds.values():
            for i, name in enumerate(sorted(numbers, key=numbers.get), 1):
                numbers[name] = (chapter.lstrip("0"), i) if chapter else (i,)
    return [docname for docname in env.found_docs if notebooks.number(docname)]


# --------------------------------------------------------------------------------------
# After writing


def finish(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Mend a page that is written: title, description, pictures, Chinese, previews, and
    what comes next.
    """
    if page == app.config.root_doc:
        context["docstitle"] = ""  # else the title stands there twice
    for kind in ("script_files", "css_files"):  # of an extension that is not in use
        context[kind] = [file for file in context[kind] if "thebe" not in str(file)]
    if doctree is None:
        return
    context["metatags"] = context.get("metatags", "") + metatags(page, doctree)
    body = context["body"]
    body = MAP.sub(lambda found: course_map.pipeline("../", found[1]), body)
    body = IMAGE.sub(lambda found: with_axes(app, found[0]), body)
    body = in_chinese(body)
    body += previews(app.env, page, body)
    context["body"] = body
    if (following := context.get("next")) and (gap := unwritten_after(page)):
        note = f'<span class="gap">{gap}</span>'
        context["next"] = {**following, "title": f"{following['title']} {note}"}


def metatags(page: str, doctree: nodes.document) -> str:
    """What a search engine, or a message that links the page, says of it."""
    chapter = notebooks.number(page)
    words = DESCRIPTION
    if chapter:
        words = f"{course_map.title(chapter)}. {course_map.question(chapter)}"
    elif page != "book/welcome":
        paragraph = next(iter(doctree.findall(nodes.paragraph)), None)
        if paragraph:
            words = textwrap.shorten(paragraph.astext(), 200, placeholder=" …")
    words = html.escape(words)
    return "".join(
        f'\n<meta {kind}="{name}" content="{words}">'
        for kind, name in (("name", "description"), ("property", "og:description"))
    )


MAP = re.compile(r'<figure class="pipeline" data-lit="(\w+)"></figure>')
IMAGE = re.compile(r'<img [^>]*src="[^":]*_images/([^"/]+\.png)"[^>]*>')


def with_axes(app: Sphinx, tag: str) -> str:
    """The tag of a plot with its size, and with what `show.style` has written into it:
    where its axes stand.
    """
    name = IMAGE.match(tag)[1]
    for path, (_, file) in app.env.images.items():
        if file == name:
            with Image.open(Path(app.srcdir) / path) as image:
                width, height, axes = *image.size, image.text.get("axes")
            more = "" if " width=" in tag else f' width="{width}" height="{height}"'
            if axes is not None:
                more += f' data-axes="{axes}"'
            return tag.replace("<img", f'<img loading="lazy"{more}', 1)
    return tag


def in_chinese(body: str) -> str:
    """The page with its Chinese words marked as such, for voices and fonts."""
    parts, silent = re.split(r"(<[^>]*>)", body), 0
    for i, part in enumerate(parts):
        if i % 2:  # a tag
            if opened := re.match(r"<(/?)(?:script|pre|svg|title)\b", part):
                silent += -1 if opened[1] else 1
        elif not silent:
            parts[i] = HAN.sub(r'<span lang="zh">\g<0></span>', part)
    return "".join(parts)


def unwritten_after(page: str) -> str:
    """A sentence about the chapters between this one and the next that is written;
    empty where there are none.
    """
    chapter, every = notebooks.number(page), list(course_map.every_chapter())
    if chapter not in every:
        return ""
    gap = []
    for other in every[every.index(chapter) + 1 :]:
        if other in course_map.written():
            break
        gap.append(other)
    if not gap:
        return ""
    first, last = gap[0], gap[-1]
    if first == last:
        return f"Chapter {first} is not written yet."
    return f"Chapters {first} to {last} are not written yet."


# ---- previews


LINK = re.compile(r'<a class="reference internal" href="([^"#]*)#([^"]+)"')


def previews(env: BuildEnvironment, page: str, body: str) -> str:
    """What the links of a page to terms, and to equations of other pages, lead to, for
    the script to show beside them.
    """
    found = {}
    for path, anchor in LINK.findall(body):
        if anchor.startswith("term-"):
            found[f"{path}#{anchor}"] = term(env, anchor)
        elif anchor.startswith("equation-") and path:
            found[f"{path}#{anchor}"] = equation(env, anchor)
    entries = "".join(
        f'<div data-for="{html.escape(link)}">{text}</div>'
        for link, text in found.items()
        if text
    )
    return f'<template id="previews">{entries}</template>' if entries else ""


@lru_cache(maxsize=64)
def doctree_of(env: BuildEnvironment, docname: str) -> nodes.document:
    """A page as it was read; to be looked at only."""
    return env.get_doctree(docname)


def term(env: BuildEnvironment, anchor: str) -> str:
    """An entry of the glossary."""
    for item in doctree_of(env, GLOSSARY).findall(nodes.definition_list_item):
        names = [x for x in item.children if isinstance(x, nodes.term)]
        if any(anchor in name["ids"] for name in names):
            head = " · ".join(html.escape(name.astext()) for name in names)
            text = html.escape(item.children[-1].astext())
            return in_chinese(f"<p><strong>{head}</strong></p><p>{text}</p>")
    return ""


def equation(env: BuildEnvironment, anchor: str) -> str:
    """A numbered equation of another page, for MathJax to set."""
    for label, (docname, _) in env.get_domain("math").equations.items():
        if anchor != nodes.make_id(f"equation-{label}"):
            continue
        for node in doctree_of(env, docname).findall(nodes.math_block):
            if node.get("label") == label:
                count = env.toc_fignumbers[docname]["displaymath"][anchor]
                where = f"({'.'.join(map(str, count))}), {env.titles[docname].astext()}"
                formula = html.escape(node.astext())
                return (
                    f"<p>{html.escape(where)}</p>"
                    f'<div class="math">\\[{formula}\\]</div>'
                )
    return ""
