"""One module or folder a paper; `run_study` of each is what `python -m tangram_studies NAME` runs."""
