"""What a person sees: plain lines, the log file, and the bar as a terminal would show it."""

import io
import logging
import math
import os
import re
import sys
import time
from types import SimpleNamespace

import pytest

from inception_jax.errors import UserError
from inception_jax.runs import formatting
from inception_jax.runs.progress import Progress

ROW = {
    "loss": 0.4321, "loss_aux1": 0.2113, "loss_aux2": 0.2254, "loss_main": 0.3011, "learning_rate": 0.05,
    "gradient_norm": 1.5, "top1_aux1": 0.96, "top1_aux2": 0.971, "top1_main": 0.9812, "top5_main": 1.0,
    "images_per_second": 4321.4, "data_wait_fraction": 0.03,
}  # fmt: skip


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Screen(io.StringIO):
    """A terminal of a given width: knows carriage return, line feed, wrapping, cursor up and erase line."""

    encoding = "utf-8"

    def __init__(self, width):
        super().__init__()
        self.width, self.lines, self.row, self.column = width, [""], 0, 0

    def isatty(self):
        return True

    def write(self, text):
        for token in re.findall(r"\x1b\[\??\d*(?:;\d+)*[A-Za-z]|.|\n|\r", text):
            if token == "\r":
                self.column = 0
            elif token == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif token == "\x1b[2K":
                self.lines[self.row] = ""
            elif token.startswith("\x1b") and token.endswith("A"):
                self.row -= int(token[2:-1])
            elif token.startswith("\x1b"):
                assert token[-1] in "mhl", token  # colours and the cursor's visibility
            else:
                if self.column == self.width:
                    self.write("\n")
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + token + line[self.column + 1 :]
                self.column += 1
        return len(text)

    def shown(self):
        return [line.rstrip() for line in self.lines if line.strip()]


class Recorder(Screen):
    """A screen that also keeps what was written to it."""

    written = ""

    def write(self, text):
        self.written += text
        return len(text)


@pytest.fixture
def terminal(monkeypatch):
    """Makes a Progress on a Screen; no thread redraws, so that what is shown is what the test asked for."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def make(width, *arguments, **options):
        monkeypatch.setenv("COLUMNS", str(width))
        screen = Screen(width)
        return Progress(*arguments, stream=screen, **options), screen

    return make


def test_plain_line_has_every_value_once_and_main_first(tmp_path):
    stream = io.StringIO()
    with Progress(1800, 0, 45.0, tmp_path / "log.txt", stream) as progress:
        progress.update(550, ROW)
    assert stream.getvalue() == (
        "step   550/1,800  epoch 12.22/40  loss 0.4321 (main 0.3011, aux1 0.2113, aux2 0.2254)  "
        "top-1 main 98.1 %, aux1 96.0 %, aux2 97.1 %  lr 0.05  gradient norm 1.5000  4,321 images/s  data wait 3 %  "
        + stream.getvalue().rsplit("  ", 1)[1]
    )
    assert re.fullmatch(r"ETA \d+ s\n", stream.getvalue().rsplit("  ", 1)[1])


def test_log_file_has_the_same_lines_with_the_time_and_is_continued(tmp_path):
    for step in (10, 20):
        stream = io.StringIO()
        with Progress(1800, 0, None, tmp_path / "log.txt", stream) as progress:
            progress.message("two\nlines")
            progress.update(step, {"loss": 1.0})
            assert len((tmp_path / "log.txt").read_text().splitlines()) == 3 * step // 10  # there before close
    lines = (tmp_path / "log.txt").read_text().splitlines()
    times, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", stamp) for stamp in times)
    assert [text.split("  ETA")[0] for text in texts] == [
        "two",
        "lines",
        "step    10/1,800  loss 1.0000",
        "two",
        "lines",
        "step    20/1,800  loss 1.0000",
    ]


@pytest.mark.parametrize(("wait", "expected"), [(0.2, "data wait 20 %"), (0.21, "data wait 21 % (input-bound)")])
def test_a_run_that_waits_for_data_is_called_input_bound(wait, expected):
    stream = io.StringIO()
    Progress(10, stream=stream).update(10, {"data_wait_fraction": wait})
    assert expected in stream.getvalue()
    assert ("input-bound" in stream.getvalue()) == (wait > 0.2)


def test_quiet_writes_nothing_but_still_measures(tmp_path, terminal):
    clock = Clock()
    progress, screen = terminal(80, 10, log_path=tmp_path / "log.txt", quiet=True, clock=clock)
    with progress:
        progress.message("hello")
        progress.update(1, ROW)
        with progress.phase("compiling") as phase:
            clock.now += 7.0
    assert phase.seconds == 7.0
    assert screen.shown() == [] and not (tmp_path / "log.txt").exists()


def test_phase_is_announced_and_measured_and_recurring_ones_only_at_their_end(tmp_path):
    clock, stream = Clock(), io.StringIO()
    with Progress(10, stream=stream, clock=clock) as progress:
        with progress.phase("compiling train step"):
            assert stream.getvalue() == "compiling train step ...\n"
            clock.now += 43.21
        with progress.phase("evaluating test", recurs=True) as phase:
            clock.now += 2.0
            phase.note = "top-1 98.6 %"
        with pytest.raises(KeyError), progress.phase("saving"):
            clock.now += 1.0
            raise KeyError
    assert stream.getvalue().splitlines() == [
        "compiling train step ...",
        "compiling train step: 43.2 s",
        "evaluating test: 2.0 s; top-1 98.6 %",
        "saving ...",
        "saving: stopped after 1.0 s",
    ]


def eta(stream):
    return re.search(r"ETA (.*)", stream.getvalue().splitlines()[-1])[1]


def test_remaining_time_leaves_out_compiling_and_counts_evaluations_that_will_come_again():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, 0, stream=stream, clock=clock)
    with progress.phase("compiling train step"):
        clock.now += 1000.0
    clock.now += 20.0
    progress.update(10, {})  # 2 s a step
    assert eta(stream) == "3:00"
    with progress.phase("evaluating", recurs=True):
        with progress.phase("compiling evaluation step"):
            clock.now += 500.0
        clock.now += 10.0
    clock.now += 20.0
    progress.update(20, {})  # 2 s a step, and 10 s of evaluation per 20 steps
    assert eta(stream) == "3:20"


def test_a_phase_inside_a_phase_is_not_left_out_twice():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, 0, stream=stream, clock=clock)
    with progress.phase("restoring") as outer:
        with progress.phase("reading") as inner:
            clock.now += 500.0
        clock.now += 10.0
    assert (outer.seconds, inner.seconds) == (510.0, 500.0)
    clock.now += 20.0
    progress.update(10, {})
    assert eta(stream) == "3:00"


def test_remaining_time_follows_the_recent_pace_and_starts_where_the_run_was_resumed():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1_000_000, 500_000, stream=stream, clock=clock)
    for step in range(500_010, 500_210, 10):
        clock.now += 100.0  # 10 s a step
        progress.update(step, {})
    for step in range(500_210, 500_450, 10):
        clock.now += 10.0  # 1 s a step from now on
        progress.update(step, {})
    assert eta(stream) == formatting.format_duration(1_000_000 - 500_440)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.2, "1:00"), (42, "42 s"), (185, "3:05"), (7425, "2:03:45"), (86400 + 7380, "1 d 02:03")],
)
def test_durations(seconds, text):
    assert formatting.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.302585, "2.3026"),
        (0.0, "0.0000"),
        (1.234e-5, "1.23e-05"),
        (123456.0, "1.23e+05"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers(value, text):
    assert formatting.format_number(value) == text


@pytest.mark.parametrize("width", [60, 80, 100, 130, 200])
def test_the_bar_is_two_lines_that_fit_and_messages_stay_above_it(terminal, width, tmp_path):
    clock = Clock()
    progress, screen = terminal(width, 1800, 0, 45.0, tmp_path / "log.txt", title="inception_v1", clock=clock)
    progress.message("training on digits")
    for step in (10, 900):
        clock.now += 45.0
        progress.update(step, {**ROW, "data_wait_fraction": 0.35})
        progress._terminal._live.refresh()
    with progress.phase("evaluating test", recurs=True) as phase:
        phase.note = "top-1 98.6 %"
        clock.now += 8.0
        progress._terminal._live.refresh()
        assert screen.shown()[-1].endswith("evaluating test  8 s")
        assert len(screen.shown()) == 3
    progress.close()
    message, note, bar, values = screen.shown()
    assert (message, note) == ("training on digits", "evaluating test: 8.0 s; top-1 98.6 %")
    assert max(map(len, screen.shown())) <= width
    assert "900/1,800" in bar and "epoch 20.00/40" in bar and "━━━━━━━━━━" in bar
    assert ("inception_v1" in bar) == (width >= 80)
    assert values.startswith("loss 0.43") and "input-bound" in values
    if width >= 80:
        assert "4,321 images/s  data wait 35 % input-bound" in values
    heads = "top-1 main 98.1 %  aux1 96.0 %  aux2 97.1 %" if width >= 100 else "top-1 98.1/96.0/97.1 %"
    assert heads in values
    assert ("main 0.3011  aux1 0.2113  aux2 0.2254" in values) == (width == 200)
    assert "━" not in (tmp_path / "log.txt").read_text()


def test_the_bar_is_as_long_as_what_was_done(terminal):
    progress, screen = terminal(100, 200, title="x")
    lengths = []
    for step in (0, 50, 100, 200):
        progress.advance(step)
        progress._terminal._live.console.file = recorder = io.StringIO()
        progress._terminal._live.refresh()
        layouts = re.findall(r"\x1b\[([\d;]*)m(━+)", recorder.getvalue())
        lengths.append([(colour, len(part)) for colour, part in layouts])
    progress._terminal._live.console.file = screen
    progress.close()
    ((_, whole),) = lengths[0]
    assert [[length for _, length in parts] for parts in lengths[1:]] == [
        [pytest.approx(whole / 4, abs=1), pytest.approx(3 * whole / 4, abs=1)],
        [pytest.approx(whole / 2, abs=1), pytest.approx(whole / 2, abs=1)],
        [whole],
    ]
    assert len({colour for parts in lengths for colour, _ in parts}) == 3  # to do, doing, done


def test_the_cursor_is_never_left_hidden(terminal):
    """A run that is killed has no chance to show it again."""
    progress, screen = terminal(80, 10)
    progress._terminal._live.console.file = recorder = Recorder(80)
    for step in (1, 2):
        progress.update(step, ROW)
        progress._terminal._live.refresh()
    assert "\x1b[?25l" not in recorder.written
    progress._terminal._live.console.file = screen
    progress.close()
    recorder = Recorder(80)
    with Progress(10, stream=recorder):
        assert re.findall(r"\x1b\[\?25[hl]", recorder.written)[-1] == "\x1b[?25h"


def test_nothing_has_been_measured_yet(terminal):
    progress, screen = terminal(100, 200)
    progress.close()
    assert "ETA" not in screen.shown()[0] and screen.shown()[1] == "waiting for the first row"


def test_what_others_print_appears_above_the_bar_but_a_redirected_stdout_is_left_alone(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    screen, file = Screen(80), io.StringIO()
    handler = logging.StreamHandler(screen)
    logging.getLogger("absl").addHandler(handler)
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(sys, "stderr", screen)
    try:
        with Progress(10, stream=screen) as progress:
            progress.advance(5)
            print("to the file")
            print("to the terminal", file=sys.stderr)
            logging.getLogger("absl").error("from a library")
        assert handler.stream is screen
    finally:
        logging.getLogger("absl").removeHandler(handler)
    assert sys.stderr is screen and sys.stdout is file
    assert file.getvalue() == "to the file\n"
    assert screen.shown()[:2] == ["to the terminal", "from a library"]
    assert len(screen.shown()) == 4 and "5/10" in screen.shown()[2]


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_dumb_terminal_gets_plain_lines(terminal, monkeypatch, term):
    monkeypatch.delenv("TERM") if term is None else monkeypatch.setenv("TERM", term)
    screen = Screen(80)
    with Progress(10, stream=screen) as progress:
        progress.update(5, {"loss": 1.0})
    assert screen.shown()[0].startswith("step  5/10  loss 1.0000")


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as pipe:
        with Progress(10, log_path=tmp_path / "log.txt", stream=pipe) as progress:
            progress.message("nobody hears this")
            progress.update(5, {"loss": 1.0})
        assert [line.split(" ", 1)[1][:9] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
            "nobody he",
            "step  5/1",
        ]
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # so that closing finds somebody again
    closed = io.StringIO()
    closed.close()
    Progress(10, stream=closed).message("nor this")


def test_a_stream_that_cannot_spell_gets_question_marks():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Progress(10, stream=stream).message("größe 5×5")
    assert raw.getvalue() == b"gr??e 5?5\n"


def test_a_log_file_that_cannot_be_opened_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*log\.txt: No such file"):
        Progress(10, log_path=tmp_path / "absent" / "log.txt", stream=io.StringIO())


def test_the_bar_moves_by_itself_and_costs_a_step_little(terminal):
    progress, screen = terminal(100, 100_000, 0, 45.0, title="inception_v1")
    with progress, progress.phase("compiling train step"):
        began = time.perf_counter()
        for step in range(10_000):
            progress.advance(step)
        assert (time.perf_counter() - began) / 10_000 < 100e-6
        deadline = time.monotonic() + 10.0
        while "9,999/100,000" not in screen.getvalue() + "".join(screen.lines) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "9,999/100,000" in "".join(screen.lines)


class Kernel:
    """Stands for IPython in a notebook: `display` gives a handle, and each drawing is kept."""

    def __init__(self):
        self.drawn = []
        self.kernel = object()

    def display(self, bundle, *, raw, display_id):
        assert raw and display_id
        self.drawn.append(bundle)
        return self

    def update(self, bundle, *, raw):
        assert raw
        self.drawn.append(bundle)


def test_in_a_notebook_one_output_is_replaced(monkeypatch, capsys, tmp_path):
    kernel, clock = Kernel(), Clock()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=kernel.display))
    with Progress(20, 0, 5, tmp_path / "log.txt", title="inception_v1", clock=clock) as progress:
        progress.message("epoch <1>")
        with progress.phase("compiling", recurs=True):
            clock.now += 1
            progress.advance(1)
        assert "compiling" in kernel.drawn[-2]["text/plain"]
        for step in range(2, 12):  # two drawings a second, however quick the steps are
            clock.now += 0.1
            progress.advance(step)
        count = len(kernel.drawn)
        clock.now += 1
        progress.update(12, ROW)
    bundle = kernel.drawn[-1]
    assert count <= 7 and "12/20" in bundle["text/plain"] and "loss 0.4321" in bundle["text/plain"]
    assert bundle["text/html"] == f"<pre>{bundle['text/plain']}</pre>" and "━" in bundle["text/plain"]
    printed = capsys.readouterr()
    assert printed.out.startswith("epoch <1>\n") and printed.err == ""
    assert "epoch <1>" in (tmp_path / "log.txt").read_text()
    # A stream that was given, and IPython without a notebook, get lines.
    del kernel.kernel
    Progress(20, log_path=None).message("lines")
    assert capsys.readouterr().err == "lines\n"
