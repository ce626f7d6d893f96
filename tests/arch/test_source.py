"""The source keeps the house rules that no linter knows: short files, docstrings, no names of one machine."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "tunesmith"
MODULES = sorted(SRC.rglob("*.py"))
MAX_LINES = 600
MAX_FUNCTION_LINES = 100
STRAIGHT_LOOPS = {"train/loop.py:run_training"}
"""The functions that a reader came for, told top to bottom (STYLE 3)."""
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc"}

# Assembled from parts, so that this file does not hold what it forbids.
MACHINE_PATHS = re.compile(
    "|".join(
        [
            r"(?<![\w.])/" + r"work/\w",
            r"(?<![\w.])/" + r"home/\w+/",
            r"(?<![\w.])/" + r"Users/\w+/",
            r"(?<![\w.])/" + r"root/\.\w",
            r"\." + r"library/",
        ]
    )
)


def tracked_texts() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False, cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout: which files are tracked is not known")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_no_tracked_file_names_a_path_of_one_machine():
    found = [
        f"{name}:{text[: hit.start()].count(chr(10)) + 1}: {hit.group()}"
        for name, text in tracked_texts()
        for hit in MACHINE_PATHS.finditer(text)
    ]
    assert found == []


def test_the_search_for_machine_paths_can_fail():
    assert MACHINE_PATHS.search("open('" + "/ho" + "me/ada/x.jsonl')")
    assert not MACHINE_PATHS.search("https://example.org/homework/1")


def test_no_file_is_longer_than_a_reader_can_hold():
    assert [str(path.relative_to(SRC)) for path in MODULES if len(path.read_text().splitlines()) > MAX_LINES] == []


def test_no_function_is_longer_than_a_reader_can_hold():
    """About 60 lines is the rule; nothing but a loop that a reader came for is longer than this."""
    long = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                name = f"{path.relative_to(SRC).as_posix()}:{node.name}"
                if length > MAX_FUNCTION_LINES and name not in STRAIGHT_LOOPS:
                    long.append(f"{name} has {length} lines")
    assert long == []


def test_no_module_is_a_drawer():
    assert [str(path) for path in MODULES if path.stem in FORBIDDEN_NAMES] == []


def test_every_module_and_public_name_has_a_docstring():
    bare = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            bare.append(str(path.relative_to(SRC)))
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if public and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(SRC)}:{node.name}")
    assert bare == []


def test_nothing_below_the_command_line_prints():
    loud = []
    for path in MODULES:
        if path.is_relative_to(SRC / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                loud.append(f"{path.relative_to(SRC)}:{node.lineno}")
    assert loud == []


def test_the_kernel_knows_no_word_about_language_models():
    words = re.compile(r"\b(token|tokens|tokenizer|chat|prompt|lora|adapter|perplexity|transformers)\b", re.IGNORECASE)
    found = []
    for path in sorted((SRC / "core").glob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [node.id] if isinstance(node, ast.Name) else [node.arg] if isinstance(node, ast.arg) else []
            found += [f"{path.name}: {name}" for name in names if words.search(name.replace("_", " "))]
    assert found == []
