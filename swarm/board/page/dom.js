// Making elements. Text only ever becomes text nodes: nothing on this page parses data as markup.

const SVG = "http://www.w3.org/2000/svg";
const SHOWN_CHARACTERS = 600; // of what a peer wrote, before "show all"
const NAME_CHARACTERS = 80; // of a name; those that the server makes are shorter

/** An element; `attributes` with a function are event listeners, children are nodes or text. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Changes the text only if it is another, so that selections and screen readers are left alone. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setField(node, value, text) {
  setText(node, text);
  if (node.dataset.value !== String(value)) node.dataset.value = String(value);
}

/** For screen readers only. */
export const unseen = (text) => el("span", { class: "unseen" }, text);

/** The beginning of a text, without half of a character at its end. */
export const cut = (text, most) =>
  text.length > most ? text.slice(0, most).replace(/[\uD800-\uDBFF]$/, "") + "…" : text;

/** A short foreign text within a line, its writing direction kept to itself. */
export const name = (text) => el("bdi", { class: "name" }, cut(text, NAME_CHARACTERS));

/** What a peer wrote, at length: a part of it, and all of it on demand. */
export function said(text) {
  const body = el("p", { class: "said", dir: "auto" });
  if (text.length <= SHOWN_CHARACTERS) {
    body.append(text || "(nothing)");
    return body;
  }
  const part = cut(text, SHOWN_CHARACTERS);
  body.append(part);
  const button = el("button", {
    type: "button",
    class: "quiet",
    "aria-expanded": "false",
    click: () => {
      const open = button.getAttribute("aria-expanded") === "false";
      button.setAttribute("aria-expanded", String(open));
      body.textContent = open ? text : part;
      body.classList.toggle("said-all", open);
      if (open)
        body.tabIndex = 0; // it scrolls by itself
      else body.removeAttribute("tabindex");
      button.textContent = open ? "show less" : all;
    },
  });
  const all = `show all ${text.length.toLocaleString("en")} characters`;
  button.textContent = all;
  return el("div", { class: "said-long" }, body, button);
}

export const peerLink = (peer, peerName) =>
  el("a", { class: "peer-link", href: `#/peer/${encodeURIComponent(peer)}` }, name(peerName));

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { class: "unseen", "aria-hidden": "true" }); // not a secure context
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** A button that copies `text` and says so in its own place. */
export function copyButton(text, shown, label, kind = "quiet") {
  const face = el("span", {}, shown);
  const button = el(
    "button",
    {
      type: "button",
      class: kind,
      title: `${text}\n(press to copy)`,
      "aria-label": `${label}: copy`,
      click: async () => {
        await copy(text).then(
          () => button.classList.add("copied"),
          () => button.classList.add("not-copied"),
        );
        setTimeout(() => button.classList.remove("copied", "not-copied"), 1500);
      },
    },
    face,
  );
  return button;
}

/** A digest, id or address: its ends; all of it in the title, and copied on pressing. */
export function digest(text, label, shorten) {
  if (!text) return el("span", { class: "muted" }, "–");
  return copyButton(text, shorten(text), `${label} ${text.slice(0, 8)}`, "digest");
}

export const empty = (text) => el("p", { class: "empty" }, text);

/**
 * Makes `nodes` the children of `parent`. The child that has the focus is not taken out of the document: the
 * others are put around it.
 */
export function arrange(parent, nodes) {
  const now = [...parent.children];
  if (now.length === nodes.length && now.every((node, k) => node === nodes[k])) return;
  const place = nodes.indexOf(now.find((node) => node.contains(document.activeElement)));
  if (place < 0) {
    parent.replaceChildren(...nodes);
    return;
  }
  for (const node of now) if (node !== nodes[place]) node.remove();
  nodes[place].before(...nodes.slice(0, place));
  nodes[place].after(...nodes.slice(place + 1));
}
