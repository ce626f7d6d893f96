"""The server as users run it: a process of its own, the `openai` client, signals."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest

from tunesmith.serve.traces import TraceStore

CLI = [sys.executable, "-c", "from tunesmith.cli.main import main; main()"]


def start(made, folder, *options, base=None):
    ready = folder / "ready.json"
    command = [*CLI, "serve", str(made.root), "--base", str(base or made.base), "--port", "0", "--device", "cpu"]
    command += ["--traces", str(folder / "t.sqlite"), "--ready-file", str(ready), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ), ready


def wait_ready(process, ready):
    for _ in range(12_000):
        if ready.exists():
            return json.loads(ready.read_text())
        if process.poll() is not None:
            out, err = process.communicate()
            pytest.fail(f"the server ended with {process.returncode}: {out}{err}")
        time.sleep(0.05)
    pytest.fail("the server is not ready after ten minutes")


def end(process, number, folder):
    """Stop the server by a signal, and see that it closed everything."""
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (number, out, err)
    assert "Traceback" not in err
    assert not (folder / "t.sqlite-wal").exists(), "the database was not closed"


@pytest.fixture(scope="module")
def live(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    process, ready = start(made, folder)
    try:
        yield wait_ready(process, ready) | {"traces": folder / "t.sqlite", "process": process}
        end(process, signal.SIGINT, folder)  # `rehearse` ends its server by closing its standard input
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def client(live):
    return openai.OpenAI(base_url=f"{live['url']}/v1", api_key="none", max_retries=0)


ASKED = [{"role": "user", "content": "Where is my refund?"}]


def test_the_openai_client_lists_models_and_gets_an_answer(client, live):
    assert [model.id for model in client.models.list()] == ["tiny-tuned", "tiny/base"]
    raw = client.chat.completions.with_raw_response.create(model="tiny-tuned", messages=ASKED, max_tokens=8)
    answer = raw.parse()
    assert raw.headers["x-tunesmith-contract"] == answer.tunesmith["contract"]
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert 1 <= answer.usage.completion_tokens <= 8


def test_streaming_gives_the_same_greedy_answer(client):
    whole = client.chat.completions.create(model="tiny-tuned", messages=ASKED)
    stream = client.chat.completions.create(
        model="tiny-tuned", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_adapter_and_base_differ_and_answer_at_once(client):
    found = {}

    def ask(model):
        found[model] = client.chat.completions.create(model=model, messages=ASKED).choices[0].message.content

    threads = [threading.Thread(target=ask, args=(model,)) for model in ("tiny-tuned", "tiny/base")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["tiny-tuned"] != found["tiny/base"]


def test_json_mode_gives_json_even_from_a_model_of_random_weights(client):
    answer = client.chat.completions.create(
        model="tiny-tuned", messages=ASKED, response_format={"type": "json_object"}, max_tokens=400
    )
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"intent", "needs_human"}
    assert answer.tunesmith["schema_ok"] is True


@pytest.mark.parametrize(
    ("error", "kwargs"),
    [
        (openai.NotFoundError, {"model": "nope"}),
        (openai.BadRequestError, {"n": 3}),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": "x" * 5000}]}),
        (openai.UnprocessableEntityError, {"messages": [{"role": "system", "content": "be rude"}, *ASKED]}),
    ],
)
def test_the_client_raises_the_class_of_each_refusal(client, error, kwargs):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "tiny-tuned", "messages": ASKED, **kwargs})
    assert caught.value.body["message"]


def test_a_client_that_leaves_frees_its_place_and_leaves_a_trace(client, live):
    stream = client.chat.completions.create(model="tiny-tuned", messages=ASKED, stream=True, metadata={"who": "leaver"})
    next(iter(stream))
    stream.close()
    for _ in range(200):
        with contextlib.closing(TraceStore(f"sqlite:///{live['traces']}")) as store:
            mine = [trace for trace in store.traces() if trace.tags.get("who") == "leaver"]
        if mine:
            break
        time.sleep(0.05)
    assert mine[0].status in (200, 499), "a short answer may have been complete before the client left"


def test_feedback_over_http_lands_in_the_database(client, live):
    answer = client.chat.completions.create(model="tiny-tuned", messages=ASKED, store=True)
    client.post("/feedback", body={"completion_id": answer.id, "rating": -1}, cast_to=object)
    with contextlib.closing(TraceStore(f"sqlite:///{live['traces']}")) as store:
        assert store.find(answer.id).consent is True
        assert [item.rating for item in store.feedback() if item.trace_id == answer.id] == [-1.0]


def test_a_port_in_use_ends_with_status_2_before_any_model_is_loaded(made, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*CLI, "serve", str(made.root), "--base", str(made.base), "--port", port],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2
    assert f"cannot listen on port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_open_host_without_a_key_is_refused(made, tmp_path):
    done = subprocess.run(
        [*CLI, "serve", str(made.root), "--base", str(made.base), "--host", "0.0.0.0", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "TUNESMITH_API_KEY": ""},
    )
    assert done.returncode == 2
    assert "API key" in done.stderr
