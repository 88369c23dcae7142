"""What a browser makes of HTML, for the tests of what the explorer shows."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser makes of a piece of HTML: its text, its tags, and the text inside each."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.inside, self.open = "", [], {}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        self.inside.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        for tag in set(self.open):
            self.inside[tag][-1] += data
