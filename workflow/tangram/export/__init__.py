"""Children in the formats of inference engines: one file per format."""
