"""Trajectories of the Agent Data Protocol as chats (arXiv 2510.24702; github.com/neulab/agent-data-protocol, 1.2.0).

api_action, code_action, message_action -> the assistant's messages: calls of tools, texts
text_observation, web_observation -> a tool's message after a call of one, else the user's
"""

from __future__ import annotations

from typing import Any

from asyncrl.task import Message

COLUMNS = frozenset({"content", "details"})
"""What every trajectory has, beside its id."""
CODE_TOOL = "run_code"
"""The tool of a code_action; its arguments are `language` and `code`."""
_ACTIONS = ("api_action", "code_action", "message_action")

Item = dict[str, Any]
"""An action or an observation, which of them its `class_` says."""


class BadTrajectory(ValueError):
    """What is no text, or no part of the protocol; `reason`: the name under which rows are counted."""

    def __init__(self, fault: str, reason: str = "prompt_malformed") -> None:
        super().__init__(fault)
        self.reason = reason


def is_content(value: Any) -> bool:
    """Whether a value is the `content` of a trajectory."""
    return isinstance(value, list) and bool(value) and all(isinstance(i, dict) and "class_" in i for i in value)


def messages(content: list[Item]) -> list[Message]:
    """The chat of a trajectory. Calls that follow one another without a thought between them are one message.

    Raises BadTrajectory."""
    chat: list[Message] = []
    for place, item in enumerate(content):
        try:
            if item["class_"] not in _ACTIONS:
                chat.append(_observed(item, after_call=bool(chat) and "tool_calls" in _last_but_tools(chat)))
            elif _goes_on(chat, said := _said(item)):
                chat[-1]["tool_calls"] += said["tool_calls"]
            else:
                chat.append(said)
        except KeyError as error:
            raise BadTrajectory(f"item {place} of its content ({item['class_']}) has no {error}") from error
    return chat


def _said(action: Item) -> Message:
    thought, own = action.get("description"), {}
    if action.get("reasoning_content"):
        own["reasoning_content"] = action["reasoning_content"]
    if action["class_"] == "message_action":
        return {"role": "assistant", "content": action["content"], **own}
    if action["class_"] == "api_action":
        function = {"name": action["function"], "arguments": action["kwargs"]}
    else:
        function = {"name": CODE_TOOL, "arguments": {"language": action["language"], "code": action["content"]}}
    identity = {"id": action["tool_call_id"]} if action.get("tool_call_id") else {}
    call = {**identity, "type": "function", "function": function}
    return {"role": "assistant", "content": thought, "tool_calls": [call], **own}


def _goes_on(chat: list[Message], said: Message) -> bool:
    """A call without a thought of its own, right behind another: both were made at once."""
    has_thought = said["content"] or "reasoning_content" in said
    return "tool_calls" in said and not has_thought and bool(chat) and "tool_calls" in chat[-1]


def _last_but_tools(chat: list[Message]) -> Message:
    return next((message for message in reversed(chat) if message["role"] != "tool"), {})


def _observed(item: Item, after_call: bool) -> Message:
    if item["class_"] == "text_observation":
        text, source = item["content"], item["source"]
    elif item["class_"] == "web_observation":
        text, source = next((item[key] for key in ("axtree", "html", "url") if item.get(key)), ""), "environment"
    elif item["class_"] == "image_observation":
        raise BadTrajectory(
            "has an image among its observations; asyncrl trains models on text only", "prompt_not_text"
        )
    else:
        raise BadTrajectory(f"has an item of class '{item['class_']}', which the Agent Data Protocol does not have")
    # Another agent's words are no answer that is to be learnt.
    tool = source == "environment" and (after_call or bool(item.get("tool_call_id")))
    rest = {key: item[key] for key in ("name", "tool_call_id") if item.get(key)}
    return {"role": "tool" if tool else "user", "content": text, **rest}
