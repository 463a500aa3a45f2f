"""login, context, app, device, command, token, audit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx
from rich.console import Console
from rich.table import Table

from dfud.cli.client import CliError, Session, checked

APPS = "/api/registry/v1alpha1/apps"
pass_session = click.make_pass_decorator(Session)


def table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def print_table(found: Table) -> None:
    Console(highlight=False, soft_wrap=True).print(found)


def device_path(session: Session, name: str) -> str:
    return f"{APPS}/{session.app}/devices/{quote(name, safe='')}"


def labels_of(pairs: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise CliError(f"label {pair!r}: expected KEY=VALUE")
        labels[key] = value
    return labels


@click.command()
@click.argument("url")
@click.option("--token", "given", help="Access token; asked for if it is not given. `-` reads it from standard input.")
@click.option("--name", default="default", show_default=True, help="What to call this registry.")
@click.option(
    "--ca", type=click.Path(exists=True, path_type=Path), help="PEM file of the CA that signed its certificate."
)
@pass_session
def login(session: Session, url: str, given: str | None, name: str, ca: Path | None) -> None:
    """Remember the registry at URL and a token for it, once they are found to work."""
    if given == "-":
        given = sys.stdin.readline().strip()
    text = str(given or click.prompt("Token", hide_input=True))
    url = url.rstrip("/")
    try:
        answer = httpx.get(
            f"{url}/api/dfu/v1/whoami", headers={"authorization": f"Bearer {text}"}, verify=str(ca) if ca else True
        )
    except httpx.HTTPError as error:
        raise CliError(f"{url} cannot be reached: {error}") from None
    who = checked(answer)
    data = session.contexts.read()
    entry: dict[str, Any] = {"url": url, "token": text} | ({"ca": str(ca.absolute())} if ca else {})
    data.setdefault("contexts", {})[name] = entry
    data["current"] = name
    session.contexts.write(data)
    if session.json:
        session.show({"context": name, "url": url, **who})
        return
    click.echo(f"Logged in to {url} as {who['user']}.")


@click.command()
@click.argument("name", required=False)
@click.option("--app", help="App that commands are about from now on.")
@pass_session
def context(session: Session, name: str | None, app: str | None) -> None:
    """List the registries, choose another one (NAME), or set its app."""
    data = session.contexts.read()
    contexts = data.get("contexts", {})
    if name is not None:
        if name not in contexts:
            raise CliError(f"no context {name}; there are {', '.join(sorted(contexts)) or 'none'}")
        data["current"] = name
    if app is not None:
        contexts[session.contexts.current(name)[0]]["app"] = app
    if name is not None or app is not None:
        session.contexts.write(data)
        return
    shown = [
        {"name": n, "current": n == data.get("current"), "url": c["url"], "app": c.get("app", "")}
        for n, c in contexts.items()
    ]
    if session.json:
        session.show(shown)
        return
    rows = table("", "NAME", "URL", "APP")
    for one in shown:
        rows.add_row("*" if one["current"] else "", one["name"], one["url"], one["app"])
    print_table(rows)


@click.group()
def app() -> None:
    """Applications: what a fleet of devices and its firmware belong to."""


@app.command("create")
@click.argument("name")
@click.option("-l", "--label", "labels", multiple=True, help="KEY=VALUE; may be repeated.")
@click.option("--unsigned", is_flag=True, help="Take unsigned firmware, too. For trying out.")
@click.option(
    "--key", "keys", multiple=True, help="Public key (base64) whose signatures are accepted; `dfuctl key show`."
)
@pass_session
def app_create(session: Session, name: str, labels: tuple[str, ...], unsigned: bool, keys: tuple[str, ...]) -> None:
    """Create the app NAME. It takes signed firmware only, unless --unsigned."""
    signing: dict[str, Any] = {"mode": "optional" if unsigned else "required"} | ({"keys": list(keys)} if keys else {})
    body = {"metadata": {"name": name, "labels": labels_of(labels)}, "spec": {"signing": signing}}
    session.request("POST", APPS, json=body)
    session.done(f"App {name} created.", app=name)


@app.command("list")
@click.option("-l", "--labels", default="", help="Label selector, such as team=a,!retired.")
@pass_session
def app_list(session: Session, labels: str) -> None:
    """List the apps."""
    found = session.request("GET", APPS, params={"labels": labels})
    if session.json:
        session.show(found)
        return
    rows = table("NAME", "FIRMWARE", "LABELS", "CREATED")
    for one in found:
        m = one["metadata"]
        version = (one["spec"].get("firmware") or {}).get("version", "")
        rows.add_row(m["name"], version, _labels(m), m.get("creationTimestamp", ""))
    print_table(rows)


@app.command("show")
@click.argument("name")
@pass_session
def app_show(session: Session, name: str) -> None:
    """Show the app NAME as JSON."""
    session.show(session.request("GET", f"{APPS}/{name}"))


@app.command("delete")
@click.argument("name")
@click.confirmation_option(prompt="Its devices and firmware go with it. Sure?")
@pass_session
def app_delete(session: Session, name: str) -> None:
    """Delete the app NAME with everything in it."""
    session.request("DELETE", f"{APPS}/{name}")
    session.done(f"App {name} deleted.", app=name)


@click.group()
def device() -> None:
    """Devices of an app."""


@device.command("create")
@click.argument("name")
@click.option("-l", "--label", "labels", multiple=True, help="KEY=VALUE; may be repeated.")
@click.option("--no-secret", is_flag=True, help="Make no secret; for devices with certificates.")
@pass_session
def device_create(session: Session, name: str, labels: tuple[str, ...], no_secret: bool) -> None:
    """Create the device NAME and show its secret, the only time."""
    body = {"metadata": {"name": name, "application": session.app, "labels": labels_of(labels)}}
    session.request("POST", f"{APPS}/{session.app}/devices", json=body)
    if no_secret:
        session.done(f"Device {name} created.", device=name)
        return
    _new_secret(session, name, revoke=False)


@device.command("secret")
@click.argument("name")
@click.option("--revoke", is_flag=True, help="The old secret ends at once, not with the next rotation.")
@pass_session
def device_secret(session: Session, name: str, revoke: bool) -> None:
    """Give the device another secret. The old one goes on working, so that the device can be told."""
    _new_secret(session, name, revoke=revoke)


@device.command("psk")
@click.argument("name")
@pass_session
def device_psk(session: Session, name: str) -> None:
    """Give the device another pre-shared key, for CoAP with OSCORE, and show it, the only time. The old one ends at once."""
    found = session.request("POST", f"/api/dfu/v1/apps/{session.app}/psk/{quote(name, safe='')}")
    if session.json:
        session.show({"device": name, "psk": found["psk"]})
        return
    click.echo(f"The pre-shared key of device {name}, 16 bytes in hexadecimal; it is not shown again:", err=True)
    click.echo(found["psk"])


def _new_secret(session: Session, name: str, *, revoke: bool) -> None:
    path = f"/api/dfu/v1/apps/{session.app}/secret/{quote(name, safe='')}"
    found = session.request("POST", path, params={"revoke": "true"} if revoke else {})
    if session.json:
        session.show({"device": name, "secret": found["secret"]})
        return
    click.echo(f"The secret of device {name}; it is not shown again:", err=True)
    click.echo(found["secret"])


@device.command("list")
@click.option("-l", "--labels", default="", help="Label selector, such as site=attic,ring in (1,2).")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1, 1000))
@click.option("--offset", default=0, show_default=True, type=click.IntRange(0))
@pass_session
def device_list(session: Session, labels: str, limit: int, offset: int) -> None:
    """List devices with what they run and what they should run."""
    params = {"labels": labels, "limit": limit, "offset": offset}
    found = session.request("GET", f"{APPS}/{session.app}/devices", params=params)
    if session.json:
        session.show(found)
        return
    rows = table("NAME", "CURRENT", "TARGET", "STATE", "LABELS", "SEEN")
    for one in found:
        f = one["status"]["firmware"]
        rows.add_row(
            one["metadata"]["name"],
            f["current"],
            f["target"],
            state_text(f),
            _labels(one["metadata"]),
            f.get("actual", {}).get("seen", ""),
        )
    print_table(rows)


def state_text(firmware: dict[str, Any]) -> str:
    """Say in a few words how far a device is."""
    condition = next(c for c in firmware["conditions"] if c["type"] == "InSync")
    if condition["status"] == "True":
        return "in sync"
    deployment = firmware.get("deployment", {})
    if deployment.get("state") == "fetching":
        return f"fetching {deployment['progress']:.0f} %"
    return str(condition.get("reason") or condition["status"])


@device.command("show")
@click.argument("name")
@pass_session
def device_show(session: Session, name: str) -> None:
    """Show the device NAME as JSON."""
    session.show(session.request("GET", device_path(session, name)))


@device.command("label")
@click.argument("name")
@click.argument("labels", nargs=-1, required=True)
@pass_session
def device_label(session: Session, name: str, labels: tuple[str, ...]) -> None:
    """Set labels KEY=VALUE of a device; KEY- removes one."""
    found = session.request("GET", device_path(session, name))
    held = found["metadata"].setdefault("labels", {})
    for label in labels:
        if label.endswith("-") and "=" not in label:
            held.pop(label[:-1], None)
        else:
            held.update(labels_of((label,)))
    session.request("PUT", device_path(session, name), json=found)
    session.done(f"Device {name} labelled.", device=name, labels=held)


@device.command("delete")
@click.argument("name")
@pass_session
def device_delete(session: Session, name: str) -> None:
    """Delete the device NAME."""
    session.request("DELETE", device_path(session, name))
    session.done(f"Device {name} deleted.", device=name)


@click.command()
@click.argument("device_name", metavar="DEVICE")
@click.argument("name")
@click.option("-p", "--payload", default="", help="What to send with it.")
@click.option("-f", "--file", type=click.File("rb"), help="File with what to send with it.")
@click.option("--expires", type=click.IntRange(0, 604800), help="Seconds to keep it for a device that is not waiting.")
@pass_session
def command(session: Session, device_name: str, name: str, payload: str, file: Any, expires: int | None) -> None:
    """Send the command NAME to a device that waits for commands on a telemetry channel."""
    params: dict[str, Any] = {"command": name} | ({"expires": expires} if expires is not None else {})
    content = file.read() if file is not None else payload.encode()
    path = f"/api/command/v1alpha1/apps/{session.app}/devices/{quote(device_name, safe='')}"
    session.request("POST", path, params=params, content=content)
    session.done("Accepted.", device=device_name, command=name)


@click.group()
def token() -> None:
    """Access tokens of users."""


@token.command("create")
@click.option("--user", default="", help="For whom; you, if not given.")
@click.option(
    "--role", "roles", multiple=True, help="APP=ROLE or *=ROLE with reader, manager or admin; yours if not given."
)
@click.option("--days", default=0, help="Its life in days.")
@click.option("--description", default="", help="What it is for.")
@pass_session
def token_create(session: Session, user: str, roles: tuple[str, ...], days: int, description: str) -> None:
    """Make a token and show it, the only time."""
    body: dict[str, Any] = {"user": user, "days": days, "description": description}
    if roles:
        body["roles"] = labels_of(roles)
    found = session.request("POST", "/api/tokens/v1alpha1", json=body)
    if session.json:
        session.show(found)
        return
    click.echo("The token; it is not shown again:", err=True)
    click.echo(found["token"])


@token.command("list")
@click.option("--all", "everybody", is_flag=True, help="Everybody's.")
@pass_session
def token_list(session: Session, everybody: bool) -> None:
    """List tokens, without what is secret in them."""
    found = session.request("GET", "/api/tokens/v1alpha1", params={"all": "true"} if everybody else {})
    if session.json:
        session.show(found)
        return
    rows = table("PREFIX", "USER", "ROLES", "EXPIRES", "DESCRIPTION")
    for one in found:
        roles = " ".join(f"{name}={role}" for name, role in one["roles"].items())
        rows.add_row(one["prefix"], one["user"], roles, one["expires"], one.get("description", ""))
    print_table(rows)


@token.command("delete")
@click.argument("prefix")
@pass_session
def token_delete(session: Session, prefix: str) -> None:
    """End the token that begins with PREFIX."""
    session.request("DELETE", f"/api/tokens/v1alpha1/{quote(prefix, safe='')}")
    session.done(f"Token {prefix} ended.", prefix=prefix)


@click.command()
@click.option("--after", default="", help="Key of the last entry that is known already.")
@click.option("--of-app", is_flag=True, help="Only what concerns the app of --app; its admins may read that.")
@click.option("--by", default="", help="Only what this user did.")
@click.option("--what", default="", help="Only this, such as publish, enrol or rotate-secret.")
@click.option("--target", default="", help="Only what was done to this, such as lamps/lamp1.")
@click.option(
    "--since", default="", help="From this date or time (UTC) on, such as 2026-11-25 or 2026-11-25T12:00:00Z."
)
@click.option("--until", default="", help="Before this date or time.")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1, 1000))
@pass_session
def audit(session: Session, /, of_app: bool, **filters: Any) -> None:
    """Show who changed what, oldest first."""
    params = {key: value for key, value in filters.items() if value} | ({"app": session.app} if of_app else {})
    found = session.request("GET", "/api/dfu/v1/audit", params=params)
    if session.json:
        session.show(found)
        return
    rows = table("AT", "BY", "WHAT", "TARGET", "DETAIL")
    for one in found:
        rows.add_row(one["at"], one["by"], one["what"], one["target"], one["detail"])
    print_table(rows)


def _labels(metadata: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(metadata.get("labels", {}).items()))
