"""Pages: the search, its results as a part of the page, cases, uploads and images."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from training.retrieval.cases import case_csv, case_sheet, sightings
from training.retrieval.image_names import format_time
from training.retrieval.web import uploads
from training.retrieval.web.api import client
from training.retrieval.web.parameters import MOST_ID, Search, image_id, read_search
from training.retrieval.web.search_service import Answer, Service
from training.retrieval.web.uploads import MOST_BYTES, MOST_IMAGE_BYTES

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["time"] = format_time
_templates.filters["percent"] = lambda share: "< 1 %" if share < 0.005 else f"{100 * share:.0f} %"


def _service(request: Request) -> Service:
    return request.app.state.service


def _render(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    return HTMLResponse(_templates.get_template(template).render(**values), status)


def _answer(request: Request) -> tuple[Search, Answer | None, str]:
    """The search of a request, its answer (None when nothing is searched for or the search is wrong), and the error."""
    service = _service(request)
    try:
        asked = read_search(request.query_params, service.finder.beta)
    except ValueError as error:
        return Search(beta=service.finder.beta), None, str(error)
    if asked.is_empty:
        return asked, None, ""
    try:
        return asked, service.search(asked, client(request)), ""
    except ValueError as error:
        return asked, None, str(error)


def page(request: Request) -> Response:
    """`GET /`: the whole page, with the results of its address."""
    service = _service(request)
    asked, answer, error = _answer(request)
    return _render(
        "index.html.j2",
        400 if error else 200,
        asked=asked,
        answer=answer,
        error=error,
        count=len(service.finder.snapshot),
        cameras=service.cameras(),
        has_times=service.has_times(),
        alone=False,
        best_beta=service.finder.beta,
        branches=service.finder.gallery.about.branches,
        cases=service.cases.names(),
        writable=request.app.state.writable,
    )


def results(request: Request) -> Response:
    """`GET /results`: the results alone; for a later page its cards only."""
    asked, answer, error = _answer(request)
    template = "cards.html.j2" if asked.page > 1 and answer is not None else "results.html.j2"
    # htmx shows no body of another status.
    status = 400 if error and "hx-request" not in request.headers else 200
    count = len(_service(request).finder.snapshot)
    response = _render(template, status, asked=asked, answer=answer, error=error, count=count, alone=True)
    if asked.page == 1 and not error:
        # The address of the page, to be reloaded and shared, is that of the search.
        response.headers["hx-replace-url"] = f"/?{asked.url()}"
    return response


def image(request: Request) -> Response:
    """`GET /image/ID`: the image as JPEG; the number is all that a client can name."""
    number = image_id(request.path_params["id"])
    large = request.query_params.get("large") == "1"
    content = None if number is None else _service(request).thumbnail(number, large)
    if content is None:
        raise HTTPException(404, "there is no such image, or its file cannot be read")
    return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


async def mark(request: Request) -> Response:
    """`POST /mark`: {"case", "id", "mark"} as JSON; answers with the marks of the case."""
    _require_writable(request)
    service = _service(request)
    try:
        body = await _json(request)
        number, name, judgement = body.get("id"), body.get("case", ""), body.get("mark", "")
        if type(number) is not int or not isinstance(name, str) or not isinstance(judgement, str):
            raise ValueError("id must be a whole number, case and mark texts")
        rows = service.finder.gallery.rows([number]) if 0 <= number <= MOST_ID else []
        if not rows:
            raise ValueError(f"the gallery has no image {str(number)[:40]}")
        case = await run_in_threadpool(service.cases.set_mark, name, rows[0], judgement)
    except ValueError as error:
        return JSONResponse({"error": str(error)}, 400)
    except OSError as error:
        return JSONResponse({"error": f"the case cannot be written: {error.strerror or error}"}, 507)
    return JSONResponse({"case": case.name, "marks": {key: value.mark for key, value in case.marks.items()}})


async def _json(request: Request) -> dict[str, Any]:
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > 10_000:
            raise ValueError("the request is too long")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ValueError("the request must be a JSON object")
    return body


def case_page(request: Request) -> Response:
    """`GET /case/NAME`: confirmed images on a timeline by camera, rejected ones below; `?as=csv` and `?as=html` export it."""
    service = _service(request)
    try:
        case = service.cases.load(request.path_params["name"])
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    if not case.marks:
        raise HTTPException(404, "this case holds no image yet")
    form = request.query_params.get("as")
    if form in ("csv", "html"):
        text = case_csv(case, service.finder) if form == "csv" else case_sheet(case, service.finder)
        headers = {"content-disposition": f'attachment; filename="case.{form}"'}
        return Response(text, media_type=f"text/{form}", headers=headers)
    lanes = sightings(case, service.finder)
    times = [row.time for rows in lanes.values() for row in rows if row.time is not None]
    span = (min(times), max(times)) if times else None
    rejected = service.finder.gallery.rows(case.ids("rejected"))
    return _render("case.html.j2", case=case, lanes=lanes, span=span, rejected=rejected, place=_place(span))


def _place(span: tuple[float, float] | None) -> Any:
    """Function from a time to its place on the timeline, 0 to 100."""

    def place(time: float | None) -> float | None:
        if span is None or time is None:
            return None
        return 50.0 if span[0] == span[1] else 100 * (time - span[0]) / (span[1] - span[0])

    return place


async def query_image(request: Request) -> Response:
    """`POST /query-image`: the bytes of an image to search for; answers with the key for `upload=`."""
    service = _service(request)
    try:
        with service.uploads.receive_image():
            # Else a few clients that stop half way would hold all places.
            content = await asyncio.wait_for(_image_bytes(request), uploads.IMAGE_SECONDS)
            if content is None:
                return JSONResponse({"error": f"an image may have {MOST_IMAGE_BYTES >> 20} MiB"}, 413)
            return JSONResponse({"upload": await run_in_threadpool(service.keep_image, content)})
    except BlockingIOError as error:
        return JSONResponse({"error": str(error)}, 503)
    except asyncio.TimeoutError:
        return JSONResponse({"error": f"an image must arrive within {uploads.IMAGE_SECONDS:g} s"}, 408)
    except ValueError as error:
        return JSONResponse({"error": str(error)}, 400)


async def _image_bytes(request: Request) -> bytes | None:
    """The body of a request; None where it has more than MOST_IMAGE_BYTES."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_IMAGE_BYTES:
            return None
    return bytes(content)


async def add(request: Request) -> Response:
    """`POST /add?name=NAME`: the bytes of a zip of images, which is added in the background."""
    _require_writable(request)
    try:
        with _service(request).uploads.receive_zip(request.query_params.get("name", "zip")) as archive:
            await _store(request, archive)
    except BlockingIOError as error:
        return JSONResponse({"error": str(error)}, 503)
    except asyncio.TimeoutError:
        return JSONResponse({"error": f"nothing of the zip has arrived for {uploads.ZIP_SILENCE:g} s"}, 408)
    except ValueError as error:
        return JSONResponse({"error": str(error)}, 413)
    except OSError as error:
        return JSONResponse({"error": f"the zip cannot be stored: {error.strerror or error}"}, 507)
    return JSONResponse({"started": True}, 202)


async def _store(request: Request, archive: Path) -> None:
    """Writes the body of a request to a file. Raises ValueError for more than MOST_BYTES, TimeoutError of asyncio for a client
    that falls silent."""
    size, parts = 0, request.stream()
    with open(archive, "wb") as file:
        while (part := await asyncio.wait_for(anext(parts, None), uploads.ZIP_SILENCE)) is not None:
            size += len(part)
            if size > MOST_BYTES:
                raise ValueError(f"a zip may have {MOST_BYTES >> 30} GiB")
            file.write(part)


def job(request: Request) -> Response:
    """`GET /job`: progress of the upload."""
    service = _service(request)
    running = service.uploads.job
    return JSONResponse({"job": None if running is None else vars(running), "images": len(service.finder.snapshot)})


def _require_writable(request: Request) -> None:
    if not request.app.state.writable:
        raise HTTPException(403, "this server only searches (--read-only, or the gallery folder cannot be written)")


def error_page(request: Request, error: Exception) -> Response:
    """Page of an HTTP error; text for what is no browser."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "something went wrong in the server"
    if "text/html" in request.headers.get("accept", ""):
        return _render("error.html.j2", status, code=status, detail=detail)
    return JSONResponse({"error": detail}, status)
