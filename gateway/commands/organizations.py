"""`tollgate org`: make and list organizations, and say what they may do in an outage."""

import click

from gateway.commands.stores import Stores, run
from gateway.commands.texts import Row, Usd, print_rows, when
from gateway.management import organizations
from gateway.management.organizations import Organization, OrganizationKind
from gateway.settings import Credits
from ledger.money import Nanos, usd_text


@click.group()
def org() -> None:
    """Make, list and change organizations."""


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


@org.command()
@click.argument("organization")
@click.argument("amount", type=Usd())
@click.pass_obj
def grace(config_path: str, *, organization: str, amount: Nanos) -> None:
    """Let ORGANIZATION (its name or id) use AMOUNT in USD while Redis is away; 0 ends it.

    Without it, calls are refused while nobody can tell what a wallet has. With it, they go on up to
    this sum, as long as the wallet was above zero by the books; budgets and rates are not judged.
    """

    async def changed(stores: Stores) -> bool:
        found = await organizations.resolve(stores.pool, organization)
        return await organizations.set_grace(
            stores.pool, stores.cache, found.id, amount, actor="operator"
        )

    is_told = run(config_path, changed)
    said = f"may use {usd_text(amount)}" if amount else "may use nothing"
    click.echo(f"{organization} {said} while Redis is away.")
    if not is_told:
        click.echo("Redis did not answer, so gateways may notice up to 30 s late.", err=True)


def _fields(one: Organization) -> Row:
    return {
        "id": str(one.id),
        "name": one.name,
        "kind": one.kind.value,
        "balance_nanos": one.balance,
        "granted_nanos": one.granted,
        "spent_nanos": one.spent,
        "time_zone": one.time_zone,
        "grace_nanos": one.grace,
        "unpriced": one.allows_unpriced,
        "suspended": when(one.suspended_at),
        "created": when(one.created_at),
    }
