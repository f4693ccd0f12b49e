"""The measured time and memory of each piece."""
