-- Keys that rest, and keys with more than one secret.
ALTER TABLE api_key
    ADD COLUMN description text NOT NULL DEFAULT '',
    ADD COLUMN disabled_at timestamptz,
    ADD COLUMN disabled_by uuid REFERENCES member (id);

-- A gateway of the release before knows none of these secrets and refuses them, which is safe.
CREATE TABLE key_secret (
    digest     bytea PRIMARY KEY,
    key_id     uuid NOT NULL REFERENCES api_key (id),
    member_id  uuid REFERENCES member (id),
    last4      text NOT NULL,
    sealed     bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    ends_at    timestamptz,
    CHECK ((member_id IS NULL) = (sealed IS NULL)),
    CHECK (member_id IS NOT NULL OR ends_at IS NOT NULL)
);
CREATE INDEX key_secret_key ON key_secret (key_id);
CREATE UNIQUE INDEX key_secret_member ON key_secret (key_id, member_id) WHERE ends_at IS NULL;
