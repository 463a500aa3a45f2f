"""Who wants a version of firmware: what is asked before it is deleted."""

from __future__ import annotations

from dfud.api import App, RefusedError, Rollout, Store, read_record
from dfud.model.desired import desired_of
from dfud.model.policy import rules_for
from dfud.model.rollout import ROLLOUTS
from dfud.model.rollout_states import FINAL
from dfud.registry.groups import jobs_for


async def check_unwanted(store: Store, app: App, version: str) -> None:
    """Raise RefusedError that names who wants a version."""
    users = [
        *([f"app {app.name}"] if version in desired_of(app.spec, {}).versions else []),
        *rules_for(app.spec, version),
        *(f"rollout {name}" for name in await _rollouts_of(store, app.name, version)),
        *(f"group update {job}" for job in await jobs_for(store, app.name, version)),
        *(f"device {name}" for name in await store.users_of(app.name, version)),
    ]
    if users:
        raise RefusedError(
            f"firmware {version} is wanted by {', '.join(users[:5])}{' and others' if len(users) > 5 else ''}"
        )


async def _rollouts_of(store: Store, app: str, version: str) -> list[str]:
    """Return the rollouts that have not ended and bring a version. One whose record cannot be read does nothing."""
    found: list[str] = []
    after = prefix = f"{app}/"
    while page := await store.documents(ROLLOUTS, prefix=prefix, after=after):
        after = page[-1][0]
        for key, raw in page:
            rollout = read_record("users.rollout", raw, Rollout, rollout=key)
            if (
                rollout is not None
                and rollout.status.state not in FINAL
                and version in (rollout.spec.get("firmware"), rollout.spec.get("app"))
            ):
                found.append(rollout.metadata.name)
    return found
