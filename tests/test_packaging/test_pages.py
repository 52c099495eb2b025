"""What the pages point to is there."""

import re
from pathlib import Path

import pytest

from ..running import ROOT

PAGES = sorted(path.relative_to(ROOT).as_posix() for pattern in
               ('README.md', 'docs/*.md', 'projects/**/*.md') for path in ROOT.glob(pattern))


def prose(page: Path) -> str:
    """The page without its code."""
    return re.sub(r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """What its headings are called in links."""
    headings = re.findall(r'^#+ (.*)$', prose(page), flags=re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('name', PAGES)
def test_links(name):
    page = ROOT / name
    for target in re.findall(r'\]\(([^)]*)\)', prose(page)):
        if target.startswith('https://'):
            continue
        file, _, anchor = target.partition('#')
        path = page.parent / file if file else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize('name', PAGES)
def test_named_files(name):
    text = (ROOT / name).read_text(encoding='utf-8')
    folders = 'tools|configs|docs|benchmarks|projects'
    for path in re.findall(rf'\b(?:{folders})/[\w./-]*\.(?:py|sh|json|md)\b', text):
        assert any((folder / path).exists() for folder in (ROOT, (ROOT / name).parent)), path


def test_front_page_leads_to_every_page():
    front = (ROOT / 'README.md').read_text(encoding='utf-8')
    for page in (ROOT / 'docs').glob('*.md'):
        assert f'(docs/{page.name}' in front, page.name
