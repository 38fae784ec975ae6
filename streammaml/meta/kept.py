"""What is kept of one context: its episodes, and which of them train and which judge."""

from __future__ import annotations

from dataclasses import dataclass, field

from streammaml.events import Float32s, Ints
from streammaml.meta.cuts import APART_EVERY, Marks

ITEM_BYTES = 512
"""Of an episode beside its arrays."""


@dataclass(slots=True, eq=False)
class Item:
    """One episode, ready to train on."""

    inputs: Float32s  # [n + Q, 2D]
    targets: Ints | Float32s  # [n + Q], slots of the reservoir, or scaled values
    support: int  # n
    begin: int
    """The labels (begin, end] on the context's line."""
    end: int
    arrival: int

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.targets.nbytes + ITEM_BYTES


@dataclass(slots=True)
class Line:
    """Where a context stands in a partition's log. Its count of labels may begin anew there."""

    origin: int
    labels: int = 0
    """Of its latest episode."""
    most: int = 0
    """Labels at most, before they were counted anew too."""
    offset: int = -1
    """The highest one, before the topic of the events was made anew too."""

    def has(self, labels: int, offset: int) -> bool:
        """Whether an episode that ends there may have been taken in already.

        Offsets begin anew with the topic and labels with the worker's state, so a new episode may
        be behind in one of the two, and one that was taken in is ahead in none.
        """
        return offset <= self.offset and labels <= self.most

    def take(self, labels: int, offset: int) -> None:
        """An episode that ends there."""
        self.labels = labels
        self.most, self.offset = max(self.most, labels), max(self.offset, offset)


@dataclass(slots=True)
class Kept:
    """What is kept of one context."""

    apart: bool
    items: list[Item] = field(default_factory=list)  # oldest first
    lines: dict[int, Line] = field(default_factory=dict)
    end: int = 0
    cut: int = 0
    """Nothing that ends beyond it was trained on so far."""
    marks: Marks = field(default_factory=dict)
    """Its cut before it was dropped, or in the process before."""

    def enter(self, partition: int, line: Line, labels: int) -> None:
        """Go on along another line, or one that began anew, by a window up to so many labels.

        On a line without a mark it may be of what was trained on before, where anything was.
        """
        self.lines[partition] = line
        if self.marks:
            self.cut = max(self.cut, line.origin + self.marks.get(partition, labels))

    def remember(self, marks: Marks) -> None:
        """A cut from before."""
        self.marks = marks
        for partition, line in self.lines.items():
            self.enter(partition, line, line.labels)

    def marked(self) -> Marks:
        return self.marks | {p: self.cut - line.origin for p, line in self.lines.items()}

    def split(self, apart: bool) -> tuple[list[Item], list[Item]]:
        """Episodes to train on and to judge by; moves the cut forward to where it now belongs."""
        if not apart:
            tenth = max(1, len(self.items) // APART_EVERY)
            newest = self.items[-tenth:] if len(self.items) > 1 else []
            self.cut = max(self.cut, min((item.begin for item in newest), default=self.end))
        train = [] if apart else [item for item in self.items if item.end <= self.cut]
        return train, [item for item in self.items if item.begin >= self.cut]
