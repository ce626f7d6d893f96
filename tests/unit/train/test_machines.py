"""Several machines of one run, each a process on loopback. The processes that they start train nothing."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from started import FAIL, PREAMBLE, alive, events, wait_until

from tunesmith.api.joining import join
from tunesmith.errors import TrainingError
from tunesmith.stages.training_machines import code_of_training
from tunesmith.train.launch import launch
from tunesmith.train.meeting import Invitation, found, opened
from tunesmith.train.messages import Mailbox

FOLLOW = """
import sys
import threading
from pathlib import Path
from tunesmith.train.follow import follow
from tunesmith.train.meeting import found
folder = Path(sys.argv[2])
meeting = found(sys.argv[1], patience=60)
program = [sys.executable, str(folder / "program.py"), str(folder)]
follow(program, meeting=meeting, folder=folder, log=lambda name, fields: print(name, dict(fields), flush=True))
print("ended well with threads", [thread.name for thread in threading.enumerate()], flush=True)
"""


@pytest.fixture
def said():
    return []


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def follower(tmp_path, address):
    """Start another machine, as often as asked."""
    started = []

    def start():
        command = [sys.executable, "-c", FOLLOW, address, str(tmp_path)]
        output = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(tmp_path, said, address):
    def start(program, *, machines=2, patience=60, max_restarts=2):
        (tmp_path / "program.py").write_text(PREAMBLE + program)

        def log(name, fields):
            said.append((name, dict(fields)))

        return launch(
            [sys.executable, str(tmp_path / "program.py"), str(tmp_path)],
            processes=2 * machines,
            folder=tmp_path,
            mailbox=Mailbox(tmp_path, log=log, progress=lambda *_, **__: None),
            log=log,
            max_restarts=max_restarts,
            machines=machines,
            address=address,
            patience=patience,
        )

    return start


PLACE = "(folder / f'attempt-{attempt}-rank-{rank}').write_text(f\"{os.environ['WORLD_SIZE']} {os.getppid()}\")\n"


def test_ranks_of_the_machine_that_began_come_first_whichever_came_first(run, follower, said, tmp_path):
    other = follower()
    assert run(PLACE) == 0
    assert "ended well with threads ['MainThread']" in other.communicate(timeout=60)[0]
    assert other.returncode == 0
    places = {path.name: path.read_text().split() for path in tmp_path.glob("attempt-*")}
    assert sorted(places) == [f"attempt-0-rank-{rank}" for rank in range(4)]
    parents = [places[f"attempt-0-rank-{rank}"][1] for rank in range(4)]
    assert parents == [str(os.getpid())] * 2 + [str(other.pid)] * 2
    assert {size for size, _ in places.values()} == {"4"}
    assert "2 machines meet at" in events(said, "say")[0]["text"]


@pytest.mark.parametrize("echo", ["time.sleep(120)", "time.sleep(1); raise RuntimeError('connection closed')"])
def test_a_process_that_another_machine_lost_begins_all_anew(run, follower, said, tmp_path, echo):
    """The processes here may hang, or fail of what was lost there."""
    other = follower()
    program = (
        PLACE
        + f"""
if attempt == 0:
    if rank == 3:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        {echo}
    except BaseException as error:
        write_failure(folder, error, attempt=attempt, rank=rank)
        raise
"""
    )
    assert run(program) == 1
    assert "ended well with threads ['MainThread']" in other.communicate(timeout=60)[0]
    assert other.returncode == 0
    (lost,) = events(said, "processes_lost")
    assert "rank 3 was ended by SIGKILL" in lost["reason"]
    assert len(list(tmp_path.glob("attempt-1-rank-*"))) == 4
    assert any("all processes start again" in event["text"] for event in events(said, "say"))


def test_a_machine_that_is_lost_is_replaced_by_another(run, follower, said, tmp_path):
    first = follower()

    def replace():
        wait_until(lambda: (tmp_path / "attempt-0-rank-3").exists())
        first.kill()
        replacement.append(follower())

    replacement = []
    thread = threading.Thread(target=replace)
    thread.start()
    # What is left of a run whose machine is gone: connections close, and the processes here fail.
    program = PLACE + "if attempt == 0:\n    time.sleep(4 if rank < 2 else 120)\n    sys.exit(1)"
    step = "if rank == 0: Voice(folder).log('train_step', {'step': 1})\n"
    assert run(step + program) == 1
    thread.join()
    assert "ended well" in replacement[0].communicate(timeout=60)[0]


def test_processes_that_another_machine_loses_again_and_again_end_the_run(run, follower, said):
    other = follower()
    with pytest.raises(TrainingError, match="lost 2 times") as error:
        run("if rank == 2: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(120)", max_restarts=1)
    assert "rank 2 was ended by SIGKILL" in str(error.value)
    assert "ended before its last step" in other.communicate(timeout=60)[0]


def test_what_a_user_can_act_on_ends_the_run_on_every_machine(run, follower, said):
    other = follower()
    with pytest.raises(TrainingError) as error:
        run(FAIL.format(rank=2, error="TrainingError('NaN', where='step 3', hint='go slow')"))
    assert (error.value.what, error.value.where, error.value.hint) == ("NaN", "step 3", "go slow")
    assert "the machine that began the run says why" in other.communicate(timeout=60)[0]
    assert len(events(said, "processes_started")) == 1


def test_a_machine_that_follows_ends_with_the_one_that_began(follower, tmp_path, address):
    (tmp_path / "program.py").write_text(PREAMBLE + PLACE + "end_with_parent()\ntime.sleep(120)")
    starter = (
        "import sys; from pathlib import Path; from tunesmith.train.launch import launch; "
        "from tunesmith.train.messages import Mailbox; from tunesmith.types import ignore; "
        "folder = Path(sys.argv[1]); launch([sys.executable, str(folder / 'program.py'), str(folder)], processes=4, "
        "folder=folder, mailbox=Mailbox(folder, log=ignore, progress=lambda *_, **__: None), log=ignore, machines=2, "
        "address=sys.argv[2])"
    )
    began = subprocess.Popen([sys.executable, "-c", starter, str(tmp_path), address], stderr=subprocess.DEVNULL)
    other = follower()
    wait_until(lambda: len(list(tmp_path.glob("attempt-0-rank-*"))) == 4)
    began.kill()
    began.wait()
    assert "ended before its last step" in other.communicate(timeout=60)[0]
    wait_until(lambda: not alive(other.pid))


def test_machines_that_do_not_come_are_missed(run, address):
    with pytest.raises(TrainingError) as error:
        run("pass", patience=1)
    assert "the other machines of the run did not come" in str(error.value)
    assert f"run `tunesmith join {address}` on each of the other 1" in str(error.value)


def test_a_meeting_listens_on_its_own_address_only():
    with opened(Invitation(run="r", machines=1, processes=1), address=None) as meeting:
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", meeting.port), timeout=1)
        assert found(f"127.0.0.1:{meeting.port}", patience=1).invitation == meeting.invitation


def test_an_address_of_another_machine_is_refused():
    elsewhere = opened(Invitation(run="r", machines=2, processes=1), address="203.0.113.7:29500")
    with pytest.raises(TrainingError, match="cannot meet at this address") as error, elsewhere:
        pass
    assert "203.0.113.7:29500: Cannot assign requested address" in str(error.value)


def test_a_name_that_stands_for_loopback_is_refused(monkeypatch):
    honest = socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda where, **options: honest(("127.0.0.1", 0), **options))
    elsewhere = opened(Invitation(run="r", machines=2, processes=1), address="trainer-1:29500")
    with pytest.raises(TrainingError, match="cannot reach this address") as error, elsewhere:
        pass
    assert "trainer-1 is 127.0.0.1" in str(error.value)


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:", ":29500", "10.0.0.1:99999", "10.0.0.1:port"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(TrainingError, match="this is no address"):
        join(address)


def test_joining_gives_up_where_nothing_begins(address):
    with pytest.raises(TrainingError, match="no training began"):
        join(address, wait_minutes=0.01)


def test_what_is_no_run_is_told_apart(address, monkeypatch):
    monkeypatch.setattr("tunesmith.train.meeting.CONNECT_SECONDS", 2)
    host, port = address.split(":")
    with socket.create_server((host, int(port))) as other:

        def answer():
            with contextlib.suppress(OSError):  # The listener is closed.
                while True:
                    connection, _ = other.accept()
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 8)
                    connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(TrainingError, match="is no run of this tunesmith"):
            join(address, wait_minutes=1)


def test_a_machine_with_other_code_is_refused(address, tmp_path):
    invitation = Invitation(run="r", machines=2, processes=1, request=str(tmp_path), code=("tunesmith 0", "torch 1"))
    with opened(invitation, address=address), pytest.raises(TrainingError, match="runs other code") as error:
        join(address)
    assert "expected: tunesmith 0, torch 1" in str(error.value)


def test_a_machine_that_does_not_see_the_store_is_refused(address, tmp_path):
    request = tmp_path / "request.json"
    invitation = Invitation(run="r", machines=2, processes=1, request=str(request), code=code_of_training())
    with opened(invitation, address=address), pytest.raises(TrainingError, match="does not see the run's") as error:
        join(address)
    assert str(request) in str(error.value)
