"""What the modules of the model's Management API share: its routes, fields and forms."""

from __future__ import annotations

from typing import Any

from tests.plugins.hawkbit.model import entities as e
from tests.plugins.hawkbit.model.query import compile_query
from tests.plugins.hawkbit.model.routes import Request, Routes, in_order

ROUTES = Routes()
PAGED = ("q", "sort", "limit", "offset")
_MODULE_TYPES = {"os": (1, "OS"), "application": (2, "Application")}
_SET_TYPES = {"app": (1, "App(s) only"), "os": (2, "OS only"), "os_app": (3, "OS with app(s)")}
ACTION_FIELDS = {
    "id": lambda a: a.id,
    "active": lambda a: a.active,
    "status": lambda a: a.status,
    "weight": lambda a: a.weight,
    "createdAt": lambda a: a.created_at,
    "lastModifiedAt": lambda a: a.modified_at,
    "lastStatusCode": lambda a: a.last_code,
    "target.controllerId": lambda a: a.target.cid,
    "target.name": lambda a: a.target.name,
    "distributionSet.id": lambda a: a.ds,
    "rollout.id": lambda a: a.rollout.id if a.rollout else None,
    "rollout.name": lambda a: a.rollout.name if a.rollout else None,
}
TARGET_FIELDS = {
    "id": lambda t: t.cid,
    "controllerId": lambda t: t.cid,
    "name": lambda t: t.name,
    "updateStatus": lambda t: t.update_status,
    "createdAt": lambda t: t.created_at,
    "lastModifiedAt": lambda t: t.modified_at,
    "group": lambda t: t.group,
    "attribute.*": lambda t: t.attributes,
    "metadata.*": lambda t: t.metadata,
}
MODULE_FIELDS = {
    "id": lambda m: m.id,
    "name": lambda m: m.name,
    "version": lambda m: m.version,
    "type": lambda m: m.type,
}


def _base(row: e.Base) -> dict[str, Any]:
    return {
        "createdBy": row.created_by,
        "createdAt": row.created_at,
        "lastModifiedBy": row.modified_by,
        "lastModifiedAt": row.modified_at,
    }


def _link(request: Request, path: str, name: str | None = None) -> dict[str, str]:
    found = {"href": f"{request.base}/rest/v1{path}"}
    if name is not None:
        found["name"] = name
    return found


def _rows(request: Request, rows: list[Any], fields: Any) -> list[Any]:
    if "q" in request.query:
        test = compile_query(request.query["q"], fields)
        rows = [row for row in rows if test(row)]
    return in_order(request, rows)


def _taken(kind: str) -> e.Problem:
    return e.Problem(
        409, "hawkbit.server.error.repo.entityAlreadyExists", f"The given {kind} already exists in database."
    )
