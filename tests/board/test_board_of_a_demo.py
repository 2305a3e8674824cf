"""The page of `swarm demo`, in a real browser: a real swarm, a hostile peer in it, a ledger that stops."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from browser import NoBrowser, launched
from demo_process import MARK, Demo, quick_manifest
from playwright.sync_api import Page, expect
from web3 import Web3

from identity import load_or_create_identity, load_or_create_wallet, peer_id_text, peer_name
from swarm.ledger.client import connect
from swarm.settings import Settings

CHEATS = Path(__file__).parent.parent / "cheats.py"
SECONDS = 60_000  # milliseconds, that the page gets to show what happened


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    try:
        with launched() as browser:
            page = browser.new_page()
            page.set_default_timeout(SECONDS)
            expect.set_options(timeout=SECONDS)
            yield page
            expect.set_options()
    except NoBrowser as reason:
        pytest.skip(str(reason))


@pytest.fixture
def demo(page, tmp_path):  # the browser first: without one no swarm is started
    running = Demo(tmp_path, "--peers", "2", "--rounds", "12", "--manifest", quick_manifest(tmp_path))
    yield running
    running.process.kill()
    running.process.wait()
    for process in running.left():
        process.kill()


@contextmanager
def hostile_peer(demo: Demo, line: str, home: Path) -> Iterator[str]:
    """A third peer, that says harmful things from its first round on; its id."""
    identity, journal = load_or_create_identity(home)
    journal.close()
    wallet = load_or_create_wallet(Settings(home=home).wallet_path)
    chain = Web3(Web3.HTTPProvider(line.partition("@")[2]))
    chain.provider.make_request("anvil_setBalance", [wallet.address, hex(10**19)])
    command = [
        sys.executable,
        str(CHEATS),
        "hostile-text",
        "join",
        line,
        "--home",
        str(home),
        "--threads",
        "1",
    ]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), MARK: demo.mark}
    with (home / "node.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield peer_id_text(identity.peer)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def leaderboard_of(page: Page) -> dict[str, dict[str, int]]:
    """Each peer's numbers, as the page shows them."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('tr[data-peer]')].map((row) => [
          row.dataset.peer,
          Object.fromEntries([...row.querySelectorAll('[data-field]')].map(
            (field) => [field.dataset.field, Number(field.dataset.value)])),
        ]))"""
    )


def test_the_page_shows_a_swarm_as_it_is_while_it_lives(page: Page, demo: Demo, tmp_path: Path) -> None:
    demo.wait_for(lambda: "board at http" in demo.log.read_text(), "board")
    url = re.search(r"board at (\S+)", demo.log.read_text())[1]
    dialogs, errors = [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.evaluate("window.neverLoadedAgain = 1")
    line = page.evaluate("fetch('/api/v1/swarm').then((a) => a.json())")["join"]
    ledger = connect(line)

    with hostile_peer(demo, line, tmp_path / "hostile") as hostile:
        # A round passes and the page moves by itself, to all three of them.
        expect(page.locator("tr[data-peer]")).to_have_count(3)
        first = int(page.locator("#pulse [data-field=round]").inner_text())
        page.wait_for_function(
            "first => Number(document.querySelector('#pulse [data-field=round]').textContent) > first",
            arg=first,
        )
        _numbers_are_the_ledgers(page, line)

        # What the hostile peer says is there to read, and is nothing but text.
        page.goto(f"{url}/#/gossip")
        said = page.locator(f"#main [data-peer='{hostile}']", has_text="<img src=x")
        expect(said.first).to_be_visible()
        assert page.evaluate("[window.hacked, document.querySelectorAll('main img, main style').length]") == [
            None,
            0,
        ]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("window.neverLoadedAgain") == 1

        # Search, and a peer's own page.
        name = peer_name(ledger.leaderboard()[0].peer)
        page.goto(f"{url}/#/")
        page.get_by_role("searchbox").fill(name)
        expect(page.locator("tr[data-peer]")).to_have_count(1)
        page.get_by_role("link", name=name).first.click()
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        peer = page.url.rpartition("/")[2]
        expect(page.locator(f"li.report[data-peer='{peer}']").first).to_be_visible()
        _history_is_the_ledgers(page, ledger, peer)

        # Its audits are on the page when they are settled, whatever came out.
        page.goto(f"{url}/#/audits")
        expect(page.locator("li.verdict").first).to_be_visible()
        page.go_back()

    # The ledger stops, and comes back.
    anvil = next(process for process in demo.left() if "anvil" in process.name())
    anvil.suspend()
    try:
        expect(page.locator("#notice")).to_contain_text("The ledger does not answer")
        expect(page.locator(f"li.report[data-peer='{peer}']").first).to_be_visible()
    finally:
        anvil.resume()
    expect(page.locator("#notice")).to_be_hidden()

    # The board goes with its demo; what it showed stays, and no process does.
    demo.process.send_signal(signal.SIGINT)
    demo.process.wait(timeout=60)
    expect(page.locator("#notice")).to_contain_text("The board cannot be reached")
    psutil.wait_procs(demo.left(), timeout=10)  # what audited for the hostile peer ends after it
    assert not demo.left()
    assert (dialogs, errors) == ([], [])


def _numbers_are_the_ledgers(page: Page, line: str) -> None:
    """The page's leaderboard is what anybody computes from the ledger; both as of the same round."""
    command = [sys.executable, "-m", "swarm", "leaderboard", line, "--json"]
    keys = ("rank", "rounds", "ranked_rounds", "verified_reward", "score", "audits_passed", "audits_failed")
    for _ in range(5):  # a round may begin between the two
        computed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        wanted = {one["peer"]: {key: one[key] for key in keys} for one in computed}
        shown = {peer: {key: row[key] for key in keys} for peer, row in leaderboard_of(page).items()}
        if shown == wanted:
            break
    assert shown == wanted


def _history_is_the_ledgers(page: Page, ledger, peer: str) -> None:
    shown = dict(
        page.evaluate(
            """() => [...document.querySelectorAll('li.report')].map((report) => [
              Number(report.dataset.round),
              Number(report.querySelector('[data-field=reward]').dataset.value)])"""
        )
    )
    reported = {one.round: one.reward_micros for one in ledger.reports() if peer_id_text(one.peer) == peer}
    assert len(shown) >= 2 and shown.items() <= reported.items()
