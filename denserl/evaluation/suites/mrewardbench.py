"""M-RewardBench (arXiv 2410.15522): RewardBench 1 in 23 languages other than English."""

from collections.abc import Mapping

from denserl.evaluation.items import Item
from denserl.evaluation.suites import rewardbench
from denserl.evaluation.suites.means import mean
from denserl.evaluation.suites.rows import identity

LANGUAGES = (
    "arb_Arab", "ces_Latn", "deu_Latn", "ell_Grek", "fra_Latn", "heb_Hebr", "hin_Deva", "ind_Latn", "ita_Latn", "jpn_Jpan",
    "kor_Hang", "nld_Latn", "pes_Arab", "pol_Latn", "por_Latn", "ron_Latn", "rus_Cyrl", "spa_Latn", "tur_Latn", "ukr_Cyrl",
    "vie_Latn", "zho_Hans", "zho_Hant",
)  # fmt: skip


def item(row: dict, part: str) -> Item:
    """A row of RewardBench 1 in a language, that of its configuration or folder, else what the row says.

    The translations of a row are no independent evidence: they ask one question.
    """
    found, name = rewardbench.item_1(row, part), identity(row)
    language = part if part in LANGUAGES or not isinstance(row.get("language"), str) else row["language"]
    question = f"{found.subset} {name}" if name else ""
    return found._replace(subset=f"{language}/{found.subset}", question=question)


def headline(scores: Mapping[str, float], counts: Mapping[str, int]) -> dict:
    """Each of RewardBench's numbers as the plain mean over all languages, and each language's `overall`.

    None where a language or a section of it is missing.
    """
    each = {language: rewardbench.headline_1(_of(language, scores), _of(language, counts)) for language in LANGUAGES}
    means = {name: mean(found[name] for found in each.values()) for name in (*rewardbench.SECTIONS, "overall")}
    return {**means, **{language: found["overall"] for language, found in each.items()}}


def _of(language: str, numbers: Mapping) -> dict:
    return {name.partition("/")[2]: value for name, value in numbers.items() if name.partition("/")[0] == language}
