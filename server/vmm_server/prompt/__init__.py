"""Messages ↔ text: the model's chat template."""
