"""The house rules of the notebooks: each rule is one test, run on every notebook.

A failure names the notebook, the cell by its id, and what to change. What cells compute is
not tested here: nbval runs them.
"""

import ast
import json
import re
import statistics
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MEGABYTE = 1_000_000
MAX_OUTPUT_MEGABYTES = 1.5
STUB = "nbval-skip"
FOLDED = "hide-output"
MOST_CODE_CELLS, MOST_CODE_LINES, LEAST_MARKDOWN = 40, 300, 1.1

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|opt)/|\b[A-Z]:\\+Users", re.I)
MEMORY_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")
PROGRESS_BAR = re.compile(r"\d+%\||\d\s?(?:it/s|s/it)\b|FloatProgress|IntProgress|\r")
RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){0,3}(-[0-9a-f]{12})?")
PLACEHOLDER = re.compile(r"\b(?:TODO|FIXME|XXX|SECONDS|MINUTES)\b")
MARKDOWN_IMAGE = re.compile(r"!\[([^\]]*)\]\(\s*<?([^)>\s]+)[^)]*\)")
MARKDOWN_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(\s*<?([^)>\s]+)[^)]*\)")
HTML_IMAGE = re.compile(r"<img\b[^>]*>", re.I)
HTML_TARGET = re.compile(r"""\b(?:href|src)\s*=\s*["']([^"']+)["']""", re.I)
HTML_ALT = re.compile(r"""\balt\s*=\s*["'][^"']+["']""", re.I)
LIST_OR_TABLE = re.compile(r"\s*(?:[-*+]|\d+[.)])\s|\s*\|")
FENCED_CODE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.M | re.S)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    # Read as plain JSON: nbformat.read would silently repair what is tested here.
    return nbformat.from_dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture
def report(path):
    """Fail with one line for each (cell, problem) that is given."""

    def fail_on(problems):
        lines = [f"{path.name} [{_id(cell)}]: {problem}" for cell, problem in problems]
        if lines:
            pytest.fail("\n".join(lines), pytrace=False)

    return fail_on


def _id(cell):
    return cell if isinstance(cell, str) else cell.get("id", "cell without id")


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _markdown(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def _source(cell):
    return "".join(cell.source)


def _is_stub(cell):
    return STUB in cell.metadata.get("tags", [])


def _output_texts(cell):
    """Every piece of text that the cell's outputs hold, pictures left out."""
    for output in cell.outputs:
        yield "".join(output.get("text", ""))
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/") or kind == "image/svg+xml":
                yield content if isinstance(content, str) else json.dumps(content)


def _image_kinds(cell):
    """(output, MIME type) of every picture among the cell's outputs."""
    for output in cell.outputs:
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                yield output, kind


def _speaks(cell):
    """Whether a code cell's output holds words or numbers: printed, or in a table."""
    return any(
        output.output_type == "stream" or "text/html" in output.get("data", {})
        for output in cell.outputs
    )


def _n_words(cell):
    """Words of running text: tables, lists, code, HTML tags and link targets do not count."""
    text = FENCED_CODE.sub("", _source(cell))
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"<[^>]*>", "", text))
    lines = [line for line in text.splitlines() if not LIST_OR_TABLE.match(line)]
    return len(re.findall(r"\w[\w'’.,-]*", " ".join(lines)))


def _n_lines(cell):
    return sum(bool(line.strip()) for line in _source(cell).splitlines())


def _percentile_90(values):
    return sorted(values)[max(0, -(-len(values) * 9 // 10) - 1)]


def _is_local(target):
    return not re.match(r"[a-z][a-z0-9+.-]*:|#|//", target, re.I)


def _targets(text):
    """Where the links and pictures of a Markdown text point to."""
    text = FENCED_CODE.sub("", text)
    yield from MARKDOWN_LINK.findall(text)
    yield from (target for _, target in MARKDOWN_IMAGE.findall(text))
    yield from HTML_TARGET.findall(text)


def _missing_targets(text, folder):
    """The local links and pictures of a Markdown text whose file does not exist."""
    for target in filter(_is_local, _targets(text)):
        if not (folder / unquote(target.split("#")[0].split("?")[0])).exists():
            yield target


def _images_without_alt(text):
    yield from (target for alt, target in MARKDOWN_IMAGE.findall(text) if not alt.strip())
    yield from (tag for tag in HTML_IMAGE.findall(text) if not HTML_ALT.search(tag))


def test_there_are_notebooks():
    assert NOTEBOOKS, "no notebook was found in notebooks/"


def test_names_are_numbered():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers), f"a number occurs twice: {numbers}"
    for path in NOTEBOOKS:
        assert re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name), f"{path.name}: name it NN_words"


def test_format_is_valid(notebook, report):
    version = (notebook.nbformat, notebook.nbformat_minor)
    if version < (4, 5):
        report([("format", f"version {version} has no cell ids, save it as 4.5")])
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        report([("format", error)])


def test_metadata_is_the_same_on_every_machine(notebook, report):
    problems = []
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        problems.append(("metadata", f"kernel {kernel!r}, expected 'python3'"))
    # GitHub refuses to show a notebook with saved widgets; versions change with the machine.
    if extra := set(notebook.metadata) - {"kernelspec", "language_info"}:
        problems.append(("metadata", f"remove {sorted(extra)}"))
    if set(notebook.metadata.get("language_info", {"name": ""})) != {"name"}:
        problems.append(("metadata", "keep only the name in language_info"))
    report(problems)


def test_cell_ids_are_stable_words(notebook, report):
    ids = [cell.get("id", "") for cell in notebook.cells]
    report(
        (cell, "needs an id in words, such as norms-by-layer, that no other cell has")
        for cell, name in zip(notebook.cells, ids, strict=True)
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        or RANDOM_ID.fullmatch(name)
        or ids.count(name) > 1
    )


def test_first_cell_tells_what_and_how_long(path, notebook, report):
    first, number = notebook.cells[0], path.name[:2]
    text = _source(first)
    headings = [
        cell
        for cell in _markdown(notebook)
        for _ in re.findall(r"^# ", FENCED_CODE.sub("", _source(cell)), re.M)
    ]
    problems = []
    if first.cell_type != "markdown" or not re.match(rf"# {number} · \S", text):
        problems.append((first, f"the first cell must begin with '# {number} · Title'"))
    if len(headings) != 1:
        problems.append((first, f"{len(headings)} headings of the first rank, expected one"))
    if not re.search(r"\d+ minutes?\b", text) or not re.search(r"\d+ seconds?\b", text):
        problems.append((first, "tell the minutes to read and the measured seconds to run"))
    report(problems)


def test_a_last_part_sums_up(notebook, report):
    headings = [
        heading
        for cell in _markdown(notebook)
        for heading in re.findall(r"^#{1,6} +(.+)$", FENCED_CODE.sub("", _source(cell)), re.M)
    ]
    if not any("what we saw" in heading.lower() for heading in headings):
        report([(notebook.cells[-1], "add a heading 'What we saw' to the end")])


def test_executed_once_in_order(notebook, report):
    run = [cell for cell in _code(notebook) if not _is_stub(cell)]
    skipped = [cell for cell in _code(notebook) if _is_stub(cell)]
    report(
        [
            (cell, f"execution count {cell.execution_count}, expected {number}: execute again")
            for number, cell in enumerate(run, start=1)
            if cell.execution_count != number
        ]
        + [
            (cell, "an exercise stub must not be executed: clear it")
            for cell in skipped
            if cell.execution_count is not None or cell.outputs
        ]
        + [(cell, "empty code cell") for cell in _code(notebook) if not _source(cell).strip()]
    )


def test_outputs_hold_no_errors_or_warnings(notebook, report):
    problems = []
    for cell in _code(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append((cell, f"stored error {output.ename}"))
            elif output.get("name") == "stderr":
                problems.append((cell, f"stored stderr: {''.join(output.text)[:80]!r}"))
        for text in _output_texts(cell):
            if re.search(r"\b\w*Warning: ", text):
                problems.append((cell, "stored warning"))
    report(problems)


def test_outputs_hold_nothing_that_changes(notebook, report):
    """No progress bar, memory address or widget view: each differs in the next run."""
    problems = []
    for cell in _code(notebook):
        for text in _output_texts(cell):
            if PROGRESS_BAR.search(text):
                problems.append((cell, "what is left of a progress bar"))
            if MEMORY_ADDRESS.search(text):
                problems.append((cell, "a memory address"))
        for output in cell.outputs:
            if any("widget-view" in kind for kind in output.get("data", {})):
                problems.append((cell, "widget view: use tests/execute_notebooks.py"))
    report(problems)


def test_no_machine_paths_or_placeholders(notebook, report):
    problems = []
    for cell in notebook.cells:
        outputs = list(_output_texts(cell)) if cell.cell_type == "code" else []
        for text in [_source(cell), *outputs]:
            if found := MACHINE_PATH.search(text):
                problems.append((cell, f"path of one machine: {found.group()!r}"))
        if found := PLACEHOLDER.search(_source(cell)):
            problems.append((cell, f"placeholder {found.group()!r}"))
    report(problems)


def test_outputs_are_small(notebook, report):
    size = sum(len(json.dumps(cell.outputs)) for cell in _code(notebook)) / MEGABYTE
    if size > MAX_OUTPUT_MEGABYTES:
        report([("outputs", f"{size:.1f} MB in all, at most {MAX_OUTPUT_MEGABYTES}")])


def test_code_cells_are_short(notebook, report):
    cells = _code(notebook)
    lines = [_n_lines(cell) for cell in cells]
    sized = zip(cells, lines, strict=True)
    problems = [(cell, f"{n} lines, at most 40") for cell, n in sized if n > 40]
    if (high := _percentile_90(lines)) > 20:
        problems.append(("code cells", f"90th percentile {high} lines, at most 20: {lines}"))
    report(problems)


def test_a_notebook_is_no_wall_of_code(notebook, report):
    code, text = _code(notebook), _markdown(notebook)
    n_lines = sum(map(_n_lines, code))
    problems = []
    if len(code) > MOST_CODE_CELLS:
        problems.append(("code cells", f"{len(code)}, at most {MOST_CODE_CELLS}"))
    if n_lines > MOST_CODE_LINES:
        problems.append(("code cells", f"{n_lines} lines in all, at most {MOST_CODE_LINES}"))
    if len(text) < LEAST_MARKDOWN * len(code):
        ratio = len(text) / len(code)
        problems.append(("cells", f"{ratio:.2f} of text a code cell, at least {LEAST_MARKDOWN}"))
    triples = zip(notebook.cells, notebook.cells[1:], notebook.cells[2:], strict=False)
    for *_, third in triples:
        if all(cell.cell_type == "code" for cell in (*_, third)):
            problems.append((third, "the third code cell in a row: say first what it does"))
    report(problems)


def test_helpers_come_before_torch(notebook, report):
    """helpers sets how torch's threads wait, and torch reads that when it is imported."""
    for cell in _code(notebook):
        for line in _source(cell).splitlines():
            if found := re.match(r"(?:from|import) (\w+)", line):
                if found[1] == "helpers":
                    return
                if found[1] in ("torch", "transformers", "sklearn", "scipy"):
                    report([(cell, f"imports {found[1]} before the first import of helpers")])


def test_predictions_are_folded(notebook, report):
    """What follows a question is folded until it is run, and nothing else is.

    JupyterLab shows the first line of a folded output: it must not give the answer away, which
    only a reader can judge.
    """
    problems, asked = [], False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            asked = "**Predict, then run.**" in _source(cell)
            if asked and not re.search(r"\*\*a\)\*\*.*\*\*b\)\*\*", _source(cell), re.S):
                problems.append((cell, "offer definite answers: **a)** …, **b)** …"))
            continue
        folded = bool(cell.metadata.get("jupyter", {}).get("outputs_hidden"))
        if folded != (FOLDED in cell.metadata.get("tags", [])):
            problems.append((cell, f"fold it for all: outputs_hidden and the tag {FOLDED}"))
        if folded and not asked:
            problems.append((cell, "folded, but no prediction was asked for"))
        if asked and cell.outputs and not folded:
            problems.append((cell, "the output below a prediction must be folded"))
    report(problems)


def test_predictions_are_explained_where_they_begin():
    first = nbformat.from_dict(json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))).cells[0]
    assert "Predict, then run" in _source(first) and "folded" in _source(first)


def test_mistake_16_the_choice_is_made_before_the_test_prompts_are_met(path, notebook, report):
    """Nothing that a notebook has measured on the test prompts may enter its choice."""
    sources = [_source(cell) for cell in _code(notebook)]
    chooses = re.compile(r"\bchoose\(")
    choices = [n for n, text in enumerate(sources) if chooses.search(text)]
    tests = [n for n, text in enumerate(sources) if "test_prompts" in text]
    if choices and tests and max(choices) >= min(tests):
        report([(_code(notebook)[max(choices)], "chooses when the test prompts were met")])
    if path.stem == "07_an_honest_test":
        assert choices and tests


def test_markdown_cells_are_short(notebook, report):
    cells = _markdown(notebook)
    words = [_n_words(cell) for cell in cells]
    sized = zip(cells, words, strict=True)
    problems = [(cell, f"{n} words, at most 120") for cell, n in sized if n > 120]
    # Cells that are only a table or a list say nothing about the length of the prose.
    if not 20 <= (median := statistics.median([n for n in words if n] or [0])) <= 60:
        problems.append(("markdown cells", f"median {median} words, not 20 to 60: {words}"))
    report(problems)


def test_imports_are_pinned(notebook, report):
    """Only the standard library, helpers and what requirements.txt names can be imported."""
    pins = {
        _normal(re.split(r"[=;\s]", line)[0])
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if re.match(r"\w", line)
    }
    pins.add("ipython")  # comes with ipykernel: a kernel is IPython
    providers = packages_distributions()
    problems = []
    for cell in _code(notebook):
        tree = ast.parse(TransformerManager().transform_cell(_source(cell)))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in {name.split(".")[0] for name in names}:
                known = name == "helpers" or name in sys.stdlib_module_names
                if not known and not pins & {_normal(p) for p in providers.get(name, [])}:
                    problems.append((cell, f"imports {name}, which requirements.txt does not pin"))
    report(problems)


def _normal(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_links_and_pictures_exist(path, notebook, report):
    report(
        (cell, f"{target} does not exist")
        for cell in _markdown(notebook)
        for target in _missing_targets(_source(cell), path.parent)
    )


def test_pictures_in_text_have_alt_text(notebook, report):
    report(
        (cell, f"no alt text: {image}")
        for cell in _markdown(notebook)
        for image in _images_without_alt(_source(cell))
    )


def test_figures_have_alt_text(notebook, report):
    report(
        (cell, "figure without alt text: end it with helpers.plots.show(figure, alt=...)")
        for cell in _code(notebook)
        for output, kind in _image_kinds(cell)
        if not str(output.metadata.get(kind, {}).get("alt", "")).strip()
    )


def test_figures_are_followed_by_words(notebook, report):
    """Each figure has a text equivalent: printed by its own cell or the next, or in Markdown."""
    problems = []
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if cell.cell_type != "code" or not any(_image_kinds(cell)) or _speaks(cell):
            continue
        if following is None or (following.cell_type == "code" and not _speaks(following)):
            problems.append((cell, "say after the figure what it shows, or print its numbers"))
    report(problems)


def test_readme_maps_every_notebook():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = set(_targets(readme))
    missing = [path.name for path in NOTEBOOKS if f"notebooks/{path.name}" not in linked]
    assert not missing, f"README.md has no link to {missing}"


def test_readme_links_and_pictures_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = list(_missing_targets(readme, ROOT))
    assert not missing, f"README.md points to files that do not exist: {missing}"
    without_alt = list(_images_without_alt(readme))
    assert not without_alt, f"README.md has pictures without alt text: {without_alt}"
