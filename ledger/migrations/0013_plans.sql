-- What an organization pays for, and how long it keeps how its calls went.
ALTER TABLE organization
    ADD COLUMN plan          text NOT NULL DEFAULT 'free',
    ADD COLUMN log_level     text NOT NULL DEFAULT 'none',
    ADD COLUMN log_days      integer,
    ADD COLUMN logs_swept_to date;

CREATE TABLE grace_call (
    call_id uuid PRIMARY KEY
);
