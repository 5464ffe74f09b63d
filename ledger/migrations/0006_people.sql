-- People, how they sign in, and what an organization lets each of them do.
CREATE TABLE person (
    id           uuid PRIMARY KEY,
    email        text NOT NULL,
    name         text NOT NULL DEFAULT '',
    password     text,
    verified_at  timestamptz,
    is_operator  boolean NOT NULL DEFAULT false,
    disabled_at  timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    version      bigint NOT NULL DEFAULT 1,
    account_id   uuid REFERENCES organization (id),
    otp_secret   bytea,
    otp_since    timestamptz,
    otp_step     bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX person_email ON person (lower(email));

CREATE TABLE recovery_code (
    person_id uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    digest    bytea NOT NULL,
    used_at   timestamptz,
    PRIMARY KEY (person_id, digest)
);

CREATE TABLE session (
    id         uuid PRIMARY KEY,
    person_id  uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    digest     bytea NOT NULL UNIQUE,
    is_strong  boolean NOT NULL,
    address    text NOT NULL,
    agent      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    ended_at   timestamptz
);
CREATE INDEX session_person ON session (person_id) WHERE ended_at IS NULL;

CREATE TABLE link (
    digest     bytea PRIMARY KEY,
    purpose    text NOT NULL CHECK (purpose IN ('verify', 'reset', 'sign-in')),
    person_id  uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);

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

ALTER TABLE organization
    ADD COLUMN description   text NOT NULL DEFAULT '',
    ADD COLUMN billing_email text,
    ADD COLUMN preset        text NOT NULL DEFAULT 'platform',
    ADD COLUMN switches      jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN limits        jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN deleted_at    timestamptz;

ALTER TABLE member ADD COLUMN version bigint NOT NULL DEFAULT 1;

CREATE TABLE seat (
    person_id       uuid NOT NULL REFERENCES person (id),
    organization_id uuid NOT NULL REFERENCES organization (id),
    member_id       uuid NOT NULL UNIQUE REFERENCES member (id),
    PRIMARY KEY (person_id, organization_id)
);

ALTER TABLE project
    ADD COLUMN description text NOT NULL DEFAULT '',
    ADD COLUMN version     bigint NOT NULL DEFAULT 1;

CREATE TABLE invitation (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization (id),
    email           text NOT NULL,
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

CREATE TABLE answered (
    caller      text NOT NULL,
    key         text NOT NULL,
    fingerprint bytea NOT NULL,
    asked_at    timestamptz NOT NULL DEFAULT now(),
    status      integer,
    body        bytea,
    version     bigint,
    PRIMARY KEY (caller, key)
);
CREATE INDEX answered_at ON answered (asked_at);

CREATE TABLE mail (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    recipient  text NOT NULL,
    subject    text NOT NULL,
    text       text NOT NULL,
    html       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    next_at    timestamptz NOT NULL DEFAULT now(),
    tries      integer NOT NULL DEFAULT 0,
    sent_at    timestamptz,
    error      text
);
CREATE INDEX mail_waiting ON mail (next_at) WHERE sent_at IS NULL;
