"""The HTTP side: what is asked where, who may ask, and how errors are told."""

import asyncio
import base64
import binascii
import contextlib
import hmac
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import denserl
from denserl.data.bad_rows import BadRow
from denserl.errors import UserError
from denserl.serving.contract import AnyRequest, QueryRequest, Refused, RewardsRequest, answer_query, answer_rewards, parse
from denserl.serving.rows import Scored, Service
from denserl.serving.worker import Busy, Worker
from denserl.terminal import visible

log = logging.getLogger(__name__)

LONGEST_READING = 60  # seconds for a body to come
PATHS = "POST /rewards, /get_reward, /get_segment_rewards; GET /health, /version, /openapi.json"


class Limits(NamedTuple):
    """What a server takes."""

    max_rows: int  # responses of a request
    max_bytes: int  # of its body
    max_waiting: int  # responses that wait to be scored


def make_app(service: Service, limits: Limits, token: str | None = None) -> FastAPI:
    """The application, which scores by `service` from when it starts until it ends.

    token: what requests must bring (see `_brings`); None where none is asked for.
    """
    worker = Worker(service, limits.max_rows, limits.max_waiting)

    @contextlib.asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.close)

    app = FastAPI(title="denserl serve-rewards", version=denserl.__version__, docs_url=None, redoc_url=None, lifespan=working)
    app.exception_handler(Refused)(_refused)
    app.exception_handler(HTTPException)(_not_here)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """That the server is up, how many responses wait, and how many were scored."""
        return {"status": "ok", "waiting": worker.waiting, "scored": worker.scored}

    app.include_router(_scoring(worker, service, limits, token))
    return app


def _scoring(worker: Worker, service: Service, limits: Limits, token: str | None) -> APIRouter:
    """What needs the token."""

    async def check_token(request: Request) -> None:
        if token is not None and not _brings(request.headers.get("authorization", ""), token):
            raise Refused(401, "the token is missing or wrong: send the header 'Authorization: Bearer TOKEN'")

    async def scored(request: Request, kind: type[AnyRequest], detailed: bool) -> list[Scored]:
        rows = parse(kind, await _body(request, limits.max_bytes)).rows(detailed)
        if len(rows) > limits.max_rows:
            raise Refused(413, f"{len(rows)} responses; at most {limits.max_rows} are taken in a request")
        return await asyncio.wrap_future(worker.submit(rows))

    router = APIRouter(dependencies=[Depends(check_token)], route_class=_TellingRoute)

    @router.get("/version")
    async def version() -> dict[str, Any]:
        """What scores, as it is stored with it, and what is taken."""
        return {"denserl": denserl.__version__, **service.describe(), "logits": service.logits, "limits": limits._asdict()}

    @router.post("/rewards", openapi_extra=_body_schema(RewardsRequest))
    async def rewards(request: Request) -> JSONResponse:
        """The rewards of responses to prompts: of each response, of its segments, and of its tokens."""
        return JSONResponse(answer_rewards(await scored(request, RewardsRequest, True), service.logits))

    @router.post("/get_reward", openapi_extra=_body_schema(QueryRequest))
    async def get_reward(request: Request) -> JSONResponse:
        """OpenRLHF's contract of remote reward models: one number a response."""
        return JSONResponse(answer_query(await scored(request, QueryRequest, False), by_segment=False))

    @router.post("/get_segment_rewards", openapi_extra=_body_schema(QueryRequest))
    async def get_segment_rewards(request: Request) -> JSONResponse:
        """The same, with a list of [end character, number] for a response that has segments."""
        return JSONResponse(answer_query(await scored(request, QueryRequest, True), by_segment=True))

    return router


class _TellingRoute(APIRoute):
    """A route whose errors are told as JSON, each with its status; nothing that a request holds ends the server."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def telling(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                raise _refusal(error) from error

        return telling


def _refusal(error: Exception) -> Exception:
    """What a request is told of an error."""
    if isinstance(error, (Refused, HTTPException)):
        return error
    if isinstance(error, BadRow):
        return Refused(422, f"{error}; {error.fix}" if error.fix else str(error))
    if isinstance(error, Busy):
        return Refused(503, f"{error}; ask again later")
    if isinstance(error, TimeoutError):
        return Refused(408, f"the body did not come within {LONGEST_READING} s")
    if isinstance(error, ClientDisconnect):
        return Refused(400, "the connection was cut before the body had come")
    if isinstance(error, UserError):
        log.error("%s", error)
        return Refused(500, error.found)
    log.error("%s", "".join(traceback.format_exception(error)))
    return Refused(500, "the server has a fault, which its log shows")


async def _refused(request: Request, refused: Refused) -> JSONResponse:
    log.warning("%s %s: %d, %s", request.method, visible(request.url.path, kept=""), refused.status, refused.reason)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(refused.status)
    return JSONResponse({"error": refused.reason}, refused.status, headers)


async def _not_here(request: Request, error: HTTPException) -> JSONResponse:
    """A path or a method that is not there."""
    reason = f"{error.detail}; there are {PATHS}" if error.status_code in (404, 405) else str(error.detail)
    return JSONResponse({"error": reason}, error.status_code, error.headers)


async def _body(request: Request, limit: int) -> bytes:
    """The body. Refused where it is longer than the limit, TimeoutError where it does not come."""
    too_large = Refused(413, f"the body has more than {limit} bytes")
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_large
    body = bytearray()

    async def read() -> bytes:
        async for part in request.stream():
            body.extend(part)
            if len(body) > limit:
                raise too_large
        return bytes(body)

    return await asyncio.wait_for(read(), LONGEST_READING)


def _brings(header: str, token: str) -> bool:
    """Whether an Authorization header brings the token: as Bearer, or as the password of Basic, which a URL can hold."""
    scheme, _, value = header.partition(" ")
    brought = value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            brought = base64.b64decode(brought, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    return scheme.lower() in ("bearer", "basic") and hmac.compare_digest(brought, token.encode())


def _body_schema(kind: type[AnyRequest]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}
