-- Tells this installation from every other; a checkpoint of the dataflow is of use to its own alone.
INSERT INTO secrets (name, value) VALUES ('installation', gen_random_uuid()::text);
