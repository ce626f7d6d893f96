"""NL2Bash's commands are read as `bash -n` and Python's `shlex` read them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tunesmith.evals.shell import compare_commands, is_readable, words

FILE = Path(__file__).parents[2] / "../shared/data/bash_nl2bash.test.jsonl"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="shared/data is not beside the checkout")


def commands():
    return [json.loads(line)["messages"][-1]["content"] for line in FILE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_what_bash_reads_is_read():
    def parses(command):
        return subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False).returncode == 0

    unread = [command for command in commands() if parses(command) and not is_readable(command)]
    assert unread == []


def test_words_are_those_of_shlex_where_nothing_is_expanded():
    compared = 0
    for command in commands():
        if re.search(r"[$`#!()<>\n]|\\$", command) or not is_readable(command):
            continue  # shlex knows no expansion, and reads brackets, comments and a last backslash otherwise
        lexer = shlex.shlex(command, posix=True, punctuation_chars="|;&")
        lexer.whitespace_split, lexer.commenters = True, ""
        ours = [re.sub(r"\\(.)", r"\1", word) for word in words(command)]
        assert ours == list(lexer), command
        compared += 1
    assert compared > 400


def test_a_command_equals_itself_and_no_other_one():
    readable = sorted({" ".join(command.split()) for command in commands() if is_readable(command)})[:300]
    for place, command in enumerate(readable):
        assert compare_commands(command, command).command
        other = readable[(place + 1) % len(readable)]
        assert not compare_commands(other, command).command, (command, other)
