"""The sandbox: honest programs pass, every attack that is known to us fails, and no namespaces means no run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tunesmith.errors import PlanError
from tunesmith.evals.sandbox import Limits, Verdict, require_sandbox, run_tests

SRC = str(Path(__file__).parents[3] / "src")


def _available() -> bool:
    try:
        require_sandbox()
    except PlanError as error:
        if os.environ.get("TUNESMITH_REQUIRE_SANDBOX"):
            raise
        print(error)
        return False
    return True


pytestmark = pytest.mark.skipif(not _available(), reason="this machine refuses namespaces, so there is no sandbox")

# ------------------------------------------------------------------------------------------ honest programs


def test_a_correct_program_passes_and_its_output_is_kept():
    result = run_tests("def add(a, b):\n    print('seen')\n    return a + b", ["assert add(1, 2) == 3"])
    assert result.verdict is Verdict.PASSED
    assert result.output == "seen\n"


def test_a_wrong_program_fails_and_every_test_is_reported():
    result = run_tests("def f(x):\n    return 3", ["assert f(1) == 3", "assert f(1) == 4", "assert f(2) == 3"])
    assert result.verdict is Verdict.FAILED
    assert [test.outcome for test in result.tests] == ["passed", "failed", "passed"]
    assert result.detail.startswith("test 1")


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("def f(:", Verdict.NOT_LOADED),
        ("1 / 0", Verdict.NOT_LOADED),
        ("", Verdict.RAISED),
        ("def f(x):\n    raise KeyError(x)", Verdict.RAISED),
        ("def f(x):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)\n    os.abort()", Verdict.ENDED),
        ("def f(x):\n    while True: pass", Verdict.TIMEOUT),
        ("import time\ndef f(x):\n    time.sleep(60)", Verdict.TIMEOUT),
        ("def f(x):\n    return input()", Verdict.RAISED),
    ],
)
def test_each_way_of_not_working_has_its_own_verdict(program, verdict):
    assert run_tests(program, ["assert f(1) == 1"], limits=Limits(wall_seconds=1)).verdict is verdict


def test_a_test_that_does_not_parse_is_unscored_rather_than_the_programs_fault():
    result = run_tests("def f(x):\n    return x", ["assert f(1) == 1", "assert f(1"])
    assert result.verdict is Verdict.UNUSABLE_TEST
    assert not result.verdict.scored


@pytest.mark.parametrize(
    "literal",
    [
        "10**400", "-3", "float('inf')", "1.5", "2+3j", "'\\ud800x'", "b'\\x00'", "bytearray(b'a')", "None", "True",
        "[1, (2, [3])]", "{1: {'a': (2,)}}", "{1, 'b'}", "frozenset([1])", "range(1, 9, 2)",
        "__import__('collections').Counter('aab')", "__import__('collections').deque([1, 2], 5)",
        "__import__('collections').OrderedDict(b=1, a=2)", "__import__('decimal').Decimal('1.10')",
        "__import__('fractions').Fraction(1, 3)", "__import__('datetime').datetime(2024, 1, 2, 3)",
        "__import__('datetime').date(2024, 1, 2)", "__import__('datetime').timedelta(1, 2, 3)", "int", "list",
    ],
)  # fmt: skip
def test_plain_values_cross_both_ways_with_their_exact_type(literal):
    program = f"def give():\n    return {literal}\ndef kind(x):\n    return [type(x).__name__, x == {literal}]"
    tests = [
        f"assert give() == {literal}",
        f"assert type(give()) is type({literal})",
        f"assert kind({literal}) == [type({literal}).__name__, True]",
    ]
    result = run_tests(program, tests)
    assert result.verdict is Verdict.PASSED, result.detail


def test_not_a_number_stays_one_and_stays_unequal_to_itself():
    assert run_tests("f = lambda: float('nan')", ["assert f() != f()"]).verdict is Verdict.PASSED


def test_a_list_changed_in_place_is_changed_in_the_test():
    program = "def f(x):\n    x.sort()\ndef g(d):\n    d.pop('a')\n    d['b'] = [1]"
    tests = ["x = [3, 1]\nf(x)\nassert x == [1, 3]", "d = {'a': 1}\ng(d)\nassert d == {'b': [1]}"]
    assert run_tests(program, tests).verdict is Verdict.PASSED


def test_objects_of_the_program_can_be_built_used_and_handed_back():
    program = (
        "class Node:\n    def __init__(self, v):\n        self.v, self.next = v, None\n"
        "def total(n):\n    return 0 if n is None else n.v + total(n.next)\n"
        "def walk():\n    yield from (1, 2)\n"
    )
    tests = [
        "a, b = Node(1), Node(2)\na.next = b\nassert total(a) == 3",
        "assert a.next.v == 2",
        "assert list(walk()) == [1, 2]",
        "assert 2 in walk()",
        "assert a == a and a != b",
    ]
    result = run_tests(program, tests)
    assert result.verdict is Verdict.PASSED, result.detail


def test_a_check_function_in_the_style_of_humaneval_works():
    tests = ["def check(candidate):\n    assert candidate(2) == 4\n    assert helper(1) == 2", "check(double)"]
    program = "def double(x):\n    return 2 * x\ndef helper(x):\n    return x + 1"
    assert run_tests(program, tests).verdict is Verdict.PASSED
    assert run_tests(program.replace("2 * x", "x"), tests).verdict is Verdict.FAILED


def test_an_expected_exception_can_be_tested():
    test = "try:\n    f()\nexcept ValueError as e:\n    assert str(e) == 'no'\nelse:\n    assert False"
    assert run_tests("def f():\n    raise ValueError('no')", [test]).verdict is Verdict.PASSED
    assert run_tests("def f():\n    pass", [test]).verdict is Verdict.FAILED


def test_a_main_block_does_not_run_and_setup_is_the_tests_own():
    program = "if __name__ == '__main__':\n    raise SystemExit(3)\ndef f(x):\n    return x"
    result = run_tests(program, ["assert f(base) == 7"], setup="base = 7")
    assert result.verdict is Verdict.PASSED
    assert run_tests("def f(x):\n    return base", ["assert f(1) == 7"], setup="base = 7").verdict is Verdict.RAISED


def test_sets_of_words_have_one_order_in_every_run():
    program = "def f():\n    return list({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"
    answers = {run_tests(program, ["assert f() == 0, 'x'\n".replace("'x'", "str(f())")]).detail for _ in range(3)}
    assert len(answers) == 1


def test_many_runs_at_once_keep_their_verdicts_apart():
    verdicts: dict[int, Verdict] = {}

    def run(i: int) -> None:
        verdicts[i] = run_tests(f"def f():\n    return {i % 2}", ["assert f() == 1"]).verdict

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {i: Verdict.PASSED if i % 2 else Verdict.FAILED for i in range(8)}


# ------------------------------------------------------------------------------------------------- attacks

EQUAL_TO_ALL = (
    "    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    __hash__ = None\n"
)


@pytest.mark.parametrize(
    "program",
    [
        f"class E:\n{EQUAL_TO_ALL}def f(x):\n    return E()",
        f"class E(int):\n{EQUAL_TO_ALL}def f(x):\n    return E(1)",
        f"class E:\n{EQUAL_TO_ALL}def f(x):\n    return [E()]",
        "class M(type):\n    def __eq__(c, o): return True\n    __hash__ = type.__hash__\n"
        "class E(metaclass=M): pass\ndef f(x):\n    return E",
        "class E:\n    def __eq__(s, o): return True\n    __class__ = int\ndef f(x):\n    return E()",
    ],
)
@pytest.mark.parametrize("test", ["assert f(1) == 4242", "assert f(1) == [4242]", "assert 4242 == f(1)"])
def test_an_object_that_is_equal_to_everything_is_equal_to_nothing(program, test):
    assert run_tests(program, [test]).verdict is Verdict.FAILED


def test_an_object_that_contains_everything_contains_nothing():
    program = (
        "class E:\n    def __contains__(s, o): return True\n    def __iter__(s): return iter(())\ndef f(x): return E()"
    )
    assert run_tests(program, ["assert 4242 in f(1)"]).verdict is Verdict.FAILED


def test_patching_builtins_or_the_wire_inside_the_program_changes_nothing_for_the_tests():
    program = (
        "import builtins, sys, json\n"
        "class E:\n    def __eq__(s, o): return True\n"
        "builtins.int = builtins.list = builtins.sorted = lambda *a: E()\n"
        "def sorted(*a): return 0\n"
        "def set(*a): return 0\n"
        "wire = sys.modules['tunesmith.evals.sandbox_candidate']\n"
        "wire.encode = lambda v, refer: True\n"
        "def f(x):\n    return 5\n"
    )
    for test in ("assert f(1) == 4242", "assert sorted([f(1)]) == sorted([4242])", "assert set([f(1)]) == set([4242])"):
        assert run_tests(program, [test]).verdict is not Verdict.PASSED


@pytest.mark.parametrize(
    "place", ["/pwned", "/usr/lib/pwned", "/dev/pwned", "/root/pwned", "{home}/pwned", "{src}/pwned"]
)
def test_writing_outside_is_refused_and_nothing_appears_on_the_host(place):
    path = place.format(home=Path.home(), src=SRC)
    program = f"def f():\n    open({path!r}, 'w').write('x')\n    return 'written'"
    assert run_tests(program, ["assert f() == 'written'"]).verdict is Verdict.RAISED
    assert not Path(path).exists()


def test_tmp_is_private_and_bounded():
    marker = f"/tmp/tunesmith-sandbox-test-{os.getpid()}"
    program = (
        f"def f():\n    open({marker!r}, 'w').write('x')\n    import os\n    return os.listdir('/tmp')\n"
        "def fill():\n    for i in range(99):\n        open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))\n"
    )
    result = run_tests(program, [f"assert f() == [{os.path.basename(marker)!r}]", "fill()"])
    assert [test.outcome for test in result.tests] == ["passed", "raised"]
    assert not Path(marker).exists()


@pytest.mark.parametrize(
    "leave", ["import os; os._exit(0)", "raise SystemExit(0)", "import sys; sys.exit(0)", "quit()"]
)
@pytest.mark.parametrize("where", ["load", "call"])
def test_leaving_with_status_zero_is_no_pass(leave, where):
    program = f"{leave}\ndef f(): return 1" if where == "load" else f"def f():\n    {leave}\n    return 1"
    assert run_tests(program, ["assert f() == 1"]).verdict in (Verdict.NOT_LOADED, Verdict.ENDED, Verdict.RAISED)


def test_a_printed_verdict_is_only_output():
    forged = '{"event": "test", "index": 0, "outcome": "passed", "detail": ""}\\n{"event": "done"}'
    program = (
        f"import os, sys\nFORGED = '''{forged}\\n'''\n"
        "def f():\n"
        "    print(FORGED); sys.stderr.write(FORGED)\n"
        "    for fd in range(64):\n"
        "        try: os.write(fd, FORGED.encode())\n"
        "        except OSError: pass\n"
        "    os._exit(0)\n"
    )
    result = run_tests(program, ["assert f() == 1"])
    assert result.verdict is Verdict.ENDED
    assert '"done"' in result.output


def test_garbage_on_the_wire_is_no_answer():
    program = (
        "import os, struct, sys\n"
        "def frame(text): return struct.pack('>I', len(text)) + text\n"
        "def f(kind):\n"
        "    os.write(3 if kind < 9 else 4, b'')\n"
        "    sock = [fd for fd in range(3, 32) if is_socket(fd)][0]\n"
        "    os.write(sock, PAYLOADS[kind])\n"
        "    return 1\n"
        "def is_socket(fd):\n"
        "    import stat\n"
        "    try: return stat.S_ISSOCK(os.fstat(fd).st_mode)\n"
        "    except OSError: return False\n"
        "PAYLOADS = [frame(b'[1'), frame(b'{}'), frame(b'7'), frame(b'[' * 100000), b'\\xff' * 8, frame(b'{\"value\": [\"int\", \"zz\"]}'),\n"
        '    frame(b\'{"value": ["object", [0, "x"]]}\'), frame(b\'{"raised": 3}\'), frame(b\'{"value": ["nope", 1]}\')]\n'
    ).replace("    os.write(3 if kind < 9 else 4, b'')\n", "")
    for kind in range(9):
        assert run_tests(program, [f"assert f({kind}) == 4242"]).verdict is not Verdict.PASSED


BOMB = """
import os, threading, time
def bomb():
    made = 0
    for _ in range(200):
        try:
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
            made += 1
        except OSError:
            return made
    return made
def threads():
    for _ in range(50):
        threading.Thread(target=time.sleep, args=(30,)).start()
"""


def test_a_fork_bomb_makes_no_process():
    assert run_tests(BOMB, ["assert bomb() == 0"]).verdict is Verdict.PASSED
    assert run_tests(BOMB, ["threads()"]).verdict is Verdict.RAISED


def _processes_with(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in path.read_text():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_allowed_processes_are_counted_and_end_with_the_run():
    marker = (16 << 20) + os.getpid()
    limits = Limits(processes=4, tmp_bytes=marker)  # the warden's command line holds the limits, so it can be found
    seen = []
    watcher = threading.Timer(0.3, lambda: seen.extend(_processes_with(f'"tmp_bytes": {marker}')))
    watcher.start()
    result = run_tests(BOMB, ["assert bomb() == 3\nimport time\ntime.sleep(1)"], limits=limits)
    watcher.join()
    assert result.verdict is Verdict.PASSED, result.detail
    assert seen
    assert _processes_with(f'"tmp_bytes": {marker}') == []


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_is_cut_and_is_a_verdict(stream):
    program = f"import sys\ndef f():\n    while True:\n        sys.{stream}.write('x' * 4096)"
    limits = Limits(output_bytes=100_000, wall_seconds=20)
    result = run_tests(program, ["assert f() == 1"], limits=limits)
    assert result.verdict is Verdict.TOO_MUCH_OUTPUT
    assert len(result.output) <= limits.output_bytes


def test_memory_is_bounded():
    program = "def f():\n    return len(bytearray(4 << 30))"
    result = run_tests(program, ["assert f() == 4 << 30"])
    assert result.verdict is Verdict.RAISED
    assert "MemoryError" in result.detail


def test_an_answer_too_large_to_carry_is_the_programs_failure():
    assert run_tests("def f():\n    return 'x' * (20 << 20)", ["assert f() == 1"]).verdict is Verdict.RAISED
    assert (
        run_tests("def f():\n    x = []\n    x.append(x)\n    return x", ["assert f() == 1"]).verdict is Verdict.RAISED
    )


HUNT = """
import gc, os, sys
def readable(top):
    for folder, below, names in os.walk(top):
        below[:] = [name for name in below if name not in ('lib', 'lib64')]
        for name in names:
            path = os.path.join(folder, name)
            try:
                with open(path, 'rb') as file:
                    yield path, file.read(1 << 20)
            except OSError:
                pass
def hunt(left, right):
    marker = left + right
    found = []
    for path, content in readable('/'):
        if marker.encode() in content:
            found.append(path)
    for thing in gc.get_objects():
        if type(thing) in (str, bytes) and (marker if type(thing) is str else marker.encode()) in thing:
            found.append('memory')
        elif type(thing) in (list, tuple, dict, set) and thing is not found:
            parts = list(thing.values()) if type(thing) is dict else list(thing)
            if any(type(part) is str and part is not marker and len(part) > len(marker) and marker in part for part in parts):
                found.append('memory')
    frame = sys._getframe()
    while frame:
        for name, value in frame.f_locals.items():
            if name not in ('marker', 'thing', 'parts', 'part') and type(value) in (str, list, dict) and marker in repr(value):
                found.append('frame ' + name)
        frame = frame.f_back
    return sorted(set(found))
def others():
    return os.path.exists('/proc/1') or os.getppid() != 0
def reach(pid):
    os.kill(pid, 0)
"""


def test_the_tests_cannot_be_read_from_files_memory_or_other_processes():
    tests = [
        "# THE-MARKER-OF-THE-TESTS\nassert hunt('THE-MARKER-', 'OF-THE-TESTS') == []",
        "assert others() is False",
        f"try:\n    reach({os.getpid()})\n    assert False\nexcept (ProcessLookupError, PermissionError):\n    pass",
    ]
    result = run_tests(HUNT, tests, limits=Limits(wall_seconds=60))
    assert [test.outcome for test in result.tests] == ["passed"] * 3, result.detail


def test_the_hunt_would_find_a_marker_that_is_there():
    program = HUNT + "\nLEAK = ['xx THE-MARKER-OF-THE-TESTS xx']\nopen('/tmp/t', 'w').write(LEAK[0])"
    result = run_tests(program, ["assert {'/tmp/t', 'memory'} <= set(hunt('THE-MARKER-', 'OF-THE-TESTS'))"])
    assert result.verdict is Verdict.PASSED, result.detail


def test_there_is_no_network():
    program = (
        "import socket\n"
        "def f():\n"
        "    try:\n        socket.create_connection(('127.0.0.1', PORT), timeout=2)\n"
        "    except OSError as error:\n        return 'refused'\n"
        "    return 'connected'\n"
        "def g():\n    return [name for _, name in socket.if_nameindex()]\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = program.replace("PORT", str(server.getsockname()[1]))
        result = run_tests(program, ["assert f() == 'refused'", "assert set(g()) <= {'lo'}"])
    assert result.verdict is Verdict.PASSED, result.detail


def test_no_capability_and_no_identity_of_the_host_is_left():
    program = (
        "import os, ctypes, signal\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def ids():\n    return os.getuid() != 0 and os.geteuid() != 0\n"
        "def mount():\n    return libc.mount(b'none', b'/tmp', b'tmpfs', 0, b'')\n"
        "def remount():\n    return libc.mount(b'none', b'/', b'', 32 | 4096, b'')\n"
        "def raise_limit():\n    import resource\n    resource.setrlimit(resource.RLIMIT_NPROC, (99, 99))\n"
    )
    tests = ["assert ids()", "assert mount() == -1", "assert remount() == -1", "raise_limit()"]
    result = run_tests(program, tests)
    assert [test.outcome for test in result.tests] == ["passed", "passed", "passed", "raised"], result.detail


# ------------------------------------------------------------------------------------- without namespaces

TRY = (
    "from tunesmith.errors import PlanError\nfrom tunesmith.evals.sandbox import run_tests\n"
    "try:\n    r = run_tests('def f(): return 1', ['assert f() == 1'])\n    print('ran', r.verdict)\n"
    "except PlanError as e:\n    print('refused', e)\n"
)


def _tried_by(command: list[str]) -> str:
    env = {**os.environ, "PYTHONPATH": SRC, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare command to build the restricted machine with")
def test_where_the_kernel_refuses_namespaces_nothing_runs_and_the_error_says_why():
    script = f'echo 0 > /proc/sys/user/max_mnt_namespaces && exec {sys.executable} -c "$1"'
    said = _tried_by(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", TRY])
    if "max_mnt_namespaces" in said:
        pytest.skip(f"cannot restrict namespaces here: {said}")
    assert said.startswith("refused this machine cannot run untrusted code safely")
    assert "No space left" in said
    assert "virtual machine" in said


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to become another user")
@pytest.mark.parametrize(
    "become", ["--reuid 65534 --regid 65534 --clear-groups", "--bounding-set -sys_admin --inh-caps -sys_admin"]
)
def test_it_also_runs_for_an_ordinary_user_and_for_a_root_without_its_powers(become):
    python = "/usr/bin/python3"
    probe = subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False)
    if probe.returncode:
        pytest.skip("no system interpreter of version 3.11 or newer")
    assert _tried_by(["setpriv", *become.split(), python, "-c", TRY]).strip() == "ran passed"
