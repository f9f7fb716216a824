"""What a tree reads, and a tree's beginning."""

from collections.abc import Iterator
from dataclasses import replace

from vmm_server.prompt.text_template.nodes import (
    Action,
    Branch,
    Fields,
    Include,
    Node,
    Nodes,
    Parenthesized,
    Pipeline,
    Range,
    Variable,
)


def identifiers(nodes: Nodes) -> Iterator[str]:
    """The names of all fields in the nodes."""
    for node in nodes:
        if isinstance(node, Branch):
            for condition, body in node.arms:
                yield from _names(condition)
                yield from identifiers(body)
            yield from identifiers(node.otherwise)
        elif isinstance(node, Range):
            yield from _names(node.pipeline)
            yield from identifiers(node.body)
            yield from identifiers(node.otherwise)
        elif isinstance(node, Action | Include) and node.pipeline is not None:
            yield from _names(node.pipeline)


def _names(pipeline: Pipeline) -> Iterator[str]:
    for command in pipeline.commands:
        for operand in command.operands:
            if isinstance(operand, Fields | Variable | Parenthesized):
                yield from operand.names
            if isinstance(operand, Parenthesized):
                yield from _names(operand.pipeline)


def cut_after(name: str, nodes: Nodes) -> Nodes:
    """The nodes up to the first action that reads the field, without anything that stands behind it."""
    return _cut(name, nodes)[0]


def _cut(name: str, nodes: Nodes) -> tuple[Nodes, bool]:
    """(what is left, whether it was cut)."""
    for index, node in enumerate(nodes):
        if (rest := _cut_node(name, node)) is not None:
            return (*nodes[:index], rest), True
    return nodes, False


def _cut_node(name: str, node: Node) -> Node | None:
    """`None`: the field is not read in it. What is printed counts, what is asked does not."""
    if isinstance(node, Action):
        return node if name in _names(node.pipeline) else None
    if isinstance(node, Range):
        body, is_cut = _cut(name, node.body)
        if is_cut:
            return replace(node, body=body, otherwise=())
        otherwise, is_cut = _cut(name, node.otherwise)
        return replace(node, otherwise=otherwise) if is_cut else None
    if isinstance(node, Branch):
        for index, (condition, body) in enumerate(node.arms):
            body, is_cut = _cut(name, body)
            if is_cut:
                return Branch(node.sets_dot, (*node.arms[:index], (condition, body)), ())
        otherwise, is_cut = _cut(name, node.otherwise)
        return replace(node, otherwise=otherwise) if is_cut else None
    return None
