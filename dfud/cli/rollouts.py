"""rollout: a firmware reaches a fleet in waves; said, planned, watched, steered."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from dfud.cli.client import CliError, Session
from dfud.cli.plan import say_failures, watch_plan
from dfud.cli.resources import pass_session
from dfud.cli.rollout_pictures import ENDED, brought, line, picture, rows, say_history, title
from dfud.cli.show import Table, confirm, print_table, say, show_json, yes_option
from dfud.model.names import check_name
from dfud.model.selectors import parse_selector_untrusted

EXIT_STOPPED = 3  # as `dfuctl update --watch`: it ended otherwise than was wanted
WATCH_S = 1.0
PLANNED = "dfuctl.rollout.planned"  # key of the context's meta: how `plan` was asked


@click.group()
def rollout() -> None:
    """Rollouts: a firmware reaches a fleet in waves, stops itself when it goes wrong, and says why.

    \b
    dfuctl rollout create spring 1.3 -l site=attic
    dfuctl rollout show spring --watch
    dfuctl rollout pause spring --reason "lunch"
    """


def _of(session: Session, name: str, *more: str) -> str:
    return session.api("rollouts", name, *more)


def _percents(text: str, soak_s: float | None) -> list[dict[str, Any]]:
    more = {} if soak_s is None else {"soakS": soak_s}
    try:
        return [{"percent": float(part), **more} for part in text.split(",")]
    except ValueError:
        raise CliError(f"--waves {text}: expected percentages such as 1,10,100") from None


@rollout.command("create")
@click.argument("name")
@click.argument("version", required=False)
@click.option(
    "--app", "app_version", metavar="VERSION", help="The app firmware, alone or beside the VERSION of the system."
)
@click.option("-l", "--selector", help="Which devices, by their labels; all, without it.")
@click.option("--waves", help="Percent of all in each wave, such as 1,10,100 (which is the default).")
@click.option("--running", multiple=True, help="Only devices that run this version; may be repeated.")
@click.option("--per-minute", type=click.IntRange(1), help="Devices told in a minute.")
@click.option("--transfers", type=click.IntRange(1), help="Devices that are being updated at one time.")
@click.option(
    "--soak", type=click.FloatRange(0), help="Seconds that a wave of --waves must have been good; 3600 without it."
)
@click.option(
    "--mode", type=click.Choice(["forced", "offer", "download-only"]), help="Whether devices are asked; forced."
)
@click.option("--offer-until", metavar="TIME", help="When an offer becomes forced, such as 2026-12-01T08:00:00+01:00.")
@click.option("--attempts", type=click.IntRange(1), help="Transfers that may fail before a device has failed.")
@click.option("--backoff", type=click.FloatRange(1), help="Seconds before the second attempt; doubled each time.")
@click.option(
    "--revert", is_flag=True, help="At too many errors take it back from those who took it, instead of pausing."
)
@click.option("--promote", is_flag=True, help="At its end, make the version the app's default.")
@click.option("--priority", type=int, help="Of two rollouts over one device the higher one counts; 0 without it.")
@click.option(
    "--spec", "spec_path", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The whole spec, as JSON."
)
@click.option("--draft", is_flag=True, help="Do not start it yet; `dfuctl rollout start` does.")
@pass_session
def rollout_create(
    session: Session,
    name: str,
    version: str | None,
    app_version: str | None,
    selector: str | None,
    waves: str | None,
    running: tuple[str, ...],
    per_minute: int | None,
    transfers: int | None,
    soak: float | None,
    mode: str | None,
    offer_until: str | None,
    attempts: int | None,
    backoff: float | None,
    revert: bool,
    promote: bool,
    priority: int | None,
    spec_path: Path | None,
    draft: bool,
) -> None:
    """Make rollout NAME of firmware VERSION, of the app firmware that --app names, or of both.

    What no option says is in --spec (docs/rollouts.md).
    """
    check_name("rollout", name)
    spec: dict[str, Any] = {}
    if spec_path is not None:
        try:
            spec = json.loads(spec_path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CliError(f"{spec_path} cannot be read as JSON: {error}") from error
        if not isinstance(spec, dict):
            raise CliError(f"{spec_path}: expected an object, the rollout's spec")
    devices = dict(spec.get("devices", {})) if isinstance(spec.get("devices", {}), dict) else spec["devices"]
    if version is None and app_version is None and not {"firmware", "app"} & spec.keys():
        raise CliError(
            "which firmware? give its VERSION behind the name, --app VERSION, or `firmware` or `app` in --spec"
        )
    if selector is not None:
        if not selector.strip():
            raise CliError("-l: expected labels such as site=attic; leave it out to mean all devices")
        parse_selector_untrusted(selector)
        devices["selector"] = selector
    if running:
        devices["running"] = list(running)
    given = {
        "firmware": version,
        "app": app_version,
        "devices": devices or None,
        "waves": _percents(waves, soak) if waves else None,
        "perMinute": per_minute,
        "transfers": transfers,
        "mode": mode,
        "offerUntil": offer_until,
        "attempts": attempts,
        "backoffS": backoff,
        "onError": "revert" if revert else None,
        "promote": promote or None,
        "priority": priority,
    }
    if soak is not None and not waves:
        raise CliError("--soak: it is of the waves that --waves makes; of others say soakS in --spec")
    spec |= {key: value for key, value in given.items() if value is not None}
    body = {"metadata": {"name": name}, "spec": spec, "draft": draft}
    _make(session, name, body)


def _make(session: Session, name: str, body: dict[str, Any]) -> None:
    """Make the rollout, or show what it would do if that is what was asked."""
    asked = click.get_current_context().meta.get(PLANNED)
    if asked is not None:
        watch_plan(session, "POST", f"{session.api('rollouts')}:plan", body, *asked)
        return
    made = session.request("POST", session.api("rollouts"), json=body)
    session.done(f"Rollout {name}: {made['status']['state']}.", **made)


@click.pass_context
def _plan(ctx: click.Context, /, name: str | None, silent_days: int, wait: float, **given: Any) -> None:
    session: Session = ctx.obj
    if name is not None:
        if any(given.values()):
            raise CliError("--of: what it is to do is said already; leave the version and the other options out")
        watch_plan(session, "GET", _of(session, name, "plan"), None, silent_days, wait)
        return
    ctx.meta[PLANNED] = (silent_days, wait)
    ctx.invoke(rollout_create.callback or (lambda: None), name="plan", draft=False, **given)


# The options of `create` are those of `plan`.
_OF = (
    click.Option(["--of", "name"], help="A rollout that is made already, instead of a version."),
    click.Option(
        ["--silent-days"],
        type=click.IntRange(1, 3650),
        default=30,
        show_default=True,
        help="Devices that were not heard of for so long are counted for later.",
    ),
    click.Option(
        ["--wait"],
        type=click.FloatRange(0),
        default=120.0,
        show_default=True,
        help="Seconds to wait for packages to be made; what is not made by then is an estimate.",
    ),
)
rollout.add_command(
    click.Command(
        "plan",
        params=[*(p for p in rollout_create.params if p.name not in ("name", "draft")), *_OF],
        callback=_plan,
        help="Say what a rollout of firmware VERSION would do, before anything is sent: whom it reaches, who is refused and why, "
        "bytes, time. Takes the options of `create`; makes nothing but packages.",
    )
)


@rollout.command("list")
@pass_session
def rollout_list(session: Session) -> None:
    """List the app's rollouts, the newest first."""
    found = session.request("GET", session.api("rollouts"))
    if session.json:
        session.show(found)
        return
    table = Table("NAME", "FIRMWARE", "STATE", "WAVE", "TOLD", "DONE", "FAILED", "REASON")
    for one in found:
        status, waves = one["status"], one["status"]["waves"]
        done, bad = sum(w["done"] for w in waves), sum(w["failed"] + w["left"] for w in waves)
        told = sum(w["told"] for w in waves)
        name = one["metadata"]["name"]
        table.add_row(
            name,
            brought(one["spec"]),
            status["state"],
            status["wave"],
            told,
            done,
            bad,
            status.get("reason", ""),
        )
    print_table(table)


@rollout.command("show")
@click.argument("name")
@click.option(
    "--watch", is_flag=True, help="Go on showing it until it has ended or stopped; exit code 3 unless it finished."
)
@pass_session
def rollout_show(session: Session, name: str, watch: bool) -> None:
    """Show rollout NAME: each wave with what its devices came to, and what happened to it."""
    found = session.request("GET", _of(session, name))
    if session.json and not watch:
        session.show(found)
        return
    console = Console(highlight=False)
    if not watch:
        say_failures(session, found)
        if console.is_terminal:
            console.print(picture(found))
        else:
            say(title(found))
            print_table(rows(found))
        say_history(session, found)
        return
    first = found
    if sys.stdout.isatty() and not session.json:
        with Live(picture(first), console=console, refresh_per_second=4, transient=False) as live:
            for found in _changes(session, name, first):
                live.update(picture(found))
    else:
        for found in _changes(session, name, first):
            if session.json:
                show_json(found, indent=None)
            else:
                session.say(line(found))
    if not session.json:
        say_failures(session, found)
        say_history(session, found)
    if found["status"]["state"] != "finished":
        raise click.exceptions.Exit(EXIT_STOPPED)


def _changes(session: Session, name: str, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a rollout as it is and each time that it has changed, until it has ended or stopped; also over restarts of dfud."""
    yield found
    away = False
    while found["status"]["state"] not in {*ENDED, "paused"}:
        time.sleep(WATCH_S)
        try:
            now = session.request("GET", _of(session, name))
        except CliError as error:
            if not error.transient:
                raise
            if not away:
                say(f"{error}; trying again", err=True)
            away = True
            continue
        away = False
        if now != found:
            found = now
            yield found


def _action(name: str, text: str, *, asks: bool = False) -> click.Command:
    @rollout.command(name, help=text)
    @click.argument("rollout_name", metavar="NAME")
    @click.option("--reason", default="", help="Kept with it, for whoever looks later.")
    @yes_option
    @pass_session
    def act(session: Session, rollout_name: str, reason: str, yes: bool) -> None:
        if asks:
            confirm(f"{name.capitalize()} rollout {rollout_name} of app {session.app}?", yes)
        found = session.request("POST", _of(session, rollout_name, name), json={"reason": reason})
        session.done(f"Rollout {rollout_name}: {found['status']['state']}.", **found)

    return act


_action("start", "Start rollout NAME, which was made as a draft; or ask for its approval.")
_action("approve", "Approve the start of rollout NAME (not by who made it), or its next wave.")
_action("deny", "Refuse the start of rollout NAME, or its next wave.")
_action("pause", "Tell no further device of rollout NAME. What is under way goes on.")
_action("resume", "Go on with rollout NAME. What failed so far counts no longer against it.")
_action("next", "Open the next wave of rollout NAME now, whatever the present one waits for.", asks=True)
_action("revert", "Take rollout NAME back from the devices that took it.", asks=True)
_action("retry", "Let rollout NAME try again on every device on which it failed, also after its end.")
_action("activate", "Have devices run what rollout NAME had them write (mode download-only), wave by wave.", asks=True)


@rollout.command("abort")
@click.argument("name")
@click.option("--reason", default="", help="Kept with it, for whoever looks later.")
@click.option("--call-back", is_flag=True, help="Stop the updates that are under way, too.")
@yes_option
@pass_session
def rollout_abort(session: Session, name: str, reason: str, call_back: bool, yes: bool) -> None:
    """End rollout NAME. Devices keep what they have."""
    confirm(f"Abort rollout {name} of app {session.app}?", yes)
    body = {"reason": reason, "callBack": call_back}
    found = session.request("POST", _of(session, name, "abort"), json=body)
    session.done(f"Rollout {name}: {found['status']['state']}.", **found)


@rollout.command("delete")
@click.argument("name")
@yes_option
@pass_session
def rollout_delete(session: Session, name: str, yes: bool) -> None:
    """Delete rollout NAME, which has ended or never began. Its devices then run what the rules and the app say."""
    confirm(f"Delete rollout {name} of app {session.app}?", yes)
    session.request("DELETE", _of(session, name))
    session.done(f"Rollout {name} deleted.", rollout=name)
