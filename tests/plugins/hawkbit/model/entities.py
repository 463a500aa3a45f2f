"""What the model keeps: plain records. Times are milliseconds since 1970, as hawkBit's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

QUOTA = "hawkbit.server.error.quota.tooManyEntries"
STATUS_MAX = 1000  # intermediate status entries of an action
MESSAGES_MAX = 50  # messages of one status entry
ATTRIBUTES_MAX = 100
METADATA_MAX = 100
ATTRIBUTE_CHARS = 128
METADATA_VALUE_CHARS = 4000
MESSAGE_CHARS = 512
ASSIGN_MAX = 5000
PAGE_MAX = 500
PAGE = 50
WEIGHT = 1000


class Unknown(Exception):
    """A request that no recording of a real hawkBit covers."""


class Problem(Exception):
    """An answer of hawkBit's that says no. code: its errorCode, or "" for an empty body."""

    def __init__(self, status: int, code: str = "", message: str = "", exception: str = "") -> None:
        super().__init__(f"{status} {code} {message}")
        self.status = status
        self.code = code
        self.message = message
        self.exception = exception


def not_found(kind: str, key: object) -> Problem:
    return Problem(
        404, "hawkbit.server.error.repo.entityNotFound", f"{kind} with given identifier {{{key}}} does not exist."
    )


def quota(kind: str, parent: str, key: object, limit: int, asked: int) -> Problem:
    text = f"Quota exceeded: Cannot assign {asked} more {kind} entities to {parent} '{key}'. The maximum is {limit}."
    return Problem(429, QUOTA, text)


@dataclass
class Base:
    id: int
    created_at: int
    modified_at: int
    created_by: str = "admin"
    modified_by: str = "admin"


@dataclass
class Artifact(Base):
    filename: str = ""
    data: bytes = b""
    md5: str = ""
    sha1: str = ""
    sha256: str = ""


@dataclass
class Module(Base):
    name: str = ""
    version: str = ""
    type: str = ""
    vendor: str | None = None
    description: str | None = None
    locked: bool = False
    deleted: bool = False
    metadata: dict[str, tuple[str, bool]] = field(default_factory=dict)
    artifacts: dict[int, Artifact] = field(default_factory=dict)


@dataclass
class DistributionSet(Base):
    name: str = ""
    version: str = ""
    type: str = ""
    description: str | None = None
    modules: list[int] = field(default_factory=list)
    migration: bool = False
    locked: bool = False
    deleted: bool = False
    valid: bool = True
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class Target(Base):
    cid: str = ""
    name: str = ""
    token: str = ""
    description: str | None = None
    address: str | None = None
    group: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    request_attributes: bool = True
    update_status: str = "unknown"
    assigned: int | None = None
    installed: int | None = None
    installed_at: int | None = None
    polled_at: int | None = None
    auto_confirm: dict[str, Any] | None = None
    actions: dict[int, Action] = field(default_factory=dict)
    open: dict[int, Action] = field(default_factory=dict)


@dataclass
class ActionStatus:
    id: int
    type: str
    timestamp: int
    reported_at: int
    messages: list[str]
    code: int | None = None


@dataclass
class Action(Base):
    target: Target = field(default_factory=lambda: Target(0, 0, 0))
    ds: int = 0
    status: str = "running"
    active: bool = True
    force_type: str = "forced"
    force_time: int | None = None
    weight: int = WEIGHT
    window: dict[str, str] | None = None
    last_code: int | None = None
    rollout: Rollout | None = None
    group: Group | None = None
    history: list[ActionStatus] = field(default_factory=list)

    @property
    def canceling(self) -> bool:
        return self.status in ("canceling", "canceled")


@dataclass
class Group(Base):
    name: str = ""
    description: str | None = None
    status: str = "ready"
    filter: str = ""
    percentage: float = 100.0
    success: str = "50"
    success_action: str = "NEXTGROUP"
    error: str | None = None
    error_action: str = "PAUSE"
    confirmation: bool = False
    targets: list[str] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)


@dataclass
class Rollout(Base):
    name: str = ""
    description: str | None = None
    filter: str = ""
    ds: int = 0
    status: str = "creating"
    force_type: str = "forced"
    force_time: int | None = None
    weight: int = WEIGHT
    groups: list[Group] = field(default_factory=list)
    deleted: bool = False
