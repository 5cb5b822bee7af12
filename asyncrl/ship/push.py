"""An exported folder on a model hub, by the hub's own client: its address is HF_ENDPOINT, its token HF_TOKEN or that of
`hf auth login`."""

from __future__ import annotations

from pathlib import Path

from asyncrl.errors import RunFailed, UserError


def require_hub(repo: str) -> None:
    """Raises UserError if nothing could be pushed to a repository of this name: before anything is written."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push '{repo}' is no name of a repository, such as me/my-model") from error
    if constants.is_offline_mode():
        raise UserError("--push needs the hub, and HF_HUB_OFFLINE says to leave it alone; unset that")
    if get_token() is None:
        raise UserError("--push needs a token that may write; set HF_TOKEN, or `hf auth login`")


def push(folder: Path, repo: str) -> str:
    """Upload all files in one commit, to a repository that is made private if there is none; its URL. Raises RunFailed:
    the folder stays."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        found = hub.create_repo(repo, private=True, exist_ok=True)
        hub.upload_folder(repo_id=found.repo_id, folder_path=folder, commit_message="asyncrl export")
    # What its client raises has no class in common: HTTP, network, xet, validation.
    except Exception as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise RunFailed(
            f"{folder} is written, and was not pushed to {repo}: {why[0]}; `hf upload {repo} {folder}` tries again"
        ) from error
    return str(found)
