-- Which model a key means by none, where its calls may come from, and what members and projects may spend.
ALTER TABLE api_key
    ADD COLUMN default_model text,
    ADD COLUMN ip_ranges     text[];

ALTER TABLE organization ADD COLUMN ip_ranges text[];

ALTER TABLE member
    ADD COLUMN grants        text[] NOT NULL DEFAULT '{}',
    ADD COLUMN budget_limit  bigint CHECK (budget_limit >= 0),
    ADD COLUMN budget_period text
        CHECK (budget_period IN ('once', 'daily', 'weekly', 'monthly')
               AND (budget_limit IS NULL) = (budget_period IS NULL));

ALTER TABLE project
    ADD COLUMN budget_limit  bigint CHECK (budget_limit >= 0),
    ADD COLUMN budget_period text
        CHECK (budget_period IN ('once', 'daily', 'weekly', 'monthly')
               AND (budget_limit IS NULL) = (budget_period IS NULL));
