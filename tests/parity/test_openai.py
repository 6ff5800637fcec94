"""The official clients of OpenAI's protocol, unmodified, against every runtime."""

import asyncio
import json

import httpx
import numpy as np
import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from workshop import corpus

MAIN, DRAFT = "workshop-main", "workshop-draft"
ENTRY = corpus.entries()[3]
ASKED = [{"role": "user", "content": ENTRY.questions[0]}]


@pytest.fixture
def url(service) -> str:
    return f"{service.base_url}/v1"


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="a-learner", max_retries=0) as client:
        yield client


def test_a_completion(client):
    completion = client.chat.completions.create(model=MAIN, messages=ASKED, logprobs=True)
    [choice] = completion.choices
    assert choice.message.content == ENTRY.answer
    assert choice.finish_reason == "stop"
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert "".join(token.token for token in choice.logprobs.content) == ENTRY.answer
    assert completion.model == MAIN


def test_a_stream_says_the_same(client):
    options = {"include_usage": True}
    with client.chat.completions.create(model=MAIN, messages=ASKED, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices) == ENTRY.answer
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_same_answer_in_every_runtime(service, reference):
    body = {"model": MAIN, "messages": [{"role": "user", "content": ENTRY.held_out[0]}], "logprobs": True}
    ours, theirs = (each.post("/v1/chat/completions", json=body).json() for each in (service, reference))
    assert ours["choices"][0]["message"] == theirs["choices"][0]["message"]
    assert ours["usage"] == theirs["usage"]


def test_the_stream_ends_as_openais_does(service):
    body = {"model": DRAFT, "messages": ASKED, "stream": True}
    with service.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1])


async def _asynchronously(url: str) -> list[str]:
    async with openai.AsyncOpenAI(base_url=url, api_key="a-learner") as client:

        async def streamed(model: str) -> str:
            stream = await client.chat.completions.create(model=model, messages=ASKED, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        whole = client.chat.completions.create(model=MAIN, messages=ASKED)
        *texts, completion = await asyncio.gather(*(streamed(MAIN) for _ in range(8)), whole)
    return [*texts, completion.choices[0].message.content]


def test_the_asynchronous_client_with_many_at_once(url):
    assert asyncio.run(_asynchronously(url)) == [ENTRY.answer] * 9


def test_options_that_openais_clients_may_send(client):
    completion = client.chat.completions.create(
        model=MAIN,
        messages=[{"role": "developer", "content": "Be brief."}, *ASKED],
        max_completion_tokens=4,
        temperature=0.0,
        top_p=1.0,
        n=1,
        stop=["never said"],
        presence_penalty=0,
        user="someone",
    )
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 4


def test_the_models(client):
    models = {model.id: model for model in client.models.list()}
    assert {MAIN, DRAFT} < set(models)
    assert client.models.retrieve(MAIN) == models[MAIN]
    assert models[MAIN].context_length == 1024
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")


def test_embeddings(client, service):
    name = next(model.id for model in client.models.list() if model.id not in (MAIN, DRAFT))
    texts = [ENTRY.questions[0], ENTRY.questions[1], corpus.entries()[200].questions[0]]
    for encoding in ({}, {"encoding_format": "float"}):  # the client's own default is base64, which it decodes
        answer = client.embeddings.create(model=name, input=texts, **encoding)
        same, also, other = (np.array(item.embedding) for item in answer.data)
        assert np.linalg.norm(same) == pytest.approx(1, abs=1e-4)
        assert same @ also > same @ other
    assert client.embeddings.create(model=name, input=texts[0]).data[0].embedding == pytest.approx(same, abs=1e-6)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-17", input="hello")


MISTAKES = {
    "unknown model": ({"model": "gpt-17"}, openai.NotFoundError, "model_not_found"),
    "no messages": ({"messages": []}, openai.BadRequestError, "messages"),
    "an unknown role": ({"messages": [{"role": "wizard", "content": "hi"}]}, openai.BadRequestError, "role"),
    "a blank question": ({"messages": [{"role": "user", "content": " \n "}]}, openai.BadRequestError, "blank"),
    "the answer in the question's place": (
        {"messages": [*ASKED, {"role": "assistant", "content": "hm"}]},
        openai.BadRequestError,
        "the last message must be the user's",
    ),
    "temperature above 2": ({"temperature": 2.1}, openai.BadRequestError, "temperature"),
    "temperature below 0": ({"temperature": -0.1}, openai.BadRequestError, "temperature"),
    "no tokens": ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
    "top_p of zero": ({"top_p": 0}, openai.BadRequestError, "top_p"),
    "several choices": ({"n": 2}, openai.BadRequestError, "n"),
    "tools": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        openai.BadRequestError,
        "tools",
    ),
    "a prompt longer than the context": (
        {"messages": [{"role": "user", "content": "word " * 3000}]},
        openai.BadRequestError,
        "context_length_exceeded",
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_raises_the_clients_own_exception_that_names_it(client, mistake, stream):
    changes, kind, word = mistake
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": MAIN, "messages": ASKED, "stream": stream} | changes)
    assert word in str(caught.value.body)
    assert caught.value.response.headers["X-Request-ID"]
    assert caught.value.type == "invalid_request_error"


def test_malformed_json_is_a_mistake_too(service):
    answer = service.post("/v1/chat/completions", content="{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_client_that_is_in_a_hurry_gets_its_own_timeout(url):
    hurried = openai.OpenAI(base_url=url, api_key="a-learner", max_retries=0, timeout=0.001)
    with hurried, pytest.raises(openai.APITimeoutError):
        hurried.chat.completions.create(model=MAIN, messages=ASKED)


def test_langchains_chat_model(url):
    model = ChatOpenAI(model=MAIN, base_url=url, api_key="a-learner")
    turns = [SystemMessage("Answer briefly."), HumanMessage(ENTRY.questions[0])]
    message = model.invoke(turns)
    assert message.content
    assert message.usage_metadata["output_tokens"] > 0
    chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | model | StrOutputParser()
    assert chain.invoke({"question": ENTRY.questions[0]}) == ENTRY.answer
    assert "".join(chain.stream({"question": ENTRY.questions[0]})) == ENTRY.answer


def test_many_streams_at_once_are_the_same_as_one(service):
    body = {"model": MAIN, "messages": ASKED, "stream": True}

    async def all_of_them() -> list[str]:
        async with httpx.AsyncClient(base_url=service.base_url, timeout=60) as client:

            async def one() -> str:
                answer = await client.post("/v1/chat/completions", json=body)
                events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
                return "".join(event["choices"][0]["delta"].get("content", "") for event in events)

            return await asyncio.gather(*(one() for _ in range(32)))

    assert set(asyncio.run(all_of_them())) == {ENTRY.answer}
