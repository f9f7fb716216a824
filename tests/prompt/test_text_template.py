"""Go's template language: what the documentation of text/template says comes out, comes out."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_server.errors import InvalidRequest
from vmm_server.prompt.budget import Budget, TemplateTooCostly
from vmm_server.prompt.text_template import execution
from vmm_server.prompt.text_template.execution import Execution
from vmm_server.prompt.text_template.functions import BUILTINS, LAZY
from vmm_server.prompt.text_template.parser import MAX_NESTING, parse
from vmm_server.prompt.text_template.values import ExecutionError, JsonList, JsonMap, Struct, TypeNames

STRUCT = Struct("message", {"Role": "user", "Content": "", "Calls": []}, {"role": "user", "content": ""})
DATA: dict[str, Any] = {
    "Name": "Ada",
    "Empty": "",
    "Zero": 0,
    "Two": 2,
    "Half": 0.5,
    "Yes": True,
    "No": False,
    "Null": None,
    "List": ["a", "b", "c"],
    "Numbers": [1, 2, 3],
    "None": [],
    "Map": {"z": 1, "a": 2},
    "Message": STRUCT,
    "Messages": [STRUCT, STRUCT],
    "Tools": JsonList([{"b": 1, "a": "<é>"}]),
    "Arguments": JsonMap({"city": "Paris", "days": 2}),
    "Type": TypeNames(["string"]),
    "Types": TypeNames(["string", "null"]),
    "Deep": {"List": [{"Name": "x"}]},
}


def run(source: str, data: object = DATA) -> str:
    tree = parse(source, {*BUILTINS, *LAZY})
    return Execution(tree, BUILTINS, Budget(lambda: 0.0)).run(tree.root, data)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("plain } text", "plain } text"),
        ("{{ .Name }}!", "Ada!"),
        ("a {{- .Name -}} b", "aAdab"),
        ("a\n\t {{- /* why */ -}} \n b", "ab"),
        ("a {{/* why }} not */}} b", "a  b"),
        ("{{-3}}{{- 3 -}}", "-33"),
        ("{{ .Name\n}}", "Ada"),
        ('{{`raw \\n {{ "text"`}}', 'raw \\n {{ "text"'),
        (r'{{ "\t\"\u00e9\x41\101\U0001F600\\" }}', '\t"éAA😀\\'),
        (r'{{ "\xc3\xa9\xff" }}', "é\ufffd"),
        (
            "{{ 'a' }} {{ '\\n' }} {{ 1_000 }} {{ 0x1F }} {{ 0b11 }} {{ 017 }} {{ -2 }} {{ +3 }}",
            "97 10 1000 31 3 15 -2 3",
        ),
        ("{{ 1.50 }} {{ .5 }} {{ 1e3 }} {{ 1000000.0 }} {{ 1e-5 }} {{ -0.25 }}", "1.5 0.5 1000 1e+06 1e-05 -0.25"),
        ("{{ true }} {{ false }}", "true false"),
    ],
)
def test_texts_and_literals(source: str, text: str) -> None:
    assert run(source) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ .Missing }}", "<no value>"),
        ("{{ .Null }}", "<no value>"),
        ("{{ print .Missing }}", "<nil>"),
        ("{{ $x := .Missing }}{{ $x.Field }}", "<no value>"),
        ("{{ (.Missing).Field }}", "<no value>"),
        ("{{ .Yes }} {{ .Two }} {{ .Half }}", "true 2 0.5"),
        ("{{ .List }} {{ .None }} {{ .Map }}", "[a b c] [] map[a:2 z:1]"),
        ("{{ .Tools }}", '[{"b":1,"a":"<é>"}]'),
        ("{{ .Arguments }} {{ .Arguments.city }}", '{"city":"Paris","days":2} Paris'),
        ("{{ .Type }} {{ .Types }} {{ len .Types }}", "string [string null] 2"),
        ("{{ .Message }}", '{"role":"user","content":""}'),
        ("{{ .Deep.List }} {{ (index .Deep.List 0).Name }}", "[map[Name:x]] x"),
    ],
)
def test_values_and_how_they_print(source: str, text: str) -> None:
    assert run(source) == text


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        *(("Name", 1), ("Empty", 0), ("Zero", 0), ("Two", 1), ("Half", 1), ("Yes", 1), ("No", 0), ("Null", 0)),
        *(("List", 1), ("None", 0), ("Map", 1), ("Message", 1), ("Missing", 0), ("Tools", 1)),
    ],
)
def test_truth(name: str, truth: int) -> None:
    assert run(f"{{{{ if .{name} }}}}1{{{{ else }}}}0{{{{ end }}}}") == str(truth)
    assert run(f"{{{{ not .{name} }}}}") == ("false" if truth else "true")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ if .Zero }}a{{ else if .Name }}b{{ else }}c{{ end }}", "b"),
        ("{{ if .Zero }}a{{ else if .Empty }}b{{ else }}c{{ end }}", "c"),
        ("{{ if .Zero }}a{{ end }}", ""),
        ("{{ with .Name }}{{ . }}{{ $.Two }}{{ else }}none{{ end }}", "Ada2"),
        ("{{ with .Empty }}x{{ else with .Two }}{{ . }}{{ else }}none{{ end }}", "2"),
        ("{{ with .Empty }}x{{ else }}{{ .Name }}{{ end }}", "Ada"),
        ("{{ with $x := .Two }}{{ $x }}{{ . }}{{ end }}", "22"),
        ("{{ if $x := .Zero }}{{ else }}{{ $x }}{{ end }}", "0"),
        ("{{ range .List }}<{{ . }}>{{ end }}", "<a><b><c>"),
        ("{{ range $x := .List }}{{ $x }}{{ . }}{{ end }}", "aabbcc"),
        ("{{ range $i, $x := .List }}{{ $i }}{{ $x }}{{ end }}", "0a1b2c"),
        ("{{ range $key, $value := .Map }}{{ $key }}={{ $value }} {{ end }}", "z=1 a=2 "),
        ("{{ range .None }}x{{ else }}none{{ end }}", "none"),
        ("{{ range .Missing }}x{{ else }}none{{ end }}", "none"),
        ("{{ range .Two }}{{ . }}{{ end }}", "01"),
        ('{{ range .List }}{{ if eq . "b" }}{{ continue }}{{ end }}{{ . }}{{ end }}', "ac"),
        ('{{ range .List }}{{ if eq . "b" }}{{ break }}{{ end }}{{ . }}{{ else }}none{{ end }}', "a"),
        (
            "{{ range .List }}{{ range $.Numbers }}{{ if eq . 2 }}{{ break }}{{ end }}{{ . }}{{ end }}{{ . }}{{ end }}",
            "1a1b1c",
        ),
    ],
)
def test_control(source: str, text: str) -> None:
    assert run(source) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ $x := 1 }}{{ $x }}{{ $x = 2 }}{{ $x }}", "12"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ('{{ $last := "" }}{{ range .List }}{{ $last = . }}{{ end }}{{ $last }}', "c"),
        ("{{ $x := .Message }}{{ $x.Role }}{{ $.Message.Role }}", "useruser"),
        ("{{ $i := 5 }}{{ $x := 0 }}{{ range $i, $x = .List }}{{ end }}{{ $i }}{{ $x }}", "2c"),
        ('{{ $n := len .List | printf "%d!" }}{{ $n }}', "3!"),
    ],
)
def test_variables(source: str, text: str) -> None:
    assert run(source) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ and .Name .Two }} {{ and .Zero .Name.Field }} {{ or .Empty .Name }} {{ or .Zero .Empty }}.", "2 0 Ada ."),
        ("{{ .Two | and .Name }} {{ .Two | or .Name }}", "2 Ada"),
        ('{{ eq .Two 2 }} {{ eq .Name "x" "Ada" }} {{ ne .Name "x" }} {{ eq .Missing "x" }}', "true true true false"),
        ("{{ eq .Missing nil }} {{ eq .Name nil }} {{ ne .Null nil }}", "true false false"),
        ('{{ lt 1 2 }} {{ le 2 2 }} {{ gt 1 2 }} {{ ge 1.5 1.5 }} {{ lt "a" "b" }}', "true true false true true"),
        ('{{ len .List }} {{ len .Map }} {{ len "né" }} {{ len .Empty }}', "3 2 3 0"),
        ('{{ index .List 1 }} {{ index .Map "z" }} {{ index .Map "y" }} {{ index "ab" 1 }}', "b 1 <no value> 98"),
        ('{{ index .Deep "List" 0 "Name" }} {{ index .List }}', "x [a b c]"),
        (
            "{{ slice .List 1 }} {{ slice .List 0 2 }} {{ slice .Name 1 2 }} {{ len (slice .List 3) }}",
            "[b c] [a b] d 0",
        ),
        ('{{ slice "né" 0 2 }}', "n\ufffd"),
        ('{{ print 1 2 "a" "b" 3 .Yes }}', "1 2ab3 true"),
        ('{{ println 1 "a" }}', "1 a\n"),
        ('{{ .Name | printf "%s %s" "Dear" | print }}', "Dear Ada"),
        ("{{ (print .Name).Field }}", None),
    ],
)
def test_functions(source: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(ExecutionError, match="there is no field Field in a value of type string"):
            run(source)
    else:
        assert run(source) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('"%s\\n\\n%s" "a" "b"', "a\n\nb"),
        ('"%v %v %v" 1 .List nil', "1 [a b c] <nil>"),
        ('"%5s|%-5s|%.2s" "ab" "ab" "abc"', "   ab|ab   |ab"),
        ('"%d %03d %+d %x %X %o %b %c %U" 5 7 5 255 255 8 5 65 65', "5 007 +5 ff FF 10 101 A U+0041"),
        ('"%q %q %x" "a\\"é\\n" 65 "é"', '"a\\"é\\n" \'A\' c3a9'),
        ('"%t %T %T %T" true "a" 1 nil', "true string int <nil>"),
        ('"%.2f %e %g %v" 1.234 1.5 1.5 1.5', "1.23 1.500000e+00 1.5 1.5"),
        ('"%s %s %d" .List .Type .Numbers', "[a b c] string [1 2 3]"),
        ('"%s" .Arguments', '{"city":"Paris","days":2}'),
        ('"100%% %d" 1', "100% 1"),
        ('"a%*s|%*d|%.*f" 3 "" -3 7 1 0.25', "a   |7  |0.2"),
        ('"%-05d|%05s|%+.1e" 7 "a" 15.0', "7    |    a|+1.5e+01"),
        ('"%s"', "%!s(MISSING)"),
        ('"%d" "x"', "%!d(string=x)"),
        ('"x" 1 "y"', "x%!(EXTRA int=1, string=y)"),
        ('"%"', "%!(NOVERB)"),
    ],
)
def test_printf(arguments: str, text: str) -> None:
    assert run(f"{{{{ printf {arguments} }}}}") == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('{{ define "x" }}<{{ . }}>{{ end }}{{ template "x" .Name }}{{ template "x" 2 }}', "<Ada><2>"),
        ('{{ template "x" .Name }}{{ define "x" }}<{{ $ }}>{{ end }}', "<Ada>"),
        ('{{ define "x" }}{{ . }}{{ end }}{{ template "x" }}', "<no value>"),
        ('{{ block "x" .List }}{{ len . }}{{ end }}{{ template "x" .Map }}', "32"),
        ('{{ define "x" }}a{{ end }}{{ define "x" }}b{{ end }}{{ template "x" }}', "b"),
        (
            '{{ define "x" }}{{ with . }}{{ template "x" slice . 1 }}.{{ end }}{{ end }}{{ template "x" .List }}',
            "...",
        ),
    ],
)
def test_templates_in_templates(source: str, text: str) -> None:
    assert run(source) == text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a\n{{ .Name ", "line 2: an action is not closed"),
        ("{{ if .Name }}a", "line 1: {{ if }} has no {{ end }}"),
        ("{{ range .List }}\n{{ if . }}{{ end }}", "line 1: {{ range }} has no {{ end }}"),
        ("{{ end }}", "{{ end }} without a beginning"),
        ("\n{{ else }}", "line 2: {{ else }} without a beginning"),
        ("{{ if .A }}{{ else }}{{ else }}{{ end }}", "{{ else }} cannot stand here"),
        ("{{ with .A }}{{ else if .B }}{{ end }}", "'if' cannot follow else"),
        ("{{ if }}{{ end }}", "a value is missing"),
        ("{{ }}", "a value is missing"),
        ("{{ .A | }}", "a value is missing"),
        ("{{ nil }}", "nil alone is no value"),
        ("{{ .A | 5 }}", "only a function, a field or a variable can follow |"),
        ("{{ upper .A }}", "the function upper is not defined"),
        ("{{ html .A }}", "the function html is not supported"),
        ("{{ $x }}", "the variable $x is not defined"),
        ("{{ $x = 1 }}", "the variable $x is not defined"),
        ("{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}", "the variable $x is not defined"),
        ("{{ $a, $b := .List }}", "too many variables"),
        ("{{ range $a, $b, $c := .List }}{{ end }}", "too many variables"),
        ("{{ break }}", "{{ break }} outside {{ range }}"),
        ('{{ range .A }}{{ define "x" }}{{ end }}{{ end }}', "{{ define }} cannot stand inside another block"),
        ("{{ template x }}", "template needs a name in quotes"),
        ("{{ (.A }}", "}} cannot stand here"),
        ("{{ .A) }}", ") cannot stand here"),
        ("{{ .A.5 }}", "cannot stand here"),
        ('{{ "a }}', 'a text that begins with " is not closed'),
        ("{{ `a }}", "a text that begins with ` is not closed"),
        ("{{ /* late */ }}", "'/' cannot stand here in an action"),
        ("{{/* open", "a comment is not closed"),
        ("{{/* a */ .B }}", "a comment must be alone in its action"),
        ("{{ 12abc }}", "12abc is no number"),
        ("{{ 99999999999999999999 }}", "too large a number"),
        (r'{{ "\z" }}', "unknown escape"),
        ("{{ 'ab' }}", "is not one character"),
        ("{{ .A % 2 }}", "'%' cannot stand here in an action"),
        ("{{ a-b }}", "'-' cannot stand here in an action"),
        ("{{" + "(" * (MAX_NESTING + 1) + "}}", "nested in one another"),
        ("{{ if true }}" * (MAX_NESTING + 1), "nested in one another"),
    ],
)
def test_what_cannot_be_parsed_is_refused_with_its_line(source: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        run(source)
    assert caught.value.param == "template"
    assert words in caught.value.message
    assert "in line " in caught.value.message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ .Message.Missing }}", "there is no field Missing in a message"),
        ("{{ .Missing.Field }}", "there is no field Field in .Missing, which is nil"),
        ("{{ .Name.Field }}", "there is no field Field in a value of type string"),
        ("{{ .Name 1 }}", "a value that is no function is given arguments"),
        ('{{ eq .Two "2" }}', "a int and a string cannot be compared"),
        ("{{ eq .Two 2.0 }}", "a int and a float64 cannot be compared"),
        ("{{ eq .List .List }}", "a value of type []interface {} cannot be compared"),
        ("{{ lt .Yes .No }}", "a value of type bool has no order"),
        ("{{ eq 1 }}", "eq is given 1 arguments"),
        ("{{ and }}", "and is given 0 arguments"),
        ("{{ len .Two }}", "len of a value of type int"),
        ("{{ index .List 3 }}", "index out of range: 3"),
        ('{{ index .List "a" }}', "an index is a whole number"),
        ("{{ index .Missing 0 }}", "index of a value of type <nil>"),
        ("{{ slice .List 2 1 }}", "slice indexes out of range"),
        ("{{ slice .List -1 }}", "slice indexes out of range"),
        ("{{ range .Name }}{{ end }}", "range over a value of type string"),
        ("{{ range $a, $b := .Two }}{{ end }}", "range over a number takes one variable"),
        ("{{ range 999999999 }}{{ end }}", "range over more than"),
        ('{{ template "x" }}', "the template 'x' is not defined"),
        ('{{ define "x" }}{{ template "x" }}{{ end }}{{ template "x" }}', "at work in one another"),
        ('{{ printf "%[1]d" 5 }}', "is not supported"),
        ('{{ printf "%999999d" 5 }}', "a width is at most"),
        ('{{ printf "%*d" 999999 5 }}', "a width is at most"),
        ('{{ printf "%.*f" "x" 5 }}', "a width is a whole number"),
        ('{{ printf "%*d" }}', "a width is a whole number"),
        ("{{ printf 5 }}", "printf's format is a string"),
        ("{{ range 1000 }}{{ range 1000 }}{{ range 1000 }}{{ end }}{{ end }}{{ end }}", "steps"),
    ],
)
def test_what_goes_wrong_in_a_run_is_told(source: str, words: str) -> None:
    with pytest.raises(ExecutionError) as caught:
        run(source)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ $x := .Name }}{{ range 60 }}{{ $x = print $x $x }}{{ end }}",
        "{{ range 100000 }}" + "x" * 10_000 + "{{ end }}",
        '{{ $x := "x" }}{{ range 100000 }}{{ $x = printf "%s%900d" $x 5 }}{{ end }}',
    ],
)
def test_what_would_grow_without_end_is_stopped(source: str) -> None:
    with pytest.raises(TemplateTooCostly):
        run(source)


def test_time_is_bounded() -> None:
    times = iter(range(1000))
    tree = parse("{{ range 9999 }}{{ range 9999 }}{{ end }}{{ end }}", BUILTINS)
    with pytest.raises(TemplateTooCostly, match="seconds"):
        Execution(tree, BUILTINS, Budget(lambda: next(times))).run(tree.root, {})


def test_variables_do_not_pile_up() -> None:
    many = "".join(f"{{{{ $v{number} := {number} }}}}" for number in range(execution.MAX_VARIABLES))
    with pytest.raises(ExecutionError, match="variables are in sight"):
        run(many)
    assert run("{{ range 1000 }}{{ $x := . }}{{ end }}ok") == "ok"


@given(st.text())
def test_text_without_actions_stands_as_it_is(text: str) -> None:
    assert run(text.replace("{{", "")) == text.replace("{{", "")


@given(st.text().filter(lambda text: "`" not in text and "\r" not in text))
def test_a_raw_string_prints_itself(text: str) -> None:
    assert run(f"{{{{ `{text}` }}}}") == text


WHITE = st.text(" \t\r\n", max_size=4)


@given(WHITE, WHITE, st.booleans(), st.booleans())
def test_trim_markers_take_all_white_space_on_their_side(before: str, after: str, left: bool, right: bool) -> None:
    source = f"a{before}{{{{{'- ' if left else ''}1{' -' if right else ''}}}}}{after}b"
    assert run(source) == f"a{'' if left else before}1{'' if right else after}b"


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6))
def test_and_and_or_choose_as_python_does(values: list[int]) -> None:
    words = " ".join(map(str, values))
    chosen = values[-1] if all(values) else 0
    assert run(f"{{{{ and {words} }}}}") == str(chosen)
    assert run(f"{{{{ or {words} }}}}") == str(next((value for value in values if value), 0))


@given(st.lists(st.text()), st.data())
def test_slices_and_indexes_are_pythons(items: list[str], data: st.DataObject) -> None:
    stop = data.draw(st.integers(0, len(items)))
    start = data.draw(st.integers(0, stop))
    source = f"{{{{ range slice . {start} {stop} }}}}{{{{ . }}}}{{{{ end }}}}"
    assert run(source, items) == "".join(items[start:stop])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    )
)
@settings(max_examples=50)
def test_every_json_value_prints(value: Any) -> None:
    assert isinstance(run('{{ . }}{{ print . }}{{ printf "%v %s %q %d" . . . . }}', value), str)
