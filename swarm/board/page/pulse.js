// The band at the top: round, stage, countdown, who is there, and how the ledger is.

import { get } from "./api.js";
import { Comb } from "./comb.js";
import { el, setField, setText } from "./dom.js";
import { ago, clockTime, count, countdown } from "./format.js";

const DOING = {
  waiting: "The swarm waits for its first round.",
  propose: "Peers make up questions.",
  answer: "Peers answer their cells’ questions.",
  critique: "Peers judge one another’s answers.",
  revise: "Peers read critics, and think again.",
  learn: "Peers learn from what they heard.",
  report: "Peers write their round to the ledger.",
};
const HEALTH_SECONDS = 10; // between questions about how far behind the ledger is

export class PulseBand {
  constructor(root, clock) {
    this.clock = clock;
    this.comb = new Comb();
    this.lastRead = null; // Unix seconds, where the ledger is not "ok"
    this.healthAsked = 0;
    this.filled = []; // of each stage, as shown
    this.round = el("span", { class: "round-number", "data-field": "round" }, "–");
    this.stage = el("strong", { "data-field": "stage" }, " ");
    this.doing = el("span", { class: "doing" }, " ");
    this.stageLeft = el("span", { class: "left-number", "data-field": "stage_left", role: "timer" }, "–:––");
    this.roundLeft = el("span", { "data-field": "round_left", role: "timer" }, "–:––");
    this.roundWord = el("span", {}, "Round");
    this.leftWord = el("span", {}, "left in this stage");
    this.segments = clock.parts.map((part) => {
      const fill = el("span", { class: "segment-fill" });
      const node = el(
        "li",
        { class: "segment", "data-stage": part.name, title: part.name },
        el("span", { class: "segment-track" }, fill),
        el("span", { class: "segment-name" }, part.name),
      );
      node.style.flexGrow = String(part.to - part.from);
      return { node, fill, part };
    });
    this.facts = {};
    const fact = (field, label) => {
      this.facts[field] = el("dd", { "data-field": field }, "–");
      return el("div", {}, el("dt", {}, label), this.facts[field]);
    };
    root.replaceChildren(
      el(
        "div",
        { class: "pulse-now" },
        el("p", { class: "round-line" }, this.roundWord, " ", this.round),
        el("p", { class: "stage-line" }, this.stage, this.doing),
      ),
      el(
        "div",
        { class: "pulse-left" },
        this.stageLeft,
        el("p", {}, this.leftWord, el("br"), this.roundLeft, " left in the round"),
      ),
      el("ol", { class: "segments", "aria-label": "Stages of a round" }, ...this.segments.map((s) => s.node)),
      el(
        "dl",
        { class: "facts" },
        fact("alive", "alive"),
        fact("reported", "reported this round"),
        fact("peers", "registered"),
        fact("cells", "cells"),
        fact("ledger", "ledger"),
        fact("standings_round", "standings at round"),
      ),
      el("div", { class: "pulse-comb" }, this.comb.root),
    );
    this.root = root;
  }

  /** With each pulse. */
  update(pulse) {
    for (const field of ["alive", "peers"]) setField(this.facts[field], pulse[field], count(pulse[field]));
    setField(this.facts.cells, pulse.cells, pulse.cells ? count(pulse.cells) : "–");
    setField(this.facts.reported, pulse.reported, count(pulse.reported));
    const standings = pulse.standings_round;
    setField(this.facts.standings_round, standings, standings < 0 ? "none yet" : count(standings));
    this.comb.show(pulse.alive, pulse.reported);
    this.root.dataset.ledger = pulse.ledger;
    if (pulse.ledger === "ok") this.lastRead = null;
    else this.#askHealth();
    this.#showLedger(pulse);
    this.tick();
  }

  #showLedger(pulse) {
    const read = this.lastRead === null ? "" : `, read ${ago(this.clock.now() - this.lastRead)}`;
    const words = {
      ok: `ok · block ${count(pulse.block)}`,
      reading: `reading · block ${count(Math.max(0, pulse.block))} of ${count(pulse.latest_block)}`,
      away: `away${read}`,
    };
    setField(this.facts.ledger, pulse.ledger, words[pulse.ledger]);
    this.facts.ledger.title = pulse.trouble;
  }

  /** A round has begun of which the board has said nothing. */
  #unknown() {
    for (const field of ["reported", "cells"]) setText(this.facts[field], "–");
    this.comb.show(this.clock.pulse.alive, 0);
  }

  async #askHealth() {
    if (Date.now() / 1000 - this.healthAsked < HEALTH_SECONDS) return;
    this.healthAsked = Date.now() / 1000;
    try {
      const health = await get("/health");
      this.lastRead = this.clock.now() - health.behind_seconds;
    } catch {
      return; // the notice of a lost board says it
    }
  }

  /** When the ledger was last read, in words, or empty. */
  readAt() {
    return this.lastRead === null ? "" : clockTime(this.lastRead - this.clock.skew);
  }

  /** Once a second. */
  tick() {
    const { round, index, stage, fraction, stageEnds, roundEnds } = this.clock.where();
    const now = this.clock.now();
    setText(this.roundWord, round < 0 ? "Before round" : "Round");
    setField(this.round, round, count(Math.max(0, round)));
    setField(this.stage, stage, stage);
    setText(this.doing, ` ${DOING[stage] ?? ""}`);
    setText(this.leftWord, round < 0 ? "until it begins" : "left in this stage");
    // The two clocks differ by a little: nothing is left for longer than it lasts.
    const length = this.clock.facts.round_seconds;
    const part = this.clock.parts[index];
    const left = (until, whole) => Math.min(until - now, round < 0 ? Infinity : whole);
    const stageLeft = left(stageEnds, part ? (part.to - part.from) * length : length);
    const roundLeft = left(roundEnds, length);
    setField(this.stageLeft, Math.ceil(stageLeft), countdown(stageLeft));
    setField(this.roundLeft, Math.ceil(roundLeft), countdown(roundLeft));
    if (this.clock.pulse && round > this.clock.pulse.round) this.#unknown();
    if (this.clock.pulse && this.clock.pulse.ledger !== "ok") this.#showLedger(this.clock.pulse);
    this.roundLeft.parentElement.classList.toggle("waiting", round < 0);
    this.segments.forEach(({ node, fill, part }, k) => {
      const done = Math.min(1, Math.max(0, (fraction - part.from) / (part.to - part.from)));
      const filled = k === index ? done : k < index ? 1 : 0;
      fill.classList.toggle("emptied", filled < (this.filled[k] ?? 0)); // at once, not as if time ran back
      this.filled[k] = filled;
      fill.style.transform = `scaleX(${filled})`;
      node.classList.toggle("now", k === index);
      if (k === index) node.setAttribute("aria-current", "step");
      else node.removeAttribute("aria-current");
    });
  }
}
