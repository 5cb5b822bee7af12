"""Environments: what rolls a task out over one turn or many, in processes of its own."""
