-- What a rehearsal asks of a throw-away database: how a table's rows must look. All of it only reads the catalog.

-- name: rehearsal_columns
-- The columns that a row can be given, in their order.
SELECT a.attname,
       pg_catalog.format_type(a.atttypid, a.atttypmod),
       a.attnotnull,
       a.atthasdef OR a.attidentity <> '',
       CASE WHEN t.typtype = 'e'
            THEN (SELECT e.enumlabel FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder LIMIT 1)
       END,
       pg_catalog.format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL),
       t.typcategory
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = {table}::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum;

-- name: rehearsal_checks
-- Texts that a check of one column quotes: one of them may be what the column wants.
SELECT a.attname, ARRAY(SELECT (m)[1] FROM pg_catalog.regexp_matches(pg_catalog.pg_get_constraintdef(c.oid), '''([^'']+)''', 'g') m)
FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
WHERE c.conrelid = {table}::regclass AND c.contype = 'c' AND pg_catalog.cardinality(c.conkey) = 1;

-- name: rehearsal_executed
-- What each command ran, from the journal.
SELECT command, ARRAY(SELECT pg_catalog.jsonb_array_elements_text(figures -> 'sql'))
FROM cachemig.journal WHERE pg_catalog.jsonb_typeof(figures -> 'sql') = 'array' ORDER BY id;

-- name: rehearsal_keys
-- Every key that was ever handled; a rehearsal's table is small.
SELECT key FROM cachemig.entry;
