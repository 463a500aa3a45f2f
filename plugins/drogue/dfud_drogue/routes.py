"""What `drg` asks for before it asks for anything: where things are. Its other requests are the registry's own API."""

from __future__ import annotations

import json
from typing import Any

from quart import Response, g, request

from dfud.api import UserRoutes, open_to_all

# The release of drogue-cloud whose API this is; drg compares it with its own.
DROGUE_VERSION = "0.11.0"
NO_LOGIN = "/drogue/login"


class DrogueRoutes(UserRoutes):
    name = "drogue"

    def register(self, app: Any, services: Any) -> None:
        def base() -> str:
            # No slash at the end: drg would ask for `//api/...`.
            return str(services.config.external_url or request.host_url).rstrip("/")

        def endpoints() -> dict[str, Any]:
            url = base()
            found: dict[str, Any] = {
                "api": url,
                "sso": url,
                "issuer_url": url,
                "registry": {"url": url},
                "command_url": url,
            }
            if services.config.device_url:
                found["http"] = {"url": services.config.device_url}
            return found

        @app.get("/.well-known/drogue-endpoints")  # type: ignore[untyped-decorator]  # app is quart's, typed Any
        @open_to_all
        async def drogue_endpoints() -> Response:
            return _json(endpoints())

        @app.get("/.well-known/drogue-version")  # type: ignore[untyped-decorator]  # app is quart's, typed Any
        @open_to_all
        async def drogue_version() -> Response:
            return _json({"success": True, "version": DROGUE_VERSION, "dfud": services.version})

        @app.get("/.well-known/openid-configuration")  # type: ignore[untyped-decorator]  # app is quart's, typed Any
        @open_to_all
        async def drogue_openid() -> Response:
            # drg wants both before it logs in with an access token, and then uses neither.
            url = base()
            return _json({"issuer": url, "authorization_endpoint": url + NO_LOGIN, "token_endpoint": url + NO_LOGIN})

        @app.route(NO_LOGIN, methods=["GET", "POST"])  # type: ignore[untyped-decorator]  # app is quart's, typed Any
        @open_to_all
        async def drogue_no_login() -> Response:
            message = "there is no login by browser here: drg login --access-token user:token"
            return _json({"code": 501, "error": "NotImplemented", "message": message}, 501)

        @app.get("/api/console/v1alpha1/info")  # type: ignore[untyped-decorator]  # app is quart's, typed Any
        async def drogue_info() -> Response:
            return _json(endpoints())

        @app.get("/api/admin/v1alpha1/user/whoami")  # type: ignore[untyped-decorator]  # app is quart's, typed Any
        async def drogue_whoami() -> Response:
            return _json({"id": g.user.name})


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, content_type="application/json")
