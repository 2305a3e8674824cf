"""The board's page in a real browser, before a made-up board that can be in any state."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import NoBrowser, launched
from page_cast import Scene, Stage, conversation, digest, peer_id, rank, staged, verdict
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from swarm.board import schema as api

EVIL = (
    "<img src=x onerror=\"window.hacked=1;alert('x')\"><script>window.hacked=1</script>"
    "<a href='javascript:window.hacked=1'>click</a></td></table><style>*{display:none}</style>"
    "\u202e\u2066 turned \u0001\u0007\x1b[31m &lt;b&gt; ${window.hacked=1}"
)
LONG = "W" * 100_000
VIEWS = {
    "board": "",
    "gossip": "#/gossip",
    "peer": f"#/peer/{peer_id(3)}",
    "audits": "#/audits",
    "rounds": "#/rounds",
    "round": "#/round/50",
    "join": "#/join",
}
# Sums what moved without the visitor's doing, and counts what else a test wants to know.
WATCH = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts.push(entry);
}).observe({ type: "layout-shift", buffered: true });
"""
# Cumulative layout shift as browsers define it: the worst window of at most 5 s without a gap of 1 s.
CLS = """() => {
  let worst = 0, sum = 0, first = -Infinity, last = -Infinity;
  for (const { startTime, value } of window.shifts) {
    if (startTime - last > 1000 || startTime - first > 5000) { sum = 0; first = startTime; }
    last = startTime;
    sum += value;
    worst = Math.max(worst, sum);
  }
  return worst;
}"""
Opener = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        with launched() as browser:
            yield browser
    except NoBrowser as reason:
        pytest.skip(str(reason))


@pytest.fixture
def visit(browser: Browser) -> Iterator[Opener]:
    """Opens the page of a stage; the test fails if it complains in the console or breaks its policy."""
    complaints: list[str] = []
    contexts = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def opened(stage: Stage, view: str = "", *, width: int = 1280, height: int = 900, **more: object) -> Page:
        pins = more.pop("pins", [])
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script(WATCH)
        if pins:
            page.add_init_script(f"localStorage.setItem('swarm-board-pins', {json.dumps(json.dumps(pins))})")
        page.goto(stage.url + view)
        page.wait_for_selector("body[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged(Scene()) as stage:
        yield stage


def names(page: Page, table: str = "#ranks") -> list[str]:
    return page.locator(f"{table} tbody .peer-link").all_text_contents()


def too_wide(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_rows_hold_the_integers_of_the_ledger(stage, visit):
    page = visit(stage)
    line = stage.scene.lines[4]
    row = page.locator(f'#ranks tr[data-peer="{line.peer}"]')
    for field in (
        "rank",
        "verified_reward",
        "score",
        "ranked_rounds",
        "rounds",
        "audits_passed",
        "audits_failed",
    ):
        expect(row.locator(f'[data-field="{field}"]')).to_have_attribute(
            "data-value", str(getattr(line, field))
        )
    expect(page.locator('#pulse [data-field="peers"]')).to_have_attribute("data-value", "40")


def hostile_scene() -> Scene:
    scene = Scene(peers=12)
    scene.lines[0] = rank(0, name=EVIL)
    scene.lines[1] = rank(1, name=LONG)
    talk = conversation(scene.lines)
    shown = [EVIL, LONG, *[line.name for line in scene.lines[2:4]]]
    completions = [
        api.Completion(text=text, cut=True, score=score, names=names)
        for text, score, names in (
            (EVIL, 1.0, "A"),
            (LONG, 0.0, EVIL),
            ("", None, "none"),
            (EVIL * 300, 0.5, None),
        )
    ]
    said = [
        api.Said(peer=line.peer, name=line.name, shown=shown, completions=completions[k:] + completions[:k])
        for k, line in enumerate(scene.lines[:4])
    ]
    thread = api.Thread(
        question=EVIL + LONG, answer=EVIL, proposed_by=EVIL, answers=said, critiques=said, revisions=said
    )
    short = thread.model_copy(update={"question": LONG, "answer": LONG})
    scene.talk = {
        0: talk.model_copy(update={"threads": [thread, short, *talk.threads], "left_out": {EVIL: 3}})
    }
    scene.verdicts = [
        verdict(scene.lines[0], 50, "failed", EVIL),
        verdict(scene.lines[1], 51, "failed", LONG),
    ]
    scene.trouble, scene.ledger = EVIL + LONG, "away"
    return scene


@pytest.mark.parametrize("view", ["", "#/gossip", f"#/peer/{peer_id(0)}", f"#/peer/{peer_id(1)}", "#/audits"])
def test_hostile_text_is_only_text(visit, view):
    with staged(hostile_scene()) as stage:
        page = visit(stage, view, width=360, height=800, pins=[peer_id(0), peer_id(1)])
        asked = []
        page.on("dialog", lambda dialog: asked.append(dialog.message))
        page.wait_for_timeout(300)
        for summary in page.locator("main summary").all():
            if not summary.evaluate("node => node.parentElement.open"):
                summary.click()
        for button in page.locator("main button[aria-expanded=false]:visible").all()[:6]:
            button.click()
        text = page.locator("main").inner_text()
        assert "onerror" in text or "WWWWWWWW" in text
        assert (
            page.locator("main img, main script, main style, main iframe, main a[href^='javascript']").count()
            == 0
        )
        assert page.evaluate("window.hacked") is None
        assert not asked
        assert page.locator("[onerror], [onclick], [onload]").count() == 0
        assert too_wide(page) <= 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_serious_stands_in_the_way_of_assistive_technology(stage, visit, view, theme):
    page = visit(stage, VIEWS[view], color_scheme=theme, reduced_motion="reduce", pins=[peer_id(7)])
    for summary in page.locator("main .others summary").all()[:4]:
        summary.click()
    page.wait_for_timeout(100)
    found = Axe().run(page).response["violations"]
    assert [
        (finding["id"], [node["html"][:150] for node in finding["nodes"][:3]])
        for finding in found
        if finding["impact"] in ("serious", "critical")
    ] == []


def test_the_keyboard_is_enough(stage, visit):
    page = visit(stage, height=700)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()

    def tab_to(selector: str, most: int = 120) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                return
        pytest.fail(f"{selector} cannot be reached with Tab")

    tab_to("#search")
    row = stage.scene.lines[25]
    tab_to(f'#ranks a[href="#/peer/{row.peer}"]')
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    before = page.evaluate("scrollY")
    assert before > 0
    page.keyboard.press("Enter")
    expect(page.locator("h1:visible")).to_have_text(row.name)
    expect(page.locator("h1:visible")).to_be_focused()
    assert page.evaluate("scrollY") == 0
    page.go_back()
    expect(page.locator(f'#ranks a[href="#/peer/{row.peer}"]')).to_be_focused()
    assert abs(page.evaluate("scrollY") - before) <= 2


def test_the_chart_is_read_with_the_arrow_keys_and_as_a_table(stage, visit):
    page = visit(stage, pins=[peer_id(2)])
    slider = page.get_by_role("slider", name="Rewards over time: round")
    slider.focus()
    page.keyboard.press("Home")
    point = stage.scene.answer("curve", {}).points[0]
    assert slider.get_attribute("aria-valuetext").startswith(f"Round 0: swarm’s mean {point.mean / 1e6:.3f}")
    page.get_by_text("These numbers as a table").first.click()
    expect(page.locator(".curve .numbers tbody tr")).to_have_count(57)
    assert stage.scene.lines[2].name in page.locator(".curve .numbers thead").inner_text()


def test_ten_thousand_peers_cost_no_more_than_a_hundred(visit, capsys):
    with staged(Scene(peers=10_000)) as stage:
        page = visit(stage, pins=[peer_id(9_000)])
        ready = page.evaluate("performance.getEntriesByName('board-ready')[0].startTime")
        nodes = page.evaluate("document.querySelectorAll('*').length")
        assert page.locator("#ranks tbody tr").count() == 100
        assert nodes < 6_000
        expect(page.locator("#pinned .peer-link").last).to_have_text(stage.scene.lines[9_000].name)
        for k in range(3):  # the order changes while somebody looks on
            with stage.scene.lock:
                lines = stage.scene.lines
                lines.insert(0, lines.pop(20 + k))
                stage.scene.lines[:] = [
                    line.model_copy(update={"rank": n + 1}) for n, line in enumerate(lines)
                ]
            with page.expect_response("**/leaderboard*"):
                stage.push()
            expect(page.locator("#ranks tbody tr").first).to_have_attribute(
                "data-peer", stage.scene.lines[0].peer
            )
        for _ in range(3):
            page.mouse.wheel(0, 900)
            page.wait_for_timeout(100)
        page.get_by_role("button", name="Next page").last.click()
        expect(page.locator('#ranks [data-field="rank"]').first).to_have_text("101")
        assert page.locator("#ranks tbody tr").count() == 100
        shift = page.evaluate(CLS)
        with capsys.disabled():
            print(f"\n  10,000 peers: interactive after {ready:.0f} ms, {nodes} elements, CLS {shift:.4f}")
        assert shift < 0.1


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_jumps_while_a_page_loads_and_changes(stage, visit, view):
    page = visit(stage, VIEWS[view], pins=[peer_id(7)])
    page.wait_for_timeout(300)
    stage.push()
    page.wait_for_timeout(500)
    assert page.evaluate(CLS) < 0.1


def test_the_page_moves_by_itself(stage, visit):
    page = visit(stage)
    line = stage.scene.lines[0]
    reward = page.locator(f'#ranks tr[data-peer="{line.peer}"] [data-field="verified_reward"]')
    expect(reward).to_have_attribute("data-value", str(line.verified_reward))
    reward.evaluate("node => { window.same = node; }")
    with stage.scene.lock:
        stage.scene.lines[0] = line.model_copy(update={"verified_reward": 123_456_789})
    stage.push()
    expect(reward).to_have_text("123.457")
    assert reward.evaluate("node => node === window.same")


def test_a_pulse_without_news_asks_nothing(stage, visit):
    page = visit(stage)
    page.wait_for_timeout(200)
    stage.scene.asked.clear()
    stage.push(changed=False)
    page.wait_for_timeout(300)
    assert stage.scene.asked == []


def test_time_goes_on_without_the_server(stage, visit):
    page = visit(stage)
    left = page.locator('[data-field="round_left"]')
    first = left.get_attribute("data-value")
    expect(left).not_to_have_attribute("data-value", first)
    assert page.locator(".segment[aria-current=step]").count() == 1
    assert page.locator("#live").inner_text() == ""  # seconds are not announced


def test_what_has_the_focus_keeps_it_when_ranks_change(stage, visit):
    page = visit(stage)
    line = stage.scene.lines[5]
    link = page.locator(f'#ranks a[href="#/peer/{line.peer}"]')
    link.focus()
    page.evaluate(
        "window.blurred = 0; document.activeElement.addEventListener('blur', () => window.blurred++)"
    )
    with stage.scene.lock:
        lines = list(reversed(stage.scene.lines))
        stage.scene.lines[:] = [line.model_copy(update={"rank": n + 1}) for n, line in enumerate(lines)]
    scrolled = page.evaluate("scrollY")
    stage.push()
    expect(page.locator("#ranks tbody tr").first).to_have_attribute("data-peer", stage.scene.lines[0].peer)
    expect(link).to_be_focused()
    assert page.evaluate("window.blurred") == 0
    assert page.evaluate("scrollY") == scrolled
    assert names(page) == [line.name for line in stage.scene.lines]


def test_search_asks_the_server_for_names_ids_and_accounts(visit):
    with staged(Scene(peers=150, silent=1)) as stage:
        page = visit(stage)
        box = page.get_by_role("searchbox")
        for words, line in (
            (stage.scene.lines[120].name.upper(), stage.scene.lines[120]),
            (stage.scene.lines[77].peer[10:30], stage.scene.lines[77]),
            (stage.scene.lines[33].account[5:20], stage.scene.lines[33]),
            (stage.scene.silent[0].peer, stage.scene.silent[0]),
        ):
            box.fill(words)
            expect(page.locator("#ranks tbody tr")).to_have_count(1)
            expect(page.locator("#ranks tbody tr")).to_have_attribute("data-peer", line.peer)
        expect(page.locator('#ranks [data-field="rank"]')).to_have_text("–")
        box.fill("no such peer")
        expect(page.get_by_text("No peer’s name, id or account has that in it.")).to_be_visible()
        box.fill("")
        expect(page.locator("#ranks tbody tr")).to_have_count(100)


def test_pinned_and_own_peers_come_first_with_their_true_rank(visit):
    with staged(Scene(peers=300, own=(250,))) as stage:
        page = visit(stage)
        assert names(page, "#pinned") == [stage.scene.lines[250].name]
        star = page.locator(f'#ranks tr[data-peer="{peer_id(30)}"] .star')
        star.scroll_into_view_if_needed()
        before = star.bounding_box()["y"]
        star.click()
        expect(page.locator("#pinned tbody tr")).to_have_count(2)
        assert abs(star.bounding_box()["y"] - before) <= 2  # what was pressed stays under the pointer
        page.reload()
        expect(page.locator("#pinned tbody tr")).to_have_count(2)
        assert page.locator('#pinned [data-field="rank"]').all_text_contents() == ["251", "31"]
        expect(page.locator(".curve .legend")).to_contain_text(stage.scene.lines[30].name)
        page.locator(f'#pinned tr[data-peer="{peer_id(30)}"] .star').click()
        expect(page.locator("#pinned tbody tr")).to_have_count(1)


def test_the_theme_follows_the_system_until_one_is_chosen(stage, visit):
    page = visit(stage, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Switch to light").click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light
    page.get_by_role("button", name="Switch to dark").click()
    assert page.evaluate(ground) == dark


def test_motion_is_reduced_where_that_is_asked(stage, visit):
    page = visit(stage, reduced_motion="reduce")
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.segment-fill')).transitionDuration") == "0s"
    )


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 2560])
def test_every_page_fits_every_width(stage, visit, width):
    page = visit(stage, width=width, pins=[peer_id(7), peer_id(8)])
    for view in VIEWS.values():
        page.goto(stage.url + view)
        page.wait_for_timeout(200)
        assert too_wide(page) <= 0, view
        cut = page.locator("main .panel:visible").evaluate_all(
            "nodes => nodes.filter(n => n.scrollWidth > n.clientWidth + 1).length"
        )
        assert cut == 0, view


def test_gossip_reads_as_a_conversation(stage, visit):
    page = visit(stage, "#/gossip")
    thread = stage.scene.talk[0].threads[0]
    shown = page.locator(".thread").first
    expect(shown.locator(".thread-title")).to_have_text(thread.question)
    expect(shown.locator(".truth")).to_contain_text(thread.answer)
    for key in ("answers", "critiques", "revisions"):
        assert shown.locator(f".{key} .group").count() == 8
    said = thread.answers[2]
    group = shown.locator(f'.answers .group[data-peer="{said.peer}"]')
    right = sum(completion.score == 1 for completion in said.completions)
    expect(group.locator(".tally")).to_have_text(f"right {right} of 8")
    expect(group.locator(".completion:visible")).to_have_count(1)
    group.locator("summary").click()
    expect(group.locator(".completion:visible")).to_have_count(8)
    expect(group.locator(".grade").first).to_have_text("✓ right" if said.completions[0].score else "✗ wrong")
    critique = thread.critiques[0]
    who = next(c.names for c in critique.completions if c.names in ("A", "B", "C"))
    expect(shown.locator(f'.critiques .group[data-peer="{critique.peer}"] .named')).to_contain_text(
        critique.shown["ABC".index(who)]
    )


def test_a_new_round_does_not_take_the_text_from_who_reads_it(stage, visit):
    page = visit(stage, "#/gossip")
    page.locator(".group summary").first.click()
    with stage.scene.lock:
        stage.scene.talk[0] = conversation(stage.scene.lines, 58)
    stage.push_gossip()
    button = page.get_by_role("button", name="Round 58 has begun: show it")
    expect(button).to_be_visible()
    expect(page.locator(".gossip .lead")).to_contain_text("Round 57")
    button.click()
    expect(page.locator(".gossip .lead")).to_contain_text("Round 58")
    with stage.scene.lock:
        stage.scene.talk[0] = conversation(stage.scene.lines, 59)
    stage.push_gossip()  # nobody reads: it is shown at once
    expect(page.locator(".gossip .lead")).to_contain_text("Round 59")


def test_another_cell_can_be_chosen(visit):
    scene = Scene(peers=40)
    scene.talk = {cell: conversation(scene.lines, cells=3, cell=cell) for cell in range(3)}
    with staged(scene) as stage:
        page = visit(stage, "#/gossip")
        page.get_by_label("Cell").fill("2")
        page.keyboard.press("Enter")
        expect(page.locator(".gossip .lead")).to_contain_text("cell 2")
        expect(page.locator(".thread .peer-link").filter(has_text=scene.lines[16].name).first).to_be_visible()


def test_a_peers_page_shows_its_chain_audits_and_accounts(stage, visit):
    line = stage.scene.lines[5]
    page = visit(stage, f"#/peer/{line.peer}")
    expect(page.locator("h1:visible")).to_have_text(line.name)
    expect(page.locator('.peer-facts [data-field="verified_reward"]')).to_have_attribute(
        "data-value", str(line.verified_reward)
    )
    first = page.locator(".report").first
    expect(first.get_by_role("link")).to_have_text("Round 56")
    state = digest("state", line.peer, 57)
    assert state in first.get_by_role("button", name="State after").get_attribute("title")
    broken = page.locator('.report[data-round="53"]')
    expect(broken).to_contain_text("the chain breaks here")
    page.get_by_role("button", name="Older").first.click()
    expect(page.locator(".report")).to_have_count(40)
    expect(page.locator(".bindings")).to_contain_text(line.account[:8])


def test_a_peer_is_found_by_name_too(stage, visit):
    line = stage.scene.lines[5]
    page = visit(stage, f"#/peer/{line.name}")
    expect(page.locator("h1:visible")).to_have_text(line.name)
    expect(page.locator(".report").first).to_be_visible()
    assert page.url.endswith(f"#/peer/{line.peer}")


def test_a_peer_that_is_not_there(stage, visit):
    page = visit(stage, "#/peer/nobody")
    expect(page.get_by_text("No peer of this swarm has that id or name.")).to_be_visible()


def test_an_empty_swarm_says_when_it_begins(visit):
    with staged(Scene(peers=0, silent=2, rounds=0)) as stage:
        page = visit(stage)
        words = "No peer has reported yet: the first round ends in 0:"
        expect(page.locator(".leaderboard .empty")).to_contain_text(words)
        expect(page.locator(".plot-empty")).to_contain_text(words)
        page.goto(stage.url + "#/gossip")
        expect(page.get_by_text("Nothing was heard yet.")).to_be_visible()


def test_a_board_that_is_lost_is_said_and_comes_back(stage, visit):
    page = visit(stage)
    rows = names(page)
    stage.close()
    notice = page.locator("#notice")
    expect(notice).to_contain_text("The board cannot be reached since")
    assert names(page) == rows
    with stage.scene.lock:
        stage.scene.lines[0] = stage.scene.lines[0].model_copy(update={"verified_reward": 111_000_000})
    stage.open()
    expect(notice).to_be_hidden()
    expect(page.locator('#ranks [data-field="verified_reward"]').first).to_have_text("111.000")


def test_a_ledger_that_is_away_is_said(stage, visit):
    page = visit(stage)
    with stage.scene.lock:
        stage.scene.ledger, stage.scene.trouble = "away", "127.0.0.1:8545 refuses connections"
    stage.push(changed=False)
    notice = page.locator("#notice")
    expect(notice).to_contain_text("The ledger does not answer since")
    expect(notice).to_contain_text("127.0.0.1:8545 refuses connections")
    expect(page.locator('[data-field="ledger"]')).to_contain_text("away, read 2 min ago")
    with stage.scene.lock:
        stage.scene.ledger, stage.scene.trouble = "ok", ""
    stage.push(changed=False)
    expect(notice).to_be_hidden()


def test_the_command_to_join_is_there_to_copy(stage, visit):
    page = visit(stage, "#/join", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Command: copy").first.click()
    expect(page.locator(".copied")).to_be_visible()
    assert stage.scene.facts().join in page.evaluate("navigator.clipboard.readText()")


def test_the_page_starts_when_the_board_does(stage, browser):
    """Opened while the API does not answer yet, it tries until it does."""
    page = browser.new_page()
    refuse = True

    def answer(route):
        if refuse:
            route.fulfill(status=503, json={"detail": "the board is starting"})
        else:
            route.continue_()

    page.route("**/api/v1/swarm", answer)
    page.goto(stage.url)
    expect(page.locator("#notice")).to_contain_text("the board is starting")
    refuse = False
    expect(page.locator("#ranks tbody tr").first).to_be_visible(timeout=8_000)
    expect(page.locator("#notice")).to_be_hidden()
    page.close()


def test_without_a_stream_the_page_asks_from_time_to_time(stage, visit):
    """A board gives away only so many streams."""
    page = visit(stage)
    page.route(
        "**/api/v1/events", lambda route: route.fulfill(status=503, json={"detail": "too many streams"})
    )
    stage.hang_up()
    with stage.scene.lock:
        stage.scene.lines[0] = stage.scene.lines[0].model_copy(update={"verified_reward": 222_000_000})
        stage.scene.version += 1
    expect(page.locator('#ranks [data-field="verified_reward"]').first).to_have_text(
        "222.000", timeout=15_000
    )
    expect(page.locator("#notice")).to_be_hidden()


def test_who_asks_too_often_waits_as_told(stage, visit):
    page = visit(stage, "#/join")
    refused = []

    def answer(route):
        if refused:
            route.continue_()
        else:
            refused.append(time.monotonic())
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"detail": "too many requests"})

    page.route("**/api/v1/leaderboard*", answer)
    page.get_by_role("link", name="Board", exact=True).click()
    expect(page.locator("#ranks tbody tr")).to_have_count(40)
    assert time.monotonic() - refused[0] > 0.9
