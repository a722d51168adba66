"""Calls a fleet as programs do that were written for OpenAI. Ends with an error at the first thing that is not as they expect.

BASE_URL, KEY: where, and as whom.
"""

import asyncio
import os

import openai

BASE_URL, KEY = os.environ["BASE_URL"], os.environ["KEY"]
HELLO = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]


def client(key=KEY, kind=openai.OpenAI):
    return kind(base_url=BASE_URL, api_key=key, max_retries=0, timeout=20)


def fails(expected, status, code, call):
    try:
        call()
    except expected as error:
        assert type(error) is expected, error
        assert (error.status_code, error.code, error.param) == (status, code, None), repr(error)
        assert error.message and error.type and error.request_id, repr(error)
        return error
    raise AssertionError(f"{expected.__name__} did not come")


def answers(ours):
    chat = ours.chat.completions.create(model="ours", messages=HELLO, temperature=0.5, max_tokens=5)
    assert (chat.model, chat.object, chat.choices[0].message.content) == ("ours", "chat.completion", "yes"), chat
    assert chat.usage.total_tokens == 2 and chat.created > 0 and chat.id, chat
    chunks = list(ours.chat.completions.create(model="ours", messages=HELLO, stream=True))
    assert [chunk.model for chunk in chunks] == ["ours", "ours"], chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "yes", chunks
    text = ours.completions.create(model="ours", prompt="hi")
    assert (text.model, text.choices[0].text) == ("ours", "yes"), text
    texts = list(ours.completions.create(model="ours", prompt="hi", stream=True))
    assert [part.model for part in texts] == ["ours", "ours"], texts
    embedded = ours.embeddings.create(model="ours", input=["a"], encoding_format="float")
    assert (embedded.model, embedded.data[0].embedding) == ("ours", [0.5, -0.25]), embedded
    raw = ours.chat.completions.with_raw_response.create(model="ours", messages=HELLO)
    assert raw.headers["x-request-id"] and raw.parse().model == "ours"


def lists(ours):
    listed = list(ours.models.list())
    names = [model.id for model in listed]
    assert names == sorted(names) and "ours" in names and "meta/Llama 3" in names, names
    assert all(model.object == "model" and model.created > 0 and model.owned_by for model in listed), listed
    assert ours.models.retrieve("ours").id == "ours"
    assert ours.models.retrieve("meta/Llama 3").id == "meta/Llama 3"
    fails(openai.NotFoundError, 404, "model_not_found", lambda: ours.models.retrieve("nope"))


def errors(ours):
    def chat(model, of=ours, **more):
        return lambda: of.chat.completions.create(model=model, messages=HELLO, **more)

    for stream in [False, True]:
        fails(openai.AuthenticationError, 401, "invalid_api_key", chat("ours", client("sk-wrong"), stream=stream))
        fails(openai.NotFoundError, 404, "model_not_found", chat("nope", stream=stream))
        fails(openai.BadRequestError, 400, "context_length_exceeded", chat("long", stream=stream))
        limited = fails(openai.RateLimitError, 429, "rate_limit_exceeded", chat("limited", stream=stream))
        assert limited.response.headers["retry-after"] == "7", limited.response.headers
        fails(openai.InternalServerError, 500, "upstream_error", chat("broken", stream=stream))
        fails(openai.InternalServerError, 503, "overloaded", chat("busy", stream=stream))
        fails(openai.InternalServerError, 502, "provider_unreachable", chat("dead", stream=stream))
        fails(openai.InternalServerError, 501, "provider_not_supported", chat("foreign", stream=stream))
    fails(openai.AuthenticationError, 401, "invalid_api_key", lambda: list(client("sk-wrong").models.list()))
    fails(openai.BadRequestError, 400, "missing_model", chat(None))
    fails(openai.BadRequestError, 400, "missing_model", chat(5))
    fails(openai.NotFoundError, 404, "not_found", lambda: ours.moderations.create(input="x"))
    # What is cut is no answer, however much of it has come.
    seen = []
    try:
        for chunk in chat("cut", stream=True)():
            seen.append(chunk.model)
    except Exception as error:
        assert not isinstance(error, openai.APIStatusError), repr(error)
    else:
        raise AssertionError("a stream that was cut ended well")
    assert seen == ["cut"], seen
    # What the client tries again by itself works too: the first answer to this one is a refusal.
    patient = ours.with_options(max_retries=2)
    assert patient.chat.completions.create(model="once limited", messages=HELLO).model == "once limited"


async def at_once(ours):
    async def one():
        stream = await ours.chat.completions.create(model="ours", messages=HELLO, stream=True)
        return [chunk.model async for chunk in stream]

    assert await asyncio.gather(*(one() for _ in range(20))) == [["ours", "ours"]] * 20
    # A client that gives up in the middle.
    stream = await ours.chat.completions.create(model="endless", messages=HELLO, stream=True)
    async for chunk in stream:
        assert chunk.model == "endless"
        break
    await stream.close()


def main():
    ours = client()
    answers(ours)
    lists(ours)
    errors(ours)
    asyncio.run(at_once(client(kind=openai.AsyncOpenAI)))
    print("all as expected")


main()
