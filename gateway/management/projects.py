"""Projects: what an organization's keys are grouped by. One, the default, is always there.

A project is archived and never deleted: its calls are reported under its name for ever.
"""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType

from gateway.errors import Conflict, NotFound
from gateway.management import api_keys
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.limits import allowed_to
from gateway.management.tenants import Description
from gateway.management.tenants import OrganizationName as ProjectName
from gateway.policy import Permission
from gateway.rest.caller import Scope, member
from gateway.rest.cursor import Page, Paged, cursor_at, moment_in
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.postgres import Connection

_COLUMNS = """
    SELECT p.id, p.name, p.description, p.content_logging, p.is_default, p.archived_at,
           p.created_at, p.version
    FROM project AS p
"""
_ONE = _COLUMNS + "WHERE p.id = $1 AND p.organization_id = $2"
_LISTED = (
    _COLUMNS
    + """
    WHERE p.organization_id = $1 AND ($2 OR p.archived_at IS NULL)
      AND (p.created_at, p.id) > ($3::timestamptz, $4::uuid)
    ORDER BY p.created_at, p.id LIMIT $5
"""
)
# Locked, so that of two new projects at once the second counts the first.
_LOCK = "SELECT id FROM organization WHERE id = $1 FOR UPDATE"
_OPEN = "SELECT count(*) FROM project WHERE organization_id = $1 AND archived_at IS NULL"
_INSERT = """
    INSERT INTO project (id, organization_id, name, description) VALUES ($1, $2, $3, $4)
"""
_SET = """
    UPDATE project
    SET name = $3, description = $4, content_logging = $5, version = version + 1
    WHERE id = $1 AND organization_id = $2 AND version = $6
    RETURNING id
"""
# In the order that all lock keys in. What gateways know of them is old from now on.
_RAISE_KEYS = """
    WITH locked AS (
        SELECT id FROM api_key WHERE project_id = $1 AND revoked_at IS NULL
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE api_key SET version = version + 1 FROM locked WHERE api_key.id = locked.id
    RETURNING api_key.id
"""
_ALLOWS_CONTENT = "SELECT content_logging FROM organization WHERE id = $1"
_ARCHIVE = """
    UPDATE project SET archived_at = now(), version = version + 1
    WHERE id = $1 AND organization_id = $2 AND archived_at IS NULL AND NOT is_default
    RETURNING id
"""
_END_KEYS = """
    UPDATE api_key SET revoked_at = now(), version = version + 1
    WHERE project_id = $1 AND revoked_at IS NULL
    RETURNING id
"""


class NewProject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a new project is to be."""

    name: ProjectName
    description: Description = ""


class ProjectChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed; what is left out stays."""

    name: ProjectName | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    content_logging: bool | UnsetType = UNSET


class ProjectsWanted(Paged, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which projects are listed."""

    archived: bool = False  # those that are archived, too


class ProjectView(msgspec.Struct, frozen=True, kw_only=True):
    """A project."""

    id: UUID
    name: str
    description: str
    content_logging: bool  # what is said in its calls is kept, where the organization allows it
    is_default: bool  # keys are made here unless another project is named
    archived_at: datetime | None
    created_at: datetime
    version: int


async def listed(desk: Desk, asked: Asked[ProjectsWanted, Nothing]) -> Answer:
    """The projects, the oldest first."""
    wanted = asked.query
    rows = await desk.pool.fetch(
        _LISTED,
        asked.caller.place.organization_id,
        wanted.archived,
        *moment_in(wanted.cursor),
        wanted.limit + 1,
    )
    found = [ProjectView(**row) for row in rows[: wanted.limit]]
    more = len(rows) > wanted.limit
    return Answer(
        Page[ProjectView](
            data=found,
            next_cursor=cursor_at((found[-1].created_at, found[-1].id)) if more else None,
        )
    )


async def create(desk: Desk, asked: Asked[Nothing, NewProject]) -> Answer:
    """Make a project, unless there are as many as there may be."""
    organization_id, wanted, project_id = asked.caller.place.organization_id, asked.body, uuid4()
    try:
        async with desk.pool.acquire() as connection, connection.transaction():
            await _check_room(desk, connection, organization_id)
            await connection.execute(
                _INSERT, project_id, organization_id, wanted.name, wanted.description
            )
            said = msgspec.to_builtins(wanted)
            await note(connection, asked, "project.create", target=str(project_id), after=said)
    except asyncpg.UniqueViolationError as error:
        raise _taken(wanted.name) from error
    made = await _one(desk, organization_id, project_id)
    return Answer(made, made.version)


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One project."""
    found = await _one(desk, asked.caller.place.organization_id, asked.id("project_id"))
    return Answer(found, found.version)


async def change(desk: Desk, asked: Asked[Nothing, ProjectChange]) -> Answer:
    """Change what it is called, or what is kept of it. An archived one may be renamed, too."""
    organization_id, project_id = asked.caller.place.organization_id, asked.id("project_id")
    before = await _one(desk, organization_id, project_id)
    changes = {
        name: value
        for name, value in msgspec.structs.asdict(asked.body).items()
        if value is not UNSET
    }
    after = msgspec.structs.replace(before, **changes)
    expected = before.version if asked.if_match is None else asked.if_match
    keys: list[UUID] = []
    try:
        async with desk.pool.acquire() as connection, connection.transaction():
            if changes.get("content_logging"):
                await _check_content(connection, organization_id)
            chosen = (after.name, after.description, after.content_logging)
            done = await connection.fetchval(_SET, project_id, organization_id, *chosen, expected)
            if done is None:
                raise ChangedMeanwhile
            if after.content_logging is not before.content_logging:
                keys = [row["id"] for row in await connection.fetch(_RAISE_KEYS, project_id)]
            said = {name: getattr(before, name) for name in changes}
            target = str(project_id)
            await note(
                connection, asked, "project.update", target=target, before=said, after=changes
            )
    except asyncpg.UniqueViolationError as error:
        raise _taken(after.name) from error
    await api_keys.publish_keys(desk.pool, desk.cache, keys)
    changed = await _one(desk, organization_id, project_id)
    return Answer(changed, changed.version)


async def archive(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Archive it and end its keys for ever. Repeating it changes nothing."""
    organization_id, project_id = asked.caller.place.organization_id, asked.id("project_id")
    found = await _one(desk, organization_id, project_id)
    if found.is_default:
        raise Conflict(
            "The default project cannot be archived: keys without a project are made in it.",
            code="default_project",
        )
    ended: list[UUID] = []
    async with desk.pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_ARCHIVE, project_id, organization_id) is not None:
            ended = [row["id"] for row in await connection.fetch(_END_KEYS, project_id)]
            said: dict[str, Any] = {"keys_ended": [str(key_id) for key_id in ended]}
            await note(connection, asked, "project.archive", target=str(project_id), after=said)
    await api_keys.publish_keys(desk.pool, desk.cache, ended)
    archived = await _one(desk, organization_id, project_id)
    return Answer(archived, archived.version)


async def _one(desk: Desk, organization_id: UUID, project_id: UUID) -> ProjectView:
    row = await desk.pool.fetchrow(_ONE, project_id, organization_id)
    if row is None:
        raise NotFound(f"There is no project {project_id} here.", code="project_not_found")
    return ProjectView(**row)


async def _check_content(connection: Connection, organization_id: UUID) -> None:
    if not await connection.fetchval(_ALLOWS_CONTENT, organization_id):
        raise Conflict(
            "The organization does not allow that what is said is kept. Whoever has privacy.update"
            " allows it: PATCH /api/v1/privacy with content_logging.",
            code="content_not_allowed",
            param="content_logging",
        )


async def _check_room(desk: Desk, connection: Connection, organization_id: UUID) -> None:
    await connection.execute(_LOCK, organization_id)
    most = (await allowed_to(connection, desk.config.plans, organization_id)).projects_max
    if await connection.fetchval(_OPEN, organization_id) >= most:
        raise Conflict(
            f"An organization has {most} projects at most. Archive one, or choose a larger plan.",
            code="projects_max",
            extra={"projects_max": most},
        )


def _taken(name: str) -> Conflict:
    return Conflict(
        f"There is a project {name!r} already, perhaps an archived one. Choose another name, or"
        " rename that one.",
        code="project_name_taken",
        param="name",
    )


ROUTES = (
    Route(
        method="GET",
        path="/projects",
        name="projects.list",
        says="The projects, the oldest first.",
        access=member(Permission.PROJECT_READ, Scope.PROJECTS_READ),
        handle=listed,
        query=ProjectsWanted,
        answers=Page[ProjectView],
    ),
    Route(
        method="POST",
        path="/projects",
        name="projects.create",
        says="Make a project.",
        access=member(Permission.PROJECT_MANAGE, Scope.PROJECTS_WRITE),
        handle=create,
        body=NewProject,
        answers=ProjectView,
        status=201,
        raises=(409,),
    ),
    Route(
        method="GET",
        path="/projects/{project_id}",
        name="projects.get",
        says="One project.",
        access=member(Permission.PROJECT_READ, Scope.PROJECTS_READ),
        handle=get,
        answers=ProjectView,
    ),
    Route(
        method="PATCH",
        path="/projects/{project_id}",
        name="projects.change",
        says="Change its name or description.",
        access=member(Permission.PROJECT_MANAGE, Scope.PROJECTS_WRITE),
        handle=change,
        body=ProjectChange,
        answers=ProjectView,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/projects/{project_id}/archive",
        name="projects.archive",
        says="Archive it and end its keys for ever.",
        access=member(Permission.PROJECT_MANAGE, Scope.PROJECTS_WRITE),
        handle=archive,
        answers=ProjectView,
        raises=(409,),
    ),
)
