-- The sweep of the object store asks whether anything still points to an object.
CREATE INDEX attachments_by_key ON attachments (key);
CREATE INDEX xml_packs_by_pack ON xml_packs (pack);
