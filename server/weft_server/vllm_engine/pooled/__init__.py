"""QA-LoRA on pooled inputs inside vLLM: slots whose A is a group's size narrower, beside LoRA's, in one batch."""
