// The regions of a run and what is said of each in, outlines and tags over the video out.

import { $, el, score } from "/dom.js";

const SVG = "http://www.w3.org/2000/svg";

export function makeRegions(choose) {
  const drawn = new Map();  // name -> its outline and tag

  function outline(region) {
    const group = document.createElementNS(SVG, "g");
    for (const kind of ["ground", "line"]) {  // a light line on a dark one stands out from any picture
      const polygon = document.createElementNS(SVG, "polygon");
      polygon.setAttribute("points", region.polygon.map((point) => point.join(",")).join(" "));
      polygon.setAttribute("class", kind);
      group.append(polygon);
    }
    group.onclick = () => choose(region.name);
    return group;
  }

  function tag(region) {
    const xs = region.polygon.map(([x]) => x), ys = region.polygon.map(([, y]) => y), left = Math.min(...xs), top = Math.min(...ys);
    const box = new Set(region.polygon.map(String)).size === 4 && new Set(xs).size === 2 && new Set(ys).size === 2;
    const near = ([x, y]) => x - left + y - top;
    const [x, y] = box ? [left, top] : region.polygon.reduce((best, point) => (near(point) < near(best) ? point : best));
    const button = el("button", "", { type: "button", class: "tag" });
    const right = Math.max(...xs), leftward = x > (left + right) / 2;  // of a shape that leans that way
    Object.assign(button.style, leftward ? { right: `${100 * (1 - x)}%`, maxWidth: `${100 * (x - left)}%` } : { left: `${100 * x}%`, maxWidth: `${100 * (right - x)}%` });
    button.style.top = `${100 * y}%`;
    button.append(el("small", region.name), el("span"), el("span", "", { class: "score" }));
    button.onclick = () => choose(region.name);
    return button;
  }

  /** Draw the regions that have a name; whether there are any. */
  function show(regions) {
    const named = regions.filter((region) => region.name);
    drawn.clear();
    for (const region of named) drawn.set(region.name, { outline: outline(region), tag: tag(region) });
    $("outlines").replaceChildren(...[...drawn.values()].map((one) => one.outline));
    $("tags").replaceChildren(...[...drawn.values()].map((one) => one.tag));
    $("regions").hidden = !named.length;
    return named.length > 0;
  }

  /** Say what the views say, the first table's first, and emphasise the selected region. */
  function label(views, selected) {
    for (const [name, one] of drawn) {
      const view = views.find((candidate) => candidate.region === name);
      one.tag.children[1].textContent = view ? view.label : "";
      one.tag.children[2].textContent = view ? score(view.score) : "";
      one.tag.title = view ? `${name}: ${view.label} ${score(view.score)}` : name;
      one.tag.setAttribute("aria-pressed", String(name === selected));
      one.outline.classList.toggle("selected", name === selected);
    }
    const front = drawn.get(selected)?.outline;
    if (front && $("outlines").lastChild !== front) $("outlines").append(front);  // over the lines it shares
  }

  /** Lay the drawing over the picture, which leaves bars where its shape is not the frame's. */
  function align(width, height) {
    const { clientWidth: w, clientHeight: h } = $("frame");
    if (!width || !w) return;
    const scale = Math.min(w / width, h / height), inner = [width * scale, height * scale];
    Object.assign($("regions").style, { left: `${(w - inner[0]) / 2}px`, top: `${(h - inner[1]) / 2}px`, width: `${inner[0]}px`, height: `${inner[1]}px` });
  }

  return { show, label, align };
}
