"""LoRA for motion and image models: formats, host weight patches."""
