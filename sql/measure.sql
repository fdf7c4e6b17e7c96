-- What measure times. Reads only, one row or a few, by the index on the key.

-- name: row
SELECT n.* FROM {table} AS n WHERE n.{key} = {wanted}::{key_type} AND {n_nonempty} ORDER BY {n_order} LIMIT 1;

-- name: column
SELECT n.{column} FROM {table} AS n WHERE n.{key} = {wanted}::{key_type} AND {n_nonempty} ORDER BY {n_order} LIMIT 1;

-- name: text
SELECT n.{column}::text FROM {table} AS n
WHERE n.{key} = {wanted}::{key_type} AND {n_nonempty} ORDER BY {n_order} LIMIT 1;

-- name: others
SELECT {others} FROM {table} AS n WHERE n.{key} = {wanted}::{key_type} AND {n_nonempty} ORDER BY {n_order} LIMIT 1;

-- name: list
SELECT n.* FROM {table} AS n WHERE {n_nonempty} LIMIT {limit};

-- name: list_others
SELECT {others} FROM {table} AS n WHERE {n_nonempty} LIMIT {limit};
