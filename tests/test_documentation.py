"""The pages: links lead somewhere, lines fit, and every command that a page shows is one that the program takes."""

import argparse
import importlib
import re
import shlex
import unicodedata

import pytest

from inception_jax import recipe_files
from inception_jax.errors import UserError

from .conftest import ROOT

WIDTH = 120
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "runs", "report", ".pytest_cache", "build"} & set(path.relative_to(ROOT).parts)
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)
COMMAND = re.compile(r"(?:python3? -m inception_jax\.|inception-jax )([a-z_.]+)((?:[ ]+(?:[^\s#&;>`']+|'[^']*')+)*)")


def prose(text):
    """A page without its code blocks, where a bracket is no link."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        kept = (c for c in text if c in " -_" or unicodedata.category(c)[0] in "LN")
        found.add("".join(kept).replace(" ", "-"))
    return found


def test_the_packages_have_pages():
    packages = "training evaluation multihost data pretrained parity sweeps benchmarks features exports".split()
    expected = {f"inception_jax/{name}/README.md" for name in packages}
    assert expected | {"README.md", "configs/README.md", "experiments/README.md", "tests/README.md"} <= set(NAMES)


def test_every_experiment_is_in_the_index():
    index = (ROOT / "experiments" / "README.md").read_text()
    folders = {path.parent.name for path in (ROOT / "experiments").glob("*/README.md")}
    assert folders == {path.name for path in (ROOT / "experiments").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert [name for name in sorted(folders) if f"]({name}/README.md)" not in index] == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for match in LINK.finditer(prose(page.read_text())):
        target, _, anchor = (match[1] or match[2]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name}: {target} is not there"
        assert path.is_relative_to(ROOT), f"{name}: {target} lies outside of the repository"
        if anchor:
            assert anchor in anchors(path), f"{name}: {target}#{anchor}: no such heading"


@pytest.mark.parametrize("name", NAMES)
def test_lines_fit(name):
    long = [n for n, line in enumerate((ROOT / name).read_text().splitlines(), 1) if len(line) > WIDTH]
    tables = [n for n, line in enumerate((ROOT / name).read_text().splitlines(), 1) if line.startswith("|")]
    assert [n for n in long if name == "README.md" or n not in tables] == []


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def commands():
    """(page, verb, arguments) of every command in the pages' code."""
    for page, name in zip(PAGES, NAMES, strict=True):
        text = page.read_text()
        code = [body for _, body in FENCE.findall(text)] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
        for block in code:
            for verb, rest in COMMAND.findall(re.sub(r"\\\n\s*", " ", block)):
                yield name, verb.rstrip("."), rest


COMMANDS = sorted(set(commands()))


class Accepted(Exception):
    """A command line was parsed; what the command would do is not done."""


@pytest.fixture
def parse_only(monkeypatch):
    """Every command ends when its command line was accepted; recipes are loaded, with their overrides."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, argv=None, namespace=None):
        parse_args(parser, argv, namespace)
        raise Accepted

    def parse_recipe_and_stop(parser, argv):
        own = [word for word in argv if not word.startswith(("--config=", "--config."))]
        parse_args(parser, own)
        of_config = [word for word in argv if word not in own]
        if of_config and of_config[0].startswith("--config."):
            of_config = ["--config=digits", *of_config]  # as if the run in the workdir had that recipe
        if of_config and not re.search(r"[A-Z…]{3}|…|=runs/", of_config[0]):
            recipe_files.load_config(of_config)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(recipe_files, "parse", parse_recipe_and_stop)
    monkeypatch.chdir(ROOT)


def words_of(text):
    """The words of a command as it is shown: brackets dropped, of alternatives the first, N a number."""
    text = re.sub(r"[\[\]]", " ", text)
    words = [word for word in shlex.split(text) if word not in ("…", "...", "|")]
    words = [re.sub(r"^(--[\w.]+=)?([a-z0-9-]+)\|.*$", r"\1\2", word) for word in words]
    return [re.sub(r"=(N|H|S|I)$", "=1", word) for word in words]


@pytest.mark.parametrize(("name", "verb", "rest"), COMMANDS)
def test_a_command_is_accepted(name, verb, rest, parse_only):
    main = importlib.import_module(
        "inception_jax." + {"prepare": "data.prepare", "show": "data.show"}.get(verb, verb)
    ).main
    try:
        main(words_of(rest))
    except (Accepted, SystemExit):  # --help exits
        return
    except UserError as error:
        required = re.match(r"the following arguments are required", str(error))
        assert required and not rest.strip(), f"{name}: {verb}{rest}: {error}"
        return
    raise AssertionError(f"{name}: {verb}{rest} was not parsed")
