// The leaderboard: pinned and own peers first, then everybody in order of rank, or what a search found.

import { get } from "./api.js";
import { el, setText } from "./dom.js";
import { count, plural } from "./format.js";
import { RankTable } from "./rank_row.js";

const PAGE = 100;
const SEARCH_DELAY_MS = 200;
const OWN_MS = 60_000; // between two questions for peers of the user's that are new
const MOST_AT_ONCE = 100; // peers that one question may name

export class LeaderboardPanel {
  constructor(app) {
    this.app = app;
    this.offset = 0;
    this.total = 0;
    this.search = "";
    this.asking = null;
    this.ownAsked = -Infinity;
    this.own = new Map(); // of peers that were seen to be the user's: their lines

    const onPin = (peer) => this.#pin(peer);
    this.pinned = new RankTable("pinned", "Your peers and those that you pinned", onPin);
    this.table = new RankTable("ranks", "Peers by verified contribution and reputation", onPin);
    this.pinnedPart = el(
      "section",
      { class: "pinned", "aria-labelledby": "pinned-title", hidden: true },
      el("h3", { id: "pinned-title" }, "Yours and pinned"),
      this.pinned.node,
    );
    this.box = el("input", {
      type: "search",
      id: "search",
      name: "search",
      autocomplete: "off",
      spellcheck: "false",
      maxlength: 100,
      placeholder: "Name, id or account",
      "aria-label": "Search peers by name, id or account",
      input: () => {
        clearTimeout(this.typing);
        this.typing = setTimeout(() => this.#searchFor(this.box.value.trim()), SEARCH_DELAY_MS);
      },
    });
    this.found = el("p", { class: "found", role: "status" });
    this.message = el("p", { class: "empty" });
    this.pagers = [this.#pager("Pages, above the table"), this.#pager("Pages, below the table")];
    this.node = el(
      "section",
      { class: "panel leaderboard", "aria-labelledby": "leaderboard-title" },
      el(
        "div",
        { class: "panel-head" },
        el("h2", { id: "leaderboard-title" }, "Leaderboard"),
        el("p", { class: "panel-note" }, "by verified contribution × reputation²"),
        el("div", { class: "search" }, this.box),
      ),
      this.pinnedPart,
      el("div", { class: "found-line" }, this.found, this.pagers[0].node),
      this.table.node,
      this.message,
      this.pagers[1].node,
    );
    app.pins.addEventListener("change", () => this.refresh());
  }

  #pager(label) {
    const button = (text, help, step) =>
      el(
        "button",
        {
          type: "button",
          class: "page",
          "aria-label": help,
          click: () => this.#turn(step),
        },
        text,
      );
    const previous = button("‹", "Previous page", -1);
    const next = button("›", "Next page", 1);
    const where = el("span", { class: "page-where" });
    return {
      node: el("nav", { class: "pager", "aria-label": label }, where, previous, next),
      previous,
      next,
      where,
    };
  }

  async #turn(step) {
    this.offset = Math.max(0, this.offset + step * PAGE);
    await this.refresh();
    const top = this.node.querySelector(".found-line");
    if (top.getBoundingClientRect().top < 0) top.scrollIntoView({ block: "start" });
  }

  async #searchFor(words) {
    if (words === this.search) return;
    this.search = words;
    this.offset = 0;
    await this.refresh();
  }

  #pin(peer) {
    // The pinned part grows or shrinks above: what was pressed stays under the pointer.
    const star = document.activeElement;
    const before = star?.getBoundingClientRect().top;
    this.holdStar = () => {
      if (star?.isConnected) scrollBy({ top: star.getBoundingClientRect().top - before, behavior: "instant" });
    };
    this.app.pins.toggle(peer);
  }

  /** Asks again for what is shown. */
  async refresh() {
    this.asking?.abort();
    const asking = (this.asking = new AbortController());
    const page = { offset: this.offset, limit: PAGE };
    const ids = [...new Set([...this.app.pins.ids, ...this.own.keys()])].slice(0, MOST_AT_ONCE);
    try {
      const [board, pins, own] = await Promise.all([
        this.search
          ? get("/peers", { ...page, search: this.search }, asking.signal)
          : get("/leaderboard", page, asking.signal),
        ids.length ? get("/peers", { peer: ids }, asking.signal) : { rows: [] },
        this.#askOwn(asking.signal),
      ]);
      if (this.asking !== asking) return;
      if (!board.rows.length && board.total && this.offset) {
        this.offset = PAGE * Math.floor((board.total - 1) / PAGE);
        return this.refresh();
      }
      this.#show(board, pins.rows, own.rows);
    } catch (error) {
      if (asking.signal.aborted) return;
      this.#say(this.table.rows.size ? "" : `The leaderboard cannot be read: ${error.message}.`);
    }
  }

  /** The user's own peers, wherever they rank; asked for rarely, for once known they are asked for by id. */
  async #askOwn(signal) {
    if (performance.now() - this.ownAsked < OWN_MS) return { rows: [] };
    try {
      const found = await get("/peers", { own: true, limit: PAGE }, signal);
      this.ownAsked = performance.now();
      return found;
    } catch (error) {
      if (signal.aborted) throw error;
      return { rows: [] }; // a board that cannot say which are its user's
    }
  }

  #show(board, pins, own) {
    this.total = board.total;
    this.board = board;
    for (const rank of [...own, ...board.rows, ...pins]) if (rank.own) this.own.set(rank.peer, rank);
    const first = new Map([...this.own, ...pins.map((rank) => [rank.peer, rank])]);
    const order = (rank) => rank.rank ?? Infinity;
    const firstRows = [...first.values()].sort((a, b) => Number(b.own) - Number(a.own) || order(a) - order(b));
    this.pinned.show(firstRows, this.app.pins);
    this.pinnedPart.hidden = !firstRows.length;
    this.table.show(board.rows, this.app.pins);
    this.table.node.hidden = !board.rows.length;
    this.holdStar?.();
    this.holdStar = null;

    const from = board.offset + 1;
    const to = board.offset + board.rows.length;
    const where = board.rows.length ? `${count(from)}–${count(to)} of ${count(board.total)}` : "";
    for (const { node, previous, next, where: place } of this.pagers) {
      setText(place, where);
      previous.disabled = board.offset === 0;
      next.disabled = to >= board.total;
      node.classList.toggle("alone", board.total <= PAGE);
    }
    setText(
      this.found,
      this.search
        ? `${plural(board.total, "peer")} found`
        : board.round >= 0
          ? `Standings at round ${count(board.round)}`
          : "",
    );
    this.tick();
  }

  #say(words) {
    setText(this.message, words);
    this.message.hidden = !words;
  }

  /** Once a second: the empty state counts down. */
  tick() {
    if (!this.board) return;
    if (this.total) return this.#say("");
    if (this.search) return this.#say("No peer’s name, id or account has that in it.");
    this.#say(this.app.clock.nothingYet());
  }
}
