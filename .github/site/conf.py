"""The series as a web site, made of the outputs that are stored in the notebooks.

sphinx-build -c .github/site . build/site
"""

import json
import shutil
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
PAGES = ["notebooks/README.md", "helpers/pocket/MODEL_CARD.md", "helpers/SMOLLM2.md"]
PAGES += ["CONTRIBUTING.md", "tests/README.md"]

project = html_title = "Steering vectors"
author = copyright = "The steering-vector-notebooks authors"
root_doc = "README"
include_patterns = ["README.md", *NOTEBOOKS, *PAGES]
exclude_patterns = [".*", "build"]
extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_code_prompt_show, nb_code_prompt_hide = "Show the {type}", "Hide the {type}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}  # one field to search is enough
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_math_renderer = "mathml"  # the usual one fetches a script from another host


def prepare(app, page, source):
    """Give the README the contents of the site, and each stored figure its own alt text."""
    if page == root_doc:
        for caption, files in [("Notebooks", NOTEBOOKS), ("Around them", PAGES)]:
            entries = "\n".join(files)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"
        source[0] = source[0].replace("](helpers)", "](helpers/__init__.py)")  # no page of a folder
    elif f"{page}.ipynb" in NOTEBOOKS:
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                    cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        source[0] = json.dumps(notebook)


def formula(translator, node):
    """Write a formula as MathML, which browsers draw and screen readers read by themselves."""
    display = "block" if node.tagname == "math_block" else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise SkipNode


def add_first_page(app, error):
    """A web server looks for index.html."""
    if error is None:
        shutil.copyfile(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def setup(app):
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("source-read", prepare)
    app.connect("build-finished", add_first_page)
