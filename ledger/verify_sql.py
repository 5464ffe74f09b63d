"""The queries of `ledger.verify`: what is summed again, and where sums and records differ."""

_HOUR = """
    date_trunc('hour', CASE
        WHEN arrived_at < date_trunc('day', admitted_at, 'UTC') + interval '2 days'
        THEN admitted_at ELSE arrived_at END, 'UTC')
"""

# Each row of these is a difference: (place, expected, found).
DIFFERENCES = {
    "wallet base": """
        SELECT coalesce(w.id, e.id)::text AS place, coalesce(e.base, 0) AS expected, w.base AS found
        FROM wallet AS w FULL JOIN (
            SELECT id, sum(base)::bigint AS base FROM (
                SELECT p.account::uuid AS id, p.amount AS base
                FROM posting AS p JOIN ledger_transaction AS t USING (partition, number)
                WHERE t.kind <> 'flush' AND p.account LIKE '________-%-%-%-%'
                UNION ALL
                SELECT wallet_id, -charge FROM usage_record WHERE NOT moved
                UNION ALL
                SELECT wallet_id, base_delta FROM correction
            ) AS moves GROUP BY id
        ) AS e ON e.id = w.id
        WHERE w.base IS DISTINCT FROM coalesce(e.base, 0)
    """,
    "wallet spent": """
        SELECT coalesce(w.id, e.id)::text AS place, coalesce(e.spent, 0) AS expected,
               w.spent AS found
        FROM wallet AS w FULL JOIN (
            SELECT id, sum(spent)::bigint AS spent FROM (
                SELECT wallet_id AS id, charge AS spent FROM usage_record WHERE moved
                UNION ALL
                SELECT wallet_id, spent_delta FROM correction
                UNION ALL
                SELECT wallet_id, spent_delta FROM dead_letter
                WHERE wallet_id IS NOT NULL AND replay_number IS NULL
            ) AS moves GROUP BY id
        ) AS e ON e.id = w.id
        WHERE w.spent IS DISTINCT FROM coalesce(e.spent, 0)
    """,
    "posted balance": """
        SELECT w.id::text AS place, coalesce(p.amount, 0) AS expected, w.base - w.spent AS found
        FROM wallet AS w LEFT JOIN (
            SELECT account, sum(amount)::bigint AS amount FROM posting GROUP BY account
        ) AS p ON p.account = w.id::text
        WHERE w.base - w.spent <> coalesce(p.amount, 0)
    """,
    "sum of postings": """
        SELECT 'transaction ' || partition || '/' || number AS place, 0 AS expected,
               sum(amount)::bigint AS found
        FROM posting GROUP BY partition, number HAVING sum(amount) <> 0
    """,
    "posting": """
        SELECT format('%s in transaction %s/%s', coalesce(p.account, e.account),
                      coalesce(p.partition, e.partition), coalesce(p.number, e.number)) AS place,
               coalesce(e.amount, 0) AS expected, coalesce(p.amount, 0) AS found
        FROM (
            SELECT p.partition, p.number, p.account, p.amount
            FROM posting AS p JOIN ledger_transaction AS t USING (partition, number)
            WHERE t.kind = 'flush' AND p.account <> 'revenue'
        ) AS p FULL JOIN (
            SELECT partition, number, wallet_id::text AS account, sum(amount)::bigint AS amount
            FROM (
                SELECT partition, transaction_number AS number, wallet_id, -charge AS amount
                FROM usage_record
                UNION ALL
                SELECT partition, transaction_number, wallet_id, old_charge - charge
                FROM correction
                UNION ALL
                SELECT partition, transaction_number, wallet_id, -spent_delta
                FROM dead_letter WHERE wallet_id IS NOT NULL
                UNION ALL
                SELECT partition, replay_number, wallet_id, spent_delta
                FROM dead_letter WHERE wallet_id IS NOT NULL AND replay_number IS NOT NULL
            ) AS moves GROUP BY partition, number, wallet_id
        ) AS e USING (partition, number, account)
        WHERE coalesce(p.amount, 0) <> coalesce(e.amount, 0)
    """,
    "withdrawal": """
        SELECT format('%s %s of %s', coalesce(e.kind, p.kind), coalesce(e.reference, p.reference),
                      coalesce(e.account, p.account)) AS place,
               coalesce(e.amount, 0) AS expected, coalesce(p.amount, 0) AS found
        FROM (
            SELECT kind, reference, wallet_id::text AS account, -amount AS amount
            FROM withdrawal WHERE state = 'booked'
            UNION ALL
            SELECT 'transfer_in', reference, target_wallet_id::text, amount
            FROM withdrawal WHERE state = 'booked' AND kind = 'transfer'
        ) AS e FULL JOIN (
            SELECT t.kind, t.reference, p.account, p.amount
            FROM ledger_transaction AS t JOIN posting AS p USING (partition, number)
            WHERE p.account LIKE '________-%-%-%-%' AND (
                t.kind IN ('refund', 'transfer', 'transfer_in', 'payout')
                OR (t.kind = 'adjustment' AND p.amount < 0))
        ) AS p USING (kind, reference, account)
        WHERE e.amount IS DISTINCT FROM p.amount
    """,
    "sum of transfers": """
        SELECT 'account transfer' AS place, 0 AS expected, sum(amount)::bigint AS found
        FROM posting WHERE account = 'transfer' HAVING sum(amount) <> 0
    """,
    "transaction of a record": """
        SELECT DISTINCT 'transaction ' || r.partition || '/' || r.transaction_number AS place,
               'a transaction' AS expected, NULL AS found
        FROM usage_record AS r LEFT JOIN ledger_transaction AS t
            ON t.partition = r.partition AND t.number = r.transaction_number
        WHERE t.number IS NULL
    """,
    "correction": """
        SELECT 'correction ' || c.call_id || '/' || c.number AS place,
               format('%s %s, moves %s', b.kind, b.charge,
                      c.spent_delta - (c.charge - c.old_charge)) AS expected,
               format('%s %s, moves %s', c.old_kind, c.old_charge, c.base_delta) AS found
        FROM correction AS c
        LEFT JOIN LATERAL (
            SELECT kind, charge FROM (
                SELECT 0 AS number, kind, charge FROM usage_record WHERE call_id = c.call_id
                UNION ALL
                SELECT number, kind, charge FROM correction
                WHERE call_id = c.call_id AND number < c.number
            ) AS ends ORDER BY number DESC LIMIT 1
        ) AS b ON true
        WHERE (b.kind, b.charge) IS DISTINCT FROM (c.old_kind, c.old_charge)
           OR c.base_delta <> c.spent_delta - (c.charge - c.old_charge)
    """,
    "default partition": """
        SELECT 'call ' || call_id AS place, 'a partition of its day' AS expected, NULL AS found
        FROM usage_record_default
    """,
}

CHAIN_ENDS = "SELECT number, transaction_number, transaction_hash FROM part ORDER BY number"
TRANSACTIONS = """
    SELECT t.partition, t.number, t.kind, t.reference, t.actor, t.reason, t.previous_hash, t.hash,
           (extract(epoch FROM t.at) * 1000000)::bigint AS at_us,
           array(SELECT account FROM posting AS p
                 WHERE p.partition = t.partition AND p.number = t.number ORDER BY account)
               AS accounts,
           array(SELECT amount FROM posting AS p
                 WHERE p.partition = t.partition AND p.number = t.number ORDER BY account)
               AS amounts
    FROM ledger_transaction AS t ORDER BY t.partition, t.number
"""
AUDIT_ENDS = "SELECT id::text, audit_number, audit_hash FROM organization"
# $1: of one organization; null: of all.
AUDIT_LINES = """
    SELECT organization_id::text, number, actor, action, target, before, after, address,
           previous_hash, hash, (extract(epoch FROM at) * 1000000)::bigint AS at_us
    FROM audit_log WHERE $1::uuid IS NULL OR organization_id = $1
    ORDER BY organization_id, number
"""
AUDIT_END = "SELECT audit_number, audit_hash FROM organization WHERE id = $1"
CORRECTIONS = """
    SELECT call_id, number, old_kind, old_charge, kind, charge, spent_delta, windows, outcome,
           provider, model_target, usage_source, input, cache_read, cache_write, output, reasoning,
           list_price, (extract(epoch FROM arrived_at) * 1000000)::bigint AS arrived_us
    FROM correction ORDER BY call_id, number
"""
RECORD = """
    SELECT call_id, kind, charge, wallet_id::text, windows,
           (extract(epoch FROM admitted_at) * 1000000)::bigint AS admitted_us,
           organization_id::text, project_id::text, key_id::text, member_id::text, provider,
           model_target, outcome, usage_source, input, cache_read, cache_write, output, reasoning,
           list_price
    FROM usage_record WHERE call_id = $1
"""
WINDOWS = """
    SELECT w.id, w.base, w.spent,
           w.cap_limit - coalesce(e.late, 0) AS expected_base,
           coalesce(e.spent, 0) AS expected_spent
    FROM cap_window AS w LEFT JOIN (
        SELECT id, sum(spent)::bigint AS spent, sum(late)::bigint AS late FROM (
            SELECT unnest(windows) AS id, CASE WHEN moved THEN charge ELSE 0 END AS spent,
                   CASE WHEN moved THEN 0 ELSE charge END AS late
            FROM usage_record WHERE windows IS NOT NULL
            UNION ALL
            SELECT unnest(windows), spent_delta, 0 FROM dead_letter
            WHERE windows IS NOT NULL AND replay_number IS NULL
        ) AS charged GROUP BY id
    ) AS e ON e.id = w.id
"""
HOURS = f"""
    SELECT (extract(epoch FROM hour) * 1000000)::bigint AS hour_us, organization_id::text,
           project_id::text, key_id::text, member_id::text, provider, model,
           coalesce(h.calls, 0) AS calls, coalesce(h.successes, 0) AS successes,
           coalesce(h.estimated, 0) AS estimated, coalesce(h.input, 0) AS input,
           coalesce(h.cache_read, 0) AS cache_read, coalesce(h.cache_write, 0) AS cache_write,
           coalesce(h.output, 0) AS output, coalesce(h.reasoning, 0) AS reasoning,
           coalesce(h.charge, 0) AS charge, coalesce(h.list_price, 0) AS list_price,
           coalesce(r.calls, 0) AS expected_calls, coalesce(r.successes, 0) AS expected_successes,
           coalesce(r.estimated, 0) AS expected_estimated, coalesce(r.input, 0) AS expected_input,
           coalesce(r.cache_read, 0) AS expected_cache_read,
           coalesce(r.cache_write, 0) AS expected_cache_write,
           coalesce(r.output, 0) AS expected_output, coalesce(r.reasoning, 0) AS expected_reasoning,
           coalesce(r.charge, 0) AS expected_charge,
           coalesce(r.list_price, 0) AS expected_list_price
    FROM usage_hourly AS h FULL JOIN (
        SELECT organization_id, {_HOUR} AS hour, project_id, key_id, member_id, provider,
               model_target AS model, count(*) AS calls,
               count(*) FILTER (WHERE outcome = 'success') AS successes,
               count(*) FILTER (WHERE usage_source = 'estimated') AS estimated,
               sum(input)::bigint AS input, sum(cache_read)::bigint AS cache_read,
               sum(cache_write)::bigint AS cache_write, sum(output)::bigint AS output,
               sum(reasoning)::bigint AS reasoning, sum(charge)::bigint AS charge,
               sum(list_price)::bigint AS list_price
        FROM usage_record
        GROUP BY organization_id, {_HOUR}, project_id, key_id, member_id, provider, model_target
    ) AS r USING (organization_id, hour, project_id, key_id, member_id, provider, model)
"""  # noqa: S608 - the inserted text is the constant above
SHEETS = "SELECT version, sheet FROM price_sheet"
# Calls whose usage the gateway itself priced: a swept call's charge is what it had told last.
PRICED = """
    SELECT call_id, provider, model_target, price_version, tier, charge, list_price, reported_cost,
           input, cache_read, cache_write, output, reasoning, other_usage,
           (extract(epoch FROM admitted_at) * 1000000)::bigint AS admitted_us
    FROM usage_record
    WHERE kind = 'settled' AND price_version IN (SELECT version FROM price_sheet)
"""
