// The peers that the visitor starred, kept in this browser.

const KEY = "swarm-board-pins";
const MOST = 20;

export class Pins extends EventTarget {
  constructor() {
    super();
    this.ids = this.#read();
    addEventListener("storage", (event) => {
      if (event.key !== KEY) return; // another tab's change
      this.ids = this.#read();
      this.dispatchEvent(new Event("change"));
    });
  }

  #read() {
    try {
      const ids = JSON.parse(localStorage.getItem(KEY) ?? "[]");
      return Array.isArray(ids) ? ids.filter((id) => typeof id === "string").slice(0, MOST) : [];
    } catch {
      return []; // no storage, or not ours
    }
  }

  has(peer) {
    return this.ids.includes(peer);
  }

  toggle(peer) {
    this.ids = this.has(peer) ? this.ids.filter((id) => id !== peer) : [...this.ids, peer].slice(-MOST);
    try {
      localStorage.setItem(KEY, JSON.stringify(this.ids));
    } catch {
      // no storage: pinned as long as the page lasts
    }
    this.dispatchEvent(new Event("change"));
  }
}
