"""The review desk in a real browser: who has which scan, the worklist, and that everybody can use the pages."""

from __future__ import annotations

import pytest

from tests.pipeline.web.conftest import serious_faults
from tests.pipeline.web.desk import SETTLED_MS, case, choose, sign_in, strokes_of, wait_for_slice
from tumorlens.pipeline.services.reviews.store import Store

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_two_reviewers_see_each_other(review, open_page, out):
    server = review()
    ann = open_page(case(server, "volume.nii.gz"))
    sign_in(ann, "Ann")
    bob = open_page(case(server, "volume.nii.gz"), quiet=False)
    bob.get_by_text("Type your name").wait_for()
    bob.get_by_label("Your name").fill("Bob")
    bob.get_by_role("button", name="Go on").click()
    bob.get_by_text("Ann has it open").wait_for()
    wait_for_slice(bob)
    choose(bob, "b", "Brush")
    box = bob.locator(".tl-viewer canvas").first.bounding_box()
    bob.mouse.click(box["x"] + 100, box["y"] + 100)
    bob.wait_for_timeout(SETTLED_MS)
    bob.keyboard.press("a")
    bob.get_by_text("not yours at the moment").wait_for()
    assert Store(out).decisions() == [] and strokes_of(out, "volume.nii.gz", "Bob") == ([], 0)
    lists = open_page(f"{server.url}review")
    lists.get_by_text("Ann has it open").wait_for()
    bob.get_by_role("button", name="Take it over").first.click()
    bob.get_by_text("Ann has it open").wait_for(state="hidden")
    wait_for_slice(bob)
    bob.wait_for_timeout(SETTLED_MS)
    bob.keyboard.press("a")
    bob.wait_for_url(lambda url: "scan=volume" not in url)
    ann.keyboard.press("a")  # Ann has not looked at Bob's decision
    ann.get_by_text("Bob has").first.wait_for()
    assert [d.reviewer for d in Store(out).decisions()] == ["Bob"]


def test_a_window_that_has_lost_the_scan_can_do_nothing_more(review, open_page, out):
    server = review("--reviewer", "Ann")
    first = open_page(case(server, "meningioma.png"), quiet=False)
    wait_for_slice(first)
    with first.context.expect_page() as opened:
        first.evaluate("window.open(location.href)")  # as "Duplicate tab" does
    second = opened.value
    second.get_by_text("open in another window").wait_for()
    second.get_by_role("button", name="Take it over").click()
    second.get_by_text("open in another window").wait_for(state="hidden")
    choose(first, "b", "Brush")
    box = first.locator(".tl-viewer canvas").first.bounding_box()
    first.mouse.click(box["x"] + 150, box["y"] + 150)
    first.get_by_text("Not saved").wait_for()
    assert Store(out).decisions() == []
    first.keyboard.press("a")
    first.get_by_text("so nothing was recorded").wait_for()
    assert Store(out).decisions() == []
    second.close()
    first.get_by_text("open in another window").wait_for(state="hidden")  # it is free again


def test_the_browser_remembers_the_name(review, open_page):
    server = review()
    page = open_page(f"{server.url}review")
    page.get_by_role("link", name="noise.png").wait_for()
    page.get_by_label("Your name").fill("Ann")
    page.get_by_label("Search name or reason").focus()
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_function("[...document.querySelectorAll('input')].some((input) => input.value === 'Ann')")
    page.goto(case(server, "meningioma.png"))
    wait_for_slice(page)
    assert not page.get_by_text("Type your name").is_visible()


def test_filters_and_search(review, open_page):
    page = open_page(f"{review().url}review")
    page.get_by_role("link", name="noise.png").wait_for()
    assert page.locator(".tl-list tbody tr").first.inner_text().startswith("broken.png")
    page.get_by_label("Search name or reason").fill("does not look like")
    page.get_by_text("1 to 1 of 1").wait_for()
    assert page.get_by_role("link", name="noise.png").is_visible()
    page.get_by_label("Search name or reason").fill("nothing of the kind")
    page.get_by_text("No scan fits the filter").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(review, open_page, size, scheme):
    server = review("--reviewer", "Ann")
    page = open_page(f"{server.url}review", size, scheme)
    page.get_by_role("link", name="noise.png").wait_for()
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.goto(case(server, "volume.nii.gz"))
    wait_for_slice(page)
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_a_scan_that_is_not_there_gets_its_sentence(review, open_page):
    page = open_page(case(review("--reviewer", "Ann"), "../../etc/passwd"), quiet=False)
    page.get_by_text("is not a scan in").wait_for()
