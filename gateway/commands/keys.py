"""`tollgate key`: make, list and revoke API keys."""

import secrets
from datetime import datetime
from uuid import UUID

import click

from gateway.commands.stores import Stores, run
from gateway.commands.texts import IpRange, Moment, Usd, print_rows, when
from gateway.keys import RANDOM_BYTES, NewKey, issue
from gateway.management import api_keys, organizations
from gateway.management.api_keys import ApiKey, KeyLabel, KeyTerms
from gateway.principal import Period
from ledger.money import Nanos

_FROM = "Where its calls may come from, like 10.0.0.0/8; repeat. [anywhere]"
_LATE = "Redis did not answer, so gateways may notice up to 30 s late."


@click.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command()
@click.argument("organization")
@click.argument("name")
@click.option("--project", help="Its project, made if there is none of this name. [Default]")
@click.option("--budget", type=Usd(), help="USD it may spend in each period.")
@click.option(
    "--period",
    type=click.Choice([period.value for period in Period]),
    help="When its budget starts anew, in the organization's time zone.  [monthly]",
)
@click.option("--rpm", type=click.IntRange(min=1), help="Requests per minute.")
@click.option("--tpm", type=click.IntRange(min=1), help="Tokens per minute.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Calls open at once.")
@click.option("--model", "models", multiple=True, help="A model it may use; repeat. [all]")
@click.option("--default-model", help="The model of calls that name none, or `default`.")
@click.option("--ip-range", "ip_ranges", type=IpRange(), multiple=True, help=_FROM)
@click.option("--expires", type=Moment(), help="When it ends: 2030-12-31, or with a time; UTC.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_obj
def create(  # noqa: PLR0913 - one parameter per option
    config_path: str,
    *,
    organization: str,
    name: str,
    project: str | None,
    budget: Nanos | None,
    period: str | None,
    rpm: int | None,
    tpm: int | None,
    concurrency: int | None,
    models: tuple[str, ...],
    default_model: str | None,
    ip_ranges: tuple[str, ...],
    expires: datetime | None,
    as_json: bool,
) -> None:
    """Make a key NAME for ORGANIZATION (its name or id) and print it, this once."""
    if period is not None and budget is None:
        raise click.UsageError("--period needs --budget")
    terms = KeyTerms(
        name=name,
        project=project,
        budget=budget,
        period=None if budget is None else Period(period or Period.MONTHLY),
        rpm=rpm,
        tpm=tpm,
        concurrency=concurrency,
        models=models or None,
        default_model=default_model,
        ip_ranges=tuple(dict.fromkeys(ip_ranges)) or None,
        expires_at=expires,
    )
    new = issue(secrets.token_bytes(RANDOM_BYTES))
    made = run(config_path, lambda stores: _create(stores, organization, new, terms))
    if as_json:
        print_rows([{"key": new.secret.reveal(), **_fields(made)}], as_json=True)
    else:
        click.echo(new.secret.reveal())
    click.echo(
        f"Key {made.name!r} of project {made.project!r}. This is the only time it is shown:"
        " store it now, it cannot be recovered.",
        err=True,
    )


@key.command("list")
@click.argument("organization")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_obj
def list_(config_path: str, organization: str, *, as_json: bool) -> None:
    """List the keys of ORGANIZATION (its name or id)."""

    async def listed(stores: Stores) -> list[ApiKey]:
        found = await organizations.resolve(stores.pool, organization)
        return await api_keys.listed(stores.pool, found.id)

    print_rows([_fields(one) for one in run(config_path, listed)], as_json=as_json)


@key.command()
@click.argument("key")
@click.option("--org", "organization", help="Its organization, if the key's name is not unique.")
@click.pass_obj
def revoke(config_path: str, key: str, organization: str | None) -> None:
    """End KEY (its id, name or last four characters) at once and for ever."""
    is_told = run(config_path, lambda stores: _revoke(stores, key, organization))
    click.echo(f"Revoked {key}. " + ("No gateway takes it any more." if is_told else _LATE))


async def _create(stores: Stores, organization: str, new: NewKey, terms: KeyTerms) -> ApiKey:
    found = await organizations.resolve(stores.pool, organization)
    label = KeyLabel(stores.key_digest()(new.secret.reveal()), new.last4)
    return await api_keys.create(
        stores.pool, stores.cache, organization_id=found.id, label=label, terms=terms
    )


async def _revoke(stores: Stores, key: str, organization: str | None) -> bool:
    organization_id: UUID | None = None
    if organization is not None:
        organization_id = (await organizations.resolve(stores.pool, organization)).id
    key_id = await api_keys.resolve(stores.pool, key, organization_id=organization_id)
    return await api_keys.revoke(stores.pool, stores.cache, key_id)


def _fields(one: ApiKey) -> dict[str, object]:
    return {
        "id": str(one.id),
        "name": one.name,
        "project": one.project,
        "last4": one.last4,
        "budget_nanos": one.budget,
        "period": one.period,
        "rpm": one.rpm,
        "tpm": one.tpm,
        "concurrency": one.concurrency,
        "models": None if one.models is None else list(one.models),
        "default_model": one.default_model,
        "ip_ranges": None if one.ip_ranges is None else list(one.ip_ranges),
        "expires": when(one.expires_at),
        "revoked": when(one.revoked_at),
        "created": when(one.created_at),
    }
