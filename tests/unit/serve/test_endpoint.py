"""A further system over HTTP: our own server on loopback, and a server that fails."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import uvicorn

from tunesmith.chat.contract import load_contract
from tunesmith.core.stage import Context
from tunesmith.errors import ServeError
from tunesmith.stages.endpoint import Endpoint, ask_endpoint
from tunesmith.types import Conversation, FinishReason, Message, ignore


def context(folder):
    return Context(out=folder, work=folder, log=ignore, progress=lambda *a, **k: None, workers=1, device="cpu")


def asked(*texts):
    return [Conversation(messages=(Message(role="user", content=text),)) for text in texts]


@contextlib.contextmanager
def listening(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def scripted(replies):
    """Answer each request with the next (status, body) of `replies`; yield the URL and the bodies that came."""
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = replies.pop(0) if len(replies) > 1 else replies[0]
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(text, *, finish="stop", calls=None):
    message = {"role": "assistant", "content": text, "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return 200, {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}  # fmt: skip


def endpoint(url, **changes):
    return Endpoint.model_validate(
        {"name": "other", "url": url, "model": "m", "snapshot": "today", "workers": 1, **changes}
    )


def test_our_own_server_is_asked_and_answers_are_kept(serve, made, tmp_path):
    running = serve()
    contract = load_contract(made.root / "contract")
    with listening(running.client.app) as url:
        production = endpoint(url, name="production", model="tiny-tuned", system="none")
        first = ask_endpoint(production, asked("Where is my refund?", "I am locked out"), contract, context(tmp_path))
    again = ask_endpoint(production, asked("I am locked out"), contract, context(tmp_path))  # nobody listens any more
    assert first[0].text == running.says["answer"]
    assert first[0].completion.finish_reason is FinishReason.STOP
    assert first[0].completion.prompt_tokens > 0
    assert again == first[1:]


def test_the_contracts_prompt_and_decoding_are_sent_and_calls_and_cuts_come_back(made, tmp_path):
    contract = load_contract(made.root / "contract")
    call = {"id": "c1", "type": "function", "function": {"name": "area", "arguments": '{"base": 3}'}}
    replies = [says(None, finish="tool_calls", calls=[call]), says("a b", finish="length")]
    with scripted(replies) as (url, came):
        one, two = ask_endpoint(endpoint(url), asked("x", "y"), contract, context(tmp_path), max_new_tokens=9)
    assert came[0]["messages"][0] == {"role": "system", "content": contract.system}
    assert (came[0]["max_tokens"], came[0]["temperature"]) == (9, 0)
    assert (one.calls[0].name, one.calls[0].arguments) == ("area", {"base": 3})
    assert (two.text, two.completion.finish_reason) == ("a b", FinishReason.LENGTH)


def test_a_busy_server_is_asked_again(made, tmp_path):
    contract = load_contract(made.root / "contract")
    with scripted([(503, {}), (429, {}), says("fine")]) as (url, came):
        (answer,) = ask_endpoint(endpoint(url), asked("x"), contract, context(tmp_path))
    assert answer.text == "fine"
    assert len(came) == 3


@pytest.mark.parametrize(("status", "words"), [(401, "refuses the request"), (500, "failed too often")])
def test_a_server_that_refuses_or_keeps_failing_stops_the_stage(made, tmp_path, status, words):
    contract = load_contract(made.root / "contract")
    with scripted([(status, {"error": {"message": "no"}})]) as (url, _), pytest.raises(ServeError, match=words):
        ask_endpoint(endpoint(url), asked("x"), contract, context(tmp_path))


def test_a_missing_key_is_named(made, tmp_path):
    contract = load_contract(made.root / "contract")
    with pytest.raises(ServeError, match="NO_SUCH_KEY"):
        ask_endpoint(
            endpoint("http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY"), asked("x"), contract, context(tmp_path)
        )


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_an_endpoint_cannot_take_the_name_of_a_system_of_the_run(name):
    with pytest.raises(ValueError, match="name of a system"):
        endpoint("http://x/v1", name=name)
