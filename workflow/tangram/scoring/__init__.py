"""The quality of each piece."""
