"""A token with its reward, and what a page holds when a browser reads it."""

from html.parser import HTMLParser
from typing import NamedTuple


class Token(NamedTuple):
    text: str
    reward: float


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.values, self.text = set(), set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value for name, value in attrs if name == "title"]

    def handle_data(self, data):
        self.text += data


def read(source):
    reader = Reader()
    reader.feed(source)
    reader.close()
    return reader
