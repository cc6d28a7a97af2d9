"""Every link and every path of docs/ that is named anywhere leads somewhere; every study tells where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUDIES = sorted(page.parent for page in (ROOT / "docs" / "studies").glob("*/README.md"))
ROOMS = ("docs", "edgekd", "recipes", "tests")
PAGES = [ROOT / "README.md", *(page for room in ROOMS for page in sorted((ROOT / room).rglob("*.md")))]
TEXTS = [ROOT / "Makefile", ROOT / "pyproject.toml", *PAGES]
TEXTS += [file for room in ROOMS for kind in ("py", "sh", "toml") for file in sorted((ROOT / room).rglob(f"*.{kind}"))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield path and anchor of each link to a file of the checkout."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def test_there_are_pages_and_studies() -> None:
    assert len(PAGES) > 25
    assert len(STUDIES) > 12


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), f"links to {path}"
        if anchor:
            assert anchor in anchors(target), f"{path} has no heading #{anchor}"


def test_paths_and_modules_of_docs_that_are_named_exist() -> None:
    lost = []
    for file in TEXTS:
        text = file.read_text(encoding="utf-8")
        named = re.findall(r"\b(?:docs|tests)/[\w./-]*\w", text)
        lost += [(name(file), path) for path in named if not (ROOT / path).exists()]
        for module in re.findall(r"\bdocs\.studies(?:\.\w+)+", text):
            path = ROOT / module.replace(".", "/")
            if not (path.is_dir() or path.with_suffix(".py").is_file() or path.parent.with_suffix(".py").is_file()):
                lost.append((name(file), module))
    assert lost == []


@pytest.mark.parametrize("study", STUDIES, ids=name)
def test_a_study_says_what_it_asks_and_names_each_of_its_results(study: Path) -> None:
    page = (study / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^\*\*Question\.\*\* .*?\?\n\n\*\*Answer\.\*\* ", page, flags=re.MULTILINE | re.DOTALL)
    assert page.index("## How to run") < page.index("## Files")
    files = page[page.index("## Files") :]
    results = [path for kind in ("json", "svg", "txt") for path in study.rglob(f"*.{kind}")]
    assert results
    for result in results:
        assert f"]({result.relative_to(study)})" in files, result
    assert (study / "earlier").is_dir() == ("In earlier/: " in files)


def test_each_study_is_listed() -> None:
    listed = {path.partition("/")[0] for path, _ in links(ROOT / "docs" / "studies" / "README.md") if path[0] != "."}
    assert listed == {study.name for study in STUDIES}


@pytest.mark.parametrize("study", STUDIES, ids=name)
def test_each_result_says_which_command_wrote_it_on_which_machine(study: Path) -> None:
    for result in study.rglob("*.json"):
        content = json.loads(result.read_text(encoding="utf-8"))
        parts = [content] if "command" in content else list(content.values())
        assert all(part["command"] and part["machine"] for part in parts), result


def test_the_results_are_one_screen() -> None:
    lines = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 50
