// The board's API: `get` for questions, `listen` for what the server tells by itself.

const BASE = "/api/v1";
const TIMEOUT_MS = 15_000; // of one question
const SILENT_MS = 20_000; // without an event: ask, for a dead connection may not show
const MAX_WAIT_S = 60; // that a Retry-After is followed
const RETRIES = 3;
const RECONNECT_MS = [500, 1000, 2000, 4000, 8000];

/** The server's refusal, with its words. `status` 0: it was not reached. */
export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The JSON at `path`; waits and asks again where the server says so. */
export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    for (const one of [value].flat()) if (one !== null && one !== undefined) query.append(key, one);
  }
  const url = `${BASE}${path}${query.size ? `?${query}` : ""}`;
  for (let tries = 0; ; tries++) {
    let response;
    try {
      const timeout = AbortSignal.timeout(TIMEOUT_MS);
      response = await fetch(url, { signal: signal ? AbortSignal.any([signal, timeout]) : timeout });
    } catch (error) {
      if (signal?.aborted) throw error; // its asker does not want it any more
      throw new ApiError(0, "the board does not answer");
    }
    if (response.ok) return response.json();
    const wait = Number(response.headers.get("retry-after")) || 0;
    if (response.status === 429 && tries < RETRIES && wait <= MAX_WAIT_S) {
      await new Promise((done) => setTimeout(done, 1000 * Math.max(1, wait)));
      continue;
    }
    const problem = await response.json().catch(() => ({}));
    const detail = typeof problem.detail === "string" ? problem.detail : `the board answers ${response.status}`;
    throw new ApiError(response.status, detail);
  }
}

/**
 * Keeps a stream of events open for ever. Calls `pulse(data)`, `gossip(data)`, `lost(since)` when nothing is
 * heard any more (Unix milliseconds of the last sign of life), and `back()` when it is heard again. A stream that
 * only broke off, and can be opened again at once, is not lost.
 */
export function listen({ pulse, gossip, lost, back }) {
  let source = null;
  let lastHeard = Date.now();
  let isLost = false;
  let failures = 0;
  let timer = null;

  const alive = () => {
    lastHeard = Date.now();
    if (isLost) {
      isLost = false;
      back();
    }
  };
  const fail = () => {
    if (!isLost) {
      isLost = true;
      lost(lastHeard);
    }
  };
  const open = () => {
    timer = null;
    source?.close();
    source = new EventSource(`${BASE}/events`);
    source.addEventListener("open", () => {
      failures = 0;
      alive();
    });
    source.addEventListener("pulse", (event) => {
      alive();
      pulse(JSON.parse(event.data));
    });
    source.addEventListener("gossip", (event) => {
      alive();
      gossip(JSON.parse(event.data));
    });
    source.addEventListener("error", () => {
      source.close(); // the browser's own retries stop for ever at an HTTP error: do it here
      if (failures > 0) poll(); // the board may have no stream left for us
      timer ??= setTimeout(open, RECONNECT_MS[Math.min(failures++, RECONNECT_MS.length - 1)]);
    });
  };
  const poll = async () => {
    try {
      const now = await get("/pulse");
      alive();
      pulse(now);
      return true;
    } catch {
      fail();
      return false;
    }
  };
  const check = async () => {
    if (timer !== null || Date.now() - lastHeard < SILENT_MS || (await poll())) return;
    source.close();
    timer ??= setTimeout(open, RECONNECT_MS[0]);
  };
  setInterval(check, SILENT_MS / 4);
  addEventListener("online", () => {
    if (timer === null) return;
    clearTimeout(timer);
    open();
  });
  open();
}
