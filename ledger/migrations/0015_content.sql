-- What was said in calls, of projects that opted in where their organization allows it.
ALTER TABLE organization
    ADD COLUMN content_logging      boolean NOT NULL DEFAULT false,
    ADD COLUMN content_forgotten_at timestamptz;
ALTER TABLE project ADD COLUMN content_logging boolean NOT NULL DEFAULT false;

CREATE TABLE content_key (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    day             date NOT NULL,
    sealed          bytea
);
CREATE UNIQUE INDEX content_key_in_use ON content_key (organization_id, day) WHERE sealed IS NOT NULL;

CREATE TABLE call_content (
    organization_id uuid NOT NULL,
    call_id         uuid NOT NULL,
    key_id          uuid NOT NULL,
    packed          bytea NOT NULL,
    PRIMARY KEY (organization_id, call_id)
);
