"""`tollgate org`: make and list organizations."""

import click

from gateway.commands.stores import Stores, run
from gateway.commands.texts import Row, print_rows, when
from gateway.management import organizations
from gateway.management.organizations import Organization, OrganizationKind
from gateway.settings import Credits


@click.group()
def org() -> None:
    """Make and list organizations."""


@org.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in OrganizationKind]),
    default=OrganizationKind.ORGANIZATION.value,
    show_default=True,
    help="personal: one person's own account.",
)
@click.option("--time-zone", default="UTC", show_default=True, help="Where its days begin.")
@click.option("--allow-unpriced", is_flag=True, help="Models without a price pass at zero.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_obj
def create(
    config_path: str, *, name: str, kind: str, time_zone: str, allow_unpriced: bool, as_json: bool
) -> None:
    """Make an organization NAME, with a wallet and a default project, and print its id."""
    terms = organizations.OrganizationTerms(
        name=name,
        kind=OrganizationKind(kind),
        time_zone=time_zone,
        allows_unpriced=allow_unpriced,
    )

    async def made(stores: Stores) -> Organization:
        return await organizations.create(stores.pool, stores.redis, terms)

    organization = run(config_path, made)
    if as_json:
        print_rows([_fields(organization)], as_json=True)
    else:
        click.echo(organization.id)


@org.command("list")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_obj
def list_(config_path: str, *, as_json: bool) -> None:
    """List the organizations with their balances."""

    async def listed(stores: Stores) -> tuple[list[Organization], Credits]:
        return await organizations.listed(stores.pool), stores.config.credits

    found, credits_ = run(config_path, listed)
    print_rows([_fields(one) for one in found], as_json=as_json, credits_=credits_)


def _fields(one: Organization) -> Row:
    return {
        "id": str(one.id),
        "name": one.name,
        "kind": one.kind.value,
        "balance_nanos": one.balance,
        "granted_nanos": one.granted,
        "spent_nanos": one.spent,
        "time_zone": one.time_zone,
        "unpriced": one.allows_unpriced,
        "suspended": when(one.suspended_at),
        "created": when(one.created_at),
    }
