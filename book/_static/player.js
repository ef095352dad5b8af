/* What the page can do with a script: players with a playhead, sounds compared at the same moment, quizzes that answer,
   previews of terms and equations, plots that turn dark. Nothing is loaded; without it the page reads and sounds as it stands. */
(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const tenths = (seconds) => (Math.round(seconds * 10) / 10).toFixed(1);

  // ---- pictures: where the axes of a plot stand, as show.py writes it

  function shots() {
    for (const image of all("img[data-axes]")) {
      const axes = image.dataset.axes.split(" ").filter(Boolean).map((text) => {
        const [left, top, width, height, kind, start, end] = text.split(",");
        return { box: [left, top, width, height].map(Number), kind, start: +start, end: +end };
      });
      if (!axes.length) continue;
      const shot = make("span", { class: "shot" });
      image.replaceWith(shot);
      shot.append(image);
      for (const { box: [left, top, width, height], kind } of axes) {
        if (kind !== "picture") continue;
        // a copy that stays as it is where the page turns plots dark: its colours mean something
        const kept = make("img", { class: "kept", alt: "", "aria-hidden": "true", src: image.src });
        kept.style.clipPath = `inset(${top}% ${100 - left - width}% ${100 - top - height}% ${left}%)`;
        shot.append(kept);
        shot.classList.add("turned");
      }
      shot.axes = axes.filter((one) => one.end > one.start);
    }
  }

  // ---- players

  function player(figure) {
    const sounds = all("audio", figure);
    if (!sounds.length) return;
    const slider = figure.querySelector("input[type=range]");
    const picture = figure.querySelector(".minilib-mel");
    const sound = () => sounds.find((one) => one.style.display !== "none");
    const name = () => sound()?.getAttribute("aria-label") || "";
    const length = () => Number(picture?.dataset.seconds) || sound()?.duration || 0;

    const play = make("button", { type: "button", class: "play" });
    const clock = make("span", { class: "clock" });
    const seek = make("div", { class: "seek", role: "slider", tabindex: "0", "aria-valuemin": "0" }, make("i", { class: "playhead" }));
    const heads = [seek.firstChild];
    let asked = null; // where to begin, when a sound isn't loaded yet

    const place = (one, axis) => Object.assign(one.style, {
      left: `${axis.box[0]}%`, top: `${axis.box[1]}%`, width: `${axis.box[2]}%`, height: `${axis.box[3]}%`,
    });
    for (const shot of slider ? all(".shot", figure) : []) {
      for (const axis of shot.axes) {
        const zone = make("span", { class: "zone" }, make("i", { class: "playhead" }));
        place(zone, axis);
        shot.append(zone);
        zone.firstChild.axis = axis;
        heads.push(zone.firstChild);
        drag(zone, (part) => go(axis.start + part * (axis.end - axis.start)));
      }
    }

    function show() {
      const now = sound(), end = length();
      const at = now ? Math.min(asked ?? now.currentTime, end || Infinity) : 0;
      for (const head of heads) {
        const { start, end: last } = head.axis || { start: 0, end };
        head.style.left = `${last > start ? Math.max(0, Math.min(100, (100 * (at - start)) / (last - start))) : 0}%`;
      }
      play.disabled = !now;
      const playing = Boolean(now) && !now.paused;
      figure.classList.toggle("playing", playing);
      figure.classList.toggle("begun", at > 0);
      play.setAttribute("aria-label", `${playing ? "Pause" : "Play"}: ${name()}`);
      clock.textContent = now ? `${tenths(at)} / ${tenths(end)} s` : "no sound here";
      seek.setAttribute("aria-label", `Position in: ${name()}`);
      seek.setAttribute("aria-valuemax", tenths(end));
      seek.setAttribute("aria-valuenow", tenths(at));
      seek.setAttribute("aria-valuetext", `${tenths(at)} of ${tenths(end)} seconds`);
      if (playing) requestAnimationFrame(show);
    }
    function go(seconds) {
      const now = sound();
      if (!now) return;
      asked = Math.max(0, Math.min(seconds, (length() || seconds) - 0.01));
      if (now.readyState) { now.currentTime = asked; asked = null; }
      show();
    }
    function toggle() {
      const now = sound();
      if (!now) return;
      if (now.paused) now.play().catch(() => {}); else now.pause();
    }

    for (const one of sounds) {
      one.controls = false;
      one.addEventListener("loadedmetadata", () => (asked !== null && one === sound() ? go(asked) : show()));
      for (const event of ["play", "pause", "ended", "seeked"]) one.addEventListener(event, show);
    }
    play.addEventListener("click", toggle);
    drag(seek, (part) => go(part * length()));
    seek.addEventListener("keydown", (event) => {
      const now = asked ?? sound()?.currentTime ?? 0;
      const to = { ArrowLeft: now - 0.1, ArrowDown: now - 0.1, ArrowRight: now + 0.1, ArrowUp: now + 0.1,
        PageDown: now - 0.5, PageUp: now + 0.5, Home: 0, End: length() }[event.key];
      if (to !== undefined) go(to);
      else if (event.key === " " || event.key === "Enter") toggle();
      else return;
      event.preventDefault();
    });
    slider?.addEventListener("input", () => { asked = null; show(); });

    const bar = make("div", { class: "bar" }, play);
    if (picture) picture.append(seek); else seek.classList.add("track");
    const caption = figure.querySelector("figcaption");
    if (caption) { caption.before(bar); bar.append(caption); } else figure.append(bar);
    if (!picture) (caption ? figure : bar).append(seek);
    bar.append(clock);
    figure.classList.add("live");
    figure.minilib = { sound, go, toggle, at: () => asked ?? sound()?.currentTime ?? 0, length };
    show();
  }

  function drag(zone, to) {
    const move = (event) => {
      const box = zone.getBoundingClientRect();
      to(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)));
    };
    zone.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      zone.setPointerCapture(event.pointerId);
      move(event);
    });
    zone.addEventListener("pointermove", (event) => { if (zone.hasPointerCapture(event.pointerId)) move(event); });
  }

  // one sound at a time
  document.addEventListener("play", (event) => {
    for (const other of all("audio")) if (other !== event.target) other.pause();
  }, true);

  // ---- the sounds of one cell at the same moment

  function compare(cell) {
    const figures = all("figure.minilib-sound.live", cell);
    if (figures.length < 2) return;
    let here = 0;
    const letter = (i) => String.fromCharCode(65 + i);
    const buttons = figures.map((figure, i) => {
      const caption = figure.querySelector("figcaption");
      caption?.prepend(make("b", { class: "letter", "aria-hidden": "true" }, letter(i)));
      const button = make("button", { type: "button", "data-sound": i, "aria-pressed": "false",
        "aria-label": `Hear ${letter(i)} from the same moment: ${caption?.textContent.slice(1) || ""}` }, letter(i));
      button.addEventListener("click", () => change(i));
      figure.querySelector("audio").addEventListener("play", () => mark(i));
      return button;
    });
    const mark = (i) => {
      here = i;
      buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
    };
    const change = (i) => {
      const from = figures[here].minilib, to = figures[i].minilib;
      const at = from.at();
      to.go(at < Math.min(from.length(), to.length()) - 0.05 ? at : 0);
      mark(i);
      if (to.sound().paused) to.toggle();
    };
    cell.prepend(make("div", { class: "compare", role: "group", "aria-label": "Compare the sounds of this cell" },
      make("span", {}, "Compare at the same moment"), ...buttons,
      make("span", { class: "hint" }, make("kbd", {}, "x"), " switches")));
    cell.addEventListener("keydown", (event) => {
      if (event.key !== "x" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea")) return;
      change((here + 1) % figures.length);
      event.preventDefault();
    });
  }

  // ---- quizzes: the number that the answer begins with is the right choice

  function quiz(box) {
    const choices = all(":scope > ol > li", box), details = box.querySelector("details");
    const right = parseInt(details?.querySelector("p strong")?.textContent, 10);
    if (choices.length < 2 || !(right >= 1 && right <= choices.length)) return;
    const said = make("p", { class: "said", role: "status", "aria-live": "polite" });
    choices.forEach((choice, i) => {
      const button = make("button", { type: "button", class: "choice" });
      for (const part of [...choice.childNodes]) {
        button.append(...(part.nodeName === "P" ? part.childNodes : [part]));
      }
      choice.append(button);
      button.addEventListener("click", () => {
        const good = i + 1 === right;
        choice.classList.add(good ? "right" : "wrong");
        button.setAttribute("aria-pressed", "true");
        said.textContent = good ? "Right." : `No: ${right} is right.`;
        if (!good) choices[right - 1].classList.add("right");
        details.open = true;
      });
    });
    details.before(said);
    box.classList.add("live");
  }

  // ---- previews of terms and equations

  function previews() {
    const notes = new Map(all("#previews").flatMap((box) => [...box.content.children]).map((note) => [note.dataset.for, note]));
    const box = make("div", { class: "preview", role: "tooltip", id: "preview", hidden: "" });
    document.body.append(box);
    let timer = 0, by = null;
    const hide = () => {
      clearTimeout(timer);
      by?.removeAttribute("aria-describedby");
      by = null;
      box.hidden = true;
    };
    const show = (link, content) => {
      hide();
      box.replaceChildren(content);
      box.hidden = false;
      by = link;
      link.setAttribute("aria-describedby", "preview");
      const sit = () => {
        const at = link.getBoundingClientRect(), size = box.getBoundingClientRect();
        box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 24))}px`;
        box.style.top = `${at.top > size.height + 16 ? at.top - size.height - 8 : at.bottom + 8}px`;
      };
      sit();
      if (box.querySelector("div.math:not(:has(mjx-container))")) window.MathJax?.typesetPromise?.([box]).then(sit);
    };
    for (const link of all("article a.reference.internal")) {
      const target = link.getAttribute("href");
      let content = null;
      if (notes.has(target)) content = () => document.importNode(notes.get(target), true);
      else if (target?.startsWith("#equation-")) {
        content = () => {
          const copy = document.getElementById(target.slice(1))?.cloneNode(true);
          copy?.removeAttribute("id");
          return copy;
        };
      }
      if (!content) continue;
      const begin = (wait) => () => {
        clearTimeout(timer);
        timer = setTimeout(() => { const some = content(); if (some) show(link, some); }, wait);
      };
      link.addEventListener("mouseenter", begin(200));
      link.addEventListener("focus", begin(0));
      link.addEventListener("mouseleave", hide);
      link.addEventListener("blur", hide);
    }
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
    document.addEventListener("scroll", hide, { passive: true });
  }

  // ---- the rest: search, download, print

  if (typeof Search !== "undefined" && Search.htmlToText) {
    const whole = Search.htmlToText;
    Search.htmlToText = (text, anchor) => {
      const page = new DOMParser().parseFromString(text, "text/html");
      for (const part of all(".math, pre, .cell_output, summary, figure, template, .bd-header-article, #jb-print-docs-body, .prev-next-area", page)) part.remove();
      return whole(page.documentElement.outerHTML, anchor);
    };
  }
  function downloads() {
    for (const link of all("a.btn-download-source-button")) {
      link.setAttribute("download", "");
      link.removeAttribute("target");
      if (location.protocol !== "file:") continue;
      link.title = "Right-click and choose “Save link as”: a browser shows a local notebook as text";
      link.querySelector(".btn__text-container")?.append(" (save link as)");
    }
  }
  let before = null;
  addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    for (const one of all("article details:not([open])")) { one.open = true; one.dataset.printed = ""; }
    for (const one of all("article img[loading]")) one.loading = "eager";
  });
  addEventListener("afterprint", () => {
    if (before !== null) document.documentElement.dataset.theme = before;
    for (const one of all("details[data-printed]")) { one.open = false; delete one.dataset.printed; }
  });

  const start = () => {
    shots();
    all("figure.minilib-sound, figure.minilib-slider").forEach(player);
    all(".cell_output").forEach(compare);
    all(".admonition.quiz").forEach(quiz);
    previews();
    downloads();
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
