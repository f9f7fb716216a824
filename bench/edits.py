"""Three texts to be said again with a small change: what summarising, editing and refactoring have in common."""

from dataclasses import dataclass
from datetime import UTC, datetime

from vmm_server.prompt.templates import Template
from vmm_server.requests import Message


@dataclass(frozen=True, slots=True)
class Edit:
    """A text, and what has to change in it."""

    name: str
    text: str
    old: str
    new: str

    def prompt(self, template: Template, number: int) -> str:
        """With the answer's first words, as even a small model goes on from there; `number` keeps it out of caches."""
        task = f"Document {number}. Repeat this text, but say {self.new} instead of {self.old}."
        first_words = self.text.replace(self.old, self.new).split(" ")[:12]
        asked = (Message("user", f"{task}\n\n{self.text}"),)
        return template.render(asked, now=datetime.now(UTC), variables={}) + " ".join(first_words)


_REPORT = """\
The harbour at Lindvik was dug out by hand in the spring of 1871, when the ice had gone early and the fishing fleet \
lay idle for want of salt. Forty families took part, each with its own stretch of the shore, and the work was paid \
for in flour. Two moles of granite were raised against the north wind, and between them a channel was cut that is \
still deep enough for a coaster of two hundred tons. A lamp was hung at the end of the longer mole in the autumn of \
the same year. It burned rapeseed oil, and the keeper's daughter rowed out to it every evening for twenty-six years \
without missing one. When the railway reached the town, most of the fish went inland by train instead of along the \
coast by ship, and the harbour fell quiet. Today it shelters a dozen small boats, a sailing school and a museum of \
knots. The lamp is electric now, but it is still lit by hand, by whoever was the last to tie up in the evening."""

_LIST = """\
1. Check that the main valve is closed and that the gauge shows no pressure.
2. Unscrew the four bolts of the cover with a 13 mm spanner and keep the washers.
3. Lift the cover off straight, so that the seal does not tear.
4. Wipe the old grease from the bearing and from the inside of the cover.
5. Look for cracks and for dark spots; a bearing with either has to be replaced.
6. Put new grease on the bearing, as much as fits on the tip of a finger.
7. Lay the new seal into the groove with its lip upwards.
8. Put the cover back, and tighten the four bolts crosswise, first by hand, then with 9 Nm.
9. Open the main valve by a quarter turn and wait for one minute.
10. Look for drops along the cover and at the bolts.
11. Open the main valve fully and read the gauge: it should show between 3 and 4 bar.
12. Write the date and the reading into the book beside the pump."""

_CODE = """\
def read_settings(path):
    settings = {}
    with open(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, found, value = line.partition("=")
            if not found:
                raise ValueError(f"{path}, line {number}: no value")
            settings[name.strip()] = value.strip()
    return settings


def write_settings(path, settings):
    with open(path, "w") as file:
        for name, value in sorted(settings.items()):
            file.write(f"{name} = {value}\\n")


def merge_settings(base, changes):
    settings = dict(base)
    for name, value in changes.items():
        if value is None:
            settings.pop(name, None)
        else:
            settings[name] = value
    return settings"""

EDITS = (
    Edit("prose", _REPORT, "harbour", "port"),
    Edit("list", _LIST, "bolts", "screws"),
    Edit("code", _CODE, "settings", "options"),
)
