"""The web application: pages for people and the same answers as JSON. Unauthenticated, so for loopback only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.staticfiles import StaticFiles

from batch_workflows import BadParameters, BatchError, RunBusy, UnknownRun, UnknownWorkflow
from catalog import CatalogError
from debug_ui._exceptions import BadInput, DebugUIError, NotReplayable, UnknownEntity, UnknownKind
from debug_ui._guard import TOKEN_FIELD, CrossSitePost, PostGuard, guard
from debug_ui._source import search_names
from debug_ui._values import duration, moment, money, shown
from debug_ui.backends import Backends
from debug_ui.dead_letters import SCANNED, count_dead_letters, list_dead_letters, read_dead_letter, replay
from debug_ui.dependencies import dependency_rows
from debug_ui.diagnosis import CHAIN, diagnose_ad, diagnose_campaign
from debug_ui.health import pipeline_status
from debug_ui.inspect import inspect_entity, kinds, table_of
from debug_ui.prometheus import prometheus_text
from debug_ui.search import MAX_HITS, request_from_form, run_search
from debug_ui.workflows import (
    cancel_run,
    change_schedule,
    find_run,
    find_workflow_view,
    run_views,
    start_run,
    workflow_views,
)
from gateway import GatewayError
from manas import InvalidRequest, ManasError
from messaging import MessagingError
from storage_repo import RepoError

HERE = Path(__file__).parent
MAX_TEXT = 400

Short = Annotated[str, Query(max_length=MAX_TEXT)]
Text = Annotated[str, Query(max_length=8_000)]
Hits = Annotated[int, Query(ge=1, le=MAX_HITS)]

_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (UnknownKind, 404, "There is no such kind"),
    (UnknownEntity, 404, "Nobody knows it"),
    (BadInput, 400, "That cannot be read"),
    (InvalidRequest, 400, "That request cannot be answered"),
    (NotReplayable, 409, "It cannot be replayed"),
    (CrossSitePost, 403, "Refused"),
    (UnknownRun, 404, "There is no such run"),
    (UnknownWorkflow, 404, "There is no such workflow"),
    (BadParameters, 400, "It cannot be started like that"),
    (RunBusy, 409, "It is at work already"),
    (BatchError, 500, "Workflows cannot be read"),
    (DebugUIError, 400, "Refused"),
    (ManasError, 503, "Serving does not answer"),
    (RepoError, 503, "The Storage Repo cannot be read"),
    (MessagingError, 503, "The log cannot be read"),
    (GatewayError, 503, "The ads DB cannot be read"),
    (CatalogError, 500, "The catalogue is at fault"),
)
"""What becomes of an error: the first class that fits."""


def _environment(backends: Backends) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        moment=moment,
        duration=duration,
        money=money,
        shown=shown,
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        words=lambda name: str(name).replace("_", " "),
    )
    environment.globals.update(kinds=kinds(backends.catalog), home=str(backends.home.root), token_field=TOKEN_FIELD)
    environment.globals.update(questions={name: question for name, question, _ in CHAIN})
    return environment


def create_app(backends: Backends) -> FastAPI:
    """Return the application over opened backends.

    It reads only, but for the replay of dead letters, and for starting, cancelling and scheduling workflows.
    """
    app = FastAPI(title="adsindex", docs_url=None, redoc_url=None, openapi_url=None)
    environment = _environment(backends)
    posts = PostGuard()
    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")

    def page(name: str, code: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(environment.get_template(name).render(values), status_code=code)

    async def failed(request: Request, error: Exception) -> Response:
        status, title = next((s, t) for kind, s, t in _STATUS if isinstance(error, kind))
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": str(error)}, status_code=status)
        return page("error.html", status, title=title, text=str(error))

    for kind, _, _ in _STATUS:
        app.add_exception_handler(kind, failed)

    @app.get("/", response_class=HTMLResponse)
    def home(q: Short = "", kind: Short = "", id: Short = "") -> Response:
        if kind and id.strip():
            return RedirectResponse(_entity_url(kind, id.strip(), backends), status_code=303)
        words = q.strip()
        found = search_names(backends.ads_db, backends.catalog, words) if words else []
        if len(found) == 1 and found[0].id == words:
            return RedirectResponse(_entity_url(found[0].kind, found[0].id, backends), status_code=303)
        return page("home.html", q=q, found=found, status=pipeline_status(backends))

    @app.get("/entity/{kind}/{entity_id:path}", response_class=HTMLResponse)
    def entity(kind: str, entity_id: str) -> Response:
        view = inspect_entity(backends, kind, entity_id, history=True)
        diagnosis = None
        if view.kind == "campaign":
            diagnosis = diagnose_campaign(backends, entity_id)
        elif view.kind in ("ad", "document"):
            diagnosis = diagnose_ad(backends, entity_id)
        return page("entity.html", view=view, diagnosis=diagnosis)

    @app.get("/search", response_class=HTMLResponse)
    def search(request: Request, k: Hits = 20, ad: Short = "", json: Text = "") -> Response:
        form = {name: value[:MAX_TEXT] for name, value in request.query_params.items()} | {"json": json}
        result, problem, asked = None, "", {}
        try:
            asked = request_from_form(backends.catalog, form)
            if request.query_params:
                result = run_search(backends, asked, k, ad.strip())
        except (BadInput, InvalidRequest) as error:
            problem = str(error)
        dimensions = list(backends.catalog.dimensions.values())
        return page(
            "search.html",
            code=400 if problem else 200,
            form=form,
            k=k,
            ad=ad,
            asked=asked,
            result=result,
            problem=problem,
            dimensions=dimensions,
        )

    @app.get("/health", response_class=HTMLResponse)
    def health(refresh: Annotated[int, Query(ge=0, le=3600)] = 5) -> Response:
        return page("health.html", status=pipeline_status(backends), refresh=refresh)

    @app.get("/dead-letters", response_class=HTMLResponse)
    def dead_letters(stage: Short = "", reason: Short = "", table: Short = "", row: Short = "") -> Response:
        filters = {"stage": stage, "reason": reason, "table": table, "row": row}
        return page(
            "dead_letters.html",
            counts=count_dead_letters(backends.log),
            letters=list_dead_letters(backends.log, **filters, limit=100),
            filters=filters,
            scanned=SCANNED,
        )

    @app.get("/dead-letters/{partition}/{offset}", response_class=HTMLResponse)
    def dead_letter(partition: int, offset: int, replayed: Short = "") -> Response:
        letter = read_dead_letter(backends.log, partition, offset)
        return page("dead_letter.html", letter=letter, token=posts.token, replayed=replayed)

    @app.post("/dead-letters/{partition}/{offset}/replay")
    async def replay_letter(request: Request, partition: int, offset: int) -> Response:
        await posts.check(request)
        record = await run_in_threadpool(replay, backends.log, partition, offset)
        return RedirectResponse(f"/dead-letters/{partition}/{offset}?replayed={record.topic}", status_code=303)

    @app.get("/workflows", response_class=HTMLResponse)
    def workflows(workflow: Short = "", refresh: Annotated[int, Query(ge=0, le=3600)] = 0) -> Response:
        return page(
            "workflows.html",
            workflows=workflow_views(backends),
            runs=run_views(backends, workflow),
            chosen=workflow,
            refresh=refresh,
            token=posts.token,
        )

    @app.get("/workflows/run/{name}", response_class=HTMLResponse)
    def workflow_run(name: str, cancel: bool = False) -> Response:
        return page("workflow_run.html", run=find_run(backends, name), cancel=cancel, token=posts.token)

    @app.post("/workflows/start")
    async def start_workflow(request: Request) -> Response:
        form = await posts.check(request)
        run = await run_in_threadpool(start_run, backends, form)
        return RedirectResponse(f"/workflows/run/{quote(run.workflow, safe='')}", status_code=303)

    @app.get("/workflows/schedule/{name}", response_class=HTMLResponse)
    def workflow_schedule(name: str) -> Response:
        return page("workflow_schedule.html", workflow=find_workflow_view(backends, name), token=posts.token)

    @app.post("/workflows/schedule/{name}")
    async def schedule_workflow(request: Request, name: str) -> Response:
        form = await posts.check(request)
        await run_in_threadpool(change_schedule, backends, name, form)
        return RedirectResponse(f"/workflows/schedule/{quote(name, safe='')}", status_code=303)

    @app.post("/workflows/run/{name}/cancel")
    async def cancel_workflow(request: Request, name: str) -> Response:
        form = await posts.check(request)
        run = await run_in_threadpool(cancel_run, backends, name, form)
        to = f"/run/{quote(run.id, safe='')}" if not run.id.endswith("-0") else ""
        return RedirectResponse(f"/workflows{to}", status_code=303)

    @app.get("/dependencies", response_class=HTMLResponse)
    def dependencies(handler: Short = "") -> Response:
        rows = dependency_rows(backends.catalog)
        return page("dependencies.html", rows=[r for r in rows if not handler or r.handler == handler], chosen=handler)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(prometheus_text(backends), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/entity/{kind}/{entity_id:path}")
    def api_entity(kind: str, entity_id: str, history: bool = False) -> Mapping[str, Any]:
        return inspect_entity(backends, kind, entity_id, history=history).to_json()

    @app.get("/api/why/{kind}/{entity_id}")
    def api_why(kind: str, entity_id: str, at: Annotated[int | None, Query(ge=0)] = None) -> Mapping[str, Any]:
        table = table_of(backends.catalog, kind).name
        if table not in ("campaign", "ad"):
            raise BadInput("a diagnosis is made for a campaign or an ad")
        diagnose = diagnose_campaign if table == "campaign" else diagnose_ad
        return diagnose(backends, entity_id, at).to_json()

    @app.get("/api/status")
    def api_status() -> Mapping[str, Any]:
        return pipeline_status(backends).to_json()

    @app.get("/api/workflows")
    def api_workflows() -> Any:
        return [view.to_json() for view in workflow_views(backends)]

    @app.get("/api/workflows/runs")
    def api_runs(workflow: Short = "") -> Any:
        return [run.to_json() for run in run_views(backends, workflow)]

    @app.get("/api/search")
    def api_search(json: Text, k: Hits = 20, ad: Short = "") -> Mapping[str, Any]:
        return run_search(backends, request_from_form(backends.catalog, {"json": json}), k, ad).to_json()

    @app.get("/api/dead-letters")
    def api_dead_letters(stage: Short = "", reason: Short = "", table: Short = "", row: Short = "") -> Any:
        found = list_dead_letters(backends.log, stage=stage, reason=reason, table=table, row=row)
        return [letter.to_json() for letter in found]

    return app


def _entity_url(kind: str, entity_id: str, backends: Backends) -> str:
    table = table_of(backends.catalog, kind)
    return f"/entity/{'document' if table.root else table.name}/{quote(entity_id, safe='')}"
