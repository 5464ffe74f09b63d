-- Of two ends of a lost call the higher counts, so a correction may change the charge alone.

CREATE OR REPLACE VIEW usage_call AS
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
