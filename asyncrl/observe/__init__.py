"""What a run shows of itself: the step record, the trackers, the terminal, the report, the check-up of a machine.

    recorder ──record──▶ metrics.jsonl ──▶ report.html
        │ └────────────▶ wandb, TensorBoard
        └──────────────▶ LiveView (a panel on a terminal, else plain lines)

Nothing here decides anything, and nothing here imports torch, ray or vllm.
"""
