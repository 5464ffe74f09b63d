-- Plans that are paid for by the month or the year.
CREATE TABLE plan_period (
    organization_id uuid NOT NULL REFERENCES organization (id),
    starts_at       timestamptz NOT NULL,
    ends_at         timestamptz NOT NULL,
    anchor_at       timestamptz NOT NULL,
    plan            text NOT NULL,
    billing         text NOT NULL CHECK (billing IN ('monthly', 'yearly')),
    price           bigint NOT NULL CHECK (price > 0),
    amount          bigint NOT NULL CHECK (amount >= 0),
    is_renewal      boolean NOT NULL,
    owner_kind      text NOT NULL CHECK (owner_kind IN ('organization', 'person')),
    owner_id        uuid NOT NULL,
    person_id       uuid REFERENCES person (id),
    method_id       uuid NOT NULL REFERENCES payment_method (id),
    actor           text NOT NULL,
    address         text,
    state           text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'paid', 'failed')),
    declines        integer NOT NULL DEFAULT 0,
    decline         text,
    next_at         timestamptz NOT NULL,
    PRIMARY KEY (organization_id, starts_at),
    CHECK (starts_at < ends_at)
);
CREATE UNIQUE INDEX plan_period_pending ON plan_period (organization_id) WHERE state = 'pending';
CREATE INDEX plan_period_due ON plan_period (next_at) WHERE state = 'pending';

CREATE TABLE subscription (
    organization_id uuid PRIMARY KEY REFERENCES organization (id),
    starts_at       timestamptz NOT NULL,
    next_plan       text NOT NULL,
    next_billing    text NOT NULL CHECK (next_billing IN ('monthly', 'yearly')),
    renews_at       timestamptz,
    owner_kind      text NOT NULL CHECK (owner_kind IN ('organization', 'person')),
    owner_id        uuid NOT NULL,
    person_id       uuid REFERENCES person (id),
    method_id       uuid NOT NULL REFERENCES payment_method (id),
    FOREIGN KEY (organization_id, starts_at) REFERENCES plan_period (organization_id, starts_at)
);
CREATE INDEX subscription_due ON subscription (renews_at);
