"""FlexPipe: an LLM server whose pipeline of stages reshapes itself while it serves."""

__version__ = "0.1.0"
