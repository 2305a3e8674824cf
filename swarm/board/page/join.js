// How to take part: the commands, ready to copy.

import { copyButton, el } from "./dom.js";
import { count, plural } from "./format.js";

function command(text) {
  return el("div", { class: "command" }, el("code", {}, text), copyButton(text, "Copy", "Command", "copy"));
}

export class JoinPage {
  constructor(app) {
    const { facts } = app;
    this.title = "Join";
    const join = `./run_swarm.sh join '${facts.join.replaceAll("'", "")}'`;
    const fact = (label, value) => el("div", {}, el("dt", {}, label), el("dd", {}, el("bdi", {}, value)));
    this.node = el(
      "section",
      { class: "panel join", "aria-labelledby": "join-title" },
      el("h1", { id: "join-title", tabindex: -1 }, "Take part"),
      el(
        "p",
        { class: "lead" },
        "No login, no permission. You need Python 3.11 or newer, git, and a copy of swarm-rl; in its folder run:",
      ),
      command(join),
      el(
        "p",
        {},
        "It makes your key, plans what fits your machine’s memory, and takes part from the next round until Ctrl-C. Started again, it continues from its last checkpoint. If it has no funds for its reports, it names the account to fund, or add ",
        el("code", {}, "--relay URL"),
        " if somebody runs a relay.",
      ),
      el("h2", {}, "And then"),
      el("p", {}, "How you are doing, and what is wrong if something is:"),
      command("./run_swarm.sh status"),
      command("./run_swarm.sh doctor"),
      el("h2", {}, "What you join"),
      el(
        "dl",
        { class: "facts join-facts" },
        fact("tasks", facts.tasks.join(", ") || "–"),
        fact("models", facts.models.join(", ") || "–"),
        fact("round", plural(facts.round_seconds, "second")),
        fact("peers in a cell, about", count(facts.cell_size)),
        fact("answers to a question", count(facts.group_size)),
        fact("chain", String(facts.chain_id)),
        fact("contract", facts.address),
        fact("swarm", facts.swarm),
      ),
    );
  }

  show() {}

  refresh() {}
}
