"""The Hugging Face Hub face of the registry: its read side over HTTP, as stock `huggingface_hub` asks for it."""
