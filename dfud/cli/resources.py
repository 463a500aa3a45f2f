"""login, context, app, command, token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import httpx

from dfud.cli.client import API, APPS, TIMEOUT_S, CliError, Session, checked, trust
from dfud.cli.show import Table, confirm, print_table, yes_option
from dfud.model.names import check_labels, check_name, path_of

TOKENS = "/api/tokens/v1alpha1"
pass_session = click.make_pass_decorator(Session)


def labels_of(pairs: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise CliError(f"label {pair!r}: expected KEY=VALUE")
        labels[key] = value
    return labels


def new_labels(pairs: tuple[str, ...], held: dict[str, str] | None = None) -> dict[str, str]:
    """Return labels_of(pairs), checked as what will be stored."""
    labels = labels_of(pairs)
    check_labels(labels, held)
    return labels


def shown_labels(metadata: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(metadata.get("labels", {}).items()))


def delete_resource(session: Session, path: str, name: str) -> list[str]:
    """Delete an app or a device: only if what is at `path` has that name, and only that very one. Return what it waits for.

    A proxy that folds paths would lead the request to something else.
    """
    found = session.request("GET", path)["metadata"]
    if found["name"] != name:
        raise CliError(f"{path} leads to {found['name']!r}, expected {name!r}; nothing was deleted")
    session.request("DELETE", path, json={"preconditions": {"uid": found["uid"]}})
    return [str(one) for one in found.get("finalizers") or ()]


def tell_deleted(session: Session, kind: str, name: str, waits_for: list[str]) -> None:
    """Say that an app or a device is gone, or what it waits for."""
    if waits_for:
        told = f"{kind} {name} is marked as deleted; it goes when its finalizers have: {', '.join(waits_for)}."
    else:
        told = f"{kind} {name} deleted."
    session.done(told, **{kind.lower(): name, "deleted": not waits_for, "finalizers": waits_for})


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
    if given == "-" or (not given and not sys.stdin.isatty()):
        given = sys.stdin.readline().strip()
        if not given:
            raise CliError("no token on standard input; give --token, or log in at a terminal to be asked")
    text = str(given or click.prompt("Token", hide_input=True, err=True)).strip()
    if not text.isascii() or not text.isprintable():
        raise CliError("the token holds characters that no token has; copy it again")
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise CliError(f"URL {url}: expected http:// or https:// before the host, such as http://127.0.0.1:8881")
    try:
        answer = httpx.get(
            f"{url}{API}/whoami",
            headers={"authorization": f"Bearer {text}"},
            verify=trust(url, str(ca) if ca else None),
            timeout=TIMEOUT_S,
        )
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        hint = ". Does it speak TLS? If not: http://" if "WRONG_VERSION_NUMBER" in str(error) else ""
        raise CliError(f"{url} cannot be reached: {error}{hint}") from None
    if answer.status_code == 404:
        raise CliError(
            f"{url} is no registry of dfud. Is it where devices talk to it? Users do at [registry] port, 8881"
        )
    try:
        who = checked(answer)
    except CliError as error:
        if error.status != 403:
            raise
        raise CliError(
            f"{url} does not accept this token. `dfud init` shows the first one, once; `dfuctl token create` makes others; if "
            "all are lost: `dfud init --new-admin`",
            status=403,
        ) from None
    data = session.contexts.read()
    entry: dict[str, Any] = {"url": url, "token": text} | ({"ca": str(ca.absolute())} if ca else {})
    before = data.setdefault("contexts", {}).get(name)
    if isinstance(before, dict) and before.get("url") == url and "app" in before:
        entry["app"] = before["app"]  # another token for the same registry
    data["contexts"][name] = entry
    data["current"] = name
    session.contexts.write(data)
    if session.json:
        session.show({"context": name, "url": url, **who})
        return
    session.say(f"Logged in to {url} as {who['user']}.")


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
        if not session.json:
            return
    shown = [
        {"name": n, "current": n == data.get("current"), "url": c["url"], "app": c.get("app", "")}
        for n, c in contexts.items()
    ]
    if session.json:
        session.show(shown)
        return
    rows = Table("", "NAME", "URL", "APP")
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
    body = {"metadata": {"name": check_name("app", name), "labels": new_labels(labels)}, "spec": {"signing": signing}}
    session.request("POST", APPS, json=body)
    session.done(f"App {name} created.", app=name)


def wanted_text(firmware: dict[str, Any] | None) -> str:
    """Return what a spec.firmware asks for: `1.3`, `1.3 app 3.2`, or ""."""
    said = firmware or {}
    return " ".join(
        [*([str(said["version"])] if "version" in said else ()), *([f"app {said['app']}"] if "app" in said else ())]
    )


@app.command("list")
@click.option("-l", "--labels", default="", help="Label selector, such as team=a,!retired.")
@pass_session
def app_list(session: Session, labels: str) -> None:
    """List the apps."""
    found = [one for page in session.pages(APPS, labels=labels) for one in page]
    if session.json:
        session.show(found)
        return
    rows = Table("NAME", "FIRMWARE", "LABELS", "CREATED")
    for one in found:
        m = one["metadata"]
        version = wanted_text(one["spec"].get("firmware"))
        rows.add_row(m["name"], version, shown_labels(m), m.get("creationTimestamp", ""))
    print_table(rows)


@app.command("show")
@click.argument("name")
@pass_session
def app_show(session: Session, name: str) -> None:
    """Show the app NAME as JSON."""
    session.show(session.request("GET", path_of(APPS, name)))


@app.command("delete")
@click.argument("name")
@yes_option
@pass_session
def app_delete(session: Session, name: str, yes: bool) -> None:
    """Delete the app NAME with everything in it."""
    confirm(f"Delete app {name} with its devices and firmware?", yes)
    tell_deleted(session, "App", name, delete_resource(session, path_of(APPS, name), name))


@click.command()
@click.argument("device_name", metavar="DEVICE")
@click.argument("name")
@click.option("-p", "--payload", default="", help="What to send with it.")
@click.option("-f", "--file", type=click.File("rb"), help="File with what to send with it.")
@click.option("--expires", type=click.IntRange(0, 604800), help="Seconds to keep it for a device that is not waiting.")
@pass_session
def command(session: Session, device_name: str, name: str, payload: str, file: Any, expires: int | None) -> None:
    """Send the command NAME to a device that waits for commands on a telemetry channel."""
    params: dict[str, Any] = {"command": check_name("command", name)} | (
        {"expires": expires} if expires is not None else {}
    )
    content = file.read() if file is not None else payload.encode()
    path = path_of("/api/command/v1alpha1/apps", session.app, "devices", device_name)
    session.request("POST", path, params=params, content=content)
    session.done(f"{name}: on its way to {device_name}, or stored for it.", device=device_name, command=name)


@click.group()
def token() -> None:
    """Access tokens of users."""


@token.command("create")
@click.option("--user", default="", help="For whom; you, if not given.")
@click.option(
    "--role", "roles", multiple=True, help="APP=ROLE or *=ROLE with reader, manager or admin; yours if not given."
)
@click.option("--days", type=click.IntRange(1, 3650), help="Its life in days; as the registry has it if not given.")
@click.option("--description", default="", help="What it is for.")
@pass_session
def token_create(session: Session, user: str, roles: tuple[str, ...], days: int | None, description: str) -> None:
    """Make a token and show it once."""
    if user:
        check_name("user", user)
    body: dict[str, Any] = {"user": user, "description": description}
    if days is not None:
        body["days"] = days
    if roles:
        body["roles"] = labels_of(roles)
    found = session.request("POST", TOKENS, json=body)
    if session.json:
        session.show(found)
        return
    session.say("The token (shown once):", err=True)
    session.say(found["token"])


@token.command("list")
@click.option("--all", "everybody", is_flag=True, help="Everybody's.")
@pass_session
def token_list(session: Session, everybody: bool) -> None:
    """List tokens, without what is secret in them."""
    found = session.request("GET", TOKENS, params={"all": "true"} if everybody else {})
    if session.json:
        session.show(found)
        return
    rows = Table("PREFIX", "USER", "ROLES", "EXPIRES", "DESCRIPTION")
    for one in found:
        roles = " ".join(f"{name}={role}" for name, role in one["roles"].items())
        rows.add_row(one["prefix"], one["user"], roles, one["expires"], one.get("description", ""))
    print_table(rows)


@token.command("delete")
@click.argument("prefix")
@yes_option
@pass_session
def token_delete(session: Session, prefix: str, yes: bool) -> None:
    """End the token that begins with PREFIX."""
    confirm(f"End token {prefix}?", yes)
    session.request("DELETE", path_of(TOKENS, prefix))
    session.done(f"Token {prefix} ended.", prefix=prefix)
