"""What may differ between the start of a run and a resume, if `--accept` names it, and what accepting it means."""

KINDS = {
    "data": "begins the new data at its first row",
    "reward": "goes on with the new reward",
    "prompt": "goes on with the new prompts",
    "training": "goes on with the new from the last checkpoint, whatever the steps since were trained with",
}
