"""update, status, retry, cancel, history: what devices should run, and what became of it."""

from __future__ import annotations

from typing import Any

import click

from dfud.cli.client import CliError, NobodyError, Session
from dfud.cli.jobs import finish, no_wait_option, start
from dfud.cli.jobs import line as line_of
from dfud.cli.resources import pass_session
from dfud.cli.show import Table, print_table, say, show_json
from dfud.cli.state import line
from dfud.cli.watch import Watch, exit_code, firmware_of, show_result, show_weaker, tell_outcomes
from dfud.model.text import visible_lines

WATCH_S = 3600.0
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=WATCH_S,
    show_default=True,
    help="With --watch: seconds after which to give up, exit code 4; 0: never.",
)


class Group:
    """The devices of a selector, or (`own` False) those of the app that follow its default, as they are now."""

    def __init__(self, session: Session, labels: str, *, own: bool = True) -> None:
        self.targets: dict[str, str] = {}
        for page in session.pages(session.registry("devices"), labels=labels):
            for one in page:
                if own or "firmware" not in one["spec"]:
                    self.targets[one["metadata"]["name"]] = one["status"]["firmware"]["target"]
        if own and not self.targets:
            raise NobodyError(session.app, labels)


@click.command()
@click.argument("arguments", nargs=-1, metavar="[DEVICE] [VERSION]")
@click.option(
    "--app", "app_version", metavar="VERSION", help="The app firmware, alone or beside the VERSION of the system."
)
@click.option("-l", "--selector", help="All devices with these labels, such as site=attic.")
@click.option("--app-default", is_flag=True, help="All devices of the app that have no wish of their own.")
@click.option("--hold", is_flag=True, help="Decide now, send later.")
@click.option("--download-only", is_flag=True, help="Have it written, not booted.")
@no_wait_option
@click.option(
    "--all-at-once",
    is_flag=True,
    help="With -l: also where so many match that a rollout should be made ([registry] update_max).",
)
@click.option("-w", "--watch", is_flag=True, help="Stay until it has ended everywhere; the exit code says how.")
@timeout_option
@pass_session
@click.pass_context
def update(
    ctx: click.Context,
    session: Session,
    arguments: tuple[str, ...],
    app_version: str | None,
    selector: str | None,
    app_default: bool,
    hold: bool,
    download_only: bool,
    no_wait: bool,
    all_at_once: bool,
    watch: bool,
    timeout_s: float,
) -> None:
    """Say that DEVICE, or all that a selector matches, should run VERSION, and the app firmware that --app names.

    Of a device and of --app-default, the kind of firmware that is not named stays as it was said before.

    \b
    Exit codes: 0 done; 1 refused; 3 with --watch: a device did not get there (rolled back, failed, cancelled, ...);
    4 with --watch: the time was over before; 5 no device matches SELECTOR, nothing was done.
    """
    named, version = _read_arguments(arguments, app_version, many=bool(selector or app_default))
    one = named is not None
    if selector and app_default:
        raise CliError("name a device, or give -l SELECTOR, or --app-default; and the version last")
    if hold and watch:
        raise CliError("--hold and --watch: what is on hold does not end; leave one of them out")
    if no_wait and (watch or not selector):
        raise CliError("--no-wait: it is for -l SELECTOR, without --watch")
    if all_at_once and not selector:
        raise CliError("--all-at-once: it is for -l SELECTOR")
    wanted = {} if selector else _kept(session, named, both=bool(version and app_version))
    wanted |= {key: text for key, text in (("version", version), ("app", app_version)) if text}
    what = " with ".join([*([version] if version else ()), *([f"app {app_version}"] if app_version else ())])
    wanted |= {"hold": True} if hold else {}
    wanted |= {"downloadOnly": True} if download_only else {}
    body: dict[str, Any] = {"firmware": wanted} | ({"device": named} if named else {})
    names = [named] if named else []
    if selector:
        job = start(session, selector, wanted, all_at_once=all_at_once)
        job = job if no_wait else finish(session, job)
        if watch:
            names = list(Group(session, selector).targets)
        _show_group(session, job, f"should run {what}", watch=watch)
    else:
        found = session.request("POST", session.api("update"), json=body)
        if session.json:
            show_json(found, indent=None if watch else 2)
        elif one:
            say(f"{named} should run {what}.")
        else:
            say(f"Devices of {session.app} without a wish of their own should run {what}.")
    if watch:
        if app_default:
            names = list(Group(session, "", own=False).targets)
        seen = Watch(
            session,
            names,
            labels=selector or "",
            version=version,
            app=app_version,
            download_only=download_only,
            timeout_s=timeout_s,
        )
        outcomes = seen.run()
        tell_outcomes(session, seen)
        ctx.exit(exit_code(outcomes.values()))


def _read_arguments(
    arguments: tuple[str, ...], app_version: str | None, *, many: bool
) -> tuple[str | None, str | None]:
    """Return the device and the version of the system that are named; None for one that is not. many: no device is to be named."""
    expected = range(0 if app_version else 1, 2) if many else range(1 if app_version else 2, 3)
    if len(arguments) not in expected:
        raise CliError("name a device, or give -l SELECTOR, or --app-default; and the version last, or --app VERSION")
    if many:
        return None, arguments[0] if arguments else None
    return arguments[0], arguments[1] if len(arguments) == 2 else None


def _kept(session: Session, device: str | None, *, both: bool) -> dict[str, Any]:
    """Return the versions that are said already, which stay where another kind is named. device None: those of the app's default."""
    if both:
        return {}
    path = session.registry("devices", device) if device is not None else session.registry()
    said = session.request("GET", path)["spec"].get("firmware")
    return {key: said[key] for key in ("version", "app") if key in said} if isinstance(said, dict) else {}


def _show_group(session: Session, job: dict[str, Any], what: str, *, watch: bool = False) -> None:
    """watch: lines follow, so as JSON it is one, too."""
    if session.json:
        show_json(job, indent=None if watch else 2)
        return
    number = job["matched"] if job["state"] == "running" else job["changed"] + job["unchanged"]
    devices = f"{number} {'device' if number == 1 else 'devices'} {what}"
    say(f"{devices}: group update {job['job']}." if job["state"] == "running" else f"{devices}: {line_of(job)}.")


@click.command()
@click.argument("device_name", metavar="[DEVICE]", required=False)
@click.option("-l", "--selector", help="All devices with these labels, such as site=attic.")
@pass_session
def follow(session: Session, device_name: str | None, selector: str | None) -> None:
    """Take the version of its own away from DEVICE that `update` gave it.

    Then it runs what the app's rollouts, rules and default say; as long as it has one of its own, they pass it by.
    """
    if bool(device_name) == bool(selector):
        raise CliError("name a device, or give -l SELECTOR")
    if selector:
        _show_group(session, finish(session, start(session, selector, None)), "follow the app again")
        return
    found = session.request("POST", session.api("update"), json={"firmware": None, "device": device_name})
    session.done(f"{device_name}: what rollouts, rules and the app say counts.", **found)


@click.command()
@click.argument("device_name", metavar="[DEVICE]", required=False)
@click.option("-l", "--selector", help="All devices with these labels, such as site=attic.")
@click.option("-w", "--watch", is_flag=True, help="Stay, and print every change, until the update has ended.")
@timeout_option
@pass_session
@click.pass_context
def status(
    ctx: click.Context, session: Session, device_name: str | None, selector: str | None, watch: bool, timeout_s: float
) -> None:
    """Show what a device runs, what it should run, and how its last update went.

    \b
    Exit codes with --watch: 0 in sync; 3 a device did not get there (rolled back, failed, cancelled, ...);
    4 the time was over before. 5: no device matches SELECTOR.
    """
    if bool(device_name) == bool(selector):
        raise CliError("name a device, or give -l SELECTOR")
    names = [device_name] if device_name else list(Group(session, selector or "").targets)
    if watch:
        seen = Watch(session, names, labels=selector or "", timeout_s=timeout_s)
        outcomes = seen.run()
        tell_outcomes(session, seen)
        ctx.exit(exit_code(outcomes.values()))
    found = {name: firmware_of(session, name) for name in names}
    if session.json:
        session.show(found[device_name] if device_name else found)
        return
    for name, firmware in found.items():
        say(f"{name}: {line(firmware)}")
        show_result(firmware)
        show_weaker(firmware)


def _ask(session: Session, what: str, device_name: str, promise: str) -> None:
    session.request("POST", session.api(what, device_name))
    session.done(f"{device_name}: {promise}.", device=device_name, asked=what)


@click.command()
@click.argument("device_name", metavar="DEVICE")
@pass_session
def retry(session: Session, device_name: str) -> None:
    """Let a device try again what it left, or what failed."""
    _ask(session, "retry", device_name, "what it should run may be sent to it again")


@click.command()
@click.argument("device_name", metavar="DEVICE")
@pass_session
def cancel(session: Session, device_name: str) -> None:
    """End a device's update, unless it runs on trial already. The version is not sent to it again until `retry`."""
    _ask(session, "cancel", device_name, "the image is not sent to it again until `dfuctl retry`")


@click.command()
@click.argument("device_name", metavar="DEVICE")
@pass_session
def history(session: Session, device_name: str) -> None:
    """Show what happened to a device's updates, newest last."""
    found = session.request("GET", session.api("history", device_name))
    if session.json:
        session.show(found)
        return
    rows = Table("AT", "VERSION", "STATE", "EVENT", "TEXT")
    for one in reversed(found):
        text = visible_lines(one.get("text") or "")
        rows.add_row(one["at"], one["version"], one["state"], one.get("event", ""), text[-1] if text else "")
    print_table(rows)


@click.command()
@click.argument("device_name", metavar="DEVICE")
@pass_session
def explain(session: Session, device_name: str) -> None:
    """Say why DEVICE runs what it runs, what it waits for, and what can be done."""
    found = session.request("GET", session.api("explain", device_name))
    if session.json:
        session.show(found)
        return
    for sentence in found["sentences"]:
        session.say(sentence)
    if found["todo"]:
        session.say(f"What can be done: {found['todo']}")
    session.say(f"({found['code']})")


@click.command()
@pass_session
def drift(session: Session) -> None:
    """List the devices that are not where they should be, grouped by why; `dfuctl explain DEVICE` says more of one."""
    found = session.request("GET", session.api("drift"))
    if session.json:
        session.show(found)
        return
    session.say(f"{found['devices']} devices, {found['inSync']} run what they should.")
    rows = Table("CODE", "DEVICES", "AMONG THEM", "SUCH AS")
    for code, group in sorted(found["drifting"].items(), key=lambda pair: -pair[1]["count"]):
        rows.add_row(code, group["count"], ", ".join(group["devices"][:3]), group["sentence"])
    for version, group in sorted(found["strangers"].items(), key=lambda pair: -pair[1]["count"]):
        rows.add_row("(not published)", group["count"], ", ".join(group["devices"][:3]), f"runs {version}")
    if rows.rows:
        print_table(rows)
