"""Adapters to and from where others keep them: a Hugging Face Hub, OCI image layouts."""
