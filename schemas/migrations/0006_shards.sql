-- The shard of each document: CommCare's hash of its id (forms-and-cases.md §17), computed by the program for the rows that
-- are there before the next migration partitions these tables by it.
ALTER TABLE forms ADD COLUMN shard smallint;
ALTER TABLE form_operations ADD COLUMN shard smallint;
ALTER TABLE attachments ADD COLUMN shard smallint;
ALTER TABLE cases ADD COLUMN shard smallint;
ALTER TABLE case_indices ADD COLUMN shard smallint, ADD COLUMN referenced_shard smallint;
ALTER TABLE case_transactions ADD COLUMN shard smallint, ADD COLUMN form_shard smallint;
ALTER TABLE ledger_values ADD COLUMN shard smallint;
ALTER TABLE ledger_transactions ADD COLUMN shard smallint;
