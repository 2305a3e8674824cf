// The start: reads what the swarm is, keeps the pulse going, and shows the page that the address names.
//
//   #/             board: rewards, leaderboard          #/peer/ID    one peer
//   #/gossip       a cell's conversation                #/rounds     all rounds, #/round/N one of them
//   #/audits       settled audits                       #/join       how to take part

import { ApiError, get, listen } from "./api.js";
import { Clock } from "./clock.js";
import { CurvePanel } from "./curve.js";
import { el, setText } from "./dom.js";
import { count } from "./format.js";
import { GossipPage } from "./gossip.js";
import { JoinPage } from "./join.js";
import { LeaderboardPanel } from "./leaderboard.js";
import { Notice } from "./notice.js";
import { PeerPage } from "./peer.js";
import { Pins } from "./pins.js";
import { PulseBand } from "./pulse.js";
import { RoundPage, RoundsPage } from "./rounds.js";
import { AuditsPage, verdictList } from "./verdicts.js";

const REFETCH_MS = 2000; // at most this often, however fast the version grows
const SLOW_MS = 8000; // and what costs more questions, or changes less, at most this often
const START_RETRY_MS = 2000;

const byId = (id) => document.getElementById(id);

/** The first page: curve and newest audits beside the leaderboard. */
class BoardPage {
  constructor(app) {
    this.title = "";
    this.isBehind = true;
    this.caughtUp = -Infinity;
    this.leaderboard = new LeaderboardPanel(app);
    this.curve = new CurvePanel(app);
    this.audits = verdictList("/verdicts", {
      withPeer: true,
      limit: 6,
      nothing: "No audit has been settled yet.",
    });
    this.node = el(
      "div",
      { class: "board" },
      el("h1", { class: "unseen", tabindex: -1 }, "The board"),
      this.curve.node,
      el(
        "section",
        { class: "panel newest-audits", "aria-labelledby": "newest-audits-title" },
        el(
          "div",
          { class: "panel-head" },
          el("h2", { id: "newest-audits-title" }, "Newest audits"),
          el("p", { class: "panel-note" }, el("a", { href: "#/audits" }, "all audits")),
        ),
        el(
          "div",
          { class: "scroll", tabindex: 0, role: "region", "aria-label": "Newest audits" },
          this.audits.list,
          this.audits.message,
        ),
      ),
      this.leaderboard.node,
    );
  }

  show() {
    return this.refresh();
  }

  refresh() {
    this.isBehind = true;
    return Promise.all([this.leaderboard.refresh(), this.#catchUp()]);
  }

  async #catchUp() {
    if (!this.isBehind || performance.now() - this.caughtUp < SLOW_MS) return;
    this.isBehind = false;
    this.caughtUp = performance.now();
    await Promise.all([this.curve.refresh(), this.audits.refresh()]);
  }

  tick() {
    this.#catchUp();
    this.leaderboard.tick();
    this.curve.tick();
  }
}

class App {
  constructor(facts) {
    this.facts = facts;
    this.clock = new Clock(facts);
    this.pins = new Pins();
    this.pages = new Map();
    this.places = new Map(); // by history entry: where it was scrolled to, and what had the focus
    this.entry = null;
    this.version = -1;
    this.announced = null;
    this.band = new PulseBand(byId("pulse"), this.clock);
    this.notice = new Notice(byId("notice"));
    this.notice.readAt = () => this.band.readAt();
    setText(byId("swarm-name"), facts.name);
  }

  start(pulse) {
    history.scrollRestoration = "manual";
    this.onPulse(pulse);
    addEventListener("hashchange", () => this.route());
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault(); // the address names pages here
      byId("main").focus();
    });
    addEventListener(
      "scroll",
      () => {
        if (this.entry !== null) this.places.set(this.entry, { ...this.places.get(this.entry), top: scrollY });
      },
      { passive: true },
    );
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.refetch();
    });
    setInterval(() => this.tick(), 1000);
    const arrived = this.route();
    listen({
      pulse: (now) => this.onPulse(now),
      gossip: ({ cell }) => {
        const { page } = this;
        if (page instanceof GossipPage && (page.cell === null || page.cell === cell)) this.refetch();
      },
      lost: (since) => this.notice.lost(since),
      back: () => {
        this.notice.lost(null);
        this.refetch();
      },
    });
    return arrived;
  }

  onPulse(pulse) {
    this.clock.set(pulse);
    this.band.update(pulse);
    this.notice.ledger(pulse);
    if (pulse.version !== this.version) {
      const first = this.version < 0;
      this.version = pulse.version;
      if (!first) this.refetch();
    }
  }

  /** Asks again for what is shown: at once, then at most every REFETCH_MS. */
  refetch() {
    if (this.refetchTimer) {
      this.refetchAgain = true;
      return;
    }
    if (!document.hidden) this.page?.refresh();
    this.refetchAgain = false;
    this.refetchTimer = setTimeout(() => {
      this.refetchTimer = null;
      if (this.refetchAgain) this.refetch();
    }, REFETCH_MS);
  }

  tick() {
    this.band.tick();
    this.notice.show();
    this.page?.tick?.();
    const { round } = this.clock.where();
    if (this.announced !== null && round !== this.announced)
      setText(byId("live"), `Round ${count(round)} has begun.`);
    this.announced = round;
  }

  #pageFor(kind) {
    const makers = {
      board: BoardPage,
      gossip: GossipPage,
      audits: AuditsPage,
      rounds: RoundsPage,
      round: RoundPage,
      peer: PeerPage,
      join: JoinPage,
    };
    if (!this.pages.has(kind)) {
      const page = new makers[kind](this);
      this.pages.set(kind, page);
      byId("main").append(page.node);
    }
    return this.pages.get(kind);
  }

  /** Shows the page of the address. Going back finds it as it was left. */
  route() {
    const [kind, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
    const known = ["gossip", "audits", "rounds", "round", "peer", "join"];
    const wanted = known.includes(kind) ? kind : "board";
    const before = this.page;
    if (this.entry !== null && before) {
      this.places.set(this.entry, { ...this.places.get(this.entry), focus: this.focused });
    }
    const isNew = !history.state?.entry;
    if (isNew) history.replaceState({ entry: `${Date.now()}-${Math.random()}` }, "");
    this.entry = history.state.entry;

    const page = this.#pageFor(wanted);
    for (const other of this.pages.values()) other.node.hidden = other !== page;
    this.page = page;
    let argument = rest.join("/");
    try {
      argument = decodeURIComponent(argument);
    } catch {
      // not an address of ours: the server will not know it either
    }
    const shown = page.show(argument);
    document.title = page.title ? `${page.title} · ${this.facts.name}` : `${this.facts.name} · the board`;
    for (const link of document.querySelectorAll("nav [data-page]")) {
      if (link.dataset.page === wanted || (wanted === "round" && link.dataset.page === "rounds"))
        link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const place = this.places.get(this.entry);
    scrollTo({ top: isNew ? 0 : (place?.top ?? 0), behavior: "instant" });
    if (!before) return shown;
    if (!isNew && place?.focus?.isConnected) place.focus.focus({ preventScroll: true });
    else page.node.querySelector("h1")?.focus({ preventScroll: true });
    return shown;
  }
}

async function begin() {
  for (;;) {
    try {
      const [facts, pulse] = await Promise.all([get("/swarm"), get("/pulse")]);
      const app = new App(facts);
      document.addEventListener("focusin", (event) => {
        if (byId("main").contains(event.target)) app.focused = event.target;
      });
      await app.start(pulse);
      performance.mark("board-ready"); // the first page is filled and can be used: tests measure and wait for it
      document.body.dataset.ready = "";
      return;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const notice = byId("notice");
      notice.hidden = false;
      setText(notice, `The board cannot be read: ${error.message}. Trying again.`);
      await new Promise((done) => setTimeout(done, START_RETRY_MS));
    }
  }
}

begin();
