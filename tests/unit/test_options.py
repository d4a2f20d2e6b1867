"""The options of the magics: as fingers know them from sbatch and the shell, and the code behind them untouched."""

import pytest
from IPython.utils.text import DollarFormatter
from two_lines import two_lines

from hpcmagic.errors import ProfileError
from hpcmagic.notebook.options import (
    RESOURCE_NAMES,
    HelpAsked,
    OptionParser,
    names_parser,
    remote_parser,
    scatter_parser,
)
from hpcmagic.profiles import KEYS

NAMES = {"n": 4, "part": "debug", "sizes": {"big": 8}, "x": 7, "two": "a b"}
NOT_THE_PROFILES = (
    "session",
    "keep",
    "dry_run",
    "yes",
    "ranks",
    "out",
    "push",
    "scatter",
    "gather",
    "timeout",
    "local",
    "help",
    "asynchronous",
)


def expand(text):
    """Expand as IPython's shell does."""
    return DollarFormatter().format(text, **NAMES)


def parsed(line):
    """The options that were given on a line of %remote, and the rest of it."""
    parser = remote_parser("%remote")
    tokens, rest = parser.split(line, expand)
    options = vars(parser.parse(tokens))
    return {name: value for name, value in options.items() if value not in (None, False)}, rest


def refused(line):
    """The error with which a line is refused."""
    with pytest.raises(ProfileError) as error:
        parsed(line)
    return two_lines(error)


@pytest.mark.parametrize("form", ["-N4", "-N 4", "--nodes=4", "--nodes 4", "-N  4", "--nodes= 4", '--nodes "4"'])
def test_ways_to_write_a_value(form):
    """A value may stand at its option, behind it or behind an equals sign, as with sbatch."""
    assert parsed(form) == ({"nodes": "4"}, "")


@pytest.mark.parametrize(
    ("short", "long", "value"),
    [
        ("-N", "--nodes", "4"),
        ("-n", "--ntasks", "8"),
        ("-c", "--cpus-per-task", "2"),
        ("-t", "--time", "1:00:00"),
        ("-t", "--time", "1-12:30:00"),
        ("-p", "--partition", "debug"),
        ("-p", "--partition", "my-part"),
        ("-p", "--partition", "a,b"),
        ("-A", "--account", "abc@v100"),
        ("-r", "--ranks", "0,2-3"),
        ("-r", "--ranks", "1-2"),
        ("-o", "--out", "result"),
    ],
)
def test_short_options(short, long, value):
    """SLURM's short options mean the long ones, glued to their value or not, whatever the value looks like."""
    expected = parsed(f"{long} {value} x")
    assert expected[1] == "x"
    assert parsed(f"{short} {value} x") == expected
    assert parsed(f"{short}{value} x") == expected


def test_resource_options():
    """Each option that asks for resources arrives under the name that a profile has for it."""
    line = (
        "--nodes 4 --ntasks 8 --ntasks-per-node 2 --cpus-per-task 3 --mem 16G --gpus-per-node 1 --time 1:00:00 "
        "--partition p --account a --qos q --constraint c --profile f --launcher slurm --no-client-limit off "
        "--idle-limit 30"
    )
    options, _ = parsed(line)
    assert set(options) == set(RESOURCE_NAMES)
    assert set(RESOURCE_NAMES) - {"profile"} <= set(KEYS)
    assert options["no_client_limit"] == "off"


def test_cell_options():
    """What concerns the cell stands beside the resources, in any order."""
    options, rest = parsed("--local -r 0 --push a,b --timeout 2.5 --nodes 2 --out y --keep --dry-run --session s")
    assert options == {
        "local": True, "ranks": "0", "push": "a,b", "timeout": 2.5, "nodes": "2", "out": "y", "keep": True,
        "dry_run": True, "session": "s",
    }  # fmt: skip
    assert rest == ""


def test_every_option_is_known():
    """The two tables of options, for resources and for the cell, are all that there is."""
    names = {action.dest for action in remote_parser("%remote")._actions}
    assert names == {*RESOURCE_NAMES, *NOT_THE_PROFILES}


# ---- what is refused


@pytest.mark.parametrize(
    ("line", "option", "guess"),
    [
        ("--node 4", "--node", "--nodes"),
        ("--tiem 1:00:00", "--tiem", "--time"),
        ("--nodes 2 --partion debug", "--partion", "--partition"),
        ("--partion=debug", "--partion", "--partition"),
        ("--cpus-per-taks 2 --nodes 1", "--cpus-per-taks", "--cpus-per-task"),
        ("--dryrun", "--dryrun", "--dry-run"),
    ],
)
def test_unknown_option(line, option, guess):
    """An unknown option is named and the nearest guessed; nothing after it is taken for code."""
    error = refused(line)
    assert repr(option) in error.message
    assert f"`{guess}`" in error.mend


def test_far_off_option():
    """Where nothing is near, nothing is guessed."""
    assert "Did you mean" not in refused("--qqqqqq").mend


@pytest.mark.parametrize("line", ["--node 4", "--nod=4", "--par debug", "--acc a", "--gpus 1", "--cpus 2", "--dry"])
def test_no_abbreviations(line):
    """Only whole names are options: a shorter one could come to mean another with the next version."""
    refused(line)


@pytest.mark.parametrize("line", ["--mem", "-t", "--local --mem", "--mem=", "-t  ", "--nodes 2 --mem"])
def test_missing_value(line):
    """An option that lacks its value is named."""
    assert ("--mem" if "--mem" in line else "-t") in refused(line).message


@pytest.mark.parametrize("line", ["--timeout soon", "--timeout=", "--keep=3", "--local=yes"])
def test_malformed_value(line):
    """A value that the option cannot take is refused with the option's name."""
    assert line.partition("=")[0].partition(" ")[0] in refused(line).message


@pytest.mark.parametrize("line", ['--partition "de bug', "--out 'x", '--partition a"b'])
def test_open_quotes(line):
    """Quotes that are never closed are called that."""
    assert "quot" in str(refused(line)).lower()


# ---- values are expanded, code is not


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("--nodes $n", {"nodes": "4"}),
        ("--nodes={n}", {"nodes": "4"}),
        ("-N $n", {"nodes": "4"}),
        ("-N$n", {"nodes": "4"}),
        ("-N{n}", {"nodes": "4"}),
        ("--nodes {n * 2}", {"nodes": "8"}),
        ("--nodes {sizes['big']}", {"nodes": "8"}),
        ("--time 0:{n}0:00", {"time": "0:40:00"}),
        ("-p $part --mem ${n}G", {"partition": "debug", "mem": "${n}G"}),
        ("--session run-{n}", {"session": "run-4"}),
        ("--session '{two}'", {"session": "a b"}),
    ],
)
def test_values_expanded(line, options):
    """`$name` and `{expr}` stand for the notebook's values behind options."""
    if "${n}" in line:  # IPython's own reading: "$" stays, {n} is expanded
        options = options | {"mem": "$4G"}
    assert parsed(line) == (options, "")


@pytest.mark.parametrize(
    "code",
    [
        'f"{x}"',
        "f'{x:>{n}} {{}}'",
        "{n: x}",
        "{x}",
        "$x",
        "'$x {n}'",
        "x - 1",
        "x --n",
        "x -N4 --nodes",
        "-1 + x",
        "[-x for x in range(3)]",
        "print('--nodes 4', \"-h\")",
        "x if x else --n",
        "a = b  # -h --help",
        "'it''s'",
        "'",
        "x  +   y",
        "lambda: {'--keep': -n}",
        "!ls --all -h $HOME",
        "(-x)",
        "~x",
        "%timeit -n 3 x",
    ],
)
def test_code_untouched(code):
    """From the first word that is no option the line is the user's code, to the letter."""
    assert parsed(code) == ({}, code)
    assert parsed(f"--local -N 2 -p $part {code}") == ({"local": True, "nodes": "2", "partition": "debug"}, code)


def test_expanded_value_is_one_word():
    """A notebook's value with blanks or dashes stays the value of its option."""
    assert parsed("--session $two x") == ({"session": "a b"}, "x")
    parser = remote_parser("%remote")
    tokens, rest = parser.split("--session=$v x", lambda text: text.replace("$v", "--keep -h"))
    assert vars(parser.parse(tokens))["session"] == "--keep -h"
    assert rest == "x"


def test_quotes():
    """Quotes hold a value together, and go."""
    assert parsed("""--session "a b" -p 'c d' x""") == ({"session": "a b", "partition": "c d"}, "x")
    assert parsed("""--session="a b" x""") == ({"session": "a b"}, "x")
    assert parsed("""--session a" b "c x""") == ({"session": "a b c"}, "x")


def test_repeated_option():
    """Of an option that is given twice the last counts, as with sbatch."""
    assert parsed("--nodes 2 -N 3 x") == ({"nodes": "3"}, "x")


# ---- help


@pytest.mark.parametrize("line", ["-h", "--help", "--nodes 4 -h", "-h x + 1", "--local --help --nodes 2"])
def test_help(line):
    """`-h` among the options shows every one of them, and runs nothing."""
    with pytest.raises(HelpAsked) as asked:
        parsed(line)
    text = str(asked.value)
    for action in remote_parser("%remote")._actions:
        for option in action.option_strings:
            assert option in text
        assert action.help in " ".join(text.split())


def test_help_shows_its_magic():
    """Help names the magic that was asked, percent signs and all."""
    for prog in ("%%remote", "%remote"):
        with pytest.raises(HelpAsked, match=f"usage: {prog} "):
            remote_parser(prog).parse(["-h"])


# ---- the other magics


def test_names():
    """`%push` and `%pull` take names and ranks, and refuse other options."""
    parser = names_parser("%push", "Send.")
    options = parser.parse(["a", "b,c", "-r", "0,2-3"])
    assert (options.names, options.ranks) == (["a", "b,c"], "0,2-3")
    assert parser.parse(["-r0", "a"]).names == ["a"]
    with pytest.raises(ProfileError, match="--rank") as error:
        parser.parse(["a", "--rank", "0"])
    assert "`--ranks`" in error.value.mend


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b", ["a", "b"]),
        ("a,b -r 0-1", ["a,b", "-r0-1"]),
        ("--ranks $n a", ["--ranks=4", "a"]),
        ("a --ranks={n}", ["a", "--ranks=4"]),
        ("x --from 'my {n}.npy'", ["x", "--from=my 4.npy"]),
        ("$n -h", ["$n", "-h"]),
        ("a ---", ["a", "---"]),
    ],
)
def test_words(line, words):
    """A line of names takes options anywhere; their values may be quoted, and are expanded as those of `%remote`."""
    parser = scatter_parser() if "--from" in line else names_parser("%push", "Send.")
    assert parser.words(line, expand) == words


@pytest.mark.parametrize("line", ["x --from 'a b", "x --from"])
def test_words_refused(line):
    """An open quote and a missing value are called that."""
    with pytest.raises(ProfileError) as error:
        scatter_parser().words(line, expand)
    assert "--from" in two_lines(error).message


def test_never_leaves_the_interpreter():
    """What would end a program on the command line raises here."""
    parser = OptionParser("%x", "X.")
    parser.add_argument("--count", type=int, required=True)
    for tokens in ([], ["--count", "x"], ["--count"]):
        with pytest.raises(ProfileError, match="%x"):
            parser.parse(tokens)


def test_stray_word():
    """A word that no option takes is refused as such."""
    parser = OptionParser("%hpc start", "Start.")
    with pytest.raises(ProfileError, match="'four'") as error:
        parser.parse(["four"])
    assert "-h" in error.value.mend
