"""An sbatch script: Ray's head on the first node, workers on the others, the run on the head, all ended with it.

`asyncrl submit RECIPE --slurm | sbatch --partition=…`: what the site wants is said to sbatch, whose options win over
those in the script. A job that is requeued, or submitted again with the same script, takes its run up.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from asyncrl.cluster import bundle
from asyncrl.cluster.shape import num_nodes, pieces, reward_pieces
from asyncrl.recipe.load import dump
from asyncrl.recipe.schema import Recipe

_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={num_nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --output=%x-%j.log
#SBATCH --requeue
# Slurm says SIGTERM {stop_s} s before the time is up: the run finishes its step, saves and ends.
#SBATCH --signal=B:TERM@{stop_s}
{gpus}
set -euo pipefail
cd {base_dir}
export PATH={bin}:"$PATH" RAY_USAGE_STATS_ENABLED=0
# Whoever knows the token commands the cluster; nobody else does.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"

recipe="$(mktemp -d)/{name}.yaml"
cat > "$recipe" <<'ASYNCRL_RECIPE'
{recipe}ASYNCRL_RECIPE

hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
head="${{hosts%%$'\\n'*}}"
head_ip="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{{print $1}}')"
export RAY_ADDRESS="$head_ip:$((20000 + SLURM_JOB_ID % 10000))"
# Ray lets everyone write to its own folder, so on every node it is in one that no one else enters.
tmp="/tmp/asyncrl-$(python -c 'import secrets; print(secrets.token_hex(8))')"
everywhere=(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES")
"${{everywhere[@]}}" mkdir -m 700 "$tmp"
pids=()
trap 'kill "${{pids[@]}}" 2>/dev/null || true; wait; rm -rf "$(dirname "$recipe")"
  "${{everywhere[@]}}" rm -rf "$tmp" || true' EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head" \\
  ray start --head --block --include-dashboard=false --node-ip-address="$head_ip" --port="${{RAY_ADDRESS##*:}}" \\
  --temp-dir="$tmp/ray" &
pids+=($!)
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  others=$((SLURM_JOB_NUM_NODES - 1))
  srun --nodes="$others" --ntasks="$others" --exclude="$head" \\
    ray start --block --address="$RAY_ADDRESS" --temp-dir="$tmp/ray" &
  pids+=($!)
fi
python -m asyncrl.cluster.wait "$SLURM_JOB_NUM_NODES"

python -m asyncrl train "$recipe" --or-resume &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run" && code=0 || code=$?
# A signal ends the wait, not the run.
while kill -0 "$run" 2>/dev/null; do wait "$run" && code=0 || code=$?; done
exit "$code"
"""


def script(recipe: Recipe, name: str, base_dir: Path, gpus_per_node: int, nodes: int | None) -> str:
    """The script for a checked recipe; `nodes`: more than the recipe needs, for CPU runs say."""
    bundle.check_run_dir(recipe)
    needed = num_nodes(recipe, gpus_per_node)
    return _SCRIPT.format(
        name=bundle.plain(name),
        num_nodes=max(needed, nodes or 1),
        gpus=f"#SBATCH --gpus-per-node={gpus_per_node}\n" if pieces(recipe) + reward_pieces(recipe) else "",
        stop_s=int(recipe.deadlines.stop_s),
        base_dir=shlex.quote(str(base_dir)),
        bin=shlex.quote(str(Path(sys.executable).parent)),
        recipe=dump(recipe),
    )
