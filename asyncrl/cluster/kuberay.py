"""A RayJob manifest for KubeRay: `asyncrl submit RECIPE --kuberay | kubectl apply -f -`.

Two objects: a ConfigMap with the resolved recipe and the files it names, and the RayJob that starts a cluster, runs on
it, and takes it away. Checked against KubeRay 1.7's CRD in the tests.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import yaml

from asyncrl.cluster import bundle
from asyncrl.cluster.shape import num_nodes, pieces, reward_pieces
from asyncrl.errors import UserError
from asyncrl.recipe.load import dump
from asyncrl.recipe.schema import Recipe

_MOST_BYTES = 2**20
"""Of a ConfigMap (Kubernetes' limit)."""
_CODE, _SHARED = "/asyncrl-run", "/shared"
_RETRIES = 10


def manifest(
    recipe: Recipe,
    name: str,
    base_dir: Path,
    gpus_per_node: int,
    nodes: int | None,
    image: str | None,
    claim: str | None,
) -> str:
    """YAML for a checked recipe. `image`: with asyncrl in it; `claim`: a PersistentVolumeClaim, mounted at /shared."""
    bundle.check_run_dir(recipe)
    name = bundle.plain(name)
    files = {bundle.RECIPE_FILE: dump(recipe), **_files(recipe, base_dir)}
    keys = {f"file-{number}": path for number, path in enumerate(files)}
    if (size := sum(map(len, files.values()))) > _MOST_BYTES:
        raise UserError(
            f"submit: the recipe and the files it names have {size:,} bytes, a ConfigMap takes {_MOST_BYTES:,}; put "
            "data on shared storage and name its absolute path"
        )
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {key: files[path] for key, path in keys.items()},
    }
    count = max(num_nodes(recipe, gpus_per_node), nodes or 1)
    gpus = gpus_per_node if pieces(recipe) + reward_pieces(recipe) else 0
    volumes = [{"name": "run", "configMap": {"name": name, "items": [{"key": k, "path": p} for k, p in keys.items()]}}]
    if claim:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": claim}})
    image = image or "asyncrl:latest"
    workers = {
        "groupName": "workers",
        **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), count - 1),
        "rayStartParams": {},
        "template": _pod("ray-worker", image, gpus, volumes),
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": f"sh -c 'cd {_CODE} && exec python -m asyncrl train {bundle.RECIPE_FILE} --or-resume'",
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": {"PYTHONUNBUFFERED": "1", "PYTHONPATH": _CODE}}),
            "shutdownAfterJobFinishes": True,
            "backoffLimit": _RETRIES,
            "rayClusterSpec": {
                "rayVersion": ray.__version__,
                # KubeRay makes the token, keeps it in a Secret, and hands it to every pod.
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {}, "template": _pod("ray-head", image, gpus, volumes)},
                "workerGroupSpecs": [workers] if count > 1 else [],
            },
        },
    }
    return yaml.dump_all([config, job], Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Text of several lines stays readable, and nothing is an alias of something above."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def _files(recipe: Recipe, base_dir: Path) -> dict[str, str]:
    """Text of the local files that the recipe names, by relative path."""
    found = {}
    for key, path in bundle.named(recipe):
        if Path(path).is_absolute():
            continue
        if os.path.normpath(path).startswith(".."):
            raise UserError(f"{key} {path} is not under the current directory; submit from a folder that has it")
        if (base_dir / path).is_dir():
            raise UserError(
                f"{key} {path} is a folder on this machine; put it on shared storage and name its absolute path"
            )
        try:
            found[str(Path(path))] = (base_dir / path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{key} {path} is not text, as a ConfigMap wants; put it on shared storage and name its absolute path"
            ) from error
    return found


def _pod(container: str, image: str, num_gpus: int, volumes: list[dict[str, Any]]) -> dict[str, Any]:
    resources = {"limits": {"nvidia.com/gpu": num_gpus}} if num_gpus else {}
    paths = {"run": _CODE, "shared": _SHARED}
    # NCCL and the weights in shared memory need more than the 64 MB that a pod has by itself.
    shm = {"name": "shm", "emptyDir": {"medium": "Memory"}}
    mounts = [{"name": volume["name"], "mountPath": paths[volume["name"]]} for volume in volumes]
    mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    spec = {"name": container, "image": image, "resources": resources, "volumeMounts": mounts}
    return {"spec": {"containers": [spec], "volumes": [*volumes, shm]}}
