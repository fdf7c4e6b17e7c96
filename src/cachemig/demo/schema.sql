-- The demo's table, in the shape of the rehabilitation app's own (a Supabase project).
-- It creates and never drops: on a database that has the table already it stops with an error.

CREATE TABLE public.therapy_sessions (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    patient_code     text NOT NULL,
    file_path        text NOT NULL,
    file_hash        varchar(64),                      -- SHA-256 of the recording, in hex; sessions may share one
    file_size_bytes  bigint,
    status           text NOT NULL DEFAULT 'pending'
                     CHECK (status IN ('pending', 'processing', 'completed', 'failed')),
    game_metadata    jsonb NOT NULL DEFAULT '{}',
    analytics_cache  jsonb DEFAULT '{}',               -- what is migrated; nullable, as in the application
    cache_hits       integer NOT NULL DEFAULT 0,
    last_accessed_at timestamptz,                      -- expiry counts from here
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now()
);

-- Not unique: the same recording can be uploaded for a second session.
CREATE INDEX therapy_sessions_file_hash_idx ON public.therapy_sessions (file_hash);
CREATE INDEX therapy_sessions_patient_code_idx ON public.therapy_sessions (patient_code, created_at);

-- As Supabase projects have it. Every UPDATE moves updated_at, one that only counts a cache hit too.
CREATE FUNCTION public.set_updated_at() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    NEW.updated_at = pg_catalog.now();
    RETURN NEW;
END
$$;

CREATE TRIGGER therapy_sessions_set_updated_at BEFORE UPDATE ON public.therapy_sessions
    FOR EACH ROW EXECUTE FUNCTION public.set_updated_at();
