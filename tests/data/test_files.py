"""Rows of text files have the values that the file says."""

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.data import files
from asyncrl.data.files import FileRows
from asyncrl.errors import UserError
from asyncrl.rewards.math import exact_match

GOLDS = [
    "2024-03-02",
    "007",
    "0.50",
    "null",
    "NA",
    "1e3",
    2**70,
    7,
    0.1,
    True,
    None,
    ["a", 1, None],
    {"b": {"c": None}},
]
"""Dates, numbers and nulls as text, integers beyond 64 bits, mixed types: what loaders that infer types change."""
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def rows_of(*paths, **options):
    rows = FileRows(paths, options)
    return [rows[i] for i in range(len(rows))]


def write(path, text, **keys):
    data = text.encode(**keys) if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def same(found, expected):
    """Equal in type too, all the way down."""
    return json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.jsonl.gz", "r.json.gz", "lines.json"])
def test_json_values_are_those_of_the_file(tmp_path, name):
    rows = [{"prompt": "q", "answer": gold} for gold in GOLDS]
    whole = ".json" in name and "jsonl" not in name and name != "lines.json"
    text = json.dumps(rows, indent=1) if whole else "\n\n".join(map(json.dumps, rows))
    assert same(rows_of(write(tmp_path / name, text)), rows)


def test_a_date_is_text_and_its_right_answer_counts(tmp_path):
    path = write(tmp_path / "dates.jsonl", '{"prompt": "q", "answer": "2024-03-02"}\n{"prompt": "q", "answer": "x"}\n')
    assert exact_match("2024-03-02", **rows_of(path)[0]) == 1.0


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz"])
def test_csv_cells_are_text(tmp_path, name):
    cells = ["007", "0.50", "1e3", "NA", "None", "null", "", "2024-03-02", "True", 'say "hi", you', "two\nlines"]
    quoted = "".join(f'"{cell.replace(chr(34), chr(34) * 2)}",q\r\n' for cell in cells)
    found = rows_of(write(tmp_path / name, "\ufeffanswer,prompt\r\n" + quoted))
    assert found == [{"answer": cell, "prompt": "q"} for cell in cells]


@given(st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=3), max_size=8))
def test_any_row_comes_back_with_all_columns(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("rows") / "r.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "\n")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    assert same(rows_of(path), [{name: row.get(name) for name in columns} for row in rows])


def test_rows_are_those_of_the_start_and_know_their_line(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_IN_MEMORY_BYTES", 10)
    a, b = write(tmp_path / "a.jsonl", '{"x": 1}\n\n{"x": 2}'), write(tmp_path / "b.csv", 'x,y\n"1\n",2\n3,4\n')
    rows = FileRows([a, b], {})
    write(a, "")
    b.unlink()
    assert [rows[i] for i in (3, 1, 0, 2)] == [
        {"x": "3", "y": "4"},
        {"x": 2, "y": None},
        {"x": 1, "y": None},
        {"x": "1\n", "y": "2"},
    ]
    assert [rows.where(i) for i in range(4)] == [f"{a} line 1", f"{a} line 3", f"{b} line 2", f"{b} line 4"]


def test_rows_of_a_json_list_are_counted(tmp_path):
    rows = FileRows([write(tmp_path / "a.json", json.dumps([{"a": 1}, {"a": 2}], indent=2))], {})
    assert rows.where(1) == f"{tmp_path}/a.json row 2"


def test_options(tmp_path):
    assert rows_of(write(tmp_path / "r.json", '{"v": 1, "data": [{"a": 1}]}'), field="data") == [{"a": 1}]
    path = write(tmp_path / "r.csv", "a;b\n'x;y';\xe9\n", encoding="latin-1")
    assert rows_of(path, sep=";", quotechar="'", encoding="latin-1") == [{"a": "x;y", "b": "\xe9"}]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("none.jsonl", None, {}, "there is no file PATH"),
        ("a.jsonl", "", {}, "PATH is empty; write a task a line"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', {}, r"PATH line 2 is not valid JSON: Expecting value, column \d+"),
        ("a.jsonl.gz", '{"a": 1}\n{"a" 1}', {}, r"PATH line 2 is not valid JSON: Expecting ':' delimiter, column 6"),
        ("a.jsonl", '{"a": 1}\n[1]\n', {}, "PATH line 2 is no object of columns, such as .*"),
        ("a.jsonl", b'{"a": "\xe9"}\n', {}, "PATH line 1 is not valid JSON: it is not UTF-8 text"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', {}, "PATH line 2 has the key 'a' twice in one object; .*"),
        ("a.jsonl", '{"a": [{"role": "x", "role": "y"}]}', {}, "PATH line 1 has the key 'role' twice in one object"),
        ("a.json", '[{"a": 1},\n{"a": {"b": 1, "b": 1}}]', {}, "PATH row 2 has the key 'b' twice in one object"),
        ("a.json", '{"d": [{}, {"a": 1, "a": 1}]}', {"field": "d"}, "PATH row 2 has the key 'a' twice in one object"),
        ("a.json", '{"d": [], "d": []}', {"field": "d"}, "PATH has the key 'd' twice in one object"),
        ("a.json", '{"a": 1}\n{"a": 2, "a": 3}', {}, "PATH line 2 has the key 'a' twice in one object"),
        *(
            ("a.jsonl", f'{{"a": 1}}\n{{"a": 2}}{odd}\n', {}, "PATH line 2 is not valid JSON: Extra data, column 9")
            for odd in "\xa0\x85\u2028\u3000\x0b\x0c\x1c\x1f"
        ),
        ("a.jsonl", '{"a": 1}\n\x0c\n', {}, "PATH line 2 is not valid JSON: Expecting value, column 1"),
        ("a.jsonl", f'{{"a": {"[" * 10**5}', {}, "PATH line 1 is not valid JSON: it is nested too deep"),
        ("a.jsonl", f'{{"a": {"1" * 5000}}}', {}, "PATH line 1 is not valid JSON: Exceeds the limit .*"),
        ("a.json", '[\n{"a": 1},\n]', {}, "PATH line 3 is not valid JSON: Expecting value, column 1"),
        ("a.json", '{"a": 1}', {"field": "data"}, "PATH has no key 'data' at its top; name the one of the rows"),
        ("a.json", "[{}, 3]", {}, "PATH row 2 is no object of columns, .*"),
        ("a.csv", "a,b\n1\n", {}, "PATH line 2 has 1 cells, its header 2; put cells .* in quotes"),
        ("a.csv", "a,a\n1,2\n", {}, "PATH has two columns 'a'; rename one"),
        ("a.csv", ",".join(map(str, range(200_000))) + "\n", {}, "with PATH there are more than 1000 columns.*"),
        ("a.csv", 'a,b\n"1"x,2\n', {}, "PATH line 2 is not valid CSV: .*"),
        (
            "a.csv",
            b"a\n\xe9\n",
            {},
            "PATH is not UTF-8 text; name its encoding in data.options.encoding, such as latin-1",
        ),
        ("a.csv", "a\n1\n", {"sp": ";"}, "a .csv file has no option 'sp', only sep, .*; did you mean sep?"),
        ("a.csv", "a\n1\n", {"sep": ";;"}, "data.options do not fit PATH: .*"),
        ("a.csv", "a\n1\n", {"encoding": "utf-9"}, "data.options do not fit PATH: .*"),
        ("a.jsonl", "{}", {"field": "x"}, "a .jsonl file has no option 'field', only none"),
    ],
)
def test_what_a_user_may_get_wrong(tmp_path, name, text, options, message):
    path = tmp_path / name
    if text is not None:
        write(path, text)
    with pytest.raises(UserError) as caught:
        FileRows([path], options)
    assert "\n" not in str(caught.value)
    shown = str(caught.value).replace(str(path), "PATH")
    assert re.search(message.replace("?", r"\?"), shown), shown


@pytest.mark.parametrize("data", [b"not gzip", gzip.compress(b'{"a": 1}\n' * 10**4)[:-20]])
def test_a_broken_gzip_file_is_one_sentence(tmp_path, data):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz cannot be read: "):
        FileRows([path], {})
