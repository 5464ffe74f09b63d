-- The tables of Tollgate, as the migrations leave them. Postgres is the truth for money.
--
-- Money is bigint nano-USD. Call ids are UUIDv7, so a range of ids is a range of time.
-- A number nobody else may write has one writer: see the row comment of each table.
-- A nil uuid stands for nobody and nothing, so that it can be part of a key.

-- One row: this deployment. Two deployments must never share a Postgres or a Redis.
CREATE TABLE installation (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id           uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    -- A call older than this had its partition dropped, or is forged: it goes to dead_letter.
    records_from timestamptz NOT NULL DEFAULT date_trunc('day', now(), 'UTC') - interval '7 days'
);
INSERT INTO installation DEFAULT VALUES;

-- One row per partition of the ledger. Whoever holds its row lock is the partition's only writer.
CREATE TABLE part (
    number               smallint PRIMARY KEY CHECK (number >= 0),
    generation           bigint NOT NULL DEFAULT 0,  -- raised by every recovery, never lowered
    -- new: never loaded; damaged: Redis lost a wallet of it. Both want a recovery.
    state                text NOT NULL DEFAULT 'new'
                         CHECK (state IN ('new', 'recovering', 'active', 'damaged')),
    owner                text,                       -- who recovers it now
    lease_until          timestamptz,                -- until then nobody else may recover it
    -- Everything up to this stream entry of this generation is in these tables, and nothing after.
    watermark_generation bigint NOT NULL DEFAULT 0,
    watermark_id         text NOT NULL DEFAULT '0-0',
    flushed_at           timestamptz,
    version              bigint NOT NULL DEFAULT 0,  -- of the newest base; one counter for all wallets
    activated_version    bigint NOT NULL DEFAULT 0,  -- wallets created up to it were loaded then
    -- What `version` was when the recovery under way began: an older stream that tells of a base
    -- above it tells of one that this Postgres has lost.
    claimed_version      bigint NOT NULL DEFAULT 0,
    transaction_number   bigint NOT NULL DEFAULT 0,  -- of the newest ledger transaction
    transaction_hash     bytea NOT NULL DEFAULT '\x' -- end of the partition's hash chain
) WITH (fillfactor = 50);

CREATE SEQUENCE organization_turn MINVALUE 0 START 0;  -- hands the partitions round

-- One row per customer: a company, or a person's own account (kind 'personal').
CREATE TABLE organization (
    id               uuid PRIMARY KEY,
    name             text NOT NULL,
    kind             text NOT NULL DEFAULT 'organization' CHECK (kind IN ('organization', 'personal')),
    partition        smallint NOT NULL REFERENCES part (number),
    time_zone        text NOT NULL DEFAULT 'UTC',
    unpriced_allowed boolean NOT NULL DEFAULT false, -- may call models that have no price
    suspended_at     timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    version          bigint NOT NULL DEFAULT 0,      -- raised by every change a gateway must learn
    audit_number     bigint NOT NULL DEFAULT 0,      -- of the newest line of its audit log
    audit_hash       bytea NOT NULL DEFAULT '\x',    -- end of its hash chain
    -- What it may use while Redis is away, over all gateways, nano-USD; 0: nothing.
    grace_nanos      bigint NOT NULL DEFAULT 0
                     CHECK (grace_nanos BETWEEN 0 AND 9007199254740991),
    description      text NOT NULL DEFAULT '',
    billing_email    text,                           -- where invoices and warnings go, too
    preset           text NOT NULL DEFAULT 'platform',  -- gateway.policy says what they are
    switches         jsonb NOT NULL DEFAULT '{}',    -- what differs from the preset
    limits           jsonb NOT NULL DEFAULT '{}',    -- what the operator set above the plan
    deleted_at       timestamptz,                    -- its keys are dead; its records stay
    ip_ranges        text[],                         -- where its calls may come from; null: anywhere
    plan             text NOT NULL DEFAULT 'free',   -- by its name in config.yaml
    log_level        text NOT NULL DEFAULT 'none',   -- none | retain: decides with the plan how long
    log_days         integer,                        -- it keeps how its calls went; null: that long
    logs_swept_to    date,                           -- what it does not keep is gone before this day
    content_logging  boolean NOT NULL DEFAULT false, -- its projects may have kept what is said
    content_forgotten_at timestamptz                 -- of calls before this nothing is kept any more
);

-- One row per project. A key belongs to a project.
CREATE TABLE project (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization (id),
    name            text NOT NULL,
    is_default      boolean NOT NULL DEFAULT false,
    archived_at     timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    description     text NOT NULL DEFAULT '',
    version         bigint NOT NULL DEFAULT 1,
    budget_limit    bigint CHECK (budget_limit >= 0),  -- of all its calls in each period; null: none
    budget_period   text
                    CHECK (budget_period IN ('once', 'daily', 'weekly', 'monthly')
                           AND (budget_limit IS NULL) = (budget_period IS NULL)),
    content_logging boolean NOT NULL DEFAULT false,  -- what is said in its calls is kept
    UNIQUE (organization_id, name)
);
CREATE UNIQUE INDEX project_default ON project (organization_id) WHERE is_default;

-- One row per human being who can sign in.
CREATE TABLE person (
    id           uuid PRIMARY KEY,
    email        text NOT NULL,                  -- in lower case
    name         text NOT NULL DEFAULT '',
    password     text,                           -- argon2id with its parameters; null: none is set
    verified_at  timestamptz,                    -- mail to the address reached them
    is_operator  boolean NOT NULL DEFAULT false, -- runs the installation
    disabled_at  timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    version      bigint NOT NULL DEFAULT 1,
    account_id   uuid REFERENCES organization (id),  -- their own account; made once verified
    otp_secret   bytea,                          -- sealed; see gateway/sealing.py
    otp_since    timestamptz,                    -- null: not asked for yet, the secret is on trial
    otp_step     bigint NOT NULL DEFAULT 0,      -- of the newest code that was taken: each works once
    otp_wrong    integer NOT NULL DEFAULT 0,     -- codes shown since a right one, in the time at hand
    otp_wrong_since timestamptz                  -- when that time began
);
CREATE UNIQUE INDEX person_email ON person (lower(email));

-- One row per code that stands in for a lost authenticator. Each works once.
CREATE TABLE recovery_code (
    person_id uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    digest    bytea NOT NULL,
    used_at   timestamptz,
    PRIMARY KEY (person_id, digest)
);

-- One row per sign-in. The cookie itself is nowhere: `digest` is its HMAC.
CREATE TABLE session (
    id         uuid PRIMARY KEY,
    person_id  uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    digest     bytea NOT NULL UNIQUE,
    is_strong  boolean NOT NULL,                 -- a second factor was shown
    address    text NOT NULL,
    agent      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    ended_at   timestamptz
);
CREATE INDEX session_person ON session (person_id) WHERE ended_at IS NULL;

-- One row per link that was mailed or printed. Each works once.
CREATE TABLE link (
    digest     bytea PRIMARY KEY,
    purpose    text NOT NULL CHECK (purpose IN ('verify', 'reset', 'sign-in')),
    person_id  uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);

-- One row per passkey. It signs in alone: who uses one was asked by it for a finger, face or PIN.
CREATE TABLE passkey (
    id            uuid PRIMARY KEY,
    person_id     uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    credential_id bytea NOT NULL UNIQUE,
    public_key    bytea NOT NULL,
    name          text NOT NULL,
    sign_count    bigint NOT NULL,               -- of its last use; 0: it does not count
    can_be_backed_up boolean NOT NULL,
    is_backed_up  boolean NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    used_at       timestamptz,
    version       bigint NOT NULL DEFAULT 1
);
CREATE INDEX passkey_person ON passkey (person_id);

-- One row per identity of somebody at an issuer of OpenID Connect, which signs them in.
CREATE TABLE identity (
    id         uuid PRIMARY KEY,
    person_id  uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    issuer     text NOT NULL,
    subject    text NOT NULL,
    email      text NOT NULL,                    -- as the issuer had it when it was linked
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at    timestamptz,
    UNIQUE (issuer, subject)
);
CREATE INDEX identity_person ON identity (person_id);

-- One row per challenge that was answered, until it would have expired: each is good once.
CREATE TABLE used_challenge (
    digest     bytea PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE INDEX used_challenge_expires ON used_challenge (expires_at);

-- One row per token of the management API: a person's own, or an organization's, with a role.
CREATE TABLE token (
    id              uuid PRIMARY KEY,
    person_id       uuid REFERENCES person (id) ON DELETE CASCADE,
    organization_id uuid REFERENCES organization (id),
    name            text NOT NULL,
    role            text CHECK (role IN ('owner', 'admin', 'member')),
    scopes          text[] NOT NULL,
    digest          bytea NOT NULL UNIQUE,
    last4           text NOT NULL,
    created_by      text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz,
    revoked_at      timestamptz,
    CHECK ((person_id IS NULL) <> (organization_id IS NULL)),
    CHECK ((organization_id IS NULL) = (role IS NULL))
);
CREATE INDEX token_person ON token (person_id) WHERE revoked_at IS NULL;
CREATE INDEX token_organization ON token (organization_id) WHERE revoked_at IS NULL;

-- One row per person in an organization.
CREATE TABLE member (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization (id),
    email           text NOT NULL,
    name            text NOT NULL DEFAULT '',
    role            text NOT NULL DEFAULT 'member' CHECK (role IN ('owner', 'admin', 'member')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    removed_at      timestamptz,
    version         bigint NOT NULL DEFAULT 1,
    grants          text[] NOT NULL DEFAULT '{}',      -- what they may beyond their role
    budget_limit    bigint CHECK (budget_limit >= 0),  -- of all their calls in each period; null: none
    budget_period   text
                    CHECK (budget_period IN ('once', 'daily', 'weekly', 'monthly')
                           AND (budget_limit IS NULL) = (budget_period IS NULL)),
    UNIQUE (organization_id, email)
);

-- One row per member who can sign in: which person it is. It stays when they go, for a return.
CREATE TABLE seat (
    person_id       uuid NOT NULL REFERENCES person (id),
    organization_id uuid NOT NULL REFERENCES organization (id),
    member_id       uuid NOT NULL UNIQUE REFERENCES member (id),
    PRIMARY KEY (person_id, organization_id)
);

-- One row per invitation. The secret of its link is nowhere: `digest` is its HMAC.
CREATE TABLE invitation (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization (id),
    email           text NOT NULL,               -- in lower case
    role            text NOT NULL CHECK (role IN ('owner', 'admin', 'member')),
    digest          bytea NOT NULL UNIQUE,
    invited_by      text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    sent_at         timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    outcome         text CHECK (outcome IN ('accepted', 'declined', 'revoked')),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
);
CREATE UNIQUE INDEX invitation_open ON invitation (organization_id, lower(email))
    WHERE ended_at IS NULL;
CREATE INDEX invitation_email ON invitation (lower(email)) WHERE ended_at IS NULL;

-- One row per Idempotency-Key somebody used, with what was answered; null: not answered yet.
CREATE TABLE answered (
    caller      text NOT NULL,
    key         text NOT NULL,
    fingerprint bytea NOT NULL,                  -- of what was asked
    asked_at    timestamptz NOT NULL DEFAULT now(),
    status      integer,
    body        bytea,
    version     bigint,
    PRIMARY KEY (caller, key)
);
CREATE INDEX answered_at ON answered (asked_at);

-- One row per mail, written in the transaction of what it tells of and sent afterwards.
CREATE TABLE mail (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    recipient  text NOT NULL,
    subject    text NOT NULL,
    text       text NOT NULL,
    html       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    next_at    timestamptz NOT NULL DEFAULT now(),  -- when it is tried
    tries      integer NOT NULL DEFAULT 0,
    sent_at    timestamptz,
    error      text                                 -- of the latest try
);
CREATE INDEX mail_waiting ON mail (next_at) WHERE sent_at IS NULL;

-- One row per organization that chose itself what it is warned of.
CREATE TABLE alert_settings (
    organization_id   uuid PRIMARY KEY REFERENCES organization (id),
    low_nanos         bigint CHECK (low_nanos BETWEEN 0 AND 9007199254740991),  -- null: the default
    critical_nanos    bigint CHECK (critical_nanos BETWEEN 0 AND 9007199254740991),
    thresholds        bigint[] NOT NULL DEFAULT '{}',  -- balances of its own choice, nano-USD
    budget_percents   smallint[] NOT NULL DEFAULT '{80,95,100}',
    anomalies         boolean NOT NULL DEFAULT true,
    anomaly_min_nanos bigint NOT NULL DEFAULT 10000000000 CHECK (anomaly_min_nanos >= 0),
    reviews           boolean NOT NULL DEFAULT true,
    version           bigint NOT NULL DEFAULT 1
);

-- One row per level that an organization's balance has been above: it fires when it falls below.
CREATE TABLE balance_level (
    organization_id uuid NOT NULL REFERENCES organization (id),
    kind            text NOT NULL,             -- 'balance.low', 'balance.critical', 'balance.threshold'
    own_nanos       bigint NOT NULL,           -- which of its own thresholds; else 0
    turn            bigint NOT NULL,           -- counts its changes: who changes it has seen the last
    is_armed        boolean NOT NULL,          -- the balance was above it since it fired
    fired_at        timestamptz,               -- the last time
    PRIMARY KEY (organization_id, kind, own_nanos)
);

-- One row per alert that was given. The subject says what it is about: each is given once.
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

-- One row per owner or admin who wants no mails about an organization's alerts.
CREATE TABLE alert_unwanted (
    person_id       uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    organization_id uuid NOT NULL REFERENCES organization (id),
    PRIMARY KEY (person_id, organization_id)
);

-- One row per program of an organization's that is told of its alerts.
CREATE TABLE webhook (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization (id),
    url             text NOT NULL,
    description     text NOT NULL DEFAULT '',
    events          text[],                    -- kinds of alerts; null: all
    secret          bytea NOT NULL,            -- sealed; see gateway/sealing.py
    former_secret   bytea,                     -- signs, too, until then
    former_until    timestamptz,
    created_by      text NOT NULL,
    created_at      timestamptz NOT NULL,
    succeeded_at    timestamptz,               -- the last time
    failing_since   timestamptz,               -- null: the latest try succeeded
    disabled_at     timestamptz,
    disabled_why    text,
    version         bigint NOT NULL DEFAULT 1,
    CHECK ((former_secret IS NULL) = (former_until IS NULL)),
    CHECK ((disabled_at IS NULL) = (disabled_why IS NULL))
);
CREATE INDEX webhook_organization ON webhook (organization_id);

-- One row per message to a webhook, written in the transaction of the alert it tells of.
CREATE TABLE webhook_delivery (
    id         uuid PRIMARY KEY,               -- the message's id, the same in every try
    webhook_id uuid NOT NULL REFERENCES webhook (id) ON DELETE CASCADE,
    alert_id   uuid REFERENCES alert (id),     -- null: a test
    kind       text NOT NULL,
    body       text NOT NULL,
    created_at timestamptz NOT NULL,
    next_at    timestamptz,                    -- when it is tried; null: not any more
    tries      integer NOT NULL DEFAULT 0,
    ended_at   timestamptz,                    -- delivered, or given up
    status     integer,                        -- of the latest answer; null: there was none
    error      text,                           -- null: delivered, or not tried yet
    CHECK ((next_at IS NULL) = (ended_at IS NOT NULL))
);
CREATE INDEX webhook_delivery_due ON webhook_delivery (next_at) WHERE ended_at IS NULL;
CREATE INDEX webhook_delivery_listed ON webhook_delivery (webhook_id, created_at, id);
-- Who an organization or a person is at the processor.
CREATE TABLE payment_customer (
    processor text NOT NULL,
    owner_id  uuid NOT NULL,                     -- an organization or a person
    reference text NOT NULL,                     -- the processor's id
    PRIMARY KEY (processor, owner_id)
);

-- One row per card or bank account, which are themselves at the processor's; only its owner sees it.
CREATE TABLE payment_method (
    id         uuid PRIMARY KEY,
    processor  text NOT NULL,
    owner_kind text NOT NULL CHECK (owner_kind IN ('organization', 'person')),
    owner_id   uuid NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('card', 'us_bank_account', 'sepa_debit')),
    setup      text NOT NULL,                    -- under what it was entered at the processor's
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

-- One row per payment, written before the processor is asked. paid: the money is there, for good.
CREATE TABLE payment (
    id              uuid PRIMARY KEY,
    purpose         text NOT NULL CHECK (purpose IN ('purchase', 'top_up', 'plan')),
    processor       text NOT NULL,
    organization_id uuid NOT NULL REFERENCES organization (id),
    owner_kind      text NOT NULL CHECK (owner_kind IN ('organization', 'person')),
    owner_id        uuid NOT NULL,
    person_id       uuid REFERENCES person (id),  -- who paid; null: a token, or a top-up by itself
    method_id       uuid REFERENCES payment_method (id),
    amount          bigint NOT NULL CHECK (amount > 0),   -- what is credited, in nano-USD
    charged         bigint NOT NULL CHECK (charged > 0),  -- in the smallest coin of `currency`
    currency        text NOT NULL,
    actor           text NOT NULL,
    state           text NOT NULL DEFAULT 'pending'
                    CHECK (state IN ('pending', 'open', 'processing', 'paid', 'failed')),
    reference       text,
    checkout        text,                        -- the processor's page, where the payer is sent to one
    checkout_url    text,
    decline         text,
    is_hard         boolean NOT NULL DEFAULT false,  -- trying again is of no use
    refunded        bigint NOT NULL DEFAULT 0    -- of `amount`
                    CHECK (refunded BETWEEN 0 AND amount),
    created_at      timestamptz NOT NULL DEFAULT now(),
    next_at         timestamptz NOT NULL,        -- until then whoever works on it is left alone
    tries           integer NOT NULL DEFAULT 0,
    paid_at         timestamptz,
    ended_at        timestamptz,                 -- failed, or credited: nothing is left to do
    CHECK ((state = 'paid') = (paid_at IS NOT NULL)),
    CHECK (state <> 'paid' OR reference IS NOT NULL)
);
CREATE UNIQUE INDEX payment_reference ON payment (processor, reference);
CREATE INDEX payment_due ON payment (next_at) WHERE ended_at IS NULL;
CREATE INDEX payment_organization ON payment (organization_id, created_at);
CREATE UNIQUE INDEX payment_one_top_up ON payment (organization_id)
    WHERE purpose = 'top_up' AND state IN ('pending', 'open', 'processing');

-- One row per refund: the credits leave the wallet (held), then the money goes back, or they return.
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

-- One row per event that a processor told of, so that none is taken twice.
CREATE TABLE payment_event (
    processor   text NOT NULL,
    id          text NOT NULL,
    kind        text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    handled_at  timestamptz,
    PRIMARY KEY (processor, id)
);

-- Who is written to about money, and what stands on invoices.
CREATE TABLE billing (
    organization_id uuid PRIMARY KEY REFERENCES organization (id),
    contacts        text[] NOT NULL DEFAULT '{}',
    invoicing       jsonb NOT NULL DEFAULT '{}',
    version         bigint NOT NULL DEFAULT 1
);

-- One row per organization whose wallet is filled up by itself.
CREATE TABLE auto_top_up (
    organization_id uuid PRIMARY KEY REFERENCES organization (id),
    is_enabled      boolean NOT NULL,
    threshold       bigint NOT NULL CHECK (threshold > 0),
    amount          bigint NOT NULL CHECK (amount > 0),   -- what is credited, in nano-USD
    monthly_max     bigint CHECK (monthly_max > 0),  -- null: none
    method_id       uuid NOT NULL REFERENCES payment_method (id),
    configured_by   text NOT NULL,
    crossings       bigint NOT NULL DEFAULT 0,   -- counts charges; part of their ids
    declines        integer NOT NULL DEFAULT 0,  -- in a row
    retry_at        timestamptz,
    trouble         text,                        -- why it was disabled, or the latest decline
    version         bigint NOT NULL DEFAULT 1
);

-- One row per period of a plan that is paid for: written before anybody is charged for it.
CREATE TABLE plan_period (
    organization_id uuid NOT NULL REFERENCES organization (id),
    starts_at       timestamptz NOT NULL,
    ends_at         timestamptz NOT NULL,
    anchor_at       timestamptz NOT NULL,   -- months are counted from here
    plan            text NOT NULL,
    billing         text NOT NULL CHECK (billing IN ('monthly', 'yearly')),
    price           bigint NOT NULL CHECK (price > 0),   -- nano-USD, of all of it
    amount          bigint NOT NULL CHECK (amount >= 0), -- less what is unused of the one before
    is_renewal      boolean NOT NULL,       -- nobody asked for it just now
    owner_kind      text NOT NULL CHECK (owner_kind IN ('organization', 'person')),
    owner_id        uuid NOT NULL,
    person_id       uuid REFERENCES person (id),
    method_id       uuid NOT NULL REFERENCES payment_method (id),
    actor           text NOT NULL,
    address         text,
    state           text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'paid', 'failed')),
    declines        integer NOT NULL DEFAULT 0,  -- a renewal is tried again after the first
    decline         text,
    next_at         timestamptz NOT NULL,   -- when the job looks at it
    PRIMARY KEY (organization_id, starts_at),
    CHECK (starts_at < ends_at)
);
CREATE UNIQUE INDEX plan_period_pending ON plan_period (organization_id) WHERE state = 'pending';
CREATE INDEX plan_period_due ON plan_period (next_at) WHERE state = 'pending';

-- One row per organization that pays for its plan, or did: the period at hand, and what follows.
CREATE TABLE subscription (
    organization_id uuid PRIMARY KEY REFERENCES organization (id),
    starts_at       timestamptz NOT NULL,
    next_plan       text NOT NULL,          -- free: it ends
    next_billing    text NOT NULL CHECK (next_billing IN ('monthly', 'yearly')),
    renews_at       timestamptz,            -- when the period at hand is over; null: it has ended
    owner_kind      text NOT NULL CHECK (owner_kind IN ('organization', 'person')),
    owner_id        uuid NOT NULL,
    person_id       uuid REFERENCES person (id),
    method_id       uuid NOT NULL REFERENCES payment_method (id),
    FOREIGN KEY (organization_id, starts_at) REFERENCES plan_period (organization_id, starts_at)
);
CREATE INDEX subscription_due ON subscription (renews_at);

-- What the sandbox keeps instead of a processor.
CREATE TABLE sandbox_object (
    id         text PRIMARY KEY,
    kind       text NOT NULL,
    key        text NOT NULL,
    body       jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (kind, key)
);

-- One row per API key. The secret itself is nowhere: `digest` is its HMAC.
CREATE TABLE api_key (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization (id),
    project_id      uuid NOT NULL REFERENCES project (id),
    member_id       uuid REFERENCES member (id),
    digest          bytea NOT NULL UNIQUE,
    name            text NOT NULL,
    last4           text NOT NULL,
    budget_limit    bigint CHECK (budget_limit >= 0),            -- per period; null: none
    budget_period   text CHECK (budget_period IN ('once', 'daily', 'weekly', 'monthly')),
    rpm             integer CHECK (rpm > 0),
    tpm             integer CHECK (tpm > 0),
    concurrency     integer CHECK (concurrency > 0),
    models          text[],                                      -- null: every model
    expires_at      timestamptz,
    revoked_at      timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    version         bigint NOT NULL DEFAULT 1,                   -- an older one never replaces a newer
    description     text NOT NULL DEFAULT '',
    disabled_at     timestamptz,                                 -- refused until it is enabled again
    disabled_by     uuid REFERENCES member (id),                 -- null: by nobody who is a member
    default_model   text,                                        -- of calls that name none
    ip_ranges       text[],                                      -- where calls may come from; null: anywhere
    CHECK ((budget_limit IS NULL) = (budget_period IS NULL))
);
CREATE INDEX api_key_organization ON api_key (organization_id);

-- One row per further secret of a key: its former one while a rotation's grace lasts (and after, as
-- refused), or a member's own, so that calls are theirs. Limits and budgets are the key's.
CREATE TABLE key_secret (
    digest     bytea PRIMARY KEY,
    key_id     uuid NOT NULL REFERENCES api_key (id),
    member_id  uuid REFERENCES member (id),      -- null: a former secret of the key itself
    last4      text NOT NULL,
    sealed     bytea,                            -- a member may see theirs again
    created_at timestamptz NOT NULL DEFAULT now(),
    ends_at    timestamptz,                      -- refused from then on; null: with its key
    CHECK ((member_id IS NULL) = (sealed IS NULL)),
    CHECK (member_id IS NOT NULL OR ends_at IS NOT NULL)
);
CREATE INDEX key_secret_key ON key_secret (key_id);
CREATE UNIQUE INDEX key_secret_member ON key_secret (key_id, member_id) WHERE ends_at IS NULL;

-- One row per gateway process that has ever served.
CREATE TABLE gateway (
    id         text PRIMARY KEY,
    boot       uuid NOT NULL,
    release    text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
);

-- One row per compiled price sheet that a call was ever priced by.
CREATE TABLE price_sheet (
    version    text PRIMARY KEY,
    sheet      bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One row per wallet; its id is its organization's. base - spent is what it has, holds aside.
CREATE TABLE wallet (
    id                uuid PRIMARY KEY,
    organization_id   uuid REFERENCES organization (id),  -- null: found in a stream, known to nobody
    partition         smallint NOT NULL REFERENCES part (number),
    base              bigint NOT NULL DEFAULT 0,  -- credits, adjustments, late debits, corrections
    spent             bigint NOT NULL DEFAULT 0,  -- follows what moved in Redis, entry by entry
    version           bigint NOT NULL DEFAULT 0,  -- of base
    created_version   bigint NOT NULL DEFAULT 0,
    loaded_generation bigint,                     -- pushed to Redis on its own, in this generation
    created_at        timestamptz NOT NULL DEFAULT now()
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000
);
CREATE INDEX wallet_version ON wallet (partition, version);

-- One row per window of a cap that was ever charged; id is '<cap id>@<start, unix ms>'.
CREATE TABLE cap_window (
    id         text PRIMARY KEY,
    cap_id     text NOT NULL,
    starts_ms  bigint NOT NULL,
    partition  smallint NOT NULL REFERENCES part (number),
    cap_limit  bigint NOT NULL,
    base       bigint NOT NULL,              -- the limit, less late debits and corrections
    spent      bigint NOT NULL DEFAULT 0,
    version    bigint NOT NULL DEFAULT 0
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000
);
CREATE INDEX cap_window_version ON cap_window (partition, version);
CREATE INDEX cap_window_cap ON cap_window (cap_id, starts_ms DESC);

-- One row per ledger transaction: a flushed batch, a credit. A hash chain per partition.
CREATE TABLE ledger_transaction (
    partition     smallint NOT NULL,
    number        bigint NOT NULL,
    kind          text NOT NULL,             -- 'flush', 'grant', 'payment', 'adjustment', ...
    reference     text NOT NULL,             -- flush: 'generation/last stream id'; else the id that made it
    actor         text NOT NULL,
    reason        text NOT NULL DEFAULT '',
    at            timestamptz NOT NULL,
    previous_hash bytea NOT NULL,
    hash          bytea NOT NULL,
    PRIMARY KEY (partition, number)
) WITH (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000
);
-- A credit is asked for under an id of the caller's; asking twice books once.
CREATE UNIQUE INDEX ledger_transaction_reference
    ON ledger_transaction (kind, reference) WHERE kind <> 'flush';

-- One row per line of a transaction: what an account gains. A transaction's lines sum to zero.
CREATE TABLE posting (
    partition smallint NOT NULL,
    number    bigint NOT NULL,
    account   text NOT NULL,                 -- a wallet's id, or 'revenue', 'grant', 'payment', ...
    amount    bigint NOT NULL,
    PRIMARY KEY (partition, number, account),
    FOREIGN KEY (partition, number) REFERENCES ledger_transaction (partition, number)
        DEFERRABLE INITIALLY DEFERRED
) WITH (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000
);
CREATE INDEX posting_account ON posting (account, partition, number);

-- One row per withdrawal: written before anything is held for it; its state alone decides.
CREATE TABLE withdrawal (
    id               uuid PRIMARY KEY,       -- what Redis withholds the amount under
    kind             text NOT NULL CHECK (kind IN ('refund', 'transfer', 'adjustment', 'payout')),
    reference        text NOT NULL,          -- of whoever asked; the ledger transaction's too
    wallet_id        uuid NOT NULL REFERENCES wallet (id),
    target_wallet_id uuid REFERENCES wallet (id),  -- of a transfer
    partition        smallint NOT NULL,      -- no foreign key: it would wait for the flusher
    amount           bigint NOT NULL CHECK (amount > 0),
    actor            text NOT NULL,
    reason           text NOT NULL,
    -- booked: its postings stand, by the same transaction. abandoned: it never happens.
    state            text NOT NULL DEFAULT 'pending'
                     CHECK (state IN ('pending', 'booked', 'abandoned')),
    asked_at         timestamptz NOT NULL DEFAULT now(),
    ended_at         timestamptz,
    released_at      timestamptz,            -- Redis was told of the end
    CHECK ((kind = 'transfer') = (target_wallet_id IS NOT NULL)),
    CHECK (target_wallet_id <> wallet_id)
);
-- Asking twice is one withdrawal; what was abandoned may be asked for anew.
CREATE UNIQUE INDEX withdrawal_reference ON withdrawal (kind, reference)
    WHERE state <> 'abandoned';
CREATE INDEX withdrawal_open ON withdrawal (partition, wallet_id) WHERE released_at IS NULL;

-- One row per call that was admitted and has ended: what it consumed and what it cost. Kept.
CREATE TABLE usage_record (
    call_id            uuid PRIMARY KEY,
    organization_id    uuid NOT NULL,
    project_id         uuid NOT NULL,
    key_id             uuid NOT NULL,
    member_id          uuid NOT NULL,
    wallet_id          uuid NOT NULL,
    admitted_at        timestamptz NOT NULL,
    arrived_at         timestamptz NOT NULL DEFAULT now(),  -- when it was flushed
    kind               text NOT NULL,         -- settled | released | expired | lost
    outcome            text NOT NULL,
    operation          text NOT NULL,
    provider           text NOT NULL,
    model_requested    text NOT NULL,
    model_target       text NOT NULL,
    model_served       text NOT NULL,
    tier               text NOT NULL,
    price_version      text NOT NULL,
    held               bigint NOT NULL,
    charge             bigint NOT NULL CHECK (charge >= 0),
    list_price         bigint NOT NULL,       -- what the usage costs by the sheet, whatever is charged
    reported_cost      bigint,                -- the vendor's own figure
    usage_source       text NOT NULL,
    input              bigint NOT NULL,
    cache_read         bigint NOT NULL,
    cache_write        bigint NOT NULL,
    output             bigint NOT NULL,
    reasoning          bigint NOT NULL,       -- of output
    other_usage        jsonb,                 -- units without a column of their own, and lifetimes
    windows            text[],                -- the cap windows it was charged to
    moved              boolean NOT NULL,      -- true: through spent, in Redis; false: late, through base
    partition          smallint NOT NULL,
    transaction_number bigint NOT NULL
) PARTITION BY RANGE (call_id);
CREATE INDEX usage_record_organization ON usage_record (organization_id, call_id);
-- Must stay empty: a row here has an id from the far future.
CREATE TABLE usage_record_default PARTITION OF usage_record DEFAULT;

-- One row per end that replaced an earlier end of the same call, or paid it back.
CREATE TABLE correction (
    call_id            uuid NOT NULL,
    number             integer NOT NULL,      -- 1, 2, ... per call
    organization_id    uuid NOT NULL,
    wallet_id          uuid NOT NULL,
    arrived_at         timestamptz NOT NULL DEFAULT now(),
    entry_kind         text NOT NULL,         -- how the entry said the call ended
    entry_charge       bigint NOT NULL,
    old_kind           text NOT NULL,
    old_charge         bigint NOT NULL,       -- what the call cost before
    kind               text NOT NULL,         -- what holds from now on
    charge             bigint NOT NULL,       -- what the call costs from now on
    spent_delta        bigint NOT NULL,       -- what Redis had moved with the entry
    base_delta         bigint NOT NULL,       -- what Postgres puts right: spent_delta - (charge - old_charge)
    windows            text[],                -- of the entry
    record             bytea,                 -- the entry's usage record
    -- Of that record, as in usage_record. They hold for the call if its kind or charge changed.
    outcome            text NOT NULL,
    provider           text NOT NULL,
    model_target       text NOT NULL,
    usage_source       text NOT NULL,
    list_price         bigint NOT NULL,
    input              bigint NOT NULL,
    cache_read         bigint NOT NULL,
    cache_write        bigint NOT NULL,
    output             bigint NOT NULL,
    reasoning          bigint NOT NULL,
    partition          smallint NOT NULL,
    transaction_number bigint NOT NULL,
    PRIMARY KEY (call_id, number)
) WITH (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000
);

-- One row per call: its record as its corrections leave it. What to show; never what to sum.
CREATE VIEW usage_call AS
    SELECT r.call_id, r.organization_id, r.project_id, r.key_id, r.member_id, r.wallet_id,
           r.admitted_at, r.operation, r.model_requested, r.model_served, r.tier, r.price_version,
           c.call_id IS NOT NULL AS is_corrected,
           coalesce(c.kind, r.kind) AS kind, coalesce(c.outcome, r.outcome) AS outcome,
           coalesce(c.provider, r.provider) AS provider,
           coalesce(c.model_target, r.model_target) AS model_target,
           coalesce(c.usage_source, r.usage_source) AS usage_source,
           coalesce(c.charge, r.charge) AS charge,
           coalesce(c.list_price, r.list_price) AS list_price,
           coalesce(c.input, r.input) AS input,
           coalesce(c.cache_read, r.cache_read) AS cache_read,
           coalesce(c.cache_write, r.cache_write) AS cache_write,
           coalesce(c.output, r.output) AS output,
           coalesce(c.reasoning, r.reasoning) AS reasoning
    FROM usage_record AS r LEFT JOIN LATERAL (
        SELECT * FROM correction
        WHERE correction.call_id = r.call_id
          AND (correction.old_kind, correction.old_charge) <> (correction.kind, correction.charge)
        ORDER BY number DESC LIMIT 1
    ) AS c ON true;

-- One row per call: how it went. Dropped by retention class and day, never summed for money.
CREATE TABLE call_log (
    retention       text NOT NULL DEFAULT 'standard',
    call_id         uuid NOT NULL,
    organization_id uuid NOT NULL,
    finished_at     timestamptz,
    first_byte_us   bigint NOT NULL,
    status          integer NOT NULL,
    attempts        integer NOT NULL,
    stream          boolean NOT NULL,
    client          text NOT NULL,
    flags           text[],
    PRIMARY KEY (retention, call_id)
) PARTITION BY LIST (retention);
CREATE TABLE call_log_standard PARTITION OF call_log FOR VALUES IN ('standard')
    PARTITION BY RANGE (call_id);
CREATE TABLE call_log_standard_default PARTITION OF call_log_standard DEFAULT;

-- One row per call let in by grace whose log is gone: `doctor` explains by it what is below zero.
CREATE TABLE grace_call (
    call_id uuid PRIMARY KEY
);

-- One row per organization and day of UTC: what its contents of that day are sealed with.
CREATE TABLE content_key (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    day             date NOT NULL,
    sealed          bytea              -- null: destroyed; its contents are to be deleted
);
CREATE UNIQUE INDEX content_key_in_use ON content_key (organization_id, day) WHERE sealed IS NOT NULL;

-- One row per call of a project that opted in: what was said, sealed.
CREATE TABLE call_content (
    organization_id uuid NOT NULL,
    call_id         uuid NOT NULL,
    key_id          uuid NOT NULL,
    packed          bytea NOT NULL,
    PRIMARY KEY (organization_id, call_id)
);

-- One row per hour of admission and everything a report groups by. Equals the records' sums.
CREATE TABLE usage_hourly (
    organization_id uuid NOT NULL,
    hour            timestamptz NOT NULL,
    project_id      uuid NOT NULL,
    key_id          uuid NOT NULL,
    member_id       uuid NOT NULL,
    provider        text NOT NULL,
    model           text NOT NULL,
    calls           bigint NOT NULL,
    successes       bigint NOT NULL,
    estimated       bigint NOT NULL,
    input           bigint NOT NULL,
    cache_read      bigint NOT NULL,
    cache_write     bigint NOT NULL,
    output          bigint NOT NULL,
    reasoning       bigint NOT NULL,
    charge          bigint NOT NULL,
    list_price      bigint NOT NULL,
    PRIMARY KEY (organization_id, hour, project_id, key_id, member_id, provider, model)
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000
);

-- One row per stream entry nobody could read whole. Its money is posted if it could be read.
CREATE TABLE dead_letter (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    partition          smallint NOT NULL,
    generation         bigint NOT NULL,
    stream_id          text NOT NULL,
    at                 timestamptz NOT NULL DEFAULT now(),
    error              text NOT NULL,
    fields             bytea NOT NULL,         -- the entry, msgpack
    wallet_id          uuid,
    spent_delta        bigint NOT NULL DEFAULT 0,
    windows            text[],
    transaction_number bigint,                 -- where its money is posted; null: nowhere
    resolved_at        timestamptz,
    resolved_by        text,
    -- replayed: read again and posted as what it is. written off: left as it is, for a reason.
    resolution         text CHECK (resolution IN ('replayed', 'written off')),
    resolution_reason  text,
    replay_number      bigint,                 -- the transaction that takes `spent_delta` back
    UNIQUE (partition, generation, stream_id)
);

-- One row per recovery of a partition.
CREATE TABLE recovery_log (
    partition  smallint NOT NULL,
    generation bigint NOT NULL,
    cause      text NOT NULL,
    owner      text NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at   timestamptz,
    drained    integer,                        -- entries read from the older streams
    wallets    integer,
    open_holds integer,
    PRIMARY KEY (partition, generation)
);

-- One row per change somebody made. A hash chain per organization.
CREATE TABLE audit_log (
    organization_id uuid NOT NULL,
    number          bigint NOT NULL,
    at              timestamptz NOT NULL,
    actor           text NOT NULL,
    action          text NOT NULL,
    target          text NOT NULL,
    before          jsonb,
    after           jsonb,
    address         text,
    previous_hash   bytea NOT NULL,
    hash            bytea NOT NULL,
    PRIMARY KEY (organization_id, number)
);

-- The book is append-only: a mistake is corrected by a new row that names the old one.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger_transaction
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON posting
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON usage_record
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON correction
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- All lines of a transaction are inserted by one statement, so one look per statement is enough.
CREATE FUNCTION refuse_unbalanced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added GROUP BY partition, number HAVING sum(amount) <> 0) THEN
        RAISE EXCEPTION 'the postings of a transaction do not sum to zero'
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER zero_sum AFTER INSERT ON posting REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_unbalanced();

-- The smallest UUIDv7 of a moment.
CREATE FUNCTION first_uuid(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT rpad(lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$;

-- Makes the partitions of the days from `first_day`, a day of UTC; those that exist stay as they are.
-- A table is made alone and then attached, so that inserts into other days never wait. A day whose
-- rows were already taken in by the default partition gets none: it cannot be attached any more.
CREATE FUNCTION make_day_partitions(first_day date, days integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    day date;
    parent text;
    child text;
    lower_id uuid;
    upper_id uuid;
    taken boolean;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('tollgate day partitions'));
    FOR day IN SELECT first_day + n FROM generate_series(0, days - 1) AS n LOOP
        lower_id := first_uuid(day::timestamp AT TIME ZONE 'UTC');
        upper_id := first_uuid((day + 1)::timestamp AT TIME ZONE 'UTC');
        FOREACH parent IN ARRAY ARRAY['usage_record', 'call_log_standard'] LOOP
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE call_id >= %L AND call_id < %L)',
                parent || '_default', lower_id, upper_id) INTO taken;
            CONTINUE WHEN taken;
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                child, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                parent, child, lower_id, upper_id);
        END LOOP;
    END LOOP;
END $$;
