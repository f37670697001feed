"""RLHF on one consumer GPU: four LoRA roles on one frozen 4-bit backbone."""

__version__ = "0.1.0"
