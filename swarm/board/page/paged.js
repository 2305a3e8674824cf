// A list that is newest first, and grows at its end on demand: reports, verdicts, rounds.

import { arrange, el, empty } from "./dom.js";

export class Paged {
  /**
   * `load(before)` gives `{items, next}`; `key(item)` tells items apart; `make(item)` makes a node, which is
   * replaced when its item changes. `list` is the element that holds them, within `around` if it is given.
   */
  constructor({ list, around = list, load, key, make, nothing, more = "Older" }) {
    Object.assign(this, { list, load, key, make, nothing });
    this.items = new Map();
    this.next = null;
    this.grown = false;
    this.message = empty("");
    this.message.hidden = true;
    this.button = el("button", { type: "button", class: "more", hidden: true, click: () => this.#older() }, more);
    this.node = el("div", { class: "paged" }, around, this.message, this.button);
  }

  /** Asks for the newest again; what is further down stays. */
  async refresh() {
    const page = await this.#ask(null);
    if (!page) return;
    const first = page.items.map((item) => [this.key(item), item]);
    const fresh = new Map(first);
    if (this.grown && first.some(([key]) => this.items.has(key))) {
      for (const [key, { item }] of this.items) if (!fresh.has(key)) fresh.set(key, item);
    } else {
      this.next = page.next;
      this.grown = false;
    }
    this.#show(fresh);
  }

  async #older() {
    this.button.disabled = true;
    const page = await this.#ask(this.next);
    this.button.disabled = false;
    if (!page) return;
    this.grown = true;
    this.next = page.next;
    const all = new Map([...this.items].map(([key, { item }]) => [key, item]));
    for (const item of page.items) all.set(this.key(item), item);
    this.#show(all);
  }

  async #ask(before) {
    try {
      return await this.load(before);
    } catch (error) {
      if (!this.items.size) this.#say(`This cannot be read: ${error.message}.`);
      return null;
    }
  }

  #say(words) {
    this.message.textContent = words;
    this.message.hidden = !words;
  }

  #show(wanted) {
    const before = this.items;
    this.items = new Map();
    for (const [key, item] of wanted) {
      const text = JSON.stringify(item);
      const old = before.get(key);
      this.items.set(key, old?.text === text ? old : { item, text, node: this.make(item) });
    }
    const nodes = [...this.items.values()].map(({ node }) => node);
    arrange(this.list, nodes);
    this.#say(nodes.length ? "" : this.nothing());
    this.button.hidden = this.next === null;
  }
}
