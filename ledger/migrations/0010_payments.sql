-- Payments: who pays with what, what was paid for, and what came of it.
CREATE TABLE payment_customer (
    processor text NOT NULL,
    owner_id  uuid NOT NULL,
    reference text NOT NULL,
    PRIMARY KEY (processor, owner_id)
);

CREATE TABLE payment_method (
    id         uuid PRIMARY KEY,
    processor  text NOT NULL,
    owner_kind text NOT NULL CHECK (owner_kind IN ('organization', 'person')),
    owner_id   uuid NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('card', 'us_bank_account', 'sepa_debit')),
    setup      text NOT NULL,
    reference  text,
    brand      text NOT NULL DEFAULT '',
    last4      text NOT NULL DEFAULT '',
    expires    text,
    is_default boolean NOT NULL DEFAULT false,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ready_at   timestamptz,
    removed_at timestamptz,
    CHECK ((ready_at IS NULL) = (reference IS NULL))
);
CREATE INDEX payment_method_owner ON payment_method (owner_id) WHERE removed_at IS NULL;
CREATE UNIQUE INDEX payment_method_default ON payment_method (owner_id)
    WHERE is_default AND removed_at IS NULL;
CREATE UNIQUE INDEX payment_method_reference ON payment_method (processor, reference);

CREATE TABLE payment (
    id              uuid PRIMARY KEY,
    purpose         text NOT NULL CHECK (purpose IN ('purchase', 'top_up', 'plan')),
    processor       text NOT NULL,
    organization_id uuid NOT NULL REFERENCES organization (id),
    owner_kind      text NOT NULL CHECK (owner_kind IN ('organization', 'person')),
    owner_id        uuid NOT NULL,
    person_id       uuid REFERENCES person (id),
    method_id       uuid REFERENCES payment_method (id),
    amount          bigint NOT NULL CHECK (amount > 0),
    charged         bigint NOT NULL CHECK (charged > 0),
    currency        text NOT NULL,
    actor           text NOT NULL,
    state           text NOT NULL DEFAULT 'pending'
                    CHECK (state IN ('pending', 'open', 'processing', 'paid', 'failed')),
    reference       text,
    checkout        text,
    checkout_url    text,
    decline         text,
    is_hard         boolean NOT NULL DEFAULT false,
    refunded        bigint NOT NULL DEFAULT 0 CHECK (refunded BETWEEN 0 AND amount),
    created_at      timestamptz NOT NULL DEFAULT now(),
    next_at         timestamptz NOT NULL,
    tries           integer NOT NULL DEFAULT 0,
    paid_at         timestamptz,
    ended_at        timestamptz,
    CHECK ((state = 'paid') = (paid_at IS NOT NULL)),
    CHECK (state <> 'paid' OR reference IS NOT NULL)
);
CREATE UNIQUE INDEX payment_reference ON payment (processor, reference);
CREATE INDEX payment_due ON payment (next_at) WHERE ended_at IS NULL;
CREATE INDEX payment_organization ON payment (organization_id, created_at);
CREATE UNIQUE INDEX payment_one_top_up ON payment (organization_id)
    WHERE purpose = 'top_up' AND state IN ('pending', 'open', 'processing');

CREATE TABLE payment_refund (
    id         uuid PRIMARY KEY,
    payment_id uuid NOT NULL REFERENCES payment (id),
    amount     bigint NOT NULL CHECK (amount > 0),
    charged    bigint NOT NULL CHECK (charged > 0),
    actor      text NOT NULL,
    reason     text NOT NULL,
    state      text NOT NULL DEFAULT 'pending'
               CHECK (state IN ('pending', 'held', 'refused', 'refunded', 'returned')),
    reference  text,
    created_at timestamptz NOT NULL DEFAULT now(),
    next_at    timestamptz NOT NULL,
    tries      integer NOT NULL DEFAULT 0,
    ended_at   timestamptz
);
CREATE INDEX payment_refund_due ON payment_refund (next_at) WHERE ended_at IS NULL;
CREATE INDEX payment_refund_payment ON payment_refund (payment_id);

CREATE TABLE payment_event (
    processor   text NOT NULL,
    id          text NOT NULL,
    kind        text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    handled_at  timestamptz,
    PRIMARY KEY (processor, id)
);

CREATE TABLE billing (
    organization_id uuid PRIMARY KEY REFERENCES organization (id),
    contacts        text[] NOT NULL DEFAULT '{}',
    invoicing       jsonb NOT NULL DEFAULT '{}',
    version         bigint NOT NULL DEFAULT 1
);

CREATE TABLE auto_top_up (
    organization_id uuid PRIMARY KEY REFERENCES organization (id),
    is_enabled      boolean NOT NULL,
    threshold       bigint NOT NULL CHECK (threshold > 0),
    amount          bigint NOT NULL CHECK (amount > 0),
    monthly_max     bigint CHECK (monthly_max > 0),
    method_id       uuid NOT NULL REFERENCES payment_method (id),
    configured_by   text NOT NULL,
    crossings       bigint NOT NULL DEFAULT 0,
    declines        integer NOT NULL DEFAULT 0,
    retry_at        timestamptz,
    trouble         text,
    version         bigint NOT NULL DEFAULT 1
);

-- What the sandbox keeps instead of a processor.
CREATE TABLE sandbox_object (
    id         text PRIMARY KEY,
    kind       text NOT NULL,
    key        text NOT NULL,
    body       jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (kind, key)
);
