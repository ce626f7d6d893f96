"""Starting processes, watching them, and the words of those that fail. The processes here train nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from started import FAIL, PREAMBLE, alive, events, wait_until

from tunesmith.errors import MissingExtra, StoreError, TrainingError
from tunesmith.train.launch import launch
from tunesmith.train.messages import Mailbox, first_failure, write_failure


@pytest.fixture
def said():
    return []


@pytest.fixture
def run(tmp_path, said):
    def start(program, *, processes=2, max_restarts=2):
        (tmp_path / "program.py").write_text(PREAMBLE + program)

        def log(name, fields):
            said.append((name, dict(fields)))

        def progress(done, total, note="", **fields):
            said.append(("progress", {"done": done, "total": total, "note": note, **fields}))

        mailbox = Mailbox(tmp_path, log=log, progress=progress)
        command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
        return launch(
            command, processes=processes, folder=tmp_path, mailbox=mailbox, log=log, max_restarts=max_restarts
        )

    return start


def test_every_process_is_told_its_place_and_the_first_one_is_heard(run, said, tmp_path):
    restarts = run(
        "(folder / f'seen-{rank}').write_text(os.environ['WORLD_SIZE'] + os.environ['MASTER_ADDR'])\n"
        "if rank == 0:\n"
        "    voice = Voice(folder)\n"
        "    voice.log('train_step', {'step': 1, 'loss': 2.5})\n"
        "    voice.progress(1, 3, 'loss 2.5', loss=2.5)\n",
        processes=3,
    )
    assert restarts == 0
    assert {path.name: path.read_text() for path in tmp_path.glob("seen-*")} == {
        f"seen-{rank}": "3127.0.0.1" for rank in range(3)
    }
    assert events(said, "train_step") == [{"step": 1, "loss": 2.5}]
    assert events(said, "progress") == [{"done": 1, "total": 3, "note": "loss 2.5", "loss": 2.5}]
    assert len(events(said, "processes_started")[0]["pids"]) == 3


def test_a_process_lost_by_a_signal_is_started_again_with_the_others(run, said):
    assert run("if rank == 1 and attempt == 0: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(0.5)") == 1
    assert events(said, "processes_lost") == [{"attempt": 0, "reason": "rank 1 was ended by SIGKILL", "steps": 0}]
    assert [fields["attempt"] for fields in events(said, "processes_started")] == [0, 1]


def test_processes_that_are_lost_again_and_again_end_the_run(run, said):
    with pytest.raises(TrainingError, match="lost 3 times") as error:
        run("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)")
    assert "rank 1 was ended by SIGKILL" in str(error.value)
    assert len(events(said, "processes_started")) == 3


def test_what_a_user_can_act_on_arrives_as_it_was_and_is_never_tried_again(run, said):
    with pytest.raises(TrainingError) as error:
        run(
            "Voice(folder).log('train_step', {'step': 1})\n"
            + FAIL.format(rank=1, error="TrainingError('NaN', where='step 3', hint='go slow')")
        )
    assert (error.value.what, error.value.where, error.value.hint) == ("NaN", "step 3", "go slow")
    assert len(events(said, "processes_started")) == 1


def test_a_bug_before_the_first_step_shows_its_traceback_and_is_not_tried_again(run, said):
    with pytest.raises(TrainingError, match="KeyError: 'no such thing'") as error:
        run(FAIL.format(rank=0, error="KeyError('no such thing')"))
    assert "program.py" in str(error.value)
    assert "rank 0 ended with status 1" in str(error.value)
    assert len(events(said, "processes_started")) == 1


def test_a_failure_after_steps_is_tried_again_as_a_lost_connection_would_be(run, said):
    step = "if rank == 0 and attempt == 0: Voice(folder).log('train_step', {'step': 1})\ntime.sleep(0.5)\n"
    with pytest.raises(TrainingError, match="RuntimeError: connection closed"):
        run(step + FAIL.format(rank=1, error="RuntimeError('connection closed')"))
    assert [fields["steps"] for fields in events(said, "processes_lost")] == [1]
    assert len(events(said, "processes_started")) == 2


def test_a_failure_that_comes_again_after_steps_ends_with_its_traceback(run):
    step = "if rank == 0: Voice(folder).log('train_step', {'step': 1})\ntime.sleep(0.5)\n"
    with pytest.raises(TrainingError, match="lost 2 times") as error:
        run(step + FAIL.format(rank=1, error="MemoryError('the longest row')"), max_restarts=1)
    assert "MemoryError: the longest row" in str(error.value)


@pytest.mark.parametrize(
    "error", [StoreError("disk full", where="x"), MissingExtra("ray", extra="ray", needed_for="y")]
)
def test_errors_travel_between_processes_as_their_own_class(tmp_path, error):
    write_failure(tmp_path, ValueError("earlier, but nobody's to mend"), attempt=0, rank=0)
    write_failure(tmp_path, error, attempt=0, rank=1)
    found = first_failure(tmp_path, attempt=0)
    assert type(found.error) is type(error)
    assert str(found.error) == str(error)
    assert found.rank == 1
    assert first_failure(tmp_path, attempt=1) is None


def test_the_signal_handlers_of_the_caller_are_back_afterwards(run):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run("pass")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_started_it(tmp_path, end):
    program = tmp_path / "program.py"
    program.write_text(PREAMBLE + "end_with_parent()\n(folder / f'{os.getpid()}.pid').touch()\ntime.sleep(120)")
    starter = (
        "import sys; from pathlib import Path; from tunesmith.train.launch import launch; "
        "from tunesmith.train.messages import Mailbox; from tunesmith.types import ignore; "
        "folder = Path(sys.argv[1]); launch([sys.executable, str(folder / 'program.py'), str(folder)], processes=2, "
        "folder=folder, mailbox=Mailbox(folder, log=ignore, progress=lambda *_, **__: None), log=ignore)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    parent.send_signal(end)
    _, said = parent.communicate()
    if end is signal.SIGINT:
        assert said.strip().splitlines()[-1] == "KeyboardInterrupt"
    wait_until(lambda: not any(alive(pid) for pid in pids))
