"""Whether a teacher means by a token what the student means: what it says of other tokens would look as good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asyncrl.chat_template import FolderTokenizer
from asyncrl.errors import UserError
from asyncrl.models import TINY_LLAMA, folder_here, hub_config, is_local, load_tokenizer, local_config
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.teacher import TeacherRecipe


def check_teachers(recipe: Recipe, base_dir: Path, tokenizer: Any) -> None:
    """Raises UserError if a teacher has other tokens than the student, whose tokenizer is given. Models of a hub are
    fetched as far as that needs it."""
    for teacher in recipe.algorithm.teacher:
        where = _where(teacher.vocabulary, base_dir)
        _require_same(recipe, base_dir, tokenizer, load_tokenizer(where), teacher)


def check_teachers_here(recipe: Recipe, base_dir: Path, tokenizer: Any) -> None:
    """The same of those whose tokenizer.json is on this machine."""
    for teacher in recipe.algorithm.teacher:
        folder = folder_here(_where(teacher.vocabulary, base_dir))
        found = FolderTokenizer.load(folder) if folder is not None else None
        if found is not None:
            _require_same(recipe, base_dir, tokenizer, found, teacher)


def _where(model: str, base_dir: Path) -> str:
    return str(base_dir / model) if (base_dir / model).is_dir() else model


def _require_same(recipe: Recipe, base_dir: Path, tokenizer: Any, other: Any, teacher: TeacherRecipe) -> None:
    student = _where(recipe.model, base_dir)
    width = len(tokenizer.get_vocab())
    if recipe.model != TINY_LLAMA:
        width = _width(student) or width
    # A server's config may not be here: what it has no embedding of, it refuses.
    theirs = None if teacher.url else _width(_where(teacher.model, base_dir))
    require_same_ids(_by_id(tokenizer), _by_id(other), width, theirs, teacher.model)


def _width(model: str) -> int | None:
    config = local_config(Path(model)) if is_local(model) else hub_config(model)
    size = {**config, **(config.get("text_config") or {})}.get("vocab_size")
    return size if isinstance(size, int) else None


def _by_id(tokenizer: Any) -> dict[int, str]:
    return {place: token for token, place in tokenizer.get_vocab().items()}


def require_same_ids(
    student: dict[int, str], teacher: dict[int, str], width: int, teacher_width: int | None, model: str
) -> None:
    """Raises UserError unless every id that the student can sample is the same token for the teacher. `width`: of the
    student's logits; ids from there on cannot occur. Padding on either side, ids without a token, is no difference."""
    ids = [place for place in student if place < width]
    differing = sorted(p for p in ids if teacher.get(p) != student[p])
    if differing:
        first = differing[0]
        theirs = repr(teacher[first]) if first in teacher else "nothing"
        raise UserError(
            f"algorithm.teacher {model} has another vocabulary: {len(differing)} of the student's {len(ids)} token ids "
            f"are others, the first is {first}: {student[first]!r} for the student, {theirs} for the teacher; take a "
            "teacher with the student's tokenizer"
        )
    if teacher_width is not None and max(ids, default=0) >= teacher_width:
        raise UserError(
            f"algorithm.teacher {model} has embeddings of {teacher_width} tokens, and the student's tokenizer gives "
            f"tokens up to {max(ids)}; take a teacher with the student's tokenizer"
        )
