"""What libraries say at a command, and what asyncrl does."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from asyncrl.recipe.cores import SPIN
from asyncrl.terminal.escape import VisibleFormatter

SILENCE = {
    "DATASETS_VERBOSITY": "critical",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_SILENT": "true",
}


def quiet() -> None:
    """Only asyncrl speaks, unless the environment asks a library to."""
    for name, value in (*SILENCE.items(), *SPIN.items()):
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(asctime)s %(level)s%(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    logging.getLogger("asyncrl").setLevel(logging.INFO)
