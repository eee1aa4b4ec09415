"""Unmodified Python clients against Freehold: openai and langchain-openai. Driven by run.py."""

import asyncio
import base64
import os
import struct
import sys
import time
import traceback
import urllib.request
import json
from concurrent.futures import ThreadPoolExecutor

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

URL, KEY, FAKE = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"], os.environ["FAKE_URL"]
LOCAL = os.environ.get("LOCAL_MODEL")
ANSWER = "A freehold is held by its owner alone."
HALF = "A freehold is held "
USAGE = (11, 8, 19)
TOOLS = ["tools", "tools-no-index", "tools-from-seven", "tools-all-zero", "tools-repeat-id", "tools-stop", "tools-whole"]
QUESTION = [{"role": "user", "content": "What is a freehold?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

client = openai.OpenAI(max_retries=0)
patient = openai.OpenAI(max_retries=2)
quick, slow = [], []


def case(name, *, is_slow=False):
    def add(function):
        (slow if is_slow else quick).append((name, function))
        return function

    return add


def texts(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def counts(usage):
    return (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


# The openai package.

for model in ["plain", "no-usage", "usage-in-last-choice", "no-done", "json-only", "reasoning"]:

    @case(f"openai: {model}, whole")
    def _(model=model):
        answer = client.chat.completions.create(model=model, messages=QUESTION)
        assert answer.choices[0].message.content == ANSWER, answer
        assert answer.choices[0].finish_reason == "stop" and answer.model == model
        assert answer.id.startswith("chatcmpl-") and answer._request_id
        if model == "no-usage":
            assert answer.usage is None or answer.usage.completion_tokens > 0
        else:
            assert counts(answer.usage) == USAGE, answer.usage

    @case(f"openai: {model}, streamed")
    def _(model=model):
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(model=model, messages=QUESTION, stream=True, stream_options=options))
        assert texts(chunks) == ANSWER, chunks
        assert chunks[0].choices[0].delta.role == "assistant"
        assert len({chunk.id for chunk in chunks}) == 1 and {chunk.model for chunk in chunks} == {model}
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        last = chunks[-1]
        assert last.choices == [] and last.usage is not None, last
        assert all(chunk.usage is None for chunk in chunks[:-1])
        if model != "no-usage":
            assert counts(last.usage) == USAGE, last

    @case(f"openai: {model}, streamed without usage")
    def _(model=model):
        chunks = list(client.chat.completions.create(model=model, messages=QUESTION, stream=True))
        assert texts(chunks) == ANSWER and all(chunk.usage is None for chunk in chunks)
        assert all(chunk.choices for chunk in chunks)


for model in TOOLS:

    @case(f"openai: {model}, whole and back")
    def _(model=model):
        answer = client.chat.completions.create(model=model, messages=QUESTION, tools=[WEATHER])
        choice = answer.choices[0]
        calls = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
        assert [call.function.arguments for call in calls] == ['{"city":"Bern"}', '{"city":"Chur"}'], calls
        assert {call.function.name for call in calls} == {"get_weather"} and len({call.id for call in calls}) == 2
        results = [{"role": "tool", "tool_call_id": call.id, "content": str(n)} for n, call in enumerate(calls)]
        history = [*QUESTION, choice.message, *results]
        answer = client.chat.completions.create(model=model, messages=history, tools=[WEATHER])
        assert answer.choices[0].message.content == "Result: 0 and 1", answer

    @case(f"openai: {model}, streamed")
    def _(model=model):
        # The package's own accumulator, which relies on indexes.
        with client.chat.completions.stream(model=model, messages=QUESTION, tools=[WEATHER]) as stream:
            for _ in stream:
                pass
            choice = stream.get_final_completion().choices[0]
        assert choice.finish_reason == "tool_calls"
        arguments = [call.function.arguments for call in choice.message.tool_calls]
        assert arguments == ['{"city":"Bern"}', '{"city":"Chur"}'], choice


for model in ["late-error", "cut", "truncated"]:

    @case(f"openai: {model}, whole is an error")
    def _(model=model):
        error = raises(openai.InternalServerError, lambda: client.chat.completions.create(model=model, messages=QUESTION))
        assert error.status_code == 502 and error.code and "sk-" not in str(error), error

    @case(f"openai: {model}, streamed is an error after what came")
    def _(model=model):
        got = []

        def read():
            for chunk in client.chat.completions.create(model=model, messages=QUESTION, stream=True):
                got.append(chunk)

        error = raises(openai.APIError, read)
        assert texts(got) == HALF, got
        assert error.code and "sk-" not in str(error.body), error.body


for model, kind, status, code in [
    ("bad-request", openai.BadRequestError, 400, "provider_bad_request"),
    ("bad-key", openai.InternalServerError, 502, "provider_invalid_key"),
    ("broken", openai.InternalServerError, 503, "provider_unavailable"),
    ("quota", openai.RateLimitError, 429, "insufficient_quota"),
    ("limited", openai.RateLimitError, 429, "rate_limit_exceeded"),
    ("no-such-model", openai.NotFoundError, 404, "model_not_found"),
]:
    for stream in [False, True]:

        @case(f"openai: {model} is {status}" + (", streamed" if stream else ""))
        def _(model=model, kind=kind, status=status, code=code, stream=stream):
            error = raises(kind, lambda: client.chat.completions.create(model=model, messages=QUESTION, stream=stream))
            assert (error.status_code, error.code) == (status, code), error
            assert error.request_id and "sk-upstream" not in str(error)
            if model == "limited":
                assert error.response.headers["retry-after"] == "17"
            if model in ("quota", "bad-key"):
                assert error.response.headers["x-should-retry"] == "false"


@case("openai: a limited call is repeated by the client when told to")
def _():
    started = time.monotonic()
    answer = patient.chat.completions.create(model="limited-once", messages=QUESTION)
    assert answer.choices[0].message.content == ANSWER and time.monotonic() - started >= 6


@case("openai: a quota that is used up is not asked again")
def _():
    started = time.monotonic()
    raises(openai.RateLimitError, lambda: patient.chat.completions.create(model="quota", messages=QUESTION))
    assert time.monotonic() - started < 2


@case("openai: a wrong key is an authentication error")
def _():
    for key in ["fh_" + "A" * 43, "sk-none", KEY[:-1]]:
        stranger = openai.OpenAI(api_key=key, max_retries=0)
        error = raises(openai.AuthenticationError, lambda: stranger.models.list())
        assert error.code == "invalid_api_key"


@case("openai: what cannot be done is refused by name")
def _():
    for arguments, param in [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.[0].role"),
    ]:
        arguments = {"model": "plain", "messages": QUESTION, **arguments}
        error = raises(openai.BadRequestError, lambda: client.chat.completions.create(**arguments))
        assert error.param == param and error.type == "invalid_request_error", error


@case("openai: parameters, roles and images reach the upstream")
def _():
    pixel = "data:image/png;base64,iVBORw0KGgo="
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": pixel}}]},
    ]
    answer = client.chat.completions.create(
        model="echo-request", messages=messages, temperature=0.25, top_p=0.5, max_tokens=7, stop=["x"], seed=42,
        presence_penalty=0.5, response_format={"type": "json_object"}, user="me", extra_body={"top_k": 3},
    )
    told = json.loads(answer.choices[0].message.content)
    parameters = told["parameters"]
    for name, value in {"temperature": 0.25, "top_p": 0.5, "max_tokens": 7, "seed": 42, "presence_penalty": 0.5, "top_k": 3}.items():
        assert parameters[name] == value, parameters
    assert parameters["stop"] == ["x"] and parameters["response_format"] == {"type": "json_object"}
    assert told["roles"] == ["system", "user"] and pixel in json.dumps(told["contents"]), told


@case("openai: models are listed by the tenant's names")
def _():
    names = [model.id for model in client.models.list()]
    assert "plain" in names and "no-such-model" not in names, names
    assert client.models.retrieve("plain").id == "plain"
    raises(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))


@case("openai: embeddings as floats and in base64")
def _():
    answer = client.embeddings.create(model="vectors", input=["a", "four"])
    assert [item.embedding for item in answer.data] == [[1.0, 0.5, -1.25], [4.0, 0.5, -1.25]], answer
    assert answer.usage.prompt_tokens == 2 and answer.model == "vectors"
    answer = client.embeddings.create(model="vectors", input="abc", encoding_format="float", dimensions=2)
    assert answer.data[0].embedding == [3.0, 0.5]
    answer = client.embeddings.create(model="vectors", input="abc", encoding_format="base64")
    assert struct.unpack("<3f", base64.b64decode(answer.data[0].embedding)) == (3.0, 0.5, -1.25)


@case("openai: a client that leaves ends the call upstream")
def _():
    gone = lambda: json.load(urllib.request.urlopen(FAKE.replace("/v1", "/gone")))["gone"]
    before = gone()
    with client.chat.completions.create(model="hang", messages=QUESTION, stream=True) as stream:
        for _, _chunk in zip(range(5), stream):
            pass
    left = time.monotonic()
    while gone() == before:
        assert time.monotonic() - left < 2, "the upstream call goes on"
        time.sleep(0.01)


@case("openai: asynchronous, many at once")
def _():
    async def ask():
        async with openai.AsyncOpenAI(max_retries=0) as many:
            calls = [many.chat.completions.create(model="plain", messages=QUESTION) for _ in range(20)]
            answers = await asyncio.gather(*calls)
            stream = await many.chat.completions.create(model="plain", messages=QUESTION, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
            return [answer.choices[0].message.content for answer in answers] + [text]

    assert set(asyncio.run(ask())) == {ANSWER}


for model in ["silent-start", "silent-middle"]:

    @case(f"openai: {model}, streamed through 90 s of silence", is_slow=True)
    def _(model=model):
        # A proxy in front would cut a stream that says nothing for so long.
        impatient = openai.OpenAI(max_retries=0, timeout=openai.Timeout(30.0))
        assert texts(impatient.chat.completions.create(model=model, messages=QUESTION, stream=True)) == ANSWER


# LangChain.


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def chain(model, **more):
    return ChatOpenAI(model=model, max_retries=0, **more)


@case("langchain: whole, with usage")
def _():
    answer = chain("plain").invoke("What is a freehold?")
    assert answer.content == ANSWER
    usage = answer.usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"]) == (11, 8), usage
    assert usage["input_token_details"]["cache_read"] == 4, usage


for model in ["plain", "no-usage", "no-done", "usage-in-last-choice"]:

    @case(f"langchain: {model}, streamed, with usage")
    def _(model=model):
        whole = None
        for chunk in chain(model, stream_usage=True).stream("What is a freehold?"):
            whole = chunk if whole is None else whole + chunk
        assert whole.content == ANSWER, whole
        assert whole.usage_metadata["output_tokens"] > 0, whole


for model in TOOLS:

    @case(f"langchain: {model}, streamed and back")
    def _(model=model):
        bound = chain(model).bind_tools([get_weather])
        whole = None
        for chunk in bound.stream("What is the weather?"):
            whole = chunk if whole is None else whole + chunk
        assert [call["args"] for call in whole.tool_calls] == [{"city": "Bern"}, {"city": "Chur"}], whole
        results = [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in whole.tool_calls]
        answer = bound.invoke([HumanMessage("What is the weather?"), whole, *results])
        assert answer.content == "Result: sunny in Bern and sunny in Chur", answer


@case("langchain: structured output is asked for by its schema")
def _():
    class Answer(BaseModel):
        """An answer."""

        text: str

    assert chain("object").with_structured_output(Answer).invoke("x").text == "Answer"


for model in ["late-error", "cut", "truncated"]:

    @case(f"langchain: {model} is an error")
    def _(model=model):
        raises(openai.APIError, lambda: list(chain(model).stream("x")))


@case("langchain: errors keep their kind")
def _():
    raises(openai.RateLimitError, lambda: chain("limited").invoke("x"))
    raises(openai.NotFoundError, lambda: chain("no-such-model").invoke("x"))
    raises(openai.BadRequestError, lambda: chain("bad-request").invoke("x"))


@case("langchain: embeddings")
def _():
    vectors = OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False, max_retries=0)
    assert vectors.embed_query("abc") == [3.0, 0.5, -1.25]
    assert len(vectors.embed_documents(["a", "b"])) == 2


# The local model.

if LOCAL:

    @case("openai: the local model, whole")
    def _():
        answer = client.chat.completions.create(model=LOCAL, messages=QUESTION, max_tokens=16)
        assert answer.choices[0].message.content.strip() and answer.usage.completion_tokens > 0, answer

    @case("openai: the local model, streamed")
    def _():
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(model=LOCAL, messages=QUESTION, max_tokens=16, stream=True, stream_options=options))
        assert texts(chunks).strip() and chunks[-1].usage.completion_tokens > 0, chunks

    @case("langchain: the local model")
    def _():
        assert chain(LOCAL, max_completion_tokens=16).invoke("What is a freehold?").content.strip()


def run(named):
    name, function = named
    try:
        # An AI key that fails five times in a row is left alone for a moment; here it is meant to be asked each time.
        client.chat.completions.create(model="plain", messages=QUESTION)
        function()
    except Exception as error:
        frames = traceback.format_exc(limit=-3)
        print(f"FAILED {name}: {error!r:.600}\n{frames}", flush=True)
        return False
    print(f"ok {name}", flush=True)
    return True


if __name__ == "__main__":
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(run, named) for named in slow]
        results = [run(named) for named in quick]
        results += [future.result() for future in waiting]
    passed = sum(results)
    print(f"python: {passed} passed, {len(results) - passed} failed", flush=True)
    sys.exit(passed != len(results))
