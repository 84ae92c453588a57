"""The cloud's API document has each of its routes, vLLM's own included, and every schema that it refers to."""

import re
from typing import cast

import msgspec

from cloud.cloud_server import build_app
from cloud.engine.engine import CloudEngine
from cloud.routes.openapi import operations
from common.config_cloud import CloudConfig
from common.protocol import openapi
from tests.cloud.toy_engine import ToyEngine


def test_the_document_has_all_routes_and_no_others() -> None:
    app = build_app(cast(CloudEngine, ToyEngine()), CloudConfig())
    routes = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    documented = {one.key for one in (*openapi.COMMON_OPERATIONS, *operations()[0])}
    assert documented == {(method, path) for method, path in routes if method != "HEAD"}


def test_every_schema_that_is_referred_to_is_there() -> None:
    listed, schemas = operations()
    document = openapi.document("", listed, keys=False, schemas=schemas)
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', msgspec.json.encode(document).decode()))
    assert referred
    assert referred <= document["components"]["schemas"].keys()
