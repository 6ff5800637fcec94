"""One language model over HTTP: the answer to a prompt, and a conversation as JSON lines."""

import json
import time

import pytest

from tests.service import JSON_LINES
from tests.stand_ins import MAIN_COST, PROMPT_TOKENS, StandInModel, main, records_in
from workshop.contracts.errors import ModelFailedError, PromptTooLongError
from workshop.contracts.generator import Message

pytestmark = pytest.mark.slow

QUESTION = {"model": "main", "prompt": "What is a replica?"}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a replica?"},
]
CONVERSATION = {"model": "main", "messages": TURNS}
USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 4, "total_tokens": PROMPT_TOKENS + 4}


def lines_of(service, **changes):
    with service.client.stream("POST", "/v1/chat/stream", json=CONVERSATION | changes, headers=JSON_LINES) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("application/jsonl")
        assert answer.headers["X-Accel-Buffering"] == "no"
        return [json.loads(line) for line in answer.iter_lines()]


def test_a_prompt_gets_an_answer(serve):
    with serve() as service:
        answer = service.client.post("/v1/generate", json=QUESTION)
    text = "One of several copies."
    assert answer.json() == {"text": text, "model": "main", "finish_reason": "stop", "usage": USAGE}


def test_a_conversation_is_answered_line_by_line(serve):
    with serve() as service:
        *pieces, last = lines_of(service)
    assert pieces == [{"text": word} for word in ("One", " of", " several", " copies.")]
    assert last == {"text": "", "finish_reason": "stop", "usage": USAGE}


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream", "text/html, */*;q=0.5"])
def test_a_client_that_does_not_ask_for_json_lines_gets_events(serve, accept):
    with serve() as service:
        answer = service.client.post("/v1/chat/stream", json={"messages": TURNS}, headers={"Accept": accept})
        lines = service.client.post("/v1/chat/stream", json={"messages": TURNS}, headers=JSON_LINES)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.text == "".join(f"data: {line}\n\n" for line in lines.text.splitlines())


def test_the_earlier_name_of_json_lines(serve):
    with serve() as service:
        headers = {"Accept": "application/x-ndjson"}
        answer = service.client.post("/v1/chat/stream", json=CONVERSATION, headers=headers)
    assert [json.loads(line)["text"] for line in answer.text.splitlines()] == ["One", " of", " several", " copies.", ""]


def test_the_model_gets_the_whole_conversation_and_all_options(serve):
    options = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ["end"]}
    with serve() as service:
        lines_of(service, **options)
        service.client.post("/v1/generate", json=QUESTION | options)
        conversation, question = service.main.prompts
    assert conversation.messages == (Message("system", "Be brief."), Message("user", "What is a replica?"))
    assert question.messages == (Message("user", "What is a replica?"),)
    for prompt in (conversation, question):
        assert (prompt.max_tokens, prompt.temperature, prompt.top_p, prompt.stop) == (7, 0.5, 0.9, ("end",))


MISTAKES = {
    "an unknown model": ({"model": "gpt-17"}, 404, "there is no model gpt-17; available models: draft, main"),
    "no tokens": ({"max_tokens": 0}, 422, "max_tokens"),
    "a misspelt option": ({"temprature": 1}, 422, "temprature"),
    "text instead of a number": ({"top_p": "1"}, 422, "top_p"),
}


@pytest.mark.parametrize(("path", "body"), [("/v1/generate", QUESTION), ("/v1/chat/stream", CONVERSATION)])
@pytest.mark.parametrize(("changes", "status", "word"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported_before_any_model_is_asked(serve, path, body, changes, status, word):
    with serve() as service:
        answer = service.client.post(path, json=body | changes)
        assert not service.main.prompts
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert word in answer.text


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_blank_text_is_a_mistake(serve, prompt):
    with serve() as service:
        assert service.client.post("/v1/generate", json=QUESTION | {"prompt": prompt}).status_code == 422


def test_a_failure_before_the_first_token_is_an_ordinary_error(serve):
    broken = StandInModel("main", (), error=PromptTooLongError("it does not fit", 99, 50))
    with serve(None, broken) as service:
        for path, body in (("/v1/generate", QUESTION), ("/v1/chat/stream", CONVERSATION)):
            assert service.client.post(path, json=body).status_code == 400


def test_a_later_failure_is_the_last_line(serve):
    with serve(None, main(error=ModelFailedError("the model failed"))) as service:
        *pieces, last = lines_of(service)
    assert [piece["text"] for piece in pieces] == ["One", " of", " several", " copies."]
    assert (last["error"]["status"], last["error"]["detail"]) == (500, "the model failed")


def test_a_reader_who_leaves_stops_the_model_and_pays_for_the_tokens_so_far(serve, file):
    with serve(None, main(endless=True)) as service:
        with service.client.stream("POST", "/v1/chat/stream", json=CONVERSATION) as answer:
            next(answer.iter_lines())
        assert service.main.over.wait(10)
        records = service.records()
    assert [record["endpoint"] for record in records] == ["/v1/chat/stream"]
    assert 1 <= records[0]["completion_tokens"] <= service.main.generated_tokens


def test_both_routes_charge_their_answers(serve, file):
    with serve() as service:
        lines_of(service)
        service.client.post("/v1/generate", json=QUESTION)
        while len(records_in(file)) < 2:
            time.sleep(0.01)
    price = (PROMPT_TOKENS + 4) * MAIN_COST / 1000
    charged = {record["endpoint"]: record["cost"] for record in records_in(file)}
    assert charged == pytest.approx({"/v1/chat/stream": price, "/v1/generate": price})
