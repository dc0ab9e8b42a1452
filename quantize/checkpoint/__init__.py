"""Sources: folders of Hugging Face and PyTorch, GGUF files, LoRA adapters; their configurations and vocabularies."""
