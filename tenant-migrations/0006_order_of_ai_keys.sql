-- Several AI keys answer in order: by position, then by age. One that is switched off is kept and not used. The names that
-- the tenant's users and programs ask for may be the tenant's own: {"alias": "the provider's name"}.
ALTER TABLE api_configurations
    ADD COLUMN position integer NOT NULL DEFAULT 0,
    ADD COLUMN enabled boolean NOT NULL DEFAULT true,
    ADD COLUMN model_aliases jsonb NOT NULL DEFAULT '{}';
