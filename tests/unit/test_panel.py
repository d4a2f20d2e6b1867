"""The live panel without a page: what is sent, how much may be on its way, what a person does on its way out."""

import base64
import threading
import time
from array import array
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from two_lines import two_lines

from hpcmagic.errors import PeerLost, ProfileError, SteerError
from hpcmagic.notebook import panel as panels
from hpcmagic.notebook.clicks import Answer, Click, Clicks
from hpcmagic.notebook.colours import tables
from hpcmagic.notebook.magics import HpcMagics
from hpcmagic.notebook.mirror import Curve
from hpcmagic.notebook.pages import ON_THEIR_WAY, SILENT_S, SLOW_MOST, SLOW_S, Messages, Window
from hpcmagic.notebook.panel import Panel, page_code, value_from
from hpcmagic.notebook.snapshot import BLUE, bundle
from hpcmagic.notebook.steer_line import HELP, settings
from hpcmagic.notebook.widgets import can_be_shown
from hpcmagic.ranges import Param
from hpcmagic.wire.looks import Event, News, Picture, Pulse

SOON_S = 20.0
PICTURE = Picture("T", 1, 7, (4, 4), 2, 2, 2, -1.0, 1.0, bytes((0, 127, 254, 255)))


def news(**kwargs):
    """How a simulation stands that runs."""
    params = {"dt": Param(0.5, 0.1, 0.0, float("inf")), "on": Param(True, False), "n": Param(1 << 60, 1)}
    stands = {"run": 1, "cell": "c", "over": "", "step": 7, "steps": 100, "paused": False, "params": params,
              "params_version": 1, "events": (), "missed_events": 0, "series": {}, "fields": ("T",), "picture": None,
              "pulses": {}, "dropped": 0, "warnings": (), "log": ""}  # fmt: skip
    return News(**{**stands, **kwargs})


def event(number, command=0, **kwargs):
    """What became of a command."""
    said = {"step": 7, "verb": "set", "user": "alice@host:42", "time": 1.0, "changes": (("dt", 0.1, 0.5),)}
    return Event(number, command, **{**said, **kwargs})


class FakeMirror:
    """A simulation that does what it is told when the test says so."""

    def __init__(self):
        self.changed = threading.Condition()
        self.newest = news()
        self.curves, self.pictures, self.events = {}, {}, []
        self.lost = None
        self.watchers, self.told, self.wanted, self.done = [], [], [], {}

    def tell(self, command):
        if self.lost:
            raise self.lost
        self.told.append(command)
        return len(self.told)

    def outcome(self, number):
        return self.done.get(number)

    def show(self, name, pixels, hz):
        self.wanted.append((name, pixels, hz))

    def comes(self, **kwargs):
        """Have news come."""
        self.newest = replace(self.newest, **kwargs)
        for watcher in list(self.watchers):
            watcher()


class FakeScreen:
    """A comm and an output."""

    live = True

    def __init__(self):
        self.sent, self.shown, self.closed = [], [], False

    def send(self, message, buffers):
        self.sent.append((message, buffers))

    def update(self, shown):
        self.shown.append(shown)

    def close(self):
        self.closed = True


def eventually(holds):
    """Wait until something holds that another thread does."""
    deadline = time.monotonic() + SOON_S
    while not (value := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return value


@pytest.fixture
def mirror():
    return FakeMirror()


@pytest.fixture
def screen():
    return FakeScreen()


@pytest.fixture
def panel(mirror, screen):
    """A panel that a page has found."""
    panel = Panel(mirror, "alice@host:42", screen, "place")
    panel.receive({"kind": "hello", "page": "a"})
    eventually(lambda: screen.sent)
    yield panel
    panel.close()


def seq(screen):
    return screen.sent[-1][0]["seq"]


# ── how much may be on its way ───────────────────────────────────────────────────────────────


def test_window_without_a_page():
    """Nothing is sent while nobody listens."""
    assert Window().may_send(0.0) == ""


def test_window_full():
    """So many messages may be on their way; an acknowledgement makes room again."""
    window = Window()
    window.heard("a", None, 0.0)
    for _ in range(ON_THEIR_WAY):
        assert window.may_send(0.0) == "all"
        window.note_sent(0.0)
    assert window.may_send(0.1) == ""
    window.heard("a", 3, 0.2)
    for _ in range(3):
        assert window.may_send(0.2) == "all"
        window.note_sent(0.2)
    assert window.may_send(0.3) == ""


def test_window_of_a_page_that_is_silent():
    """Now and then something small is sent all the same, and that ends too: nobody's memory grows."""
    window, now, sent = Window(), 0.0, 0
    window.heard("a", None, now)
    for _ in range(ON_THEIR_WAY):
        window.note_sent(now)
    for _ in range(10 * SLOW_MOST):
        now += SLOW_S / 2
        if way := window.may_send(now):
            assert way == "few"
            window.note_sent(now)
            sent += 1
    assert sent == SLOW_MOST
    window.heard("a", window.sent, now)
    assert window.may_send(now) == "all"


def test_window_of_two_pages():
    """The slower of two pages counts, until it has been silent for long while the other was not."""
    window = Window()
    window.heard("a", None, 0.0)
    window.heard("b", None, 0.0)
    for _ in range(ON_THEIR_WAY):
        window.note_sent(0.0)
    window.heard("a", ON_THEIR_WAY, 0.1)
    assert window.may_send(0.1) == ""
    window.heard("a", ON_THEIR_WAY, SILENT_S + 0.1)
    assert window.may_send(SILENT_S + 0.1) == "all"


@pytest.mark.parametrize("seq", [-5, 10**9])
def test_window_and_a_page_that_lies(seq):
    """A page cannot acknowledge what was not sent, nor take back what it has."""
    window = Window()
    window.heard("a", None, 0.0)
    window.note_sent(0.0)
    window.heard("a", seq, 0.0)
    for _ in range(ON_THEIR_WAY):
        window.note_sent(0.0)
    assert window.may_send(0.0) == ""


# ── what is sent ─────────────────────────────────────────────────────────────────────────────


def test_message_tells_all_then_what_is_new(mirror):
    """The first message tells everything, later ones what has changed: of curves their ends, pictures once."""
    mirror.curves["e"] = Curve(0, array("q", [0, 1]), array("d", [5.0, 6.0]))
    mirror.pictures["T"] = PICTURE
    mirror.events = [event(1)]
    mirror.newest = news(pulses={0: Pulse(7, 0.1, 0.05, 0.001)}, warnings=("careful",))
    messages = Messages(mirror)
    message, buffers, new = messages.message("T", 10.0, pictures=True)
    assert new
    assert message["full"]
    assert message["params"] == [
        {"name": "dt", "kind": "float", "value": "0.5", "default": "0.1", "min": 0.0, "max": None},
        {"name": "on", "kind": "bool", "value": "True", "default": "False", "min": None, "max": None},
        {"name": "n", "kind": "int", "value": str(1 << 60), "default": "1", "min": None, "max": None},
    ]
    assert message["events"][0]["text"] == "dt: 0.1 → 0.5 applied at step 7 (alice@host)"
    assert message["warnings"] == ["careful"]
    assert message["curves"] == [{"name": "e", "begin": 0, "count": 2}]
    maps, curves, pulses, pixels = buffers
    assert len(maps) == 768 * len(message["maps"])
    assert array("d", curves) == array("d", [0.0, 1.0, 5.0, 6.0])
    assert array("d", pulses) == array("d", [0.0, 7.0, 0.1, 0.05, 0.001])
    assert pixels == PICTURE.pixels
    assert messages.message("T", 10.1, pictures=True)[1:] == ([], False)

    mirror.curves["e"] = Curve(0, array("q", [0, 1, 2]), array("d", [5.0, 6.0, 7.0]))
    mirror.pictures["T"] = replace(PICTURE, frame=2)
    message, buffers, new = messages.message("T", 10.2, pictures=False)
    assert new
    assert "picture" not in message
    assert message["curves"] == [{"name": "e", "begin": 2, "count": 1}]
    assert array("d", buffers[0]) == array("d", [2.0, 7.0])
    mirror.curves["e"] = Curve(1, array("q", [0, 2]), array("d", [5.0, 7.0]))
    message, buffers, new = messages.message("T", 10.3, pictures=True)
    assert message["curves"] == [{"name": "e", "begin": 0, "count": 2}]
    assert message["picture"]["frame"] == 2


def test_message_of_another_run(mirror):
    """A run that comes after is told from its beginning."""
    messages = Messages(mirror)
    messages.message("T", 0.0, pictures=True)
    assert "full" not in messages.message("T", 0.1, pictures=True)[0]
    mirror.newest = news(run=2, step=0)
    assert messages.message("T", 0.2, pictures=True)[0]["full"]


def test_panel_stops_where_nobody_reads(panel, mirror, screen):
    """A page that has said hello and nothing more gets so many messages; one acknowledgement sets it going again."""
    for step in range(8, 200):
        before = len(screen.sent)
        mirror.comes(step=step)
        if len(screen.sent) < ON_THEIR_WAY:
            eventually(lambda before=before: len(screen.sent) > before)
    assert len(screen.sent) == ON_THEIR_WAY
    panel.receive({"kind": "ack", "page": "a", "seq": seq(screen)})
    assert eventually(lambda: screen.sent[ON_THEIR_WAY:])[0][0]["step"] == 199


def test_panel_wants_what_the_page_wants(panel, mirror):
    """The field that the page shows is fetched, as fine as the page can show it."""
    mirror.comes(fields=("T", "u"))
    panel.receive({"kind": "view", "page": "a", "field": "u", "pixels": 1024})
    eventually(lambda: mirror.wanted[-1][:2] == ("u", 1024))
    panel.receive({"kind": "view", "page": "a", "field": "gone", "pixels": 10**9})
    eventually(lambda: mirror.wanted[-1][0] == "T")
    assert mirror.wanted[-1][1] <= panels.MOST_PIXELS


def test_panel_answers(panel, mirror, screen):
    """A click becomes a command, and the page is told what became of it."""
    panel.receive({"kind": "do", "page": "a", "id": "a-1", "verb": "set", "name": "dt", "text": "2e-3"})
    eventually(lambda: mirror.told)
    assert mirror.told[0].values == {"dt": 0.002}
    mirror.done[1] = event(1, 1, step=9)
    mirror.comes(step=9)
    (answer,) = eventually(lambda: [a for message, _ in screen.sent for a in message["answers"]])
    assert answer == {"id": "a-1", "verb": "set", "name": "dt", "step": 9, "refused": ""}


@pytest.mark.parametrize("message", [{}, {"kind": "do", "verb": "kill"}, {"kind": "nonsense"}, {"kind": "do"}])
def test_panel_and_nonsense(panel, mirror, message):
    """What a page says that nobody understands does nothing."""
    panel.receive(message)
    assert mirror.told == []


def test_panel_keeps_a_picture_of_the_end(panel, mirror, screen):
    """When the run is over, and when the panel is closed, the output's picture is drawn anew."""
    mirror.comes(over="it came to its end")
    eventually(lambda: screen.shown)
    assert "it came to its end" in screen.shown[-1]["text/plain"]
    mirror.comes(run=2, over="", step=55)
    panel.receive({"kind": "close", "page": "a"})
    eventually(lambda: screen.closed)
    assert "step 55" in screen.shown[-1]["text/plain"]
    assert mirror.watchers == []
    assert panel.closed


def test_panel_cut_off(panel, mirror, screen):
    """Where the connection is lost the page is told why, and the panel can still be closed."""
    mirror.lost = PeerLost("Rank 0 no longer answers.", "See `%hpc log`.")
    mirror.comes()
    eventually(lambda: screen.sent[-1][0]["lost"] == "Rank 0 no longer answers.")
    panel.receive({"kind": "do", "page": "a", "id": "a-1", "verb": "pause"})
    (answer,) = eventually(lambda: [a for message, _ in screen.sent for a in message["answers"]])
    assert answer["refused"] == "Rank 0 no longer answers."


# ── clicks ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def clicks(mirror):
    """Clicks, and the answers to them."""
    answers = []
    clicks = Clicks(mirror, "me", answers.append)
    yield clicks, answers
    clicks.close()


def drag(clicks, *values, name="dt", first=0):
    for number, value in enumerate(values, first):
        clicks.put(Click(f"{name}{number}", "set", name, value))


def test_dragged(clicks, mirror):
    """While a value is on its way only the newest of those behind it waits."""
    clicks, answers = clicks
    drag(clicks, 1)
    eventually(lambda: len(mirror.told) == 1)
    drag(clicks, *range(2, 100), first=1)
    drag(clicks, 5, name="nu")
    eventually(lambda: len(mirror.told) == 2)
    assert mirror.told[1].values == {"nu": 5}
    mirror.done[1] = event(1, 1, step=3)
    eventually(lambda: clicks.look() or len(mirror.told) == 3)
    assert mirror.told[2].values == {"dt": 99}
    assert Answer(Click("dt0", "set", "dt", 1), 3) in answers
    assert len([answer for answer in answers if answer.refused]) == 97


def test_verbs_wait_for_nothing(clicks, mirror):
    """Pause goes at once, behind what was set before it, and before what was set later."""
    clicks, _ = clicks
    drag(clicks, 1)
    eventually(lambda: len(mirror.told) == 1)
    drag(clicks, 2, first=1)
    clicks.put(Click("p", "pause"))
    drag(clicks, 3, first=2)
    eventually(lambda: len(mirror.told) == 3)
    assert [(one.verb, one.values) for one in mirror.told] == [("set", {"dt": 1}), ("set", {"dt": 2}), ("pause", {})]
    mirror.done.update({1: event(1, 1), 2: event(2, 2)})
    eventually(lambda: clicks.look() or len(mirror.told) == 4)
    assert mirror.told[3].values == {"dt": 3}


def test_refused(clicks, mirror):
    """A refusal is told with its reason."""
    clicks, answers = clicks
    drag(clicks, -1)
    eventually(lambda: mirror.told)
    mirror.done[1] = event(1, 1, changes=(), refused="dt = -1 is below its least value, 0")
    eventually(lambda: clicks.look() or answers)
    assert answers == [Answer(Click("dt0", "set", "dt", -1), 7, "dt = -1 is below its least value, 0")]


@pytest.mark.parametrize(
    ("text", "param", "value"),
    [
        ("5e-4", Param(1.0, 1.0), 5e-4), (" -3 ", Param(1, 1), -3), ("much", Param(1.0, 1.0), "much"),
        ("", Param(1.0, 1.0), ""), ("((((", Param(1, 1), "(((("), ("True", Param(False, False), True),
        ("False", Param(True, True), False), ("7", Param("a", "a"), "7"), ("7", None, "7"),
        (str(1 << 70), Param(1, 1), 1 << 70),
    ],
)  # fmt: skip
def test_value(text, param, value):
    """What is typed means a value of the parameter's kind; what is none goes on as text, and is refused as such."""
    assert value_from(text, param) == value
    assert type(value_from(text, param)) is type(value)


# ── what is kept, and the page's code ────────────────────────────────────────────────────────


@pytest.mark.parametrize("pictures", [{}, {"T": PICTURE}], ids=["no field", "a field"])
@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0], [1.0, float("nan"), -2.0], [float("inf")] * 3])
def test_picture(mirror, pictures, values):
    """There is a picture whatever the simulation has published, and its text beside it."""
    mirror.pictures = pictures
    mirror.curves["<e>"] = Curve(0, array("q", range(len(values))), array("d", values))
    shown = bundle(mirror, "T", "place")
    assert shown["image/png"]
    assert shown["text/plain"].startswith("Simulation running, step 7 of 100")
    assert 'data-place="place"' in shown["text/html"]
    assert "<e>" not in shown["text/html"]


def test_no_pillow(mirror, monkeypatch):
    """Without Pillow the text stands in the picture's place."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    shown = bundle(mirror, "T", "place")
    assert set(shown) == {"text/plain", "text/html"}
    assert "Simulation running" in shown["text/html"]


def rows_of(colour, shown):
    """In which rows of the picture there are pixels of a colour, one a pixel."""
    image = Image.open(BytesIO(base64.b64decode(shown["image/png"]))).convert("RGB")
    return np.nonzero((np.array(image) == list(colour)).all(axis=2))[0]


def test_line_of_a_field(mirror):
    """A field of one dimension is seen in the picture too."""
    mirror.pictures = {"T": Picture("T", 1, 7, (100,), 1, 1, 100, 0.0, 1.0, bytes([254] * 100))}
    highest = next(iter(tables().values()))[3 * 254 : 3 * 255]
    assert np.ptp(rows_of(highest, bundle(mirror, "T", "place"))) >= 20


def test_curve_that_blows_up(mirror):
    """A curve whose ends lie further apart than there are numbers, an unstable simulation's, is drawn in its place."""
    mirror.curves["u"] = Curve(0, array("q", range(4)), array("d", [1.0, -1e300, -1e308, 1.7e308]))
    rows = rows_of(bytes.fromhex(BLUE[1:]), bundle(mirror, "T", "place"))
    assert 135 <= min(rows) < max(rows) <= 210


def test_no_anywidget(monkeypatch, mirror):
    """Without anywidget there is a picture, drawn anew while the simulation goes on, with the field in it."""
    shown = []
    monkeypatch.setattr(panels, "ALONE_AGE_S", 0.05)
    monkeypatch.setattr(panels.widgets, "installed", lambda: False)
    monkeypatch.setattr(
        "IPython.display.display", lambda *_, **__: SimpleNamespace(update=lambda one, raw: shown.append(one))
    )
    assert not can_be_shown()
    session = SimpleNamespace(
        name="demo",
        steer=SimpleNamespace(mirror=lambda: mirror),
        control_path=lambda: SimpleNamespace(name="me@host:1#2"),
    )
    panel = panels.show(session)
    try:
        mirror.comes(step=8)
        assert "step 8 " in eventually(lambda: shown)[-1]["text/plain"]
        mirror.comes(step=9)
        eventually(lambda: "step 9 " in shown[-1]["text/plain"])
        assert mirror.wanted[-1][0] == "T"
    finally:
        panel.close()


def test_page_is_self_contained():
    """What runs in the page names no other place to get anything from."""
    code = page_code()
    assert code.count("export default") == 1
    without_namespace = code.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in without_namespace
    assert "import " not in without_namespace


# ── `%steer` ─────────────────────────────────────────────────────────────────────────────────


def test_settings():
    """Literals are what Python says, plain words are texts."""
    line = "dt=5e-4 n = 3 on=True scheme=upwind title='two words' empty=\"\" low=-1e-3"
    values = {"dt": 5e-4, "n": 3, "on": True, "scheme": "upwind", "title": "two words", "empty": "", "low": -1e-3}
    assert settings(line) == values


@pytest.mark.parametrize(
    "line", ["dt", "go dt=1", "dt=1 pause", "dt=", "=3", "1dt=3", "for=3", "dt=1 dt=2", "a='x", "--hz=3"]
)
def test_settings_refused(line):
    """What cannot be read is refused whole."""
    with pytest.raises(ProfileError) as error:
        settings(line)
    two_lines(error)


class FakeShell:
    """IPython, as far as the line needs it."""

    def var_expand(self, text):
        return text.replace("$x", "3")


class FakeSteer:
    """`session.steer`, which notes what is called."""

    def __init__(self):
        self.set_to = []

    def set(self, **values):
        self.set_to.append(values)
        return "applied at step 5"

    def pause(self):
        raise SteerError("No simulation has come alive in session demo.", "Begin one.")

    def step(self):
        return "applied at step 6"

    def __repr__(self):
        return "Simulation running"


@pytest.fixture
def magics():
    """The magics of a notebook that holds a session."""
    magics = HpcMagics(None)
    magics.shell = FakeShell()
    magics.session_name = "demo"
    magics.held["demo"] = type("Held", (), {"steer": FakeSteer(), "ended": ""})()
    return magics


@pytest.mark.parametrize(
    ("line", "said"),
    [("dt=5e-4 nu=$x", "applied at step 5"), ("step", "step applied at step 6"), ("step;", "step applied at step 6"),
     ("", "Simulation running"), ("--text", "Simulation running"), ("--session demo dt=1", "applied at step 5"), ("-h", HELP)],
)  # fmt: skip
def test_line(magics, capsys, line, said):
    """The line does one thing, and says it."""
    magics.steer(line)
    assert capsys.readouterr().out == f"{said}\n"
    if "$x" in line:
        assert magics.held["demo"].steer.set_to == [{"dt": 5e-4, "nu": 3}]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("pause", SteerError),
        ("--session gone", ProfileError),
        ("--sesion demo", ProfileError),
        ("fast", ProfileError),
    ],
)
def test_line_refused(magics, laptop, line, error):
    """What cannot be done is said in two lines."""
    with pytest.raises(error) as raised:
        magics.steer(line)
    two_lines(raised)


def test_line_without_a_session(magics, laptop):
    """A notebook without a session is told so; `%steer` starts none."""
    magics.held.clear()
    magics.session_name = None
    with pytest.raises(ProfileError, match="no session"):
        magics.steer("dt=1")
