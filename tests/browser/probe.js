/* What is wrong with the page as it is shown now: a list of sentences. `columns` is how many characters of code must fit. */
(columns) => {
  const faults = [];
  const shown = (node) => {
    const box = node.getBoundingClientRect(), style = getComputedStyle(node);
    return box.width > 0 && box.height > 0 && style.visibility !== "hidden" && style.display !== "none";
  };
  const words = (text) => JSON.stringify(text.trim().replace(/\s+/g, " ").slice(0, 60));

  // ---- no sideways scroll
  const root = document.scrollingElement;
  if (root.scrollWidth > root.clientWidth + 1) {
    const wide = [...document.querySelectorAll("main *")].find(
      (node) => shown(node) && node.getBoundingClientRect().right > root.clientWidth + 1 && getComputedStyle(node).position !== "fixed");
    faults.push(`scrolls sideways: ${root.scrollWidth} in ${root.clientWidth} px: ${wide?.tagName} ${wide?.className}`);
  }

  // ---- no cut code
  for (const pre of columns ? document.querySelectorAll("main pre") : []) {
    const longest = Math.max(...pre.textContent.split("\n").map((line) => [...line].length));
    if (shown(pre) && longest <= columns && pre.scrollWidth > pre.clientWidth + 1) {
      faults.push(`code is cut, ${pre.scrollWidth} in ${pre.clientWidth} px: ${words(pre.textContent)}`);
    }
  }

  // ---- an equation and its number don't meet
  for (const number of document.querySelectorAll("main .eqno")) {
    const formula = number.parentElement.querySelector("mjx-container mjx-math, mjx-container > svg");
    if (!formula || !shown(number)) continue;
    const a = number.getBoundingClientRect(), b = formula.getBoundingClientRect();
    const scrolls = [formula.closest("mjx-container"), number.parentElement].some(
      (box) => box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== "visible");
    if (!scrolls && b.right > a.left + 1 && b.bottom > a.top && b.top < a.bottom) {
      faults.push(`a formula meets its number ${number.textContent.trim()}`);
    }
  }

  // ---- contrast of text
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const cache = new Map();
  const rgba = (color) => {
    if (!cache.has(color)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      cache.set(color, [r, g, b, a / 255]);
    }
    return cache.get(color);
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const shape = (node) => { // what a word of a drawing stands on: the last shape before it that holds its middle
    const box = node.getBoundingClientRect(), x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
    return [...node.closest("svg").querySelectorAll("rect, path, circle, polygon")].filter((one) => {
      const around = one.getBoundingClientRect();
      return one.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_FOLLOWING && !one.closest("defs")
        && around.left <= x && x <= around.right && around.top <= y && y <= around.bottom
        && rgba(getComputedStyle(one).fill)[3] > 0 && getComputedStyle(one).fill !== "none";
    }).at(-1);
  };
  const ground = (node) => {
    const layers = [];
    const below = node.closest("svg") && shape(node);
    if (below) layers.push(rgba(getComputedStyle(below).fill));
    for (let at = node; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.backgroundImage.includes("url")) return null; // text over a picture: not for numbers to judge
      layers.push(rgba(style.backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const faded = (node) => {
    let by = 1;
    for (let at = node; at; at = at.parentElement) by *= Number(getComputedStyle(at).opacity);
    return by;
  };
  const seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.data;
    if (!text.trim() || node.closest("script, style, noscript, mjx-assistive-mml, [disabled], [hidden], .d-none, option")) continue;
    if (!shown(node)) continue;
    const style = getComputedStyle(node), below = ground(node);
    if (!below) continue;
    const paint = node.closest("svg") ? style.fill : style.color;
    if (paint === "none") continue;
    const key = `${paint} ${below} ${faded(node)}`;
    if (seen.has(key)) continue;
    seen.add(key);
    const opacity = faded(node);
    if (opacity === 0) continue;
    const [r, g, b, a] = rgba(paint);
    const lights = [light(over([r, g, b, a * opacity], below)), light(below)].sort((x, y) => y - x);
    const contrast = (lights[0] + 0.05) / (lights[1] + 0.05);
    if (contrast < 4.5) {
      faults.push(`contrast ${contrast.toFixed(2)}: ${paint} on rgb(${below.slice(0, 3).map(Math.round)}): `
        + `${node.tagName.toLowerCase()}.${[...node.classList].join(".")} ${words(text)}`);
    }
  }
  return faults;
}
