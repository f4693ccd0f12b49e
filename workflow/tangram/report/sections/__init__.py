"""The parts of the page, one function per section."""
