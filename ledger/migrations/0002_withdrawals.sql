-- Money that leaves a wallet by choice, and how dead letters are resolved.

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

-- replayed: read again and posted as what it is. written off: left as it is, for a reason.
ALTER TABLE dead_letter
    ADD COLUMN resolution text CHECK (resolution IN ('replayed', 'written off')),
    ADD COLUMN resolution_reason text,
    ADD COLUMN replay_number bigint;         -- the transaction that takes `spent_delta` back
