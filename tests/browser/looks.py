"""What is looked for on every page."""

# What a keyboard must reach, where it is shown.
REACHED = "a[href], button, input, select, textarea, summary, [tabindex='0']"


def fits(page) -> bool:
    """Whether nothing of the page stands beyond its width."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def unreached(page) -> list[str]:
    """Of what is to be reached by keyboard and is shown, what Tab does not come to; begins at the top of the page."""
    page.evaluate(
        """(selector) => {
          document.activeElement?.blur();
          getSelection().removeAllRanges();
          window.toReach = new Set([...document.querySelectorAll(selector)].filter((one) =>
            one.checkVisibility({ visibilityProperty: true }) && !one.disabled && one.tabIndex >= 0 &&
            !(one.type === "radio" && !one.checked)));
        }""",
        REACHED,
    )
    # What scrolls is come to as well.
    scrolls = "(one) => one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight"
    count = page.evaluate(f"toReach.size + [...document.querySelectorAll('*')].filter({scrolls}).length")
    for _ in range(count + 5):
        page.keyboard.press("Tab")
        page.evaluate("toReach.delete(document.activeElement)")
    return page.evaluate("[...toReach].map((one) => one.outerHTML.slice(0, 120))")
