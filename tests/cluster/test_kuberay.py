"""The manifest against the schema of KubeRay's RayJob: ray-operator/config/crd/bases/ray.io_rayjobs.yaml of
ray-project/kuberay at feeaf72 (version v1), without its descriptions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from asyncrl.cli import main

ROOT = Path(__file__).resolve().parents[2]
TINY = ["recipes/tiny.yaml", "run_dir=/shared/tiny"]
LARGE = ["rollout.replicas=3", "rollout.gpus_per_replica=4", "rollout.engine_args.tensor_parallel_size=4"]

Objects = Callable[..., dict[str, Any]]


def closed(schema: Any) -> Any:
    """A field that the schema does not know is an error, as it is to `kubectl apply`."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: closed(value) for key, value in schema.items()}
    is_object = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    return out


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    packed = (Path(__file__).parent / "rayjob_crd.json.gz").read_bytes()
    crd = closed(json.loads(gzip.decompress(packed)))
    crd["properties"]["metadata"] = {"type": "object"}
    return crd


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Objects:
    def make(*arguments: str) -> dict[str, Any]:
        monkeypatch.chdir(ROOT)
        assert main(["submit", *arguments, "--kuberay"]) == 0
        return {made["kind"]: made for made in yaml.safe_load_all(capsys.readouterr().out)}

    return make


@pytest.mark.parametrize("arguments", [[], [*LARGE, "trainer.ranks=8", "trainer.gpus_per_rank=1"], ["--claim", "data"]])
def test_the_manifest_is_a_rayjob(objects: Objects, schema: dict[str, Any], arguments: list[str]) -> None:
    jsonschema.validate(objects(*TINY, *arguments)["RayJob"], schema)


def test_the_schema_refuses_what_it_does_not_know(objects: Objects, schema: dict[str, Any]) -> None:
    job = objects(*TINY)["RayJob"]
    job["spec"]["rayClusterSpec"]["headGroup"] = {}
    with pytest.raises(jsonschema.ValidationError, match="headGroup"):
        jsonschema.validate(job, schema)


def test_nodes_and_gpus(objects: Objects) -> None:
    job = objects(*TINY, *LARGE, "trainer.ranks=8", "trainer.gpus_per_rank=1", "--image", "mine:1")["RayJob"]
    cluster = job["spec"]["rayClusterSpec"]
    workers = cluster["workerGroupSpecs"][0]
    assert workers["replicas"] == 2  # 20 GPUs are 3 nodes of 8, one of them the head
    for pod in (cluster["headGroupSpec"], workers):
        container = pod["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
        assert container["image"] == "mine:1"
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_config_map_has_the_recipe_and_what_it_names(objects: Objects) -> None:
    made = objects(*TINY)
    items = made["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"][0]["configMap"][
        "items"
    ]
    files = {item["path"]: made["ConfigMap"]["data"][item["key"]] for item in items}
    assert files["recipes/tiny_reward.py"] == (ROOT / "recipes/tiny_reward.py").read_text()
    assert yaml.safe_load(files["asyncrl_recipe.yaml"])["run_dir"] == "/shared/tiny"


def test_what_lies_elsewhere_does_not_travel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT / "tests")
    assert main(["submit", "../recipes/tiny.yaml", "run_dir=/shared/tiny", "--kuberay"]) == 2
    assert "reward ../recipes/tiny_reward.py is not under the current directory" in capsys.readouterr().err
