"""JSON API: search, images, health and metrics, with its description."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from training.retrieval.finder import MOST_RESULTS
from training.retrieval.outputs import as_dict
from training.retrieval.reranking import MOST_RERANKED
from training.retrieval.web.parameters import MOST_PAGES, PAGE_SIZE, Search, read_search
from training.retrieval.web.search_service import SORTED, Service


def _parameter(name: str, kind: str, description: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": kind, **more}, "description": description}


PARAMETERS = [
    _parameter("q", "string", "description of the person", maxLength=2000),
    _parameter("k", "integer", "number of results on a page", minimum=1, maximum=1000, default=PAGE_SIZE),
    _parameter(
        "page",
        "integer",
        f"page of results; pages end after {MOST_RESULTS} results",
        minimum=1,
        maximum=MOST_PAGES,
        default=1,
    ),
    _parameter("beta", "number", "weight of clothes; 0 for identity only; chosen on validation by default", minimum=0),
    {**_parameter("camera", "array", "cameras to search", items={"type": "string"}), "explode": True},
    _parameter("from", "string", "earliest time, ISO 8601 or seconds"),
    _parameter("to", "string", "latest time"),
    _parameter("least", "number", "lowest score of a result"),
    _parameter("weak", "string", "1: results also where nothing good is found", enum=["1"]),
    _parameter("rerank", "integer", "number of results that the fusion orders again", minimum=0, maximum=MOST_RERANKED),
    _parameter(
        "order",
        "string",
        f"order of the results; time: the {SORTED} best in the order of time",
        enum=["score", "time"],
        default="score",
    ),
    _parameter("like", "integer", "id of an image to search for, alone or with q"),
    _parameter("case", "string", "case whose rejected images are left out"),
    _parameter("refine", "string", "1: the marks of the case are part of the query", enum=["1"]),
]
RESULT = {
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "path": {"type": "string"},
        "score": {"type": "number", "description": "identity + beta * clothing + marks"},
        "identity": {"type": "number", "description": "cosine of the query and the identity embedding"},
        "clothing": {"type": "number", "description": "cosine of the query and the clothing embedding"},
        "marks": {"type": "number", "description": "part of the confirmed and rejected images; 0 without refine"},
        "share": {
            "type": "number",
            "nullable": True,
            "description": "share of right images at this score on the validation split, for a gallery of this size; null "
            "without calibration and for other queries than one text",
        },
        "match": {
            "type": "number",
            "nullable": True,
            "description": "what the fusion of the text with this image adds to its score; null without rerank",
        },
        "camera": {"type": "string"},
        "time": {"type": "number", "nullable": True, "description": "seconds"},
        "sha256": {"type": "string", "description": "digest of the image file"},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
ANSWER = {
    "type": "object",
    "properties": {
        "results": {"type": "array", "items": RESULT},
        "notes": {
            "type": "array",
            "items": {"type": "string"},
            "description": "words that the model does not know, and results that are left out",
        },
        "nothing_good": {
            "type": "boolean",
            "description": "true when no image scores as the best ones of validation do",
        },
        "more": {"type": "boolean", "description": "true when there is another page"},
    },
}
OPENAPI = {
    "openapi": "3.0.3",
    "info": {"title": "Search of people by text", "version": "1"},
    "paths": {
        "/api/search": {
            "get": {
                "summary": "Images that a query describes, best first",
                "parameters": PARAMETERS,
                "responses": {
                    "200": {"description": "results", "content": {"application/json": {"schema": ANSWER}}},
                    "400": {"description": "a parameter is wrong; `error` names it"},
                },
            }
        },
        "/image/{id}": {
            "get": {
                "summary": "JPEG of an image",
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}},
                    _parameter("large", "string", "1: up to 1200 pixels", enum=["1"]),
                ],
                "responses": {"200": {"description": "image/jpeg"}, "404": {"description": "no such image"}},
            }
        },
        "/healthz": {"get": {"summary": "Health", "responses": {"200": {"description": "images in the gallery"}}}},
        "/metrics": {"get": {"summary": "Prometheus metrics", "responses": {"200": {"description": "text"}}}},
    },
}


def api_search(request: Request) -> Response:
    """`GET /api/search`."""
    service: Service = request.app.state.service
    try:
        asked: Search = read_search(request.query_params, service.finder.beta)
        answer = service.search(asked, client(request))
    except ValueError as error:
        return JSONResponse({"error": str(error)}, 400)
    found = [as_dict(result) for result in answer.results]
    values = {"results": found, "notes": answer.notes, "nothing_good": answer.nothing_good, "more": answer.more}
    return JSONResponse(values)


def api_description(request: Request) -> Response:
    """`GET /api`: the OpenAPI description."""
    return JSONResponse(OPENAPI)


def health(request: Request) -> Response:
    """`GET /healthz`."""
    service: Service = request.app.state.service
    return JSONResponse({"images": len(service.finder.snapshot)})


def metrics(request: Request) -> Response:
    """`GET /metrics`."""
    service: Service = request.app.state.service
    return PlainTextResponse(service.counters.prometheus(len(service.finder.snapshot)))


def client(request: Request) -> str:
    """Address of the client, for the audit log."""
    return request.client.host if request.client else ""
