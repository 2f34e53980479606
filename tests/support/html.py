"""An HTML page as tests read it: its tags, whether they close, and its words."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, and the visible text, of a page."""

    VOID = {"meta", "img", "br", "path", "use", "rect", "circle", "image"}
    BLOCKS = frozenset("td th h1 h2 h3 h4 p li dt dd div span b strong summary figcaption title text".split())

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag
        self.text += " " if tag in self.BLOCKS else ""

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def words(self) -> str:
        return " ".join(self.text.split())
