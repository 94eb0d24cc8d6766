"""Texts that try to act where they are shown or stored, and a look for what would act on a terminal."""

import re

# A page on which one of these ran carries the attribute data-ran on its root element, or is another page.
RUN = "document.documentElement.setAttribute('data-ran','1')"
PAGE_TEXTS = [
    f"<script>{RUN}</script>",
    f"</p></div><script>{RUN}</script>",
    f"</textarea></title></style></noscript><script>{RUN}</script>",
    f"<img src=x onerror=\"{RUN}\">",
    f"<svg onload=\"{RUN}\"></svg><svg/onload={RUN}>",
    f"\" onmouseover=\"{RUN}\" autofocus onfocus=\"{RUN}\" x=\"",
    f"' onload='{RUN}' x='",
    f"<iframe srcdoc=\"<script>parent.{RUN}</script>\"></iframe><iframe src=\"javascript:parent.{RUN}\"></iframe>",
    "<meta http-equiv=refresh content='0;url=data:text/html,moved'><base href='https://example.invalid/'>",
    f"<details open ontoggle=\"{RUN}\"><summary>x</summary></details>",
    f"--><!--><script>{RUN}</script><![CDATA[<script>{RUN}</script>]]>",
    "{{ 7 * 7 }}{% raw %}{{ self.__init__.__globals__ }}${7*7}<%= 7*7 %>",
    "&lt;script&gt;&#60;b&#62;&amp;",
    f"\u2028<scr\u0000ipt>{RUN}</scr\u0000ipt>",
]  # fmt: skip
TERMINAL_TEXTS = [
    "\x1b[2J\x1b[H\x1b[31mred",
    "\x1b]0;title\x07\x1b]52;c;aGVsbG8=\x07",
    "\x1b]8;;https://example.invalid\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m\x9d0;title\x9c\x90q\x9c",
    "good\rEVIL",
    "good\b\b\b\bEVIL\x7f",
    "two\x0blines\x0cand\x85more\u2028and\u2029more",
    "nul\x00in it",
    "\u202egnp.exe\u2066\u200f",
    "half \ud83d a pair \udcff",
    "\U000e0041\u200b\ufeff\ue000",
]
PATH_TEXTS = [
    "../../x",
    "/tmp/x",
    "..",
    "a/b\\c",
    "$(touch x); `touch y` | z & 'q' \"r\" *",
    "-rf",
    "CON",
    "~",
    "[ a ]",
    "[  1\t]",
]
JSON_TEXTS = ['"}\n{"step": 1', "\\", '\\"', "\r\n", "\u2028\u2029\x85", "NaN", "null", "\x00"]
TEXTS = [*PAGE_TEXTS, *TERMINAL_TEXTS, *PATH_TEXTS, *JSON_TEXTS]

# Controls but for the line break, half surrogate pairs, and the invisible and turning characters above.
_ACTS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ue000\U000e0041]"
)


def acting(shown: str) -> list[str]:
    """The characters in what was shown that a terminal would obey, or hide, instead of showing; a line break is none."""
    return _ACTS.findall(shown)
