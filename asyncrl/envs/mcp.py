"""Tools of a server that speaks the Model Context Protocol, over its standard input and output or over HTTP.

    async with mcp_tools(sys.executable, "server.py") as tools:
        chat = policy.chat(task.messages, tools=tools)
A server that is a command is started for the episode and ended with it. The connection lives in a task of its own: what
breaks there is an answer to the calls that wait for it, and cancels nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from asyncrl.envs.tools import RemoteTool, ToolError
from asyncrl.errors import UserError
from asyncrl.plugins import one_line

_START_S = 60.0
"""For a server to start and to name its tools."""
_END_S = 8.0
"""For it to end, after which its processes were killed: the package waits 2 s, asks, waits 2 s, and kills."""
_MOST_TOOLS = 1000


@asynccontextmanager
async def mcp_tools(
    *server: str,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[list[RemoteTool]]:
    """The tools of a server, while it is open: a command and its arguments, or the URL of one that runs.

    env: variables of the command's beside HOME, PATH, PYTHONPATH and the like; it has no others, so no keys. headers:
    of requests to a URL. Raises UserError if the server does not start, or does not name its tools within a minute.
    """
    shown = shlex.join(server)
    opened: asyncio.Future[list[RemoteTool]] = asyncio.get_running_loop().create_future()
    closing = asyncio.Event()
    serving = asyncio.create_task(_serve(_transport(server, env, cwd, headers), opened, closing))
    try:
        await asyncio.wait({opened, serving}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            error = serving.exception() if serving.done() else None
            why = one_line(_first(error)) if error else f"it did not name its tools within {_START_S:g} s"
            raise UserError(f"the MCP server `{shown}` cannot be used: {why}")
        yield opened.result()
    finally:
        closing.set()
        if not opened.done():
            serving.cancel()
        await asyncio.wait({serving}, timeout=_END_S)
        serving.cancel()


def _transport(
    server: tuple[str, ...], env: Mapping[str, str] | None, cwd: str | Path | None, headers: Mapping[str, str] | None
) -> Any:
    """Raises UserError."""
    try:
        from mcp.client.stdio import StdioServerParameters, stdio_client
    except ImportError as error:
        raise UserError(f"tools of an MCP server need a package: {error}; pip install 'asyncrl[mcp]'") from error
    if not server:
        raise UserError("mcp_tools takes a command and its arguments, or a URL")
    if server[0].startswith(("http://", "https://")):
        return _over_http(server[0], dict(headers or {}))
    command, *arguments = server
    # Of this process's own variables the package passes on HOME, PATH and the like, and no keys.
    more = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ} | dict(env or {})
    return stdio_client(StdioServerParameters(command=command, args=arguments, env=more, cwd=cwd))


@asynccontextmanager
async def _over_http(url: str, headers: dict[str, str]) -> AsyncIterator[Any]:
    from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

    async with create_mcp_http_client(headers) as client, streamable_http_client(url, http_client=client) as streams:
        yield streams


async def _serve(transport: Any, opened: asyncio.Future[list[RemoteTool]], closing: asyncio.Event) -> None:
    """Keeps the connection until it is to be closed; what fails before `opened` is raised."""
    from mcp import Client

    async with Client(transport) as client:
        tools: list[RemoteTool] = []
        cursor = None
        while len(tools) < _MOST_TOOLS:
            page = await client.list_tools(cursor=cursor)
            tools += [_tool(client, tool) for tool in page.tools]
            if (cursor := page.next_cursor) is None:
                break
        opened.set_result(tools)
        await closing.wait()


def _tool(client: Any, tool: Any) -> RemoteTool:
    async def call(arguments: dict[str, Any]) -> str:
        return _text(await client.call_tool(tool.name, arguments))

    function = {"name": tool.name, "description": tool.description or tool.name, "parameters": tool.input_schema}
    return RemoteTool({"type": "function", "function": function}, call)


def _text(result: Any) -> str:
    """What the model reads of a result: its texts; what is no text is named. Raises ToolError."""
    parts = []
    for block in result.content:
        resource = getattr(block, "resource", None)
        text = getattr(block, "text", None) or getattr(resource, "text", None)
        kind = getattr(block, "mime_type", None) or getattr(resource, "mime_type", None) or block.type
        parts.append(str(getattr(block, "uri", f"[{kind} is left out]")) if text is None else text)
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    said = "\n".join(parts)
    if result.is_error:
        raise ToolError(said)
    return said


def _first(error: BaseException) -> BaseException:
    """Of several, which come in groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
