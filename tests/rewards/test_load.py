from pathlib import Path

import pytest

from asyncrl.errors import UserError
from asyncrl.plugins import load_object, one_line
from asyncrl.rewards.load import load


def write(directory: Path, text: str) -> Path:
    path = directory / "mine.py"
    path.write_text(text)
    return path


def test_dotted_path():
    from asyncrl.rewards.math import last_number

    assert load("asyncrl.rewards.math:last_number", Path("nowhere")).call is last_number


def test_file_is_relative_to_base_dir_or_absolute_and_is_run_once(tmp_path):
    path = write(tmp_path, "def f(completion): return 1\ndef g(completion): return 2\n")
    f = load("./mine.py:f", tmp_path).call
    g = load(f"{path}:g", Path("elsewhere")).call
    assert f("") == 1
    assert g("") == 2
    assert f.__globals__ is g.__globals__


def test_file_imports_its_neighbour(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 7\n")
    write(tmp_path, "def f(completion):\n    from neighbour_of_mine import VALUE\n    return VALUE\n")
    assert load("./mine.py:f", tmp_path).call("") == 7


@pytest.mark.parametrize(
    ("spec", "source", "message"),
    [
        ("mine.py", "", r"must have the form package.module:name or ./file.py:name$"),
        ("./other.py:f", "", r"does not import: FileNotFoundError: there is no file .*other\.py$"),
        ("no_such_package.x:f", "", r"does not import: ModuleNotFoundError: No module named 'no_such_package'$"),
        ("./mine.py:f", "import no_such_lib\n", r"No module named 'no_such_lib' \(mine.py:1\)$"),
        ("./mine.py:f", "def f(:\n", r"does not import: SyntaxError: .*\(mine.py, line 1\)"),
        ("./mine.py:f", "x = 1\nx.y\n", r"AttributeError: 'int' object has no attribute 'y' \(mine.py:2\)$"),
        ("./mine.py:f", "import sys; sys.exit(3)\n", r"does not import: SystemExit: 3"),
        ("./mine.py:rewrad", "def reward(completion): ...\n", r"has no 'rewrad'; did you mean 'reward'\?$"),
        ("./mine.py:f", "f = 3\n", r"is of type int, not a function$"),
        ("./mine.py:f", "def f(text, gold=None): ...\n", r"takes \(text, gold=None\), but must take \(completion"),
        ("./mine.py:f", "def f(completion, /): ...\n", r"by name$"),
    ],
)
def test_what_a_user_may_get_wrong(tmp_path, spec, source, message):
    write(tmp_path, source)
    with pytest.raises(UserError, match=message) as caught:
        load(spec, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_module_that_failed_can_be_mended_and_loaded(tmp_path):
    path = write(tmp_path, "1/0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        load_object("./mine.py:f", tmp_path, "loss")
    path.write_text("f = 4\n")
    assert load_object("./mine.py:f", tmp_path, "loss") == 4


def test_one_line_of_an_error_without_text():
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"


@pytest.mark.parametrize("packaged", [False, True])
def test_relative_imports(tmp_path, packaged):
    (tmp_path / "near.py").write_text("VALUE = 7\n")
    if packaged:
        (tmp_path / "__init__.py").write_text("")
    write(tmp_path, "from .near import VALUE\ndef f(completion): return VALUE\n")
    assert load("./mine.py:f", tmp_path).call("") == 7


def test_imports_from_the_packages_around(tmp_path):
    inner = tmp_path / "around_mine" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text("")
    (inner.parent / "common.py").write_text("VALUE = 7\n")
    lines = "from ..common import VALUE\nfrom around_mine.common import VALUE as SAME\n"
    write(inner, f"{lines}def f(completion): return VALUE + SAME\n")
    assert load("./around_mine/inner/mine.py:f", tmp_path).call("") == 14


def test_files_of_one_name_and_names_with_dots(tmp_path):
    for number, folder in enumerate(("a.b", "c%2E")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "json.py").write_text(f"def f(completion): return {number}\n")
        (tmp_path / folder / "my.reward.py").write_text(f"def f(completion): return {10 + number}\n")
    specs = ["a.b/json.py:f", "c%2E/json.py:f", "./a.b/my.reward.py:f", "./c%2E/my.reward.py:f"]
    assert [load(spec, tmp_path).call("") for spec in specs] == [0, 1, 10, 11]
