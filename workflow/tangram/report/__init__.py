"""Tables and figures of the HTML report."""
