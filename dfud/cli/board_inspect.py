"""`dfuctl board inspect`: what a flash holds, as tables and as a picture of its map."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from dfud.board.flashing import ROM_BAUD, attached
from dfud.board.look import Look, Slot, Space, look_untrusted
from dfud.board.records import Diagnosis, State, diagnoses_untrusted
from dfud.cli.client import CliError, Session
from dfud.cli.recover import opened, show_state
from dfud.cli.resources import pass_session
from dfud.cli.show import TRANSFER, Table, print_table, progress_bar, say
from dfud.errors import PeerError

STATES_SHOWN = 8
CELLS = 64  # of the picture: a row is a line of so many


@click.command("inspect")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option(
    "--port", help="Look at a board on this serial line. It is reset, unless its bootloader waits for recovery."
)
@click.option(
    "--baud", type=click.IntRange(9600, 4000000), default=ROM_BAUD, show_default=True, help="Rate of reading the flash."
)
@pass_session
def board_inspect(session: Session, file: Path | None, port: str | None, baud: int) -> None:
    """Show what FILE holds: a board.bin, a simulated board's flash.bin, or what esptool's read-flash took out of a chip; or what the
    flash of the board at --port holds.

    Secrets are not shown; of NVS the names alone. A bootloader that waits for recovery is asked, and tells less.

    \b
    dfuctl board inspect board.bin
    dfuctl board inspect --port /dev/ttyACM0 --baud 460800
    """
    if (file is None) == (port is None):
        raise CliError("what is to be looked at? give FILE, or --port of a board")
    if port is not None and _ask(session, port):
        return
    try:
        found = look_untrusted(file.read_bytes() if file is not None else _read(session, str(port), baud))
    except PeerError as error:
        raise CliError(f"{file}: {error}" if file is not None else str(error)) from None
    if session.json:
        shown = msgspec.to_builtins(found)
        for key in shown["keys"] or []:
            key.pop("public")
        session.show(shown)
        return
    _show(found)


def _read(session: Session, port: str, baud: int) -> bytes:
    """Return what the flash of the board at a port holds. The board starts anew behind it. Raises PeerError."""
    say(f"{port}: no bootloader waits for recovery; reading the flash, for which the board is reset", err=True)
    with attached(port, baud, stub=True) as chip:
        with progress_bar("Flash", TRANSFER) as progress:
            return chip.read(chip.flash_bytes(), progress=progress)


def _ask(session: Session, port: str) -> bool:
    """Show what a waiting bootloader says of slots and keys, and its diagnostics; False if there is none."""
    with opened(port) as line:
        if not line.waits():
            return False
        state = line.state()
        diagnoses = diagnoses_untrusted(b"".join(line.diagnostics()))
    if session.json:
        session.show({**msgspec.to_builtins(state), "diagnoses": msgspec.to_builtins(diagnoses)})
        return True
    show_state(session, state)
    _show_diagnoses(diagnoses)
    return True


def _show(found: Look) -> None:
    say(f"Flash: {found.flash_bytes >> 20} MB")
    for line in picture(found):
        say(line)
    spaces = Table("AREA", "OFFSET", "SIZE", "USED", "HOLDS")
    for space in found.spaces:
        spaces.add_row(space.label, f"{space.offset:#x}", space.size, space.used, space.told)
    print_table(spaces)
    say("")
    _show_slots("SLOT", found.slots, found.current)
    if found.banks:
        _show_slots("APP BANK", found.banks, found.bank)
    if found.keys is None:
        say("Keys: the log cannot be read, nothing is trusted")
    elif not found.keys:
        say("Keys: none, any image is booted")
    for key in found.keys or []:
        say(f"Key: {key.id}{' (development)' if key.development else ''}")
    say(f"NVS: {', '.join(found.nvs_keys) or 'empty'}")
    _show_states("State log", "slot", found.states)
    if found.banks:
        _show_states("Application's state log", "bank", found.app_states)
    _show_diagnoses(found.diagnoses)


def _show_slots(name: str, slots: list[Slot], current: int | None) -> None:
    table = Table(name, "VERSION", "SEQUENCE", "BYTES", "SIGNED", "SHA-256", "PROBLEM")
    for number, slot in enumerate(slots):
        mark = " *" if number == current else ""
        table.add_row(
            f"{slot.label}{mark}", slot.version, slot.sequence, slot.used, slot.signed, slot.sha256[:16], slot.problem
        )
    print_table(table)
    say("")


def _records(number: int) -> str:
    return f"{number} {'record' if number == 1 else 'records'}"


def _show_states(name: str, place: str, states: list[State]) -> None:
    say(f"{name}: " + ("blank, as before the first start" if not states else _records(len(states))))
    for state in states[-STATES_SHOWN:]:
        say(
            f"  {state.number}: {place} {state.slot} {state.phase}, crashes {state.crashes}, starts {state.starts}, last change: "
            f"{state.outcome}, written by {state.writer}"
        )


def _show_diagnoses(diagnoses: list[Diagnosis]) -> None:
    say("Diagnostics: " + ("none" if not diagnoses else _records(len(diagnoses))))
    for one in diagnoses:
        last = one.text.strip().splitlines()[-1:] or [""]
        place = f"slot {one.slot}" if one.slot < 2 else f"app bank {one.slot - 2}"
        say(f"  {one.number}: {one.what} in {place}, {one.version}, crashes {one.crashes}: {last[0]}")


def picture(found: Look) -> list[str]:
    """Return the map of the flash in characters: a letter where an area is in use, a dot where it is blank, a space where none is."""
    cell = found.flash_bytes // (CELLS * 4)
    line = [" "] * (CELLS * 4)
    letters: list[tuple[str, str]] = []
    for space, letter in zip(found.spaces, _letters(found.spaces), strict=True):
        letters.append((letter, space.label))
        first, last = space.offset // cell, max(space.offset // cell, (space.offset + space.size - 1) // cell)
        filled = -(-space.used // cell)
        for at in range(first, last + 1):
            if line[at] == " ":  # small areas share a cell: the first one is shown
                line[at] = letter if at - first < filled else "."
    rows = [f"{row * CELLS * cell:#09x} |{''.join(line[row * CELLS : (row + 1) * CELLS])}|" for row in range(4)]
    legend = ", ".join(f"{letter} {label}" for letter, label in letters)
    return [*rows, f"{cell} bytes a character. {legend}"]


def _letters(spaces: list[Space]) -> list[str]:
    known = {
        "bootloader": "B",
        "partition table": "T",
        "nvs": "N",
        "dfu_state": "S",
        "phy_init": "P",
        "ota_0": "0",
        "ota_1": "1",
        "vfs": "F",
        "dfu_stage": "G",
        "dfu_keys": "K",
        "dfu_diag": "D",
        "app_a": "A",
        "app_b": "Q",
        "app_state": "s",
    }
    spare = iter("abcdefghijklmnopqrstuvwxyz" * 4)
    return [known.get(space.label) or next(spare) for space in spaces]
