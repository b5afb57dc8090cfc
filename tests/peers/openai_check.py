#!/usr/bin/env python3
"""Drives a server with the stock `openai` client and says, line by line, what works.

    $(scripts/peers-venv.sh) tests/peers/openai_check.py --base-url http://127.0.0.1:5050/v1 --model tiny

Every check runs with the synchronous and with the asynchronous client. The server's answers must be repeatable at
temperature 0 with a seed; its model may be of any quality. The client's own retries are off, or they would hide
failures. Prints `ok`, `FAIL` or `skip` per check, at last `N passed, N failed`, and exits 1 if any failed.
"""

import argparse
import asyncio
import base64
import inspect
import math
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A proxy that the environment names is not what is being checked. Set before the client reads it.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"

import openai  # noqa: E402

PROMPT = "The time of the day"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
TOKENS = 24
STREAMS = 32
ABANDONED = 8  # more than the server is likely to have slots
REQUEST_TIMEOUT_S = 60.0
CHECK_TIMEOUT_S = 180.0


class Failure(Exception):
    """The server answered, and the answer is wrong."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise Failure(message)


def expect_equal(got: object, wanted: object, what: str) -> None:
    expect(got == wanted, f"{what}: got {got!r}, wanted {wanted!r}")


@dataclass
class Target:
    """The server under check, seen through one client (synchronous or not: `value` and `items` take both)."""

    client: Any
    embeddings_client: Any
    wrong_key_client: Any
    model: str
    embeddings_model: str
    llama: bool

    def repeatable(self, **more: Any) -> dict[str, Any]:
        """Settings with which a request gives the same text each time."""
        settings: dict[str, Any] = dict(model=self.model, temperature=0, seed=7, max_tokens=TOKENS) | more
        if self.llama:
            # A reused prompt is evaluated in batches of another shape, which may round differently.
            settings["extra_body"] = {"cache_prompt": False}
        return settings

    async def chat(self, **more: Any) -> Any:
        return await value(self.client.chat.completions.create(messages=MESSAGES, **self.repeatable(**more)))

    async def completion(self, **more: Any) -> Any:
        return await value(self.client.completions.create(prompt=PROMPT, **self.repeatable(**more)))


async def value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def items(stream: Any) -> list[Any]:
    return [item async for item in stream] if hasattr(stream, "__aiter__") else list(stream)


async def first_items(stream: Any, count: int) -> list[Any]:
    taken: list[Any] = []
    while len(taken) < count:
        taken.append(await stream.__anext__() if hasattr(stream, "__anext__") else next(stream))
    return taken


# Each check: an async function of a Target. Its name on the screen, and the flag without which it is skipped.
CHECKS: list[tuple[str, str | None, Callable[[Target], Any]]] = []


def check(name: str, needs: str | None = None) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        CHECKS.append((name, needs, function))
        return function

    return register


# --- Models -----------------------------------------------------------------------------------------------------------


@check("models.list names the model")
async def models_list(target: Target) -> None:
    page = await value(target.client.models.list())
    names = [model.id for model in page.data]
    expect(target.model in names, f"{target.model!r} is not among {names}")
    expect(all(model.object == "model" for model in page.data), "an entry's object is not 'model'")


# --- Text -------------------------------------------------------------------------------------------------------------


@check("chat: plain answer, usage adds up")
async def chat_plain(target: Target) -> None:
    answer = await target.chat()
    expect_equal(answer.object, "chat.completion", "object")
    expect_equal(len(answer.choices), 1, "number of choices")
    choice = answer.choices[0]
    expect_equal(choice.message.role, "assistant", "role")
    expect(choice.message.content, "the message is empty")
    expect(answer.id, "no id")
    expect_usage(answer.usage, choice.finish_reason)


@check("completions: plain answer, usage adds up")
async def completion_plain(target: Target) -> None:
    answer = await target.completion()
    expect_equal(answer.object, "text_completion", "object")
    expect_equal(len(answer.choices), 1, "number of choices")
    expect(answer.choices[0].text, "the text is empty")
    expect_usage(answer.usage, answer.choices[0].finish_reason)


@check("chat: max_completion_tokens is obeyed")
async def chat_max_completion_tokens(target: Target) -> None:
    settings = target.repeatable(max_completion_tokens=3)
    del settings["max_tokens"]
    answer = await value(target.client.chat.completions.create(messages=MESSAGES, **settings))
    expect(answer.usage.completion_tokens <= 3, f"3 tokens were asked for, {answer.usage.completion_tokens} came")


@check("chat: the same request gives the same text")
async def chat_repeatable(target: Target) -> None:
    texts = [(await target.chat()).choices[0].message.content for _ in range(3)]
    expect_equal(len(set(texts)), 1, "different texts in 3 tries")


@check("chat: a stream is well formed and says what the plain answer says")
async def chat_stream(target: Target) -> None:
    plain = await target.chat()
    chunks = await items(await target.chat(stream=True))
    text, finish_reason = read_chat_stream(chunks)
    expect_equal(text, plain.choices[0].message.content, "text")
    expect_equal(finish_reason, plain.choices[0].finish_reason, "finish_reason")
    expect(all(chunk.usage is None for chunk in chunks), "usage came although nobody asked for it")


@check("completions: a stream is well formed and says what the plain answer says")
async def completion_stream(target: Target) -> None:
    plain = await target.completion()
    text, finish_reason = read_completion_stream(await items(await target.completion(stream=True)))
    expect_equal(text, plain.choices[0].text, "text")
    expect_equal(finish_reason, plain.choices[0].finish_reason, "finish_reason")


@check("chat: a stream with include_usage ends with the plain answer's usage")
async def chat_stream_usage(target: Target) -> None:
    plain = await target.chat()
    chunks = await items(await target.chat(stream=True, stream_options={"include_usage": True}))
    expect_equal(chunks[-1].choices, [], "choices of the last chunk")
    expect(chunks[-1].usage is not None, "the last chunk has no usage")
    expect(all(chunk.usage is None for chunk in chunks[:-1]), "usage came before the last chunk")
    expect_equal(counts(chunks[-1].usage), counts(plain.usage), "usage")
    expect_equal(read_chat_stream(chunks[:-1])[0], plain.choices[0].message.content, "text")


@check("completions: a stream with include_usage carries the plain answer's usage")
async def completion_stream_usage(target: Target) -> None:
    plain = await target.completion()
    chunks = await items(await target.completion(stream=True, stream_options={"include_usage": True}))
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    expect_equal(len(usages), 1, "chunks with usage")
    expect_equal(counts(usages[0]), counts(plain.usage), "usage")


@check("chat: a stop word ends the text before it")
async def chat_stop(target: Target) -> None:
    whole = (await target.chat()).choices[0].message.content
    word, before = stop_word(whole)
    plain = await target.chat(stop=[word])
    expect_equal(plain.choices[0].message.content, before, f"text up to {word!r}")
    expect_equal(plain.choices[0].finish_reason, "stop", "finish_reason")
    text, finish_reason = read_chat_stream(await items(await target.chat(stop=[word], stream=True)))
    expect_equal(text, before, f"streamed text up to {word!r}")
    expect_equal(finish_reason, "stop", "finish_reason of the stream")


@check("completions: a stop word ends the text before it")
async def completion_stop(target: Target) -> None:
    word, before = stop_word((await target.completion()).choices[0].text)
    plain = await target.completion(stop=word)
    expect_equal(plain.choices[0].text, before, f"text up to {word!r}")
    expect_equal(plain.choices[0].finish_reason, "stop", "finish_reason")
    text, _ = read_completion_stream(await items(await target.completion(stop=word, stream=True)))
    expect_equal(text, before, f"streamed text up to {word!r}")


@check("chat: n=2 gives two choices")
async def chat_n(target: Target) -> None:
    answer = await target.chat(n=2, temperature=0.8)
    expect_equal(sorted(choice.index for choice in answer.choices), [0, 1], "indices")
    expect(all(choice.message.content for choice in answer.choices), "a choice is empty")


@check("chat: n=2 streams two choices")
async def chat_n_stream(target: Target) -> None:
    chunks = await items(await target.chat(n=2, temperature=0.8, stream=True))
    for index in (0, 1):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        expect("".join(choice.delta.content or "" for choice in own), f"choice {index} is empty")
        expect_equal(sum(choice.finish_reason is not None for choice in own), 1, f"finish reasons of choice {index}")


@check("chat: with n=2, usage counts the tokens of both choices", needs="a server without --own-usage")
async def chat_n_usage(target: Target) -> None:
    one = await target.chat()
    two = await target.chat(n=2)
    expect_equal(two.usage.prompt_tokens, one.usage.prompt_tokens, "prompt_tokens")
    expect_equal(two.usage.completion_tokens, 2 * one.usage.completion_tokens, "completion_tokens")


@check("completions: a list of two prompts gives two choices")
async def completion_prompts(target: Target) -> None:
    prompts = [PROMPT, "Over the water"]
    answer = await value(target.client.completions.create(prompt=prompts, **target.repeatable()))
    expect_equal(sorted(choice.index for choice in answer.choices), [0, 1], "indices")
    expect(all(choice.text for choice in answer.choices), "a choice is empty")


@check("chat: logprobs, one entry per token", needs="--llama")
async def chat_logprobs(target: Target) -> None:
    answer = await target.chat(logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    expect(choice.logprobs and choice.logprobs.content, "no logprobs")
    expect_logprobs(choice.logprobs.content, choice.message.content, answer.usage.completion_tokens)


@check("chat: logprobs in a stream", needs="--llama")
async def chat_logprobs_stream(target: Target) -> None:
    chunks = await items(
        await target.chat(logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True})
    )
    choices = [choice for chunk in chunks for choice in chunk.choices]
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]
    text = "".join(choice.delta.content or "" for choice in choices)
    expect_logprobs(entries, text, chunks[-1].usage.completion_tokens)


# --- Embeddings -------------------------------------------------------------------------------------------------------


@check("embeddings: base64 (the client's default) and float say the same", needs="--embeddings-url")
async def embeddings(target: Target) -> None:
    inputs = ["one line", "another line of text"]
    create = target.embeddings_client.embeddings.create
    decoded = await value(create(model=target.embeddings_model, input=inputs))
    floats = await value(create(model=target.embeddings_model, input=inputs, encoding_format="float"))
    raw = await value(create(model=target.embeddings_model, input=inputs, encoding_format="base64"))
    for answer in (decoded, floats, raw):
        expect_equal([entry.index for entry in answer.data], [0, 1], "indices")
        expect(answer.usage.prompt_tokens > 0, "usage counts no prompt tokens")
        expect_equal(answer.usage.total_tokens, answer.usage.prompt_tokens, "total_tokens")
    for ours, plain, packed in zip(decoded.data, floats.data, raw.data):
        width = len(plain.embedding)
        expect(width > 1, f"an embedding of {width} numbers")
        expect(all(math.isfinite(number) for number in plain.embedding), "a number is not finite")
        expect(close(ours.embedding, plain.embedding), "the default differs from float")
        expect(isinstance(packed.embedding, str), "base64 was asked for and not given")
        unpacked = struct.unpack(f"<{width}f", base64.b64decode(packed.embedding))
        expect(close(unpacked, plain.embedding), "base64 differs from float")
    expect(not close(floats.data[0].embedding, floats.data[1].embedding), "two texts have one embedding")


@check("embeddings: one text alone", needs="--embeddings-url")
async def embeddings_single(target: Target) -> None:
    answer = await value(target.embeddings_client.embeddings.create(model=target.embeddings_model, input="one line"))
    expect_equal(len(answer.data), 1, "number of embeddings")


# --- Errors -----------------------------------------------------------------------------------------------------------


@check("errors: temperature of the wrong type is a BadRequestError")
async def error_field_type(target: Target) -> None:
    settings = dict(model=target.model, messages=MESSAGES, max_tokens=4, extra_body={"temperature": "hot"})
    create = target.client.chat.completions.create
    await expect_error(openai.BadRequestError, lambda: create(**settings))
    await expect_error(openai.BadRequestError, lambda: create(stream=True, **settings))


@check("errors: a chat without messages is a BadRequestError")
async def error_no_messages(target: Target) -> None:
    def post(body: dict[str, Any]) -> Any:
        return target.client.post("/chat/completions", body={"model": target.model} | body, cast_to=object)

    await expect_error(openai.BadRequestError, lambda: post({}))
    await expect_error(openai.BadRequestError, lambda: post({"stream": True}))
    await expect_error(openai.BadRequestError, lambda: post({"messages": "hello"}))


@check("errors: a completion without a prompt is a BadRequestError")
async def error_no_prompt(target: Target) -> None:
    body = {"model": target.model, "max_tokens": 4}
    await expect_error(openai.BadRequestError, lambda: target.client.post("/completions", body=body, cast_to=object))


@check("errors: an unknown path is a NotFoundError")
async def error_unknown_path(target: Target) -> None:
    await expect_error(openai.NotFoundError, lambda: target.client.get("/no-such-path", cast_to=object))
    await expect_error(openai.NotFoundError, lambda: target.client.post("/no-such-path", body={}, cast_to=object))


@check("errors: a wrong key is an AuthenticationError", needs="--expect-key")
async def error_wrong_key(target: Target) -> None:
    client = target.wrong_key_client
    await expect_error(openai.AuthenticationError, lambda: client.models.list())
    settings = dict(model=target.model, messages=MESSAGES, max_tokens=4)
    await expect_error(openai.AuthenticationError, lambda: client.chat.completions.create(**settings))
    await expect_error(openai.AuthenticationError, lambda: client.chat.completions.create(stream=True, **settings))


# --- Many streams -----------------------------------------------------------------------------------------------------


@check(f"streams: after {ABANDONED} closed early the server is healthy")
async def streams_closed_early(target: Target) -> None:
    for _ in range(ABANDONED):
        stream = await target.chat(stream=True, max_tokens=2000)
        await first_items(stream, 3)
        await value(stream.close())
    answer = await target.chat()
    expect(answer.choices[0].message.content, "the answer afterwards is empty")


@check(f"streams: {STREAMS} at once, each whole and its own", needs="the asynchronous client")
async def streams_at_once(target: Target) -> None:
    async def one(number: int) -> str:
        messages = [{"role": "user", "content": f"{PROMPT} {number}"}]
        settings = target.repeatable(stream=True, stream_options={"include_usage": True})
        chunks = await items(await target.client.chat.completions.create(messages=messages, **settings))
        text, finish_reason = read_chat_stream(chunks[:-1])
        expect(text, "an empty stream")
        expect_usage(chunks[-1].usage, finish_reason)
        return chunks[0].id

    identifiers = await asyncio.gather(*[one(number) for number in range(STREAMS)])
    expect_equal(len(set(identifiers)), STREAMS, "distinct ids")


@check(f"streams: {ABANDONED} tasks cancelled at once leave the server healthy", needs="the asynchronous client")
async def streams_cancelled(target: Target) -> None:
    started = [asyncio.Event() for _ in range(ABANDONED)]

    async def one(event: asyncio.Event) -> None:
        async for _ in await target.chat(stream=True, max_tokens=2000):
            event.set()

    tasks = [asyncio.create_task(one(event)) for event in started]
    # Some are running and some are still queued: both ways of going away are of interest.
    await asyncio.wait_for(started[0].wait(), REQUEST_TIMEOUT_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    answer = await target.chat()
    expect(answer.choices[0].message.content, "the answer afterwards is empty")


# --- What the checks have in common -----------------------------------------------------------------------------------


def counts(usage: Any) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def expect_usage(usage: Any, finish_reason: str) -> None:
    expect(usage is not None, "no usage")
    prompt, completion, total = counts(usage)
    expect(prompt > 0, f"prompt_tokens is {prompt}")
    expect_equal(total, prompt + completion, "total_tokens")
    expect(finish_reason in ("stop", "length"), f"finish_reason is {finish_reason!r}")
    if finish_reason == "length":
        expect_equal(completion, TOKENS, "completion_tokens at finish_reason length")
    else:
        expect(0 < completion <= TOKENS, f"completion_tokens is {completion}, at most {TOKENS} were asked for")


def read_chat_stream(chunks: list[Any]) -> tuple[str, str]:
    """Text and finish reason of a chat stream of one choice."""
    expect(chunks, "the stream is empty")
    expect_equal({chunk.object for chunk in chunks}, {"chat.completion.chunk"}, "object")
    expect_equal(len({chunk.id for chunk in chunks}), 1, "ids in one stream")
    choices = [choice for chunk in chunks for choice in chunk.choices]
    expect_equal(choices[0].delta.role, "assistant", "role of the first delta")
    return join([choice.delta.content or "" for choice in choices], choices)


def read_completion_stream(chunks: list[Any]) -> tuple[str, str]:
    expect(chunks, "the stream is empty")
    expect_equal({chunk.object for chunk in chunks}, {"text_completion"}, "object")
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return join([choice.text for choice in choices], choices)


def join(texts: list[str], choices: list[Any]) -> tuple[str, str]:
    reasons = [choice.finish_reason for choice in choices]
    expect_equal(sum(reason is not None for reason in reasons), 1, "finish reasons in one stream")
    expect(reasons[-1] is not None, "the finish reason is not on the last choice")
    expect(sum(text != "" for text in texts) > 1, "the whole text came at once")
    return "".join(texts), reasons[-1]


def stop_word(text: str) -> tuple[str, str]:
    """A word from the middle of the text, and what stands before its first occurrence."""
    middle = len(text) // 2
    word = text[middle : middle + 4]
    before = text[: text.index(word)]
    expect(before and len(text) > 8, f"the text {text!r} is too short to choose a stop word from")
    return word, before


def expect_logprobs(entries: list[Any], text: str, completion_tokens: int) -> None:
    expect_equal(len(entries), completion_tokens, "entries in logprobs")
    expect_equal("".join(entry.token for entry in entries), text, "the tokens of logprobs, joined")
    for entry in entries:
        expect_equal(len(entry.top_logprobs), 2, "entries in top_logprobs")
        expect(entry.logprob <= 0.0, f"a log probability of {entry.logprob}")


def close(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in zip(one, other)
    )


async def expect_error(kind: type[openai.APIStatusError], call: Callable[[], Any]) -> None:
    """The call must raise `kind`, with a body that is an OpenAI-style error object."""
    try:
        await value(call())
    except openai.APIStatusError as error:
        expect(isinstance(error, kind), f"{type(error).__name__} ({error.status_code}) instead of {kind.__name__}")
        body = error.body
        expect(isinstance(body, dict), f"the error's body is no object: {body!r}")
        for name in ("message", "type"):
            expect(isinstance(body.get(name), str) and body[name], f"the error's body has no {name}: {body!r}")
    else:
        raise Failure(f"no error, where {kind.__name__} was expected")


# --- Running ----------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--base-url", metavar="URL", required=True, help="such as http://127.0.0.1:5050/v1")
    parser.add_argument("--model", metavar="NAME", required=True, help="as the server names it")
    parser.add_argument("--embeddings-url", metavar="URL", help="check embeddings too, here (may be --base-url again)")
    parser.add_argument("--embeddings-model", metavar="NAME", help="the model for embeddings (default: --model)")
    parser.add_argument("--expect-key", metavar="KEY", help="the server wants this key; check that it refuses others")
    parser.add_argument("--llama", action="store_true", help="a llama-server answers: check logprobs too")
    parser.add_argument("--own-usage", action="store_true", help="llama-server's usage is passed on: one choice's only")
    parser.add_argument("--only", metavar="TEXT", default="", help="only the checks whose name contains TEXT")
    return parser.parse_args()


def targets(args: argparse.Namespace) -> list[tuple[str, Target]]:
    key = args.expect_key or "none"

    def target(kind: Any) -> Target:
        settings = dict(max_retries=0, timeout=REQUEST_TIMEOUT_S)
        return Target(
            client=kind(base_url=args.base_url, api_key=key, **settings),
            embeddings_client=kind(base_url=args.embeddings_url or args.base_url, api_key=key, **settings),
            wrong_key_client=kind(base_url=args.base_url, api_key=f"not-{key}", **settings),
            model=args.model,
            embeddings_model=args.embeddings_model or args.model,
            llama=args.llama,
        )

    return [("sync", target(openai.OpenAI)), ("async", target(openai.AsyncOpenAI))]


async def run(args: argparse.Namespace) -> bool:
    passed = failed = 0
    for mode, target in targets(args):
        given = {
            "--llama": args.llama,
            "--embeddings-url": args.embeddings_url,
            "--expect-key": args.expect_key,
            "the asynchronous client": mode == "async",
            "a server without --own-usage": not args.own_usage,
        }
        for name, needs, function in CHECKS:
            if args.only not in name:
                continue
            if needs is not None and not given[needs]:
                print(f"skip  {mode:5}  {name}: needs {needs}", flush=True)
                continue
            try:
                await asyncio.wait_for(function(target), CHECK_TIMEOUT_S)
            except Exception as error:  # the next check may still tell something
                failed += 1
                reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
                print(f"FAIL  {mode:5}  {name}: {reason}", flush=True)
            else:
                passed += 1
                print(f"ok    {mode:5}  {name}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return failed == 0 and passed > 0


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(run(parse_arguments())) else 1)
