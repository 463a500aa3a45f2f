"""What users may store: limits and forms of specs and metadata, judged before anything is stored. Pure.

What a resource holds already under an older rule is not judged again while it stays as it is, so that it can be changed and
deleted; but for what cannot be stored at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from dfud.api import Metadata, PeerError, parse_selector_untrusted
from dfud.model.anchors import check_anchors_untrusted
from dfud.model.credentials import PasswordLimits
from dfud.model.desired import desired_of
from dfud.model.layout import limits_untrusted
from dfud.model.names import check_labels, check_name
from dfud.model.policy import read_rules_untrusted
from dfud.model.quickest import link_untrusted
from dfud.model.selectors import SELECTOR_MAX_BYTES, SELECTOR_MAX_TERMS
from dfud.model.text import visible
from dfud.model.untrusted import ENCODED_MAX_BYTES, check_json_untrusted
from dfud.registry.config import METADATA_MAX_BYTES, RegistryConfig

ALIASES_MAX = 32
CREDENTIALS_MAX = 32
ANCHORS_MAX = 16
KEYS_MAX = 16
FINALIZERS_MAX = 32
RULES_SHOWN = 8  # in an entry of the audit log
_BCRYPT = re.compile(r"\$2[abxy]?\$(\d\d)\$[./A-Za-z0-9]{53}")
_SHA512 = re.compile(r"\$6\$(?:rounds=(\d{1,9})\$)?[^$]{0,16}\$[./A-Za-z0-9]{86}")


class RecordLimits(msgspec.Struct, frozen=True):
    """Of [registry], by their names there; passwords: what a stored one may cost who compares with it."""

    spec_max_bytes: int = ENCODED_MAX_BYTES
    metadata_max_bytes: int = METADATA_MAX_BYTES
    passwords: PasswordLimits = PasswordLimits()
    selector_max_bytes: int = SELECTOR_MAX_BYTES
    selector_max_terms: int = SELECTOR_MAX_TERMS


def limits_of(config: RegistryConfig, passwords: PasswordLimits | None = None) -> RecordLimits:
    return RecordLimits(
        spec_max_bytes=config.spec_max_bytes,
        metadata_max_bytes=config.metadata_max_bytes,
        passwords=passwords or PasswordLimits(),
        selector_max_bytes=config.selector_max_bytes,
        selector_max_terms=config.selector_max_terms,
    )


def check_spec_untrusted(spec: Mapping[str, Any], limits: RecordLimits, held: Mapping[str, Any] | None = None) -> None:
    """Raise PeerError that names the place unless a resource may have this spec. held: the spec that it has."""
    held = held or {}
    check_json_untrusted(spec, "spec", max_bytes=max(limits.spec_max_bytes, size_of(held)))
    changed = {key: value for key, value in spec.items() if key not in held or held[key] != value}
    firmware = changed.get("firmware")
    named = isinstance(firmware, dict) and ("version" in firmware or "app" in firmware)
    if named and (problem := desired_of({}, changed).problem):
        raise PeerError(problem)
    if "rules" in changed:
        read_rules_untrusted(changed["rules"])
        for number, rule in enumerate(changed["rules"] or ()):
            _check_selector(rule, f"spec.rules[{number}]", limits)
    if "layout" in changed:
        limits_untrusted(changed)
    if "link" in changed:
        link_untrusted(changed)
    if "rollouts" in changed:
        _check_rollouts(changed["rollouts"])
    if "alias" in changed:
        _check_aliases(changed["alias"], held.get("alias"))
    for place in ("authentication", "credentials"):
        if place in changed:
            _check_credentials(changed[place], f"spec.{place}", limits.passwords)
    _at_most(changed, ("trustAnchors", "anchors"), ANCHORS_MAX)
    if "trustAnchors" in changed:
        check_anchors_untrusted(changed)
    _at_most(changed, ("signing", "keys"), KEYS_MAX)


def check_rollout_untrusted(spec: Mapping[str, Any], limits: RecordLimits) -> None:
    """Raise PeerError that names the place for a rollout's spec that is too large or has too large a selector."""
    check_json_untrusted(spec, "spec", max_bytes=limits.spec_max_bytes)
    _check_selector(spec.get("devices"), "spec.devices", limits)
    waves = spec.get("waves")
    for number, wave in enumerate(waves if isinstance(waves, list) else ()):
        _check_selector(wave, f"spec.waves[{number}]", limits)


def _check_selector(held: object, where: str, limits: RecordLimits) -> None:
    """Hold the selector of a part of a spec, if it has one, to the limits of those in requests."""
    text = held.get("selector") if isinstance(held, Mapping) else None
    if not isinstance(text, str):
        return
    try:
        parse_selector_untrusted(text, max_bytes=limits.selector_max_bytes, max_terms=limits.selector_max_terms)
    except PeerError as error:
        raise PeerError(f"{where}.selector: {error}") from None


def _check_rollouts(value: object) -> None:
    """A slip here would leave out a second pair of eyes that somebody counts on."""
    if not isinstance(value, dict) or set(value) - {"approval"} or not isinstance(value.get("approval", False), bool):
        raise PeerError('spec.rollouts: expected an object such as {"approval": true}')


def check_metadata_untrusted(given: Metadata, limits: RecordLimits, held: Metadata | None = None) -> None:
    """Raise PeerError unless a resource may have these labels, annotations and finalizers."""
    mine = {"labels": given.labels, "annotations": given.annotations, "finalizers": given.finalizers}
    old = {"labels": held.labels, "annotations": held.annotations, "finalizers": held.finalizers} if held else {}
    check_json_untrusted(mine, "metadata", max_bytes=max(limits.metadata_max_bytes, size_of(old)))
    check_labels(given.labels, held.labels if held else None)
    if len(given.finalizers) > max(FINALIZERS_MAX, len(held.finalizers) if held else 0):
        raise PeerError(f"metadata.finalizers: {len(given.finalizers)}, expected at most {FINALIZERS_MAX}")


def what_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the changed keys of a spec, and the firmware's versions; never other values: they may be secrets."""
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    told = [f"spec.{visible(key)}" + _versions(key, old, new) for key in keys]
    return ", ".join(told)[:2000]


def _versions(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say what becomes of versions that a key of a spec wants."""
    if key == "firmware":
        return firmware_changed(old, new)
    return f" ({_rules_shown(old.get(key))} -> {_rules_shown(new.get(key))})" if key == "rules" else ""


def _rules_shown(rules: Any) -> str:
    """Return an app's rules in a few words: `channel=beta 1.3; site=attic 1.2`."""
    told = [
        f"{visible(str(rule.get('selector'))[:80])} {firmware_shown(rule.get('firmware'))}"
        for rule in (rules if isinstance(rules, list) else [])[:RULES_SHOWN]
        if isinstance(rule, Mapping)
    ]
    more = f"; {len(rules) - RULES_SHOWN} more" if isinstance(rules, list) and len(rules) > RULES_SHOWN else ""
    return ("; ".join(told) or "none") + more


def firmware_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return f" ({firmware_shown(old.get('firmware'))} -> {firmware_shown(new.get('firmware'))})"


def firmware_shown(firmware: Any) -> str:
    """Return a spec.firmware in a few words: the version and its flags."""
    if firmware is None:
        return "none"
    if not isinstance(firmware, Mapping):
        return "no version"
    version, app = firmware.get("version"), firmware.get("app")
    told = [visible(version[:80])] if isinstance(version, str) else []
    told += [f"app {visible(app[:80])}"] if isinstance(app, str) else []
    flags = [key for key in ("hold", "downloadOnly") if firmware.get(key) is True]
    return " ".join([*told, *flags]) if told else "no version"


def size_of(held: Mapping[str, Any]) -> int:
    """Return how many bytes it has as JSON, 0 for what JSON cannot hold."""
    try:
        return len(msgspec.json.encode(held))
    except (RecursionError, ValueError, TypeError):
        return 0


def _at_most(spec: Mapping[str, Any], path: tuple[str, str], limit: int) -> None:
    section = spec.get(path[0])
    items = section.get(path[1]) if isinstance(section, Mapping) else None
    if isinstance(items, list) and len(items) > limit:
        raise PeerError(f"spec.{path[0]}.{path[1]}: {len(items)}, expected at most {limit}")


def _check_aliases(aliases: Any, held: Any) -> None:
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise PeerError("spec.alias: expected a list of text")
    known = held if isinstance(held, list) else []
    if len(aliases) > max(ALIASES_MAX, len(known)):
        raise PeerError(f"spec.alias: {len(aliases)} names, expected at most {ALIASES_MAX}")
    for index, alias in enumerate(aliases):
        if alias not in known:
            try:
                check_name("alias", alias)
            except PeerError as error:
                raise PeerError(f"spec.alias[{index}]: {error}") from None


def _check_credentials(section: Any, what: str, limits: PasswordLimits) -> None:
    """Refuse what would be dear to compare with: devices are checked against these forms when strangers guess."""
    items = section.get("credentials") if isinstance(section, Mapping) else None
    if not isinstance(items, list):
        return
    if len(items) > CREDENTIALS_MAX:
        raise PeerError(f"{what}.credentials: {len(items)}, expected at most {CREDENTIALS_MAX}")
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            continue
        user = item.get("user")
        for name, form in (("pass", item.get("pass")), ("user.password", _password(user))):
            if isinstance(form, Mapping):
                _check_form(form, f"{what}.credentials[{index}].{name}", limits)


def _password(user: Any) -> Any:
    return user.get("password") if isinstance(user, Mapping) else None


def _check_form(form: Mapping[str, Any], what: str, limits: PasswordLimits) -> None:
    dear = [kind for kind in ("bcrypt", "sha512") if kind in form]
    if dear and len(form) != 1:
        raise PeerError(f"{what}: {dear[0]} and something else, expected one form alone")
    if "bcrypt" in form:
        bcrypt = form["bcrypt"]
        found = _BCRYPT.fullmatch(bcrypt) if isinstance(bcrypt, str) else None
        if found is None or not 4 <= int(found[1]) <= limits.bcrypt_cost:
            cost = f"cost {found[1]}" if found else "another form"
            raise PeerError(f"{what}.bcrypt: {cost}, expected a bcrypt hash of cost 4 to {limits.bcrypt_cost}")
    if "sha512" in form:
        sha512 = form["sha512"]
        crypt = _SHA512.fullmatch(sha512) if isinstance(sha512, str) else None
        if crypt is None or int(crypt[1] or 5000) > limits.sha512_rounds:
            rounds = f"{crypt[1]} rounds" if crypt else "another form"
            raise PeerError(
                f"{what}.sha512: {rounds}, expected a crypt(3) $6$ hash of at most {limits.sha512_rounds} rounds"
            )
