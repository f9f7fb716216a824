"""A tree and data → text: Go's rules for dots, variables, truth and missing fields, within bounds.

What one execution may use is in its `Budget`: characters in a text and in all of them, and processor time. On top of
that come `MAX_STEPS` steps, one for each node, command and turn of a loop, `MAX_DEPTH` blocks, parentheses and
`template` calls within one another, and `MAX_VARIABLES` variables in sight at once.
"""

from collections.abc import Mapping
from enum import Enum

from vmm_server.prompt.budget import Budget
from vmm_server.prompt.text_template.functions import LAZY, TemplateFunction
from vmm_server.prompt.text_template.nodes import (
    Action,
    Branch,
    Command,
    Fields,
    Function,
    Include,
    Jump,
    Literal,
    Node,
    Nodes,
    Operand,
    Parenthesized,
    Pipeline,
    Range,
    Text,
    Tree,
    Variable,
)
from vmm_server.prompt.text_template.values import ExecutionError, Struct, field, is_true, show, type_name

MAX_STEPS = 300_000
MAX_DEPTH = 120
MAX_VARIABLES = 256
_MAX_RANGE = 100_000
_STEPS_A_TICK = 1024
_NOTHING = object()
"""No value comes from a command before."""


class _Flow(Enum):
    """How the nodes of a list were left before its end."""

    BREAK = 1
    CONTINUE = 2


class Execution:
    """One or several executions that share their bounds."""

    def __init__(self, tree: Tree, functions: Mapping[str, TemplateFunction], budget: Budget) -> None:
        self._defined = tree.defined
        self._functions = functions
        self._budget = budget
        self._variables: list[tuple[str, object]] = []
        self._output: list[str] = []
        self._length = 0
        self._steps = 0
        self._depth = 0
        self.line = 1
        """Of the action that is at work, for errors."""

    def run(self, nodes: Nodes, data: object) -> str:
        """What the nodes print. Raises `ExecutionError`, `TemplateTooCostly`."""
        self._output, self._length = [], 0
        self._variables = [("$", data)]
        self._nodes(nodes, data)
        return "".join(self._output)

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise ExecutionError(f"it takes more than {MAX_STEPS} steps")
        if self._steps % _STEPS_A_TICK == 0:
            self._budget.tick()

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExecutionError(f"more than {MAX_DEPTH} blocks, parentheses and templates are at work in one another")

    def _print(self, text: str) -> None:
        self._length += len(text)
        self._budget.check(self._length)
        self._budget.spend(len(text))
        self._output.append(text)

    def _nodes(self, nodes: Nodes, dot: object) -> _Flow | None:
        for node in nodes:
            if (flow := self._node(node, dot)) is not None:
                return flow
        return None

    def _node(self, node: Node, dot: object) -> _Flow | None:
        self._step()
        if isinstance(node, Text):
            self._print(node.text)
        elif isinstance(node, Action):
            value = self._pipeline(node.pipeline, dot)
            if not node.pipeline.variables:
                self._print(show(value, self._budget))
        elif isinstance(node, Jump):
            return _Flow.BREAK if node.is_break else _Flow.CONTINUE
        elif isinstance(node, Include):
            self._include(node, dot)
        else:
            num_variables = len(self._variables)
            self._deeper()
            flow = self._branch(node, dot) if isinstance(node, Branch) else self._range(node, dot)
            self._depth -= 1
            del self._variables[num_variables:]
            return flow
        return None

    def _branch(self, node: Branch, dot: object) -> _Flow | None:
        for condition, body in node.arms:
            value = self._pipeline(condition, dot)
            if is_true(value):
                return self._nodes(body, value if node.sets_dot else dot)
        return self._nodes(node.otherwise, dot)

    def _range(self, node: Range, dot: object) -> _Flow | None:
        value = self._pipeline(node.pipeline, dot, sets=False)
        turns = self._turns(value, len(node.pipeline.variables))
        num_variables = len(self._variables)
        for key, item in turns:
            self._step()
            targets = node.pipeline.variables
            values = (key, item) if len(targets) == 2 else (item,)
            for name, new in zip(targets, values, strict=False):
                self._set(name, new, node.pipeline.declares)
            flow = self._nodes(node.body, item)
            del self._variables[num_variables:]
            if flow is _Flow.BREAK:
                break
        return None if turns else self._nodes(node.otherwise, dot)

    def _turns(self, value: object, num_variables: int) -> list[tuple[object, object]]:
        """(key, item) of each turn."""
        if value is None:
            return []
        if isinstance(value, list):
            return list(enumerate(value))
        if isinstance(value, dict) and not isinstance(value, Struct):
            return list(value.items())
        if isinstance(value, int) and not isinstance(value, bool):
            if num_variables > 1:
                raise ExecutionError("range over a number takes one variable")
            if value > _MAX_RANGE:
                raise ExecutionError(f"range over more than {_MAX_RANGE} numbers")
            return [(number, number) for number in range(value)]
        raise ExecutionError(f"range over a value of type {type_name(value)}")

    def _include(self, node: Include, dot: object) -> None:
        self.line = node.line
        if node.name not in self._defined:
            raise ExecutionError(f"the template {node.name!r} is not defined")
        value = None if node.pipeline is None else self._pipeline(node.pipeline, dot)
        outer, self._variables = self._variables, [("$", value)]
        self._deeper()
        self._nodes(self._defined[node.name], value)
        self._depth -= 1
        self._variables = outer

    def _pipeline(self, pipeline: Pipeline, dot: object, *, sets: bool = True) -> object:
        self.line = pipeline.line
        value: object = _NOTHING
        for command in pipeline.commands:
            value = self._command(command, dot, value)
        for name in pipeline.variables if sets else ():
            self._set(name, value, pipeline.declares)
        return value

    def _set(self, name: str, value: object, declares: bool) -> None:
        if declares:
            self._variables.append((name, value))
            if len(self._variables) > MAX_VARIABLES:
                raise ExecutionError(f"more than {MAX_VARIABLES} variables are in sight")
            return
        for index in reversed(range(len(self._variables))):
            if self._variables[index][0] == name:
                self._variables[index] = (name, value)
                return
        raise ExecutionError(f"the variable {name} is not defined here")

    def _command(self, command: Command, dot: object, previous: object) -> object:
        self._step()
        first, *rest = command.operands
        if isinstance(first, Function) and not first.names:
            return self._call(first.name, rest, dot, previous)
        if rest or previous is not _NOTHING:
            raise ExecutionError("a value that is no function is given arguments")
        return self._value(first, dot)

    def _call(self, name: str, operands: list[Operand], dot: object, previous: object) -> object:
        if name in LAZY:
            return self._decide(name, operands, dot, previous)
        arguments = [self._value(operand, dot) for operand in operands]
        if previous is not _NOTHING:
            arguments.append(previous)
        function = self._functions[name]
        if len(arguments) < function.least or (function.most is not None and len(arguments) > function.most):
            raise ExecutionError(f"{name} is given {len(arguments)} arguments")
        return function.call(self._budget, *arguments)

    def _decide(self, name: str, operands: list[Operand], dot: object, previous: object) -> object:
        """`and`: the first value that is not true, else the last; `or`: the first that is true, else the last."""
        if not operands and previous is _NOTHING:
            raise ExecutionError(f"{name} is given 0 arguments")
        value: object = None
        for operand in operands:
            value = self._value(operand, dot)
            if is_true(value) is (name == "or"):
                return value
        return value if previous is _NOTHING else previous

    def _value(self, operand: Operand, dot: object) -> object:
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Fields):
            return self._fields(dot, operand.names)
        if isinstance(operand, Variable):
            return self._fields(self._variable(operand.name), operand.names)
        if isinstance(operand, Function):
            return self._fields(self._call(operand.name, [], dot, _NOTHING), operand.names)
        return self._parenthesized(operand, dot)

    def _parenthesized(self, operand: Parenthesized, dot: object) -> object:
        self._deeper()
        value = self._pipeline(operand.pipeline, dot)
        self._depth -= 1
        return self._fields(value, operand.names)

    def _variable(self, name: str) -> object:
        for known, value in reversed(self._variables):
            if known == name:
                return value
        raise ExecutionError(f"the variable {name} is not defined here")

    def _fields(self, value: object, names: tuple[str, ...]) -> object:
        """A chain of fields. Of nothing it is nothing; what a map lacks has no fields."""
        if value is None:
            return None
        for index, name in enumerate(names):
            if value is None:
                raise ExecutionError(f"there is no field {name} in .{'.'.join(names[:index])}, which is nil")
            value = field(value, name)
        return value
