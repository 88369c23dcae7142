"""The web site of the series: its contents and, where Sphinx is installed, the built pages."""

import json
import runpy
import subprocess
import sys
import types
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / ".github" / "site"
LACKING = "Sphinx and its theme are not installed: pip install -e '.[site]'"
FETCHED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}


class Links(HTMLParser):
    """What a page holds: its ids, its links, what it fetches, its pictures, its folded parts."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.fetched, self.pictures, self.folded = set(), [], [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and given.get("rel") != "canonical":
            self.fetched.append(given.get(FETCHED[tag]) or "")
        if tag == "img":
            self.pictures.append(given.get("alt"))
        self.folded += tag == "details" and "below-input" in given.get("class", "")


@pytest.fixture(scope="module")
def conf():
    """The settings of the site, read without the packages that build it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("docutils", "docutils.nodes", "latex2mathml", "latex2mathml.converter"):
            stand_in = types.ModuleType(name)
            stand_in.SkipNode = stand_in.convert = None
            patch.setitem(sys.modules, name, stand_in)
        return runpy.run_path(str(CONF / "conf.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: {path: Links}."""
    if not all(map(find_spec, ("sphinx", "myst_nb", "sphinx_book_theme", "latex2mathml"))):
        pytest.skip(LACKING)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-c", CONF, ROOT, out]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {path: Links(path) for path in out.rglob("*.html")}


def test_every_notebook_and_every_readme_is_in_the_contents(conf):
    pages = [
        path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    ]
    pages += ["notebooks/README.md", "tests/README.md", "CONTRIBUTING.md"]
    source = ["# Title\n"]
    conf["prepare"](None, "README", source)
    lines = source[0].splitlines()
    assert lines[0] == "# Title"
    for page in pages:
        assert lines.count(page) == 1 and page in conf["include_patterns"]
    for page in conf["include_patterns"]:
        assert (ROOT / page).is_file()


def test_the_outputs_are_the_stored_ones_and_no_script_comes_from_elsewhere(conf):
    assert conf["nb_execution_mode"] == "off"
    assert conf["html_math_renderer"] == "mathml"


def test_the_tools_are_pinned():
    extra = (ROOT / "pyproject.toml").read_text("utf-8").split("site = [")[1].split("]")[0]
    tools = [line for line in extra.splitlines() if '"' in line]
    assert len(tools) == 4 and all("==" in line for line in tools)


def test_nothing_is_fetched_from_another_host(site):
    for path, page in site.items():
        foreign = [target for target in page.fetched if urlsplit(target).netloc]
        assert not foreign, path.name


def test_every_picture_has_its_own_alt_text(site):
    for path, page in site.items():
        assert all(page.pictures), path.name
    shown = {alt for page in site.values() for alt in page.pictures}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                picture = output.get("metadata", {}).get("image/png")
                assert picture is None or picture["alt"] in shown


def test_predictions_are_folded(site):
    folded = {path.stem: page.folded for path, page in site.items()}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        tagged = [cell for cell in cells if "hide-output" in cell["metadata"].get("tags", [])]
        assert folded[path.stem] == sum(bool(cell["outputs"]) for cell in tagged)


def test_links_lead_somewhere(site):
    for path, page in site.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert target.exists(), f"{path.name}: {link}"
            if url.fragment and target in site:
                assert url.fragment in site[target].ids, f"{path.name}: {link}"


def test_the_first_page_is_the_readme(site):
    [first] = [page for path, page in site.items() if path.name == "index.html"]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{path.stem}.html" in first.links
