"""The command ``vcg``: this package's own subcommands, and those that others add by entry point.

A subcommand of another package is imported when it is used, or when the list of all commands is printed; so a package
that is broken, or lacks something on this host, spoils only its own commands. Heavy imports stand inside the commands,
because ``vcg plan --help`` must not wait for pandas.

Exit codes: 2 for a wrong configuration or command line, 130 after Ctrl-C, 1 for any other failure.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points, version
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from vcg.doctor import doctor
from vcg.errors import ConfigError, RunError, VcgError
from vcg.printable import printable

if TYPE_CHECKING:
    from vcg.attach import Attached, Change
    from vcg.plan import Plan
    from vcg.regions import Regions

PLUGIN_GROUP = "vcg.commands"
PIPED_WIDTH = 100
"""Columns of tables that go to a file or a pipe."""


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=PLUGIN_GROUP)}


def _load_plugin(entry: EntryPoint) -> Any:
    """The command that an entry point names: a Typer app, a function, or a finished command.

    Where it cannot be imported, a command that says so when it is used: the rest of ``vcg`` must stay usable.
    """
    try:
        loaded = entry.load()
    except Exception as error:  # whatever a foreign import raises is reported by the stand-in
        return _stand_in(entry, f"{type(error).__name__}: {error}")
    if not isinstance(loaded, typer.Typer):
        if not callable(loaded) or hasattr(loaded, "make_context"):
            return loaded
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(name=entry.name)(loaded)
        loaded = app
    command = typer.main.get_command(loaded)
    command.name = entry.name
    return command


def _stand_in(entry: EntryPoint, reason: str) -> TyperCommand:
    def refuse(**_: Any) -> None:
        raise VcgError(f"vcg {entry.name}: {entry.value} cannot be imported: {reason}")

    return TyperCommand(
        name=entry.name,
        callback=refuse,
        help=f"(not available: {reason})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


class _Commands(TyperGroup):
    """Our own commands and those of the entry points; every error that we raise on purpose ends here."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [*super().list_commands(ctx), *(name for name in _plugins() if name not in self.commands)]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        own = super().get_command(ctx, cmd_name)
        entry = None if own else _plugins().get(cmd_name)
        return _load_plugin(entry) if entry else own

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except VcgError as error:
            print(printable("\n".join([str(error), *getattr(error, "__notes__", ())])), file=sys.stderr)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
        except OSError as error:  # the host says no: a full disk, a missing right
            if error.filename is None and (error.errno == errno.EPIPE or not _is_output_lost()):
                raise
            print(printable(f"{error.filename or 'standard output'}: {error.strerror}"), file=sys.stderr)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(130) from interrupt


def _is_output_lost() -> bool:
    """Whether standard output takes nothing more, as on a full disk; then what waits for it is given up.

    An error of a stream does not say of which; so it is tried, with a line more that does no harm where it succeeds.
    """
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="A virtual compute gateway: nine paced, chrooted, pinned dimensions on one Linux host, measured with eBPF.",
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"vcg {version('vcg')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Console entry point."""
    app()


TestbedArgument = Annotated[
    str, typer.Argument(metavar="TESTBED", help="A ready testbed such as [bold]default[/], or the path of a TOML file.")
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override a field; may be repeated. Dimensions are selected by name, range, * or triad.",
    ),
]


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """``PATH=VALUE`` texts as overrides for :func:`vcg.config.load`.

    A value that reads as TOML is that value (``true``, ``[0, 1]``, ``2.5``, ``"text"``); any other is text as it
    stands, so that ``5ms`` and ``1/3`` need no quotes.

    Raises:
        ConfigError: a text without ``=``.
    """
    import tomllib

    from vcg.errors import Problem

    overrides: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError([Problem("command line", None, "--set", json.dumps(text), "expected PATH=VALUE")])
        try:
            overrides[path.strip()] = tomllib.loads(f"value = {value}", parse_float=Decimal)["value"]
        except tomllib.TOMLDecodeError:
            overrides[path.strip()] = value.strip()
    return overrides


_PLAN_EXAMPLES = (
    "[bold]Examples[/]",
    "vcg plan default",
    "vcg plan default --set base_window=5ms --set dimensions.d1-d3.harmonic=1.618",
    "vcg plan default --set 'dimensions.*.storage.kind=tmpfs' --edges",
    "vcg plan ./mine.toml --json | jq .plan.dimensions",
    "vcg plan --policy",
)


@app.command(epilog="\n\n".join(_PLAN_EXAMPLES))
def plan(
    testbed: Annotated[
        str | None,
        typer.Argument(metavar="TESTBED", help="A ready testbed such as [bold]default[/], or the path of a TOML file."),
    ] = None,
    overrides: OverridesOption = None,
    edges: Annotated[bool, typer.Option("--edges", help="Show all edges of the hyperperiod.")] = False,
    policy: Annotated[
        bool,
        typer.Option("--policy", help="Show which system calls the dimensions are refused, and why; needs no TESTBED."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a testbed would do on this host: edges, placement, credits, bounds. Starts nothing, needs no root."""
    from vcg import config, floor, gatefloor, harmonics, planview
    from vcg import plan as planning
    from vcg.errors import Problem
    from vcg.linux import numa
    from vcg.run import check_workloads, search_path

    if testbed is None and policy:
        if as_json:
            print(json.dumps({"policy": planview.policy()}, indent=2))
        else:
            planview.show_policy(_console())
        return
    if testbed is None:
        expected = "expected the name of a ready testbed, such as default, or the path of a TOML file"
        raise ConfigError([Problem("command line", None, "TESTBED", "", expected)])
    resolved = config.load(testbed, parse_overrides(overrides or []))
    floor_ns, freezer_floor_ns = floor.window_floor_ns(), gatefloor.shortest_window_ns()
    made = planning.make(resolved, numa.observe(), floor_ns=floor_ns, freezer_floor_ns=freezer_floor_ns)
    check_workloads(made, search_path())
    cadences = planning.cadences(made)
    if made.hyperperiod_ns is not None:
        listed = list(harmonics.edge_table(cadences))
    else:
        # Endless: what starts inside the longest window stands for it.
        horizon = max(cadence.period for cadence in cadences)
        within = takewhile(lambda edge: edge.offset_ns < horizon, harmonics.edges(cadences))
        listed = list(islice(within, harmonics.EDGE_TABLE_LIMIT))
    if as_json:
        print(json.dumps(planview.as_object(made, listed), indent=2))
        return
    planview.show(_console(), made, resolved.description, listed, all_edges=edges)
    if policy:
        planview.show_policy(_console())


_RUN_EXAMPLES = (
    "[bold]Examples[/]",
    "vcg run default --for 10s",
    "vcg run default --set base_window=12ms --set 'dimensions.d7-d9.storage.kind=tmpfs'",
    "vcg run ./mine.toml --for 60s --json > run.json",
)


@app.command(epilog="\n\n".join(_RUN_EXAMPLES))
def run(
    testbed: TestbedArgument,
    duration: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="How long, such as 10s; else until Ctrl-C.")
    ] = None,
    overrides: OverridesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Run a testbed and show, dimension by dimension, how its windows go. Needs root; leaves nothing behind."""
    from vcg import config, floor, watch
    from vcg.run import plan_here

    length_ns = parse_option("--for", duration)
    resolved = config.load(testbed, parse_overrides(overrides or []))
    if floor.window_floor_ns() is None:
        print("measuring the shortest window that this host sustains, once; some seconds …", file=sys.stderr)
    made = plan_here(resolved)
    ending = watch.follow(made, length_ns, _console(), quiet=as_json)
    if as_json:
        print(json.dumps(ending.result, indent=2))
    if ending.failure:
        raise ending.failure
    if ending.interrupted and length_ns is not None:
        raise typer.Exit(130)


StateRootOption = Annotated[
    str, typer.Option("--state-root", metavar="PATH", help="State root of the run, as its testbed names it.")
]
STATE_ROOT = "/var/lib/vcg"
"""Of the ready testbeds, and of those that name none."""

_AMPLITUDE_EXAMPLES = (
    "[bold]Examples[/]",
    "vcg amplitude",
    "vcg amplitude d4 2.5",
    "vcg amplitude d1-d3 0.5 --state-root /srv/mine",
)


@app.command(epilog="\n\n".join(_AMPLITUDE_EXAMPLES))
def amplitude(
    selector: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A dimension, a range such as [bold]d1-d3[/], or *.")
    ] = None,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="Its new amplitude.")] = None,
    state_root: StateRootOption = STATE_ROOT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the amplitudes of a run that is going on, or change them. Needs root.

    A change is part of the run's result, but not of its testbed. It takes effect in the window after the next.
    """
    from vcg.attach import Attached

    wanted = None if value is None else _parse_amplitude(value)
    with Attached(Path(state_root)) as run:
        names = _select(run.plan, selector or "*")
        if wanted is None:
            _print_amplitudes(run.regions, names, as_json=as_json)
        else:
            _print_changes(run.set_amplitudes(dict.fromkeys(names, wanted)), run.plan, as_json=as_json)


_TOP_COLUMNS = (
    "[bold]Columns[/]",
    "win, ampl, own: its window, its amplitude, its own credit for a window",
    "bal, owed: carried over, or in debt if negative; loans to give back (of own)",
    "borr, lent: credit from and to others (of the own credit minted meanwhile)",
    "p50, p99: lateness of its windows",
    "over, miss, skip: windows that overran, were missed, or skipped by the RTD",
    "state: held 3 is demoted or frozen three times; behind has windows to enter",
    "cpu%, rd/s, wr/s, mem, task: what the kernel accounts to it",
)


@app.command(epilog="\n\n".join(_TOP_COLUMNS))
def top(
    state_root: StateRootOption = STATE_ROOT,
    just_once: Annotated[bool, typer.Option("--once", help="Print one table, and leave; so does a pipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and leave.")] = False,
) -> None:
    """Watch a run that is going on, dimension by dimension: windows, credit, lateness, CPU and I/O. Needs root.

    All is of the last three seconds. Ctrl-C leaves the run going.
    """
    from vcg import top as watching
    from vcg.attach import Attached

    console = _console()
    with Attached(Path(state_root)) as run:
        if just_once or as_json or not console.is_terminal:
            watching.once(run, console, as_json=as_json)
        else:
            watching.follow(run, console)


_SNAPSHOT_EXAMPLES = (
    "[bold]Examples[/]",
    "vcg snapshot d4",
    "vcg snapshot --list",
    "vcg snapshot --show 20260102T030405.678901Z-d4-crash",
    'vcg run default --set \'dimensions.*.snapshot=["crash", "oom", "watchdog"]\'',
)


@app.command(epilog="\n\n".join(_SNAPSHOT_EXAMPLES))
def snapshot(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A dimension of a run that is going on, a range, or *.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the snapshots that there are, oldest first.")] = False,
    shown: Annotated[
        str | None, typer.Option("--show", metavar="PATH", help="Show what one holds; its name will do.")
    ] = None,
    state_root: StateRootOption = STATE_ROOT,
    directory: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where snapshots lie; else where the run has them, or below the state root."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Take a snapshot of a dimension, or look at those that were taken. Needs root.

    The dimension is frozen while its filesystem is copied, and misses its windows; the run goes on. What has been taken
    is read without mounting it; [bold]--show[/] says how. A testbed can have one taken when a dimension fails.
    """
    from vcg import postmortem
    from vcg.attach import Attached
    from vcg.errors import Problem

    if (name is not None) + listed + (shown is not None) != 1:
        expected = "expected one of these: the NAME of a dimension, --list, --show PATH"
        raise ConfigError([Problem("command line", None, "snapshot", "", expected)])
    if name is not None:
        with Attached(Path(state_root)) as run:
            _take_snapshots(run, _select(run.plan, name), as_json=as_json)
    elif shown is None:
        postmortem.show_all(_snapshots_at(state_root, directory), _console(), as_json=as_json)
    else:
        path = Path(shown) if "/" in shown else _snapshots_at(state_root, directory) / shown
        postmortem.show(path, _console(), as_json=as_json)


def _take_snapshots(run: Attached, names: Iterable[str], *, as_json: bool) -> None:
    """Take a snapshot of each, and show those that have been taken, whatever becomes of the others.

    Raises:
        RunError: some could not be taken, and why.
    """
    from vcg import postmortem

    taken, complaints = [], []
    try:
        for name in names:
            try:
                taken.append(run.snapshot(name))
            except RunError as error:
                complaints.append(str(error))
    finally:
        postmortem.show_taken(taken, _console(), as_json=as_json)
    if complaints:
        raise RunError("\n".join(dict.fromkeys(complaints)))  # that the run has ended is said once


def _snapshots_at(state_root: str, directory: str | None) -> Path:
    """Where snapshots lie: as the command line says, else as the run that is going on there, else as by default."""
    from vcg.attach import Attached
    from vcg.snapshot import FOLDER

    if directory is not None:
        return Path(directory)
    try:
        with Attached(Path(state_root)) as run:
            return Path(run.plan.snapshots.directory)
    except VcgError:  # no run is going on there
        return Path(state_root) / FOLDER


_UNIT_EXAMPLES = (
    "[bold]Examples[/]",
    "vcg unit default >/etc/systemd/system/vcg.service",
    "systemctl enable --now vcg.service",
    "vcg unit /srv/mine.toml --set base_window=12ms --install-path /opt/vcg/bin/vcg",
)


@app.command(epilog="\n\n".join(_UNIT_EXAMPLES))
def unit(
    testbed: TestbedArgument = "default",
    overrides: OverridesOption = None,
    install_path: Annotated[
        str | None,
        typer.Option("--install-path", metavar="PATH", help="The vcg command that it is to start; else this one."),
    ] = None,
) -> None:
    """Print a systemd unit that runs a testbed from boot on. The testbed is checked against this host first."""
    from vcg import config, floor, gatefloor
    from vcg import plan as planning
    from vcg import unit as units
    from vcg.errors import Problem
    from vcg.linux import numa
    from vcg.run import check_workloads

    resolved = config.load(testbed, parse_overrides(overrides or []))
    floor_ns, freezer_floor_ns = floor.window_floor_ns(), gatefloor.shortest_window_ns()
    made = planning.make(resolved, numa.observe(), floor_ns=floor_ns, freezer_floor_ns=freezer_floor_ns)
    command = Path(install_path or Path(sys.executable).with_name("vcg")).absolute()
    if not command.is_file() or not os.access(command, os.X_OK):
        expected = "expected the path of an installed vcg command"
        raise ConfigError([Problem("command line", None, "--install-path", json.dumps(str(command)), expected)])
    directory, environment = units.surroundings(lambda path: check_workloads(made, path))
    is_file = "/" in testbed or testbed.endswith(".toml")
    words = [str(command), "run", str(Path(testbed).resolve()) if is_file else testbed]
    words += [word for text in overrides or () for word in ("--set", text)]
    print(units.render(made, words, directory, environment), end="")


def _parse_amplitude(text: str) -> float:
    """The VALUE of ``vcg amplitude``.

    Raises:
        ConfigError: it is not an amplitude.
    """
    from vcg.errors import Problem
    from vcg.quantities import parse_amplitude

    try:
        return parse_amplitude(Decimal(text))
    except InvalidOperation:
        complaint = "expected a number above 0"
    except ValueError as error:
        complaint = str(error)
    raise ConfigError([Problem("command line", None, "VALUE", json.dumps(text), complaint)])


def _select(plan: Plan, selector: str) -> list[str]:
    """The dimensions that a selector names.

    Raises:
        ConfigError: it names none.
    """
    from vcg.config import selected
    from vcg.errors import Problem

    known = [d.name for d in plan.dimensions]
    names = selected(selector, known)
    if not names:
        expected = f"nothing is selected; the run has {', '.join(known)}"
        raise ConfigError([Problem("command line", None, "NAME", json.dumps(selector), expected)])
    return names


def parse_option(option: str, duration: str | None) -> int | None:
    """A duration of the command line in ns, None if it was not given.

    Raises:
        ConfigError: it is not a duration.
    """
    from vcg.errors import Problem
    from vcg.quantities import parse_duration

    if duration is None:
        return None
    try:
        return parse_duration(duration)
    except ValueError as error:
        raise ConfigError([Problem("command line", None, option, json.dumps(duration), str(error))]) from error


app.command()(doctor)


class SchemaKind(StrEnum):
    """Kinds of file that have a schema here."""

    testbed = "testbed"


@app.command()
def schema(
    kind: Annotated[SchemaKind, typer.Option("--kind", help="Kind of file.")] = SchemaKind.testbed,
) -> None:
    """Print the JSON Schema of a configuration file, for editors and validators."""
    from vcg import config

    schemas = {SchemaKind.testbed: config.json_schema}
    print(json.dumps(schemas[kind](), indent=2))


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


# ── how amplitudes look ──────────────────────────────────────────────────────────────────────────────────────────────
def _print_amplitudes(regions: Regions, names: Iterable[str], *, as_json: bool) -> None:
    from vcg.quantities import show_duration

    amplitudes, credits_ns = regions.amplitudes(), regions.credits_ns()
    if as_json:
        told = {name: {"amplitude": amplitudes[name], "credit_ns": credits_ns[name]} for name in names}
        print(json.dumps({"testbed": regions.plan.name, "dimensions": told}, indent=2))
        return
    table = _table_of("window", "amplitude", "credit", "share")
    dimensions = {d.name: d for d in regions.plan.dimensions}
    for name in names:
        d, credit_ns = dimensions[name], credits_ns[name]
        share = f"{credit_ns / d.period_ns:.1%}"
        table.add_row(name, show_duration(d.period_ns), f"{amplitudes[name]:g}", show_duration(credit_ns), share)
    _console().print(table)


def _print_changes(changes: Iterable[Change], plan: Plan, *, as_json: bool) -> None:
    from vcg.quantities import show_duration

    if as_json:
        told = {change.name: {**asdict(change)} for change in changes}
        print(json.dumps({"testbed": plan.name, "changed": told}, indent=2))
        return
    table = _table_of("window", "amplitude", "credit", "share")
    periods_ns = {d.name: d.period_ns for d in plan.dimensions}
    for change in changes:
        period_ns, both_ns = periods_ns[change.name], (change.credit_before_ns, change.credit_ns)
        table.add_row(
            change.name,
            show_duration(period_ns),
            _arrow(f"{change.amplitude_before:g}", f"{change.amplitude:g}"),
            _arrow(*map(show_duration, both_ns)),
            _arrow(*(f"{credit_ns / period_ns:.1%}" for credit_ns in both_ns)),
        )
    _console().print(table)


def _table_of(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _arrow(before: str, after: str) -> str:
    return after if before == after else f"{before} → {after}"
