"""Tokens → tree. What is not supported, or makes no sense, is refused here with its line, before anything runs."""

from collections.abc import Callable, Container
from typing import NoReturn

from vmm_server.prompt.text_template.lexer import Kind, Token, fail, read_tokens
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

MAX_NESTING = 64
"""Blocks and parentheses in one another."""

_CONSTANTS = {"true": True, "false": False, "nil": None}
_ENDS = ("end", "else")
_UNSUPPORTED = ("call", "html", "js", "urlquery")


def parse(source: str, functions: Container[str]) -> Tree:
    """The template's tree. Raises `InvalidRequest` (param `template`) with the line for what cannot be parsed."""
    return _Parser(read_tokens(source), functions).tree()


class _Parser:
    def __init__(self, tokens: list[Token], functions: Container[str]) -> None:
        self._tokens = tokens
        self._position = 0
        self._functions = functions
        self._variables = ["$"]
        self._defined: dict[str, Nodes] = {}
        self._nesting = 0
        self._num_loops = 0

    def tree(self) -> Tree:
        root, end = self._nodes()
        if end.kind is not Kind.END:
            fail(end.line, f"{{{{ {end.text} }}}} without a beginning")
        return Tree(root, self._defined)

    def _peek(self, ahead: int = 0) -> Token:
        return self._tokens[min(self._position + ahead, len(self._tokens) - 1)]

    def _next(self) -> Token:
        token = self._peek()
        self._position += 1
        return token

    def _enter(self, line: int) -> None:
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            fail(line, f"more than {MAX_NESTING} blocks and parentheses are nested in one another")

    def _nodes(self) -> tuple[Nodes, Token]:
        """Nodes up to the `end`, the `else` or the template's end, which is taken and told."""
        nodes: list[Node] = []
        while True:
            token = self._peek()
            if token.kind is Kind.TEXT:
                nodes.append(Text(self._next().text))
            elif token.kind is Kind.END or (token.kind is Kind.WORD and token.text in _ENDS):
                return tuple(nodes), self._next()
            elif (node := self._action(token)) is not None:
                nodes.append(node)

    def _action(self, token: Token) -> Node | None:
        """What one pair of braces holds, with all that belongs to it; nothing, for a definition."""
        controls: dict[str, Callable[[Token], Node | None]] = {
            "if": self._branch,
            "with": self._branch,
            "range": self._range,
            "template": self._include,
            "block": self._block,
            "define": self._define,
            "break": self._jump,
            "continue": self._jump,
        }
        if token.kind is Kind.WORD and token.text in controls:
            return controls[self._next().text](token)
        return Action(self._pipeline(Kind.CLOSE))

    def _branch(self, word: Token) -> Branch:
        self._enter(word.line)
        num_variables = len(self._variables)
        arms: list[tuple[Pipeline, Nodes]] = []
        otherwise: Nodes = ()
        while True:
            condition = self._pipeline(Kind.CLOSE)
            body, end = self._nodes()
            arms.append((condition, body))
            if end.text == "else" and self._peek().kind is Kind.WORD and self._peek().text == word.text:
                self._next()
                continue
            if end.text == "else":
                self._close(end)
                otherwise, end = self._nodes()
            self._end(word, end)
            break
        del self._variables[num_variables:]
        self._nesting -= 1
        return Branch(word.text == "with", tuple(arms), otherwise)

    def _range(self, word: Token) -> Range:
        self._enter(word.line)
        num_variables = len(self._variables)
        pipeline = self._pipeline(Kind.CLOSE, max_variables=2)
        self._num_loops += 1
        body, end = self._nodes()
        self._num_loops -= 1
        otherwise: Nodes = ()
        if end.text == "else":
            self._close(end)
            otherwise, end = self._nodes()
        self._end(word, end)
        del self._variables[num_variables:]
        self._nesting -= 1
        return Range(pipeline, body, otherwise)

    def _include(self, word: Token) -> Include:
        name = self._name(word)
        return Include(name, self._argument(), word.line)

    def _block(self, word: Token) -> Include:
        """A definition, and its use right there."""
        name = self._name(word)
        pipeline = self._pipeline(Kind.CLOSE)
        self._definition(name, word)
        return Include(name, pipeline, word.line)

    def _define(self, word: Token) -> None:
        if self._nesting:
            fail(word.line, "{{ define }} cannot stand inside another block")
        name = self._name(word)
        self._close(word)
        self._definition(name, word)

    def _definition(self, name: str, word: Token) -> None:
        self._enter(word.line)
        outer, num_loops = self._variables, self._num_loops
        self._variables, self._num_loops = ["$"], 0
        body, end = self._nodes()
        self._end(word, end)
        self._variables, self._num_loops = outer, num_loops
        self._nesting -= 1
        if body or name not in self._defined:  # an empty one does not replace another
            self._defined[name] = body

    def _jump(self, word: Token) -> Jump:
        if not self._num_loops:
            fail(word.line, f"{{{{ {word.text} }}}} outside {{{{ range }}}}")
        self._close(word)
        return Jump(word.text == "break")

    def _name(self, word: Token) -> str:
        token = self._next()
        if token.kind is not Kind.LITERAL or not isinstance(token.value, str) or token.text.startswith("'"):
            fail(token.line, f"{word.text} needs a name in quotes")
        return token.value

    def _argument(self) -> Pipeline | None:
        if self._peek().kind is Kind.CLOSE:
            self._next()
            return None
        return self._pipeline(Kind.CLOSE)

    def _close(self, word: Token) -> None:
        token = self._next()
        if token.kind is not Kind.CLOSE:
            fail(token.line, f"{token.text!r} cannot follow {word.text}")

    def _end(self, word: Token, end: Token) -> None:
        if end.kind is Kind.END:
            fail(word.line, f"{{{{ {word.text} }}}} has no {{{{ end }}}}")
        if end.text != "end":
            fail(end.line, f"{{{{ {end.text} }}}} cannot stand here; {{{{ end }}}} is expected")
        self._close(end)

    def _pipeline(self, closing: Kind, *, max_variables: int = 1) -> Pipeline:
        """Up to `CLOSE`, or up to the parenthesis for `SYMBOL`; that is taken too."""
        line = self._peek().line
        variables, declares = self._targets(max_variables)
        commands: list[Command] = []
        while True:
            command = self._command()
            if (
                commands
                and isinstance(command.operands[0], Literal | Fields)
                and not getattr(command.operands[0], "names", ())
            ):
                fail(line, "only a function, a field or a variable can follow |")
            commands.append(command)
            token = self._next()
            if token.kind is Kind.SYMBOL and token.text == "|":
                continue
            if token.kind is closing and token.text not in (",", "=", ":=", "."):
                break
            self._unexpected(token)
        if declares:
            self._variables += variables
        return Pipeline(tuple(commands), variables, declares, line)

    def _targets(self, max_variables: int) -> tuple[tuple[str, ...], bool]:
        """`$a :=`, `$a =`, `$i, $a :=`: the variables, and whether they are new."""
        names: list[str] = []
        start = self._position
        while self._peek().kind is Kind.VARIABLE:
            name, after = self._next(), self._next()
            names.append(name.text)
            if after.text == "," and after.kind is Kind.SYMBOL:
                if len(names) >= max_variables:
                    fail(after.line, "too many variables are given values at once")
                continue
            if after.kind is Kind.SYMBOL and after.text in ("=", ":="):
                if after.text == "=":
                    for target in names:
                        self._check_variable(target, after.line)
                return tuple(names), after.text == ":="
            break
        if len(names) > 1:
            fail(self._peek().line, "variables are given values by := or =")
        self._position = start
        return (), False

    def _command(self) -> Command:
        operands: list[Operand] = []
        while True:
            token = self._peek()
            if token.kind in (Kind.CLOSE, Kind.END) or (token.kind is Kind.SYMBOL and token.text in ("|", ")")):
                break
            if operands and not token.is_spaced and token.text != "(":
                self._unexpected(token)
            operands.append(self._operand())
        if not operands:
            fail(token.line, "a value is missing")
        if operands[0] == Literal(None):
            fail(token.line, "nil alone is no value")
        return Command(tuple(operands))

    def _operand(self) -> Operand:
        token = self._next()
        if token.kind is Kind.LITERAL:
            return Literal(token.value)
        if token.kind is Kind.FIELD:
            return Fields((token.text, *self._fields()))
        if token.kind is Kind.VARIABLE:
            self._check_variable(token.text, token.line)
            return Variable(token.text, self._fields())
        if token.kind is Kind.WORD and token.text in _CONSTANTS:
            return Literal(_CONSTANTS[token.text])
        if token.kind is Kind.WORD and token.text in self._functions:
            return Function(token.text, self._fields())
        if token.kind is Kind.WORD:
            known = "is not supported" if token.text in _UNSUPPORTED else "is not defined"
            fail(token.line, f"the function {token.text} {known}")
        if token.kind is Kind.SYMBOL and token.text == ".":
            return Fields(())
        if token.kind is Kind.SYMBOL and token.text == "(":
            self._enter(token.line)
            pipeline = self._pipeline(Kind.SYMBOL)
            self._nesting -= 1
            return Parenthesized(pipeline, self._fields())
        return self._unexpected(token)

    def _fields(self) -> tuple[str, ...]:
        names: list[str] = []
        while self._peek().kind is Kind.FIELD and not self._peek().is_spaced:
            names.append(self._next().text)
        return tuple(names)

    def _check_variable(self, name: str, line: int) -> None:
        if name not in self._variables:
            fail(line, f"the variable {name} is not defined")

    def _unexpected(self, token: Token) -> NoReturn:
        what = {Kind.CLOSE: "}}", Kind.END: "the template's end"}.get(token.kind, token.text[:40])
        fail(token.line, f"{what} cannot stand here")
