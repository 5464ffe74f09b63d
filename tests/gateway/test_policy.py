"""What each role may do under each preset, cell by cell, and what switches change of it."""

import msgspec
import pytest

from gateway.policy import (
    PRESETS,
    Audience,
    Permission,
    Preset,
    Role,
    SecretVisibility,
    Switches,
    may_give,
    policy_of,
)

# Who may: (O)wner, (A)dmin, (M)ember. In `pooled`, owner and admin are one to its people.
CELLS = {
    Permission.ORGANIZATION_UPDATE: ("OA", "OA", "OA", "O"),
    Permission.ORGANIZATION_DELETE: ("O", "OA", "O", "O"),
    Permission.MEMBER_INVITE: ("OA", "OA", "OA", "O"),
    Permission.MEMBER_REMOVE: ("OA", "OA", "OA", "O"),
    Permission.MEMBER_ROLE: ("OA", "OA", "OA", "O"),
    Permission.KEY_CREATE: ("OA", "OAM", "OA", "OAM"),
    Permission.KEY_MANAGE: ("OA", "OA", "OA", "OA"),
    Permission.KEY_READ: ("OAM", "OAM", "OAM", "OAM"),
    Permission.BILLING_PURCHASE: ("OA", "OA", "OAM", "O"),
    Permission.BILLING_READ: ("OA", "OA", "OAM", "O"),
    Permission.BILLING_MANAGE: ("OA", "OA", "OA", "O"),
    Permission.AUTO_TOP_UP_MANAGE: ("OA", "OA", "OA", "O"),
    Permission.USAGE_READ: ("OAM", "OAM", "OAM", "OAM"),
    Permission.EXPORT_CREATE: ("OAM", "OA", "OAM", "OA"),
    Permission.PRIVACY_UPDATE: ("OA", "OA", "OA", "O"),
    Permission.PROVIDER_KEY_MANAGE: ("O", "O", "O", "O"),
    Permission.ALERT_MANAGE: ("OA", "OA", "OA", "OA"),
}
LETTERS = {Role.OWNER: "O", Role.ADMIN: "A", Role.MEMBER: "M"}


@pytest.mark.parametrize("permission", CELLS)
@pytest.mark.parametrize("preset", Preset)
def test_a_preset_lets_each_role_do_what_its_table_says(
    preset: Preset, permission: Permission
) -> None:
    expected = CELLS[permission][list(Preset).index(preset)]

    allowed = {role for role in Role if PRESETS[preset].allows(role, permission)}

    assert "".join(LETTERS[role] for role in Role if role in allowed) == expected


@pytest.mark.parametrize("preset", Preset)
def test_every_permission_has_an_audience(preset: Preset) -> None:
    assert PRESETS[preset].audiences.keys() == set(Permission)


@pytest.mark.parametrize("preset", Preset)
@pytest.mark.parametrize("permission", Permission)
def test_who_may_less_never_may_what_who_may_more_may_not(
    preset: Preset, permission: Permission
) -> None:
    owner, admin, member = (PRESETS[preset].allows(role, permission) for role in Role)
    assert owner >= admin >= member
    assert owner, "what no owner may, nobody could"


def test_a_switch_changes_one_cell_and_nothing_else() -> None:
    switches = Switches(permissions={Permission.KEY_CREATE: Audience.MEMBERS})

    policy = policy_of(Preset.STUDIO, switches)

    assert policy.allows(Role.MEMBER, Permission.KEY_CREATE)
    changed = {
        one for one in Permission if policy.audiences[one] != PRESETS[Preset.STUDIO].audiences[one]
    }
    assert changed == {Permission.KEY_CREATE}
    assert policy.secret_visibility is SecretVisibility.MEMBERS, "as the preset has it"


def test_a_switch_may_be_set_to_what_is_false() -> None:
    policy = policy_of(Preset.STUDIO, Switches(owners_need_second_factor=True))
    assert policy.owners_need_second_factor
    assert not policy_of(Preset.STUDIO, Switches()).owners_need_second_factor


def test_what_the_roles_are_called_is_the_presets_to_say() -> None:
    assert PRESETS[Preset.PLATFORM].labels[Role.MEMBER] == "Developer"
    assert len(set(PRESETS[Preset.POOLED].labels.values())) == 2
    named = policy_of(Preset.PLATFORM, Switches(labels={Role.MEMBER: "Artist"}))
    assert (named.labels[Role.MEMBER], named.labels[Role.OWNER]) == ("Artist", "Owner")


@pytest.mark.parametrize(
    "text",
    [
        b'{"permissions": {"key.steal": "members"}}',
        b'{"permissions": {"key.create": "everybody"}}',
        b'{"labels": {"owner": ""}}',
        b'{"labels": {"owner": "two\\nlines"}}',
        b'{"colour": "red"}',
    ],
)
def test_switches_that_mean_nothing_are_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Switches)


@pytest.mark.parametrize("before", [None, *Role])
@pytest.mark.parametrize("after", [None, *Role])
def test_only_owners_make_and_unmake_owners(before: Role | None, after: Role | None) -> None:
    assert may_give(Role.OWNER, before=before, after=after)
    assert may_give(Role.ADMIN, before=before, after=after) == (Role.OWNER not in (before, after))
