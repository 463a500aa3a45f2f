"""Whether two firmwares run together, as their manifests say it. Pure."""

from __future__ import annotations

from dfud.model.firmware import Firmware
from dfud.model.kinds import Leg, apart
from dfud.wire.manifest import beside_of


def do_not_run_together(system: Firmware, app: Firmware) -> str:
    """Say why a system firmware and an app firmware do not run together, or "". Of versions with several images: why no two do."""
    why = ""
    for one in system.images:
        for other in app.images:
            if one.hardware != other.hardware:
                continue
            why = apart(
                Leg(system.version, one.sequence, beside_of(one.manifest)),
                Leg(app.version, other.sequence, beside_of(other.manifest)),
            )
            if not why:
                return ""
    return why
