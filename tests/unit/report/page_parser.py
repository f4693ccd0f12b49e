"""The report's page, taken apart for tests."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """The text of every table, by the id of its section, as rows of cells; every tag with its attributes; every id."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.rows, self.section, self.text, self.source = [], {}, "", "", text
        self.open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "path", "rect", "use", "circle"):
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attributes)["id"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[self.section][-1][-1] += data

    def row(self, section, label):
        return next(row for row in self.rows[section] if row and row[0] == label)
