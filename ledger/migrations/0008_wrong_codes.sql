-- How often somebody showed wrong codes of their second factor.
ALTER TABLE person
    ADD COLUMN otp_wrong       integer NOT NULL DEFAULT 0,
    ADD COLUMN otp_wrong_since timestamptz;
