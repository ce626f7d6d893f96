"""A chat endpoint on loopback: the contract's prompt and decoding, nobody without the key, many requests at once."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tunesmith.chat.contract import load_contract
from tunesmith.serve.batching import open_engine
from tunesmith.serve.engines import Weights
from tunesmith.stages.loopback import serve_chat
from tunesmith.types import ignore


@pytest.fixture
def endpoint(world):
    contract = load_contract(world.contract.path)
    engine = open_engine(
        world.base.path / "model",
        adapter_dir=world.adapter.path / "adapter",
        dtype="float32",
        device="cpu",
        max_batch=8,
        prefix=(),
        log=ignore,
    )
    engine.start()
    try:
        with serve_chat(engine, contract, weights=Weights.ADAPTER, model="tuned") as found:
            yield found
    finally:
        engine.close()


def client_of(endpoint, key=None):
    return openai.OpenAI(
        base_url=endpoint.url,
        api_key=key or endpoint.api_key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def test_the_openai_client_gets_the_answers_that_training_taught(world, endpoint):
    client = client_of(endpoint)
    assert [model.id for model in client.models.list()] == ["tuned"]

    def ask(row):
        said = client.chat.completions.create(
            model="tuned", messages=[{"role": "user", "content": row.conversation.messages[0].content}]
        )
        assert said.choices[0].finish_reason == "stop"
        assert said.usage.total_tokens > said.usage.completion_tokens > 0
        return said.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, world.rows))
    assert answers == [row.conversation.answer for row in world.rows]
    assert endpoint.asked == len(world.rows)


def test_fewer_tokens_may_be_asked_for_and_never_more(endpoint):
    client = client_of(endpoint)
    messages = [{"role": "user", "content": "refund now!!"}]
    short = client.chat.completions.create(model="tuned", messages=messages, max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    long = client.chat.completions.create(model="tuned", messages=messages, max_tokens=5000)
    assert long.usage.completion_tokens <= 48


def test_another_key_a_foreign_system_prompt_and_nonsense_are_refused(endpoint):
    with pytest.raises(openai.AuthenticationError):
        client_of(endpoint, key="guess").models.list()
    client = client_of(endpoint)
    with pytest.raises(openai.BadRequestError, match="has its own"):
        client.chat.completions.create(
            model="tuned", messages=[{"role": "system", "content": "be rude"}, {"role": "user", "content": "hi"}]
        )
    with pytest.raises(openai.BadRequestError, match="do not fit"):
        client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "a" * 3000}])
    headers = {"authorization": f"Bearer {endpoint.api_key}"}
    assert httpx.post(f"{endpoint.url}/embeddings", json={}, headers=headers, trust_env=False).status_code == 404
    assert (
        httpx.post(f"{endpoint.url}/chat/completions", content=b"{", headers=headers, trust_env=False).status_code
        == 400
    )
    assert len(endpoint.refused) == 5
