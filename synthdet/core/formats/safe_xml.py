"""XML without its dangers: a tree of elements that know their line.

The standard library's ElementTree reads a DOCTYPE and expands the entities in it (measured with
expat 2.5: a small one is expanded, a "billion laughs" is stopped only at 100 times the input, and an
outside one is left out). No annotation tool writes a DOCTYPE, so one is refused before anything in
it is read; and the tree stays shallow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

_DEEPEST = 32


@dataclass(slots=True)
class Element:
    """An element: its name, attributes, text, children, and the line where it begins."""

    tag: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def first(self, tag: str) -> Element | None:
        """The first child of a name."""
        return next((child for child in self.children if child.tag == tag), None)

    def every(self, tag: str) -> list[Element]:
        """All children of a name."""
        return [child for child in self.children if child.tag == tag]

    def words(self, *path: str) -> str:
        """The text at a path of names below this element, without blanks around it; "" if none."""
        element: Element | None = self
        for tag in path:
            element = element.first(tag) if element else None
        return element.text.strip() if element else ""


def parse_xml(content: bytes) -> Element:
    """The root of an XML file.

    Args:
        content: The file's bytes: XML names its own encoding.

    Raises:
        ValueError: Not well-formed, too deep, or with a DOCTYPE; names the line.

    Examples:
        >>> root = parse_xml(b"<annotation><object><name> seal </name></object></annotation>")
        >>> root.words("object", "name")
        'seal'
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    above: list[Element] = []
    roots: list[Element] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(above) >= _DEEPEST:
            raise ValueError(f"line {parser.CurrentLineNumber}: is nested too deeply")
        element = Element(tag, attributes, parser.CurrentLineNumber)
        (above[-1].children if above else roots).append(element)
        above.append(element)

    def text(words: str) -> None:
        if above:
            above[-1].text += words

    def refuse(*_arguments: object) -> None:
        raise ValueError(
            f"line {parser.CurrentLineNumber}: has a DOCTYPE, which is not read for safety: take it out"
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _tag: above.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise ValueError(f"line {error.lineno}: is not readable as XML: {what}") from error
    except LookupError as error:
        raise ValueError(f"line 1: {error}") from error
    return roots[0]
