"""The data of the studies: images."""
