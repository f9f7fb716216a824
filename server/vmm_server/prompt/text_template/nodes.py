"""What a template in Go's language is parsed to. Lines count from 1."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, number, boolean, or `nil` (`None`)."""

    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Fields:
    """`.A.B`: fields of the dot; without names it is the dot itself."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """`$name.A.B`; `$` alone is the data that the template was given."""

    name: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Function:
    """A function's name, with the fields of its result where it stands as an argument."""

    name: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parenthesized:
    """`(pipeline).A.B`"""

    pipeline: "Pipeline"
    names: tuple[str, ...]


Operand = Literal | Fields | Variable | Function | Parenthesized


@dataclass(frozen=True, slots=True)
class Command:
    """A function and its arguments, or one value."""

    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`$a, $b := command | command`: each command's value is the last argument of the next one."""

    commands: tuple[Command, ...]
    variables: tuple[str, ...]
    declares: bool
    """`:=` rather than `=`."""
    line: int


@dataclass(frozen=True, slots=True)
class Text:
    """What stands between actions, trimmed."""

    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """Prints its pipeline's value, unless that goes into a variable."""

    pipeline: Pipeline


@dataclass(frozen=True, slots=True)
class Branch:
    """`if … else if … else`, or the same with `with`, whose bodies see the condition as their dot."""

    sets_dot: bool
    arms: tuple[tuple[Pipeline, "Nodes"], ...]
    otherwise: "Nodes"


@dataclass(frozen=True, slots=True)
class Range:
    """A loop; `otherwise` is for one without a turn."""

    pipeline: Pipeline
    body: "Nodes"
    otherwise: "Nodes"


@dataclass(frozen=True, slots=True)
class Include:
    """`template "name" pipeline`"""

    name: str
    pipeline: Pipeline | None
    line: int


@dataclass(frozen=True, slots=True)
class Jump:
    """`break` or `continue`."""

    is_break: bool


Node = Text | Action | Branch | Range | Include | Jump
Nodes = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole template."""

    root: Nodes
    defined: Mapping[str, Nodes]
    """By `define` and `block`."""
