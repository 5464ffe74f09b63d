-- Passkeys, identities at issuers of OpenID Connect, and the challenges that were used.
CREATE TABLE passkey (
    id            uuid PRIMARY KEY,
    person_id     uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    credential_id bytea NOT NULL UNIQUE,
    public_key    bytea NOT NULL,
    name          text NOT NULL,
    sign_count    bigint NOT NULL,
    can_be_backed_up boolean NOT NULL,
    is_backed_up  boolean NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    used_at       timestamptz,
    version       bigint NOT NULL DEFAULT 1
);
CREATE INDEX passkey_person ON passkey (person_id);

CREATE TABLE identity (
    id         uuid PRIMARY KEY,
    person_id  uuid NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    issuer     text NOT NULL,
    subject    text NOT NULL,
    email      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at    timestamptz,
    UNIQUE (issuer, subject)
);
CREATE INDEX identity_person ON identity (person_id);

CREATE TABLE used_challenge (
    digest     bytea PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE INDEX used_challenge_expires ON used_challenge (expires_at);
