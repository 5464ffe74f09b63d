-- What an organization may use while Redis is away, by choice.
ALTER TABLE organization
    ADD COLUMN grace_nanos bigint NOT NULL DEFAULT 0
        CHECK (grace_nanos BETWEEN 0 AND 9007199254740991);
