import json

import datasets
import pytest

from asyncrl.data.source import load_rows
from asyncrl.errors import UserError
from asyncrl.recipe.data import DataRecipe

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(path, **keys):
    return load_rows(DataRecipe(path=str(path), **keys), seed=3)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_local_files(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(ROWS))
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    elif suffix == "csv":
        path.write_text("question,answer\n1+1?,2\n2+2?,4\n")
    elif suffix == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
        next((tmp_path / "saved").glob("*.arrow")).rename(path)
    before = {p for p in tmp_path.rglob("*") if "cache" not in p.parts}
    rows = load(path)
    assert len(rows) == 2
    assert rows.column_names == ["question", "answer"]
    assert {key: str(value) for key, value in rows[1].items()} == ROWS[1]
    assert {p for p in tmp_path.rglob("*") if "cache" not in p.parts} == before


def test_options_reach_the_loader(tmp_path):
    (tmp_path / "rows.csv").write_text("question;answer\n1+1?;2\n")
    assert load(tmp_path / "rows.csv", options={"sep": ";"}).column_names == ["question", "answer"]


def test_a_hub_name_and_its_split_are_passed_on(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("openai/gsm8k", split="test", options={"name": "main"})) == 2
    assert calls == [(("openai/gsm8k",), {"split": "test", "name": "main"})]


def test_a_hub_failure_is_one_sentence_with_the_cause(monkeypatch):
    def load_dataset(*args, **kwargs):
        try:
            raise ConnectionError("no route\n to host")
        except ConnectionError as error:
            raise RuntimeError("something went wrong") from error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^data.path: a/b could not be loaded: ConnectionError: no route to host$"):
        load("a/b")


def test_what_does_not_load_as_a_table_is_refused(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.DatasetDict())
    with pytest.raises(UserError, match="must load as one table of known length, not DatasetDict"):
        load("a/b")


def test_an_empty_split_is_refused(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_list(ROWS).select([]))
    with pytest.raises(UserError, match=r"^data.path: a/b has no rows$"):
        load("a/b", split="train[:0]")


@pytest.mark.parametrize(
    ("name", "text", "keys", "message"),
    [
        ("missing.jsonl", None, {}, r"there is no file .*missing\.jsonl$"),
        ("empty.csv", "question,answer\n", {}, r"empty\.csv has no rows$"),
        ("rows.csv", "a\n1\n", {"split": "test"}, r"^data.split is 'test', but .* has only 'train'"),
        ("bad.parquet", "no table", {}, r"bad\.parquet could not be loaded: \w+: "),
    ],
)
def test_what_a_user_may_get_wrong_with_files(tmp_path, name, text, keys, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / name, **keys)
    assert "\n" not in str(caught.value)


def test_a_list_of_files_is_read_in_its_order(tmp_path):
    (tmp_path / "b.csv").write_text("question,answer\n1+1?,2\n")
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[1]))
    rows = load_rows(DataRecipe(path=[str(tmp_path / "b.csv"), str(tmp_path / "a.jsonl")]), seed=3)
    assert [rows[i] for i in range(len(rows))] == ROWS
    for name, row in zip("ab", ROWS, strict=True):
        datasets.Dataset.from_list([row]).to_parquet(tmp_path / f"{name}.parquet")
    tables = load_rows(DataRecipe(path=[str(tmp_path / f"{name}.parquet") for name in "ab"]), seed=3)
    assert [tables[i] for i in range(len(tables))] == ROWS


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a.parquet", "b.jsonl"], r"a list names files that are all \.jsonl, .*, or all \.parquet, \.arrow$"),
        (["org/name", "org/other"], r"a list names files"),
        (["none.jsonl", "other.jsonl"], r"there is no file none\.jsonl$"),
        (["none.parquet", "other.parquet"], r"there is no file none\.parquet$"),
    ],
)
def test_what_a_user_may_get_wrong_with_a_list(paths, message):
    with pytest.raises(UserError, match=f"^data.path: {message}"):
        load_rows(DataRecipe(path=paths), seed=3)


def test_reasoning_gym_is_seeded_sized_and_configured():
    rows = load("reasoning_gym:chain_sum", options={"min_terms": 2, "max_terms": 2, "max_digits": 1})
    assert len(rows) == 10_000
    assert rows.column_names == ["question", "answer", "metadata"]
    assert rows[7]["metadata"]["num_terms"] == 2
    again = load("reasoning_gym:chain_sum", options={"min_terms": 2, "max_terms": 2, "max_digits": 1, "size": 8})
    assert len(again) == 8
    assert again[7] == rows[7]
    other = load("reasoning_gym:chain_sum", options={"min_terms": 2, "max_terms": 2, "max_digits": 1, "seed": 4})
    assert [other[i] for i in range(5)] != [rows[i] for i in range(5)]


@pytest.mark.parametrize(
    ("path", "keys", "message"),
    [
        ("chain_sun", {}, r"reasoning_gym has no data set 'chain_sun'; did you mean 'chain_sum'\?$"),
        ("chain_sum", {"options": {"min_term": 2}}, r"has no option 'min_term'; did you mean 'min_terms'\?$"),
        ("chain_sum", {"options": {"min_terms": -1}}, r"do not fit reasoning_gym:chain_sum: AssertionError: min_terms"),
        ("chain_sum", {"options": {"min_terms": "x"}}, r"do not fit reasoning_gym:chain_sum: TypeError"),
        ("chain_sum", {"options": {"size": 0}}, r"^data"),
        ("chain_sum", {"split": "test"}, r"has only 'train'"),
    ],
)
def test_what_a_user_may_get_wrong_with_reasoning_gym(path, keys, message):
    with pytest.raises(UserError, match=message):
        load(f"reasoning_gym:{path}", **keys)
