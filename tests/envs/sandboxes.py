"""Whether this machine allows sandboxes."""

from __future__ import annotations

import asyncio

import pytest

from asyncrl.envs.sandbox import Sandbox
from asyncrl.errors import UserError


def _why_none() -> str:
    async def tried() -> None:
        sandbox = Sandbox()
        try:
            await sandbox.start()
        finally:
            await sandbox.close()

    try:
        asyncio.run(tried())
    except UserError as error:
        return str(error)
    return ""


WHY_NONE = _why_none()
needs_a_sandbox = pytest.mark.skipif(bool(WHY_NONE), reason=WHY_NONE or "there are sandboxes")
