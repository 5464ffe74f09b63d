-- What organizations want to be warned of, what they were warned of, and which programs are told.
CREATE TABLE alert_settings (
    organization_id   uuid PRIMARY KEY REFERENCES organization (id),
    low_nanos         bigint CHECK (low_nanos BETWEEN 0 AND 9007199254740991),
    critical_nanos    bigint CHECK (critical_nanos BETWEEN 0 AND 9007199254740991),
    thresholds        bigint[] NOT NULL DEFAULT '{}',
    budget_percents   smallint[] NOT NULL DEFAULT '{80,95,100}',
    anomalies         boolean NOT NULL DEFAULT true,
    anomaly_min_nanos bigint NOT NULL DEFAULT 10000000000 CHECK (anomaly_min_nanos >= 0),
    reviews           boolean NOT NULL DEFAULT true,
    version           bigint NOT NULL DEFAULT 1
);

CREATE TABLE balance_level (
    organization_id uuid NOT NULL REFERENCES organization (id),
    kind            text NOT NULL,
    own_nanos       bigint NOT NULL,
    turn            bigint NOT NULL,
    is_armed        boolean NOT NULL,
    fired_at        timestamptz,
    PRIMARY KEY (organization_id, kind, own_nanos)
);

CREATE TABLE alert (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization (id),
    kind            text NOT NULL,
    subject         text NOT NULL,
    facts           jsonb NOT NULL,
    fired_at        timestamptz NOT NULL,
    UNIQUE (organization_id, kind, subject)
);
CREATE INDEX alert_fired ON alert (organization_id, fired_at, id);

CREATE TABLE alert_unwanted (
    person_id       uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    organization_id uuid NOT NULL REFERENCES organization (id),
    PRIMARY KEY (person_id, organization_id)
);

CREATE TABLE webhook (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization (id),
    url             text NOT NULL,
    description     text NOT NULL DEFAULT '',
    events          text[],
    secret          bytea NOT NULL,
    former_secret   bytea,
    former_until    timestamptz,
    created_by      text NOT NULL,
    created_at      timestamptz NOT NULL,
    succeeded_at    timestamptz,
    failing_since   timestamptz,
    disabled_at     timestamptz,
    disabled_why    text,
    version         bigint NOT NULL DEFAULT 1,
    CHECK ((former_secret IS NULL) = (former_until IS NULL)),
    CHECK ((disabled_at IS NULL) = (disabled_why IS NULL))
);
CREATE INDEX webhook_organization ON webhook (organization_id);

CREATE TABLE webhook_delivery (
    id         uuid PRIMARY KEY,
    webhook_id uuid NOT NULL REFERENCES webhook (id) ON DELETE CASCADE,
    alert_id   uuid REFERENCES alert (id),
    kind       text NOT NULL,
    body       text NOT NULL,
    created_at timestamptz NOT NULL,
    next_at    timestamptz,
    tries      integer NOT NULL DEFAULT 0,
    ended_at   timestamptz,
    status     integer,
    error      text,
    CHECK ((next_at IS NULL) = (ended_at IS NOT NULL))
);
CREATE INDEX webhook_delivery_due ON webhook_delivery (next_at) WHERE ended_at IS NULL;
CREATE INDEX webhook_delivery_listed ON webhook_delivery (webhook_id, created_at, id);
