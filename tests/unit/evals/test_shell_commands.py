"""Shell commands are compared as a shell reads them, and never run."""

import pytest

from tunesmith.evals.questions import Reply
from tunesmith.evals.shell import compare_commands, extract_command, is_readable
from tunesmith.evals.tasks import KINDS


def levels(answer, expected):
    found = compare_commands(answer, expected)
    return (found.command, found.template, found.utilities)


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ('find . -name "*.txt"|wc -l', "find  . -name '*.txt' | wc -l", (True, True, True)),
        ("find . -name \\*.txt", "find . -name '*.txt'", (True, True, True)),
        ("find . -name *.txt", "find . -name '*.txt'", (False, True, True)),  # the shell would expand it
        ("find /tmp -name '*.py' | wc -l", "find . -name '*.txt' | wc -l", (False, True, True)),
        ("find . -iname '*.txt' | wc -l", "find . -name '*.txt' | wc -l", (False, False, True)),
        ("find . -name '*.txt'", "find . -name '*.txt' | wc -l", (False, False, False)),
        ("wc -l $(ls *.c)", "wc -l `ls *.c`", (True, True, True)),
        ("wc -l $(ls -a *.c)", "wc -l $(ls *.c)", (False, False, True)),
        ("ls > a", "ls >> a", (False, False, True)),
        ("echo '$x'", "echo $x", (False, True, True)),
        ('echo "$x"', "echo $x", (True, True, True)),
        ("ls -la", "ls -l -a", (False, False, True)),
        ("ls # all of them", "ls", (True, True, True)),
        ("find . -exec grep a {} \\;", "find . -exec grep b {} ';'", (False, True, True)),
        ("find . -exec rm {} \\;", "find . -exec grep {} \\;", (False, False, False)),
        ("xargs -I {} mv {} b", "xargs -I % mv % b", (False, True, True)),
        ("sudo -u me rm x", "sudo -u you rm y", (False, True, True)),
        ("sudo rm x", "rm x", (False, False, False)),
        ("echo \\", "echo '\\'", (True, True, True)),
        ("ls 'a", "ls a", (False, False, False)),
        ("", "ls", (False, False, False)),
    ],
)
def test_commands_agree_as_a_shell_reads_them(answer, expected, wanted):
    assert levels(answer, expected) == wanted


def test_an_expected_command_with_an_open_quote_is_refused_and_its_question_is_not_scored():
    with pytest.raises(ValueError, match="single quote"):
        compare_commands("ls", "ls 'a")
    assert not is_readable("ls 'a")
    assert not is_readable(" ")
    (question,) = KINDS["shell"].read({"prompt": "list", "answer": "ls 'a"}, "x, line 1")
    assert question.score(Reply(text="ls")) == {}


def test_a_command_in_a_fence_or_behind_a_prompt_sign_is_found_and_a_cut_answer_does_not_match():
    assert extract_command("Try this:\n```bash\n$ ls -l\n```\nIt lists.") == "ls -l"
    (question,) = KINDS["shell"].read({"prompt": "list", "answer": "ls -l"}, "x, line 1")
    assert question.score(Reply(text="```sh\nls -l\n```")) == {
        "command_match": 1,
        "template_match": 1,
        "utilities_match": 1,
    }
    assert set(question.score(Reply(text="ls -l", ended=False)).values()) == {0}
