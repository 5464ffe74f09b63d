"""Role x route x organization: who gets past the guard, for every route there is.

What each route wants stands here a second time, by hand: a route that is not listed, or that lets
in somebody else than before, fails.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from gateway.errors import BadRequest, Forbidden, GatewayError, NotFound, Unauthenticated
from gateway.management.bearers import BearerKind, issue
from gateway.management.guard import Doorman
from gateway.management.routes import ROUTES
from gateway.policy import PRESETS, Permission, Preset, Role
from gateway.rest.caller import Knock, Scope, Who
from gateway.rest.route import Route
from gateway.rest.server import SESSION_COOKIE
from tests.gateway.management.office import Browser, Office, open_office
from tests.gateway.management.rooms import joined, made_operator, made_organization

# The permission that a member needs, or who else it is for; then the scope that a token needs.
WANTED = {
    "people.sign_up": "anybody",
    "people.send_verification": "anybody",
    "people.verify": "anybody",
    "people.me": "person profile:read",
    "people.change_me": "session",
    "sessions.sign_in": "anybody",
    "sessions.sign_in_by_link": "anybody",
    "sessions.current": "session",
    "sessions.sign_out": "session",
    "sessions.list": "session",
    "sessions.end": "session",
    "sessions.change_password": "session",
    "sessions.send_reset": "anybody",
    "sessions.reset_password": "anybody",
    "second_factor.start": "session",
    "second_factor.confirm": "session",
    "second_factor.end": "session",
    "second_factor.renew_codes": "session",
    "passkeys.start": "session",
    "passkeys.create": "session",
    "passkeys.list": "session",
    "passkeys.change": "session",
    "passkeys.remove": "session",
    "sessions.start_passkey": "anybody",
    "sessions.sign_in_by_passkey": "anybody",
    "sessions.issuers": "anybody",
    "sessions.start_issuer": "anybody",
    "sessions.sign_in_by_issuer": "anybody",
    "sessions.finish_issuer": "anybody",
    "identities.start": "session",
    "identities.link": "session",
    "identities.list": "session",
    "identities.remove": "session",
    "organizations.list": "person organizations:read",
    "organizations.create": "person organizations:write",
    "organizations.get": "organization.read organizations:read",
    "organizations.change": "organization.update organizations:write",
    "organizations.delete": "organization.delete",
    "policy.get": "organization.read organizations:read",
    "policy.change": "policy.update",
    "privacy.get": "organization.read organizations:read",
    "privacy.change": "privacy.update organizations:write",
    "contents.list": "content.read",
    "contents.get": "content.read",
    "contents.forget": "privacy.update",
    "plans.list": "anybody",
    "plans.get": "organization.read organizations:read",
    "plans.subscribe": "billing.purchase billing:write",
    "plans.cancel": "billing.purchase billing:write",
    "members.list": "member.read members:read",
    "members.get": "member.read members:read",
    "members.change": "member.role members:write",
    "members.remove": "member.remove members:write",
    "members.leave": "member members:write",
    "invitations.create": "member.invite members:write",
    "invitations.list": "member.invite members:read",
    "invitations.resend": "member.invite members:write",
    "invitations.revoke": "member.invite members:write",
    "invited.list": "person profile:read",
    "invited.accept": "session",
    "invited.refuse": "session",
    "invited.lookup": "anybody",
    "invited.accept_by_secret": "session",
    "invited.refuse_by_secret": "anybody",
    "projects.list": "project.read projects:read",
    "projects.create": "project.manage projects:write",
    "projects.get": "project.read projects:read",
    "projects.change": "project.manage projects:write",
    "projects.archive": "project.manage projects:write",
    "keys.list": "key.read keys:read",
    "keys.create": "key.create keys:write",
    "keys.get": "key.read keys:read",
    "keys.change": "key.create keys:write",
    "keys.disable": "key.create keys:write",
    "keys.enable": "key.create keys:write",
    "keys.revoke": "key.create keys:write",
    "keys.rotate": "key.create keys:write",
    "keys.reveal": "key.read keys:write",
    "budgets.of_key": "key.read keys:read",
    "budgets.of_project": "project.read projects:read",
    "budgets.set_of_project": "project.manage projects:write",
    "budgets.of_member": "member.read members:read",
    "budgets.set_of_member": "member.budget members:write",
    "usage.report": "usage.read usage:read",
    "wallet.get": "billing.read billing:read",
    "wallet.transactions": "billing.read billing:read",
    "wallet.give": "billing.purchase billing:write",
    "purchases.buy": "billing.purchase billing:write",
    "purchases.list": "member billing:read",
    "purchases.get": "member billing:read",
    "payment_methods.list": "member billing:read",
    "payment_methods.start": "member billing:write",
    "payment_methods.confirm": "member billing:write",
    "payment_methods.make_default": "member billing:write",
    "payment_methods.remove": "member billing:write",
    "invoices.list": "member billing:read",
    "invoices.get": "member billing:read",
    "billing.get": "billing.read billing:read",
    "billing.change": "billing.manage billing:write",
    "operator.refund_purchase": "operator",
    "auto_top_up.get": "auto_top_up.manage billing:read",
    "auto_top_up.put": "auto_top_up.manage billing:write",
    "operator.organizations": "operator",
    "operator.organization": "operator",
    "operator.change": "operator",
    "operator.credit": "operator",
    "operator.refund": "operator",
    "operator.transfer": "operator",
    "operator.reset_factor": "operator",
    "tokens.mine": "session",
    "tokens.create": "session",
    "tokens.revoke": "session",
    "tokens.of_organization": "token.manage",
    "tokens.create_for_organization": "token.manage",
    "tokens.revoke_of_organization": "token.manage",
    "audit.list": "audit.read audit:read",
    "audit.check": "audit.read audit:read",
    "audit.export": "audit.read audit:read",
    "alerts.list": "alert.manage alerts:read",
    "alerts.subscription": "alert.manage",
    "alerts.subscribe": "alert.manage",
    "alerts.settings": "alert.manage alerts:read",
    "alerts.change": "alert.manage alerts:write",
    "webhooks.list": "alert.manage alerts:read",
    "webhooks.create": "alert.manage alerts:write",
    "webhooks.get": "alert.manage alerts:read",
    "webhooks.change": "alert.manage alerts:write",
    "webhooks.delete": "alert.manage alerts:write",
    "webhooks.rotate": "alert.manage alerts:write",
    "webhooks.test": "alert.manage alerts:write",
    "webhooks.deliveries": "alert.manage alerts:read",
}
BY_NAME = {route.name: route for route in ROUTES}


def test_every_route_wants_what_is_written_here() -> None:
    found = {
        route.name: " ".join(
            filter(None, [route.access.permission or route.access.who, route.access.scope])
        )
        for route in ROUTES
    }
    assert found == WANTED


class Town:
    """One organization with somebody of each role, and others who have no business there."""

    def __init__(self, office: Office, organization_id: str) -> None:
        self.office, self.id = office, organization_id
        self.doorman = Doorman(office.desk)
        self.preset = Preset.PLATFORM
        self.people: dict[str, Browser] = {}

    def knock(self, who: str, **changed: Any) -> Knock:
        """What a request of theirs shows, at the organization."""
        cookie = csrf = None
        if who in self.people:
            browser = self.people[who]
            jar = {one.key: one.value for one in browser.cookies()}
            cookie, csrf = jar[SESSION_COOKIE], browser.headers["X-CSRF-Token"]
        shown = Knock("::1", "", None, cookie, csrf, self.id, {})
        return shown._replace(**changed)

    async def lets_in(self, route: Route, knock: Knock) -> str:
        """ "yes", or the code of the refusal."""
        try:
            await self.doorman(route, knock)
        except (Unauthenticated, Forbidden, NotFound, BadRequest) as error:
            return error.code
        return "yes"

    async def token(self, *scopes: Scope, role: Role | None = None, person: str = "") -> str:
        """A token of the organization with this role, or of somebody."""
        kind = BearerKind.PERSONAL if person else BearerKind.ORGANIZATION
        made = issue(kind, self.office.desk.random_bytes, self.office.desk.digest)
        person_id = (await self.people[person].get("/me")).body["id"] if person else None
        await self.office.pool.execute(
            "INSERT INTO token (id, person_id, organization_id, name, role, scopes, digest, last4,"
            " created_by) VALUES ($1, $2, $3, 't', $4, $5, $6, 'last', 'test')",
            uuid4(),
            person_id,
            None if person else self.id,
            role,
            list(scopes),
            made.digest,
        )
        return f"Bearer {made.secret.reveal()}"


@asynccontextmanager
async def town(office: Office, preset: Preset) -> AsyncIterator[Town]:
    ada = await office.signed_up("ada@example.com")
    organization = await made_organization(ada, "Acme", preset)
    made = Town(office, organization.headers["X-Organization-Id"])
    made.people = {
        "owner": ada,
        "admin": await joined(office, organization, "admin@example.com", "admin"),
        "member": await joined(office, organization, "member@example.com"),
    }
    office.clock.ahead += timedelta(hours=1)  # so many sign-ups from one address take their time
    made.people["other"] = await office.signed_up("other@example.com")
    made.people["operator"] = await made_operator(office, "root@example.com")
    await made_organization(made.people["other"], "Other", preset)
    yield made


@pytest.fixture(params=Preset)
async def acme(
    request: pytest.FixtureRequest, postgres_url: str, redis_url: str, tmp_path: Path
) -> AsyncIterator[Town]:
    async with (
        open_office(postgres_url, redis_url, tmp_path) as office,
        town(office, request.param) as made,
    ):
        made.preset = request.param
        yield made


async def test_each_role_gets_past_what_its_preset_lets_it_do(acme: Town) -> None:
    policy = PRESETS[acme.preset]
    for route in ROUTES:
        access = route.access
        for who in acme.people:
            got = await acme.lets_in(route, acme.knock(who))
            match access.who:
                case Who.ANYBODY | Who.PERSON | Who.SESSION:
                    expected = "yes"
                case Who.OPERATOR:
                    expected = "yes" if who == "operator" else "not_operator"
                case Who.MEMBER if who in ("other", "operator"):
                    expected = "organization_not_found"
                case _:
                    permission = access.permission
                    may = permission is None or policy.allows(Role(who), permission)
                    expected = "yes" if may else "not_permitted"
            assert got == expected, (route.name, who)
        nobody = await acme.lets_in(route, acme.knock("nobody"))
        assert nobody == ("yes" if access.who is Who.ANYBODY else "not_signed_in"), route.name


async def test_a_session_changes_nothing_without_its_token(acme: Town) -> None:
    for route in ROUTES:
        for csrf in (None, "", "0" * 64):
            got = await acme.lets_in(route, acme.knock("owner", csrf=csrf))
            if route.is_write and route.access.who is not Who.ANYBODY:
                assert got == "csrf_token", route.name
            else:
                assert got != "csrf_token", route.name


async def test_a_token_does_what_its_scope_its_role_and_its_organization_let_it(
    acme: Town,
) -> None:
    policy = PRESETS[acme.preset]
    for scope in Scope:
        texts = {role: await acme.token(scope, role=role) for role in Role}
        own = await acme.token(scope, person="member")
        for route in ROUTES:
            access = route.access
            if access.who is Who.ANYBODY:
                continue
            has_scope = access.scope is not None and access.scope.is_in(frozenset({scope}))
            for role, text in texts.items():
                shown = acme.knock("nobody", authorization=text)
                got = await acme.lets_in(route, shown)
                may = access.permission is None or policy.allows(role, access.permission)
                if not (has_scope and access.who is Who.MEMBER and may):
                    assert got != "yes", (route.name, scope, role)
                else:
                    assert got == "yes", (route.name, scope, role)
                elsewhere = shown._replace(organization=str(uuid4()))
                if access.who is Who.MEMBER:
                    assert await acme.lets_in(route, elsewhere) != "yes", route.name
            got = await acme.lets_in(route, acme.knock("nobody", authorization=own))
            may = access.who is Who.PERSON or (
                access.who is Who.MEMBER
                and (access.permission is None or policy.allows(Role.MEMBER, access.permission))
            )
            assert (got == "yes") == (has_scope and may), (route.name, scope, got)


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer x", "Basic eDp5", "Bearer tg_pat_" + "0" * 43]
)
async def test_what_is_no_token_is_refused(office: Office, authorization: str) -> None:
    knock = Knock("::1", "", authorization, None, None, None, {})
    with pytest.raises(GatewayError) as caught:
        await Doorman(office.desk)(BY_NAME["people.me"], knock)
    assert caught.value.status == 401


async def test_owners_need_a_second_factor_where_the_policy_says_so(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    acme = await made_organization(ada, "Acme")
    await acme.patch("/policy", {"switches": {"owners_need_second_factor": True}})

    assert (await acme.patch("/organization", {"name": "X"})).code == "second_factor_required"
    assert (await acme.get("/organization")).status == 200, "and nobody is locked out unawares"
    await office.pool.execute("UPDATE session SET is_strong = true")
    assert (await acme.patch("/organization", {"name": "X"})).status == 200


async def test_a_suspended_place_is_seen_and_a_deleted_one_is_not(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    acme = await made_organization(ada, "Acme")
    await office.pool.execute("UPDATE organization SET suspended_at = now()")
    assert (await acme.get("/organization")).body["is_suspended"]
    await office.pool.execute("UPDATE organization SET deleted_at = now()")
    assert (await acme.get("/organization")).code == "organization_not_found"


def test_every_permission_is_wanted_by_some_route_or_named_as_not_yet() -> None:
    wanted = {route.access.permission for route in ROUTES}
    missing = {one for one in Permission if one not in wanted}
    assert missing == {
        Permission.KEY_MANAGE,  # judged within the routes of keys: whose key it is decides
        Permission.EXPORT_CREATE,
        Permission.PROVIDER_KEY_MANAGE,
    }
