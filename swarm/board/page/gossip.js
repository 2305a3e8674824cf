// The page of the gossip: what one cell says in the current round.

import { get } from "./api.js";
import { el, setText } from "./dom.js";
import { count, plural } from "./format.js";
import { Thread } from "./thread.js";

const HEARD = { propose: "questions", answer: "answers", critique: "critiques", revise: "revisions" };

export class GossipPage {
  constructor(app) {
    this.app = app;
    this.title = "Gossip";
    this.cell = null; // the server's choice
    this.shown = { round: -1, cell: -1 };
    this.waiting = null;
    this.threads = [];
    this.about = el("p", { class: "lead", "data-field": "gossip_round" }, " ");
    this.stages = el("ul", { class: "heard", "aria-label": "Stages heard" });
    this.box = el("input", {
      type: "number",
      id: "cell",
      min: 0,
      value: 0,
      inputmode: "numeric",
      change: () => {
        this.cell = Math.max(0, Math.trunc(Number(this.box.value)) || 0);
        this.refresh(true);
      },
    });
    this.of = el("span", { class: "muted" });
    this.choice = el(
      "p",
      { class: "cell-choice", hidden: true },
      el("label", { for: "cell" }, "Cell"),
      this.box,
      this.of,
    );
    this.newer = el("button", {
      type: "button",
      class: "newer",
      hidden: true,
      click: () => {
        this.#render(this.waiting);
        this.node.querySelector("h1").focus({ preventScroll: true });
        scrollTo({ top: 0, behavior: "instant" });
      },
    });
    this.list = el("div", { class: "threads" });
    this.message = el("p", { class: "empty", hidden: true });
    this.left = el("p", { class: "muted small" });
    this.node = el(
      "section",
      { class: "gossip", "aria-labelledby": "gossip-title" },
      el(
        "div",
        { class: "gossip-head" },
        el("h1", { id: "gossip-title", tabindex: -1 }, "Gossip"),
        this.choice,
        this.about,
        this.stages,
      ),
      this.newer,
      this.message,
      this.list,
      this.left,
    );
  }

  show() {
    return this.refresh(true);
  }

  /** `anyway`: show a new round even if the visitor is reading the old one. */
  async refresh(anyway = false) {
    const asked = (this.asked = Symbol("newest"));
    let conversation;
    try {
      conversation = await get("/gossip", { cell: this.cell });
    } catch (error) {
      if (!this.threads.length) this.#say(`The gossip cannot be heard: ${error.message}.`);
      return;
    }
    if (this.asked !== asked) return;
    const sameTalk = conversation.round === this.shown.round && conversation.cell === this.shown.cell;
    const reading = this.list.contains(document.activeElement) || this.threads.some((thread) => thread.inUse);
    if (!sameTalk && reading && !anyway) {
      this.waiting = conversation;
      this.newer.hidden = false;
      setText(this.newer, `Round ${count(conversation.round)} has begun: show it`);
      return;
    }
    this.#render(conversation);
  }

  #render(conversation) {
    const { round, cell, cells, heard, peers, threads, left_out: leftOut, trouble } = conversation;
    if (round !== this.shown.round || cell !== this.shown.cell) {
      this.threads = [];
      this.list.replaceChildren();
    }
    this.shown = { round, cell };
    this.newer.hidden = true;
    setText(
      this.about,
      round < 0
        ? " "
        : `Round ${count(round)}: ${plural(peers, "peer")} in cell ${count(cell)}, ${plural(threads.length, "question")}.`,
    );
    this.stages.replaceChildren(
      ...this.app.clock.parts
        .filter((part) => part.name in HEARD && (!trouble || heard.includes(part.name)))
        .map((part) => {
          const isHeard = heard.includes(part.name);
          return el(
            "li",
            { class: isHeard ? "tag good" : "tag" },
            `${isHeard ? "✓" : "…"} ${HEARD[part.name]}${isHeard ? "" : " to come"}`,
          );
        }),
    );
    this.choice.hidden = cells <= 1;
    this.box.max = String(Math.max(0, cells - 1));
    if (document.activeElement !== this.box) this.box.value = String(cell);
    setText(this.of, `of ${count(cells)} (0–${count(Math.max(0, cells - 1))})`);
    threads.forEach((thread, k) => {
      if (!this.threads[k]) {
        this.threads[k] = new Thread(k === 0);
        this.list.append(this.threads[k].node);
      }
      this.threads[k].show(thread, heard);
    });
    for (const extra of this.threads.splice(threads.length)) extra.node.remove();
    this.#say(
      trouble
        ? `Nothing can be heard: ${trouble}`
        : threads.length
          ? ""
          : "Nothing was heard yet. Peers’ answers show here when the answer stage of a round ends.",
    );
    const reasons = Object.entries(leftOut).map(([reason, n]) => `${count(n)} ${reason}`);
    setText(this.left, reasons.length ? `Left out: ${reasons.join(", ")}.` : "");
  }

  #say(words) {
    setText(this.message, words);
    this.message.hidden = !words;
  }
}
