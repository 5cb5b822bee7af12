"""The policy as an OpenAI-compatible endpoint, so that any program can be the agent of an episode.

    agent --POST /s/SESSION/v1/chat/completions----> session --tokens--> policy
    agent --POST /s/SESSION/inference/v1/generate--> session --tokens--> policy
A session is an episode: its address is not to be guessed, and every request needs the token. A program with one client
for many episodes takes `shared_url`, and sends the session's name as the model. A request whose messages go on from an
answer of the session is appended to the sampled tokens, as in `chat.py`; any other begins anew. One server for all
episodes of a process, on the loopback interface.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import msgspec
import pydantic
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from asyncrl.envs import dialects
from asyncrl.envs.chat import Chat, Generates, Reply
from asyncrl.envs.dialects import ChatRequest, MessagesRequest, Refused
from asyncrl.envs.environment import ContextFull, EpisodeOver, Sampled
from asyncrl.envs.generate import GenerateRequest, generated
from asyncrl.envs.template import Template
from asyncrl.envs.tools import Toolbox
from asyncrl.plugins import one_line
from asyncrl.rewards.score import to_score

_MOST_BYTES = 32 * 2**20
_LOOK_S = 0.5


class _Named(msgspec.Struct):
    model: str = ""


Warn = Callable[[str], None]
T = TypeVar("T")
A = TypeVar("A", bound=pydantic.BaseModel)


class Session:
    """One episode's conversations."""

    def __init__(self, policy: Generates, template: Template, temperature: float, warn: Warn) -> None:
        self._policy, self._template, self.temperature, self._warn = policy, template, temperature, warn
        self._chats: list[tuple[list[str], list[Any] | None, Chat]] = []
        """Keys of the messages, tools, and the conversation after its last reply."""
        self._first_has_tools: bool | None = None
        self._answers: dict[bytes, Any] = {}
        """The last to each request, by its hash."""
        self._turns = itertools.count(step=1000)
        self.full = ""
        """Why the last request found no room."""
        self.reward: Any = None
        """What the agent posted."""

    async def answer(self, request: ChatRequest, *, is_retry: bool = False) -> Reply:
        """is_retry: the client says that it asks once more, as the answer did not reach it; then it gets that answer,
        and nothing is sampled twice. Raises Refused, ContextFull, NoTemplate."""
        request.check(self.temperature)
        return await self._once(request, is_retry, self._sampled)

    async def generate(self, request: GenerateRequest, *, is_retry: bool = False) -> Sampled:
        """The same for a prompt in tokens."""
        request.check(self.temperature)
        return await self._once(request, is_retry, lambda asked: self._policy.generate(asked.ask))

    async def _once(self, request: A, is_retry: bool, sample: Callable[[A], Awaitable[T]]) -> T:
        body = hashlib.sha256(request.model_dump_json().encode()).digest()
        if is_retry and body in self._answers:
            return self._answers[body]
        try:
            answer = self._answers[body] = await sample(request)
        except ContextFull as full:
            self.full = str(full)
            raise
        self.full = ""
        return answer

    async def _sampled(self, request: ChatRequest) -> Reply:
        messages = request.conversation
        chat = self._chat(messages, request.tools)
        reply = await chat.reply(max_new_tokens=request.longest, stop=request.stops)
        self._chats.append(([dialects.key(m) for m in chat.messages], request.tools, chat))
        return reply

    def _chat(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> Chat:
        keys = [dialects.key(message) for message in messages]
        going_on = [
            chat for known, had, chat in self._chats if had == tools and known == keys[: len(known)] and known != keys
        ]
        if going_on:
            # Of several that look alike the newest.
            chat = max(reversed(going_on), key=lambda c: len(c.messages)).fork()
            chat.add(*messages[len(chat.messages) :])
            return chat
        names = [tool["function"]["name"] for tool in tools or ()]
        if said := self._template.unseen(names, messages):
            self._warn(said)
        toolbox, train = Toolbox((), 1.0, tools), self._is_trained(tools)
        return Chat(self._policy, self._template, messages, toolbox, train, next(self._turns))

    def _is_trained(self, tools: list[Any] | None) -> bool:
        """A harness that has tools also asks for titles and summaries, without them: those are not the task's."""
        if self._first_has_tools is None:
            self._first_has_tools = bool(tools)
        if self._first_has_tools and not tools:
            self._warn(
                "an agent whose calls have tools made one without: such side calls (titles, summaries) are not trained"
            )
            return False
        return True


class Gateway:
    """Serves the sessions of one process on its event loop."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self._sessions: dict[str, Session] = {}
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._server: asyncio.Task[None] | None = None

    def open(self, session: Session) -> str:
        """Its address, for `base_url`; the server is started with the first."""
        if self._server is None:
            self._server = asyncio.create_task(self._serve())
        name = secrets.token_urlsafe(16)
        self._sessions[name] = session
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}/s/{name}/v1"

    def close(self, address: str) -> None:
        self._sessions.pop(session_name(address), None)

    async def _serve(self) -> None:
        import uvicorn

        # Their own messages go where the process prints; a client's faults are its answers.
        config = uvicorn.Config(self.app(), http="h11", ws="none", lifespan="off", log_level="error", access_log=False)
        await uvicorn.Server(config).serve(sockets=[self._listening])

    def app(self) -> Starlette:
        """Anthropic's client adds the whole path to its base_url, OpenAI's all but the /v1, and those that send tokens
        take the /v1 away."""
        post = {
            "/inference/v1/generate": self._generate,
            "/v1/chat/completions": self._chat_completions,
            "/v1/messages": self._messages,
            "/v1/v1/messages": self._messages,
            "/v1/reward": self._reward,
            "/reward": self._reward,
        }
        routes = [
            Route(prefix + path, self._guarded(answer), methods=["POST"])
            for prefix in ("/s/{name}", "")
            for path, answer in post.items()
        ]
        routes.append(Route("/s/{name}/v1/models", self._guarded(self._models), methods=["GET"]))
        return Starlette(routes=routes)

    def _guarded(self, answer: Callable[[Request, Session], Awaitable[Response]]) -> Any:
        """Who has the token and names a session is answered; what cannot be is said in OpenAI's form."""

        async def answered(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            given = given or request.headers.get("x-api-key", "")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return _wrong(401, "the token is missing or wrong; it is the episode's api_key", "invalid_api_key")
            try:
                session = self._sessions.get(request.path_params.get("name") or await _model(request))
                if session is None:
                    return _wrong(404, "there is no such session, or its episode has ended", "session_not_found")
                return await answer(request, session)
            except pydantic.ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(map(str, first["loc"])) or "the body"
                return _wrong(400, f"{where}: {first['msg']}", "invalid_request")
            except (ValueError, RecursionError) as error:  # Refused, NoTemplate, and what the engine refuses
                return _wrong(400, str(error), "invalid_request")
            except EpisodeOver as error:
                return _wrong(404, str(error), "session_not_found")
            except ContextFull as error:
                return _wrong(400, str(error), "context_length_exceeded")
            except Exception as error:
                return _wrong(500, one_line(error), "internal_error")

        return answered

    async def _chat_completions(self, request: Request, session: Session) -> Response:
        asked = ChatRequest.model_validate_json(await _body(request))
        reply = await _unless_gone(request, session.answer(asked, is_retry=_is_retry(request)))
        number = secrets.token_hex(8)
        if asked.stream:
            with_usage = bool((asked.stream_options or {}).get("include_usage"))
            return _stream(dialects.chunks(reply, number, asked.model, with_usage))
        return JSONResponse(dialects.completion(reply, number, asked.model))

    async def _messages(self, request: Request, session: Session) -> Response:
        asked = MessagesRequest.model_validate_json(await _body(request))
        asked.check(session.temperature)
        reply = await _unless_gone(request, session.answer(asked.as_chat(), is_retry=_is_retry(request)))
        number = secrets.token_hex(8)
        if asked.stream:
            return _stream(dialects.anthropic_events(reply, number, asked.model))
        return JSONResponse(dialects.anthropic_message(reply, number, asked.model))

    async def _generate(self, request: Request, session: Session) -> Response:
        asked = GenerateRequest.model_validate_json(await _body(request))
        sampled = await _unless_gone(request, session.generate(asked, is_retry=_is_retry(request)))
        return JSONResponse(generated(sampled, asked, secrets.token_hex(8)))

    async def _reward(self, request: Request, session: Session) -> Response:
        try:
            given = json.loads(await _body(request))
        except ValueError as error:
            raise Refused(f"the body is no JSON: {error}") from error
        if not isinstance(given, dict) or not {"reward", "score"} & given.keys():
            raise Refused('the body names no reward; write {"reward": NUMBER}')
        if wrong := to_score(given).error:
            raise Refused(wrong)
        session.reward = given
        return JSONResponse({"ok": True})

    async def _models(self, request: Request, session: Session) -> Response:
        model = {"id": "policy", "object": "model", "created": 0, "owned_by": "asyncrl"}
        return JSONResponse({"object": "list", "data": [model]})


def _is_retry(request: Request) -> bool:
    """By the header that the clients of OpenAI and Anthropic send."""
    return request.headers.get("x-stainless-retry-count", "0") != "0"


def _wrong(status: int, message: str, code: str) -> JSONResponse:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"type": "error", "error": error}, status)


def session_name(address: str) -> str:
    return address.split("/")[-2]


def shared_url(address: str) -> str:
    """Of all sessions of the process that has the one with this address."""
    return address.partition("/s/")[0] + "/v1"


async def _body(request: Request) -> bytes:
    """Read once, kept for the next who asks."""
    if not hasattr(request.state, "body"):
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > _MOST_BYTES:
                raise Refused(f"the request has more than {_MOST_BYTES >> 20} MiB")
        request.state.body = data
    return request.state.body


async def _model(request: Request) -> str:
    """That the request names; nothing if it names none."""
    try:
        return msgspec.json.decode(await _body(request), type=_Named).model
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _stream(events: Iterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream")


async def _unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """What is sampled for a client that has hung up is given up."""
    task = asyncio.ensure_future(answer)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_S)
            if not task.done() and await request.is_disconnected():
                raise Refused("the client has hung up")
        return task.result()
    finally:
        task.cancel()
